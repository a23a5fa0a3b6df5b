"""Orbax checkpoints: the latest, to resume from, and the best, to predict with, kept apart.

They live in folders of their own because Orbax, told to keep the best, deletes the newest when it
is worse. Both are written whole or not at all (to a temporary name, then renamed), so that a kill
at any moment leaves the previous one.

A frozen backbone is much larger than what is trained on it, and never changes: checkpoints hold
its hash, and `restore` is given it again by whoever made it of its file or seed.
"""

import dataclasses
import errno
import hashlib
import json
import os
import pathlib
import tempfile
import textwrap
from typing import Any

import jax
import orbax.checkpoint as ocp

from heatmap import processes
from heatmap.errors import UserError
from heatmap.state import BACKBONE, TrainState, Tree, tree_sha256

LATEST, BEST = "latest", "best"
Meta = dict[str, Any]


class Checkpoints:
    """One of the two folders under `checkpoints/` of a workdir."""

    def __init__(self, workdir: pathlib.Path, kind: str, clean: bool = False):
        """Opens the folder.

        Args:
          workdir: of the run.
          kind: LATEST or BEST.
          clean: remove what a kill left half-written; for the one process that writes.

        Raises:
          UserError: if what is there is damaged so that it cannot even be listed.
        """
        self.folder = workdir.absolute() / "checkpoints" / kind
        # The best so far stays until the latest, which names it, is on disk: see `keep_only`.
        options = ocp.CheckpointManagerOptions(
            max_to_keep={LATEST: 1, BEST: 2}[kind],
            enable_async_checkpointing=False,
            cleanup_tmp_directories=clean,
        )
        try:
            self._manager = ocp.CheckpointManager(self.folder, options=options)
        except OSError:
            raise
        except Exception as error:  # Orbax reads the metadata of each, and raises what JSON does
            raise UserError(
                f"{self.folder} cannot be read ({_reason(error)}): a file in it is damaged; put it "
                "back from a copy, or train in another --workdir."
            ) from error
        self._backbone_sha256: str | None = None  # of the frozen one, once it has been computed

    def step(self) -> int | None:
        """Returns the step of the newest whole checkpoint, or None."""
        return self._manager.latest_step()

    def has(self, step: int) -> bool:
        """Says whether there is a whole checkpoint of a step."""
        return step in self._manager.all_steps()

    def keep_only(self, step: int) -> None:
        """Removes the checkpoints of all other steps."""
        for other in self._manager.all_steps():
            if other != step:
                self._manager.delete(other)

    def save(self, step: int, tree: Tree, meta: Meta) -> None:
        """Writes a checkpoint and returns when it is on disk.

        Args:
          step: its name; a checkpoint of the same step or a later one is replaced, since a run
            that was set back comes past it again.
          tree: arrays; a frozen backbone is left out.
          meta: what JSON can hold: config, split, points, log.

        Raises:
          OSError: naming the folder, if there is no room, before anything is removed or written.
        """
        tree, backbone = _divide(tree)
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(tree))
        failure = self._lack_of_room(size) if processes.is_first() else None
        if processes.any_says(failure is not None):
            raise failure or OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.folder))
        for stale in self._manager.all_steps():
            if stale >= step:
                self._manager.delete(stale)
        if not processes.are_several():
            # Of arrays on several devices, Orbax would cut a slice for each to write.
            tree = jax.device_get(tree)
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(tree),
            meta=ocp.args.JsonSave(meta),
            # The array files have no checksum of their own: a flipped bit would pass unseen.
            check=ocp.args.JsonSave(
                {
                    "sha256": tree_sha256(tree),
                    "backbone_sha256": self._backbone_hash(backbone),
                    "meta_sha256": _json_sha256(meta),
                }
            ),
        )
        self._manager.save(step, args=args)
        self._manager.wait_until_finished()

    def _lack_of_room(self, size: int) -> OSError | None:
        """Reserves as many bytes and gives them back, or says why it cannot.

        Orbax writes from threads of its own, which on a full disk fail one by one and noisily.
        """
        try:
            with tempfile.TemporaryFile(dir=self.folder) as file:
                if hasattr(os, "posix_fallocate"):  # macOS has none
                    os.posix_fallocate(file.fileno(), 0, max(size, 1))
        except OSError as error:
            # Some file systems cannot reserve.
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                return OSError(error.errno, error.strerror, str(self.folder))
        return None

    def meta(self) -> Meta:
        """Reads the JSON part of the newest checkpoint.

        Raises:
          UserError: if there is none, or it cannot be read.
        """
        items = {"meta": ocp.args.JsonRestore(), "check": ocp.args.JsonRestore()}
        restored = self._restore(ocp.args.Composite(**items))
        meta = self._dictionary(restored["meta"])
        now = _json_sha256(meta)
        # Checkpoints of the first days have no such hash.
        if self._dictionary(restored["check"]).get("meta_sha256", now) != now:
            raise self._unreadable("its description is not the one that was written")
        return meta

    def _dictionary(self, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self._unreadable("a description in it is no dictionary")
        return value

    def restore(self, like: Tree, step: int | None = None, frozen: Tree | None = None) -> Tree:
        """Reads the arrays of a checkpoint.

        Args:
          like: a tree of `jax.ShapeDtypeStruct` with shardings, on any number of devices.
          step: which; by default the newest.
          frozen: frozen parameters made anew, of which the backbone is taken, if `like` has one.

        Returns:
          The tree with arrays.

        Raises:
          UserError: if there is none, it is damaged, or its arrays or the backbone do not fit.
        """
        like, described = _divide(like)
        items = {"state": ocp.args.StandardRestore(like), "check": ocp.args.JsonRestore()}
        restored = self._restore(ocp.args.Composite(**items), step)
        tree, check = restored["state"], self._dictionary(restored["check"])
        if check.get("sha256") != tree_sha256(tree):
            raise self._unreadable("the arrays are not those that were written")
        backbone = {name: (frozen or {})[name] for name in described}
        now, then = self._backbone_hash(backbone), check.get("backbone_sha256")
        if now != then:
            raise self._unreadable(
                f"its frozen backbone had the sha256 {then!s:.12}, and what model.backbone_weights "
                f"or the seed give now has {now:.12}"
            )
        return {**tree, "frozen": {**tree["frozen"], **backbone}} if backbone else tree

    def _backbone_hash(self, backbone: Tree) -> str:
        """Hashes a frozen backbone once: it is large, and stays as it is."""
        if self._backbone_sha256 is None:
            self._backbone_sha256 = tree_sha256(backbone) if backbone else ""
        return self._backbone_sha256

    def _restore(self, args: ocp.args.Composite, step: int | None = None) -> Any:
        step = self.step() if step is None else step
        if step is None:
            raise UserError(f"{self.folder} holds no checkpoint; train first.")
        try:
            return self._manager.restore(step, args=args)
        except Exception as error:  # Orbax raises bare ones for a missing array file
            raise self._unreadable(_reason(error)) from error

    def _unreadable(self, reason: str) -> UserError:
        return UserError(
            f"{self.folder / str(self.step())} cannot be restored ({reason}): it is damaged or of "
            "another model; put it back from a copy, or train in another --workdir."
        )


def _reason(error: Exception) -> str:
    """Says in a line what Orbax has raised."""
    return textwrap.shorten(str(error), 200, placeholder=" …") or type(error).__name__


def _json_sha256(value: Any) -> str:
    """Hashes what JSON keeps of a value."""
    kept = json.loads(json.dumps(value))
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def shapes(tree: Tree, shardings: Tree) -> Tree:
    """Describes arrays without holding them: what `Checkpoints.restore` asks for.

    Args:
      tree: arrays, or their shapes.
      shardings: where each is to go, as from `state.divided`.
    """
    return jax.tree.map(
        lambda a, place: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), tree, shardings
    )


def _divide(tree: Tree) -> tuple[Tree, Tree]:
    """Splits the frozen backbone, {'backbone': …} or {}, off a tree that has a part 'frozen'."""
    backbone = {k: v for k, v in tree["frozen"].items() if k == BACKBONE}
    frozen = {k: v for k, v in tree["frozen"].items() if k != BACKBONE}
    return {**tree, "frozen": frozen}, backbone


def as_tree(state: TrainState) -> dict[str, Tree]:
    """Spells a state as the dictionary that is stored."""
    return {f.name: getattr(state, f.name) for f in dataclasses.fields(state)}


def saved_step(workdir: pathlib.Path) -> int | None:
    """Returns the step that a run would resume from, without making any folder, or None."""
    folder = workdir / "checkpoints" / LATEST
    steps = [int(path.name) for path in folder.glob("*") if path.name.isdigit()]
    return max(steps, default=None)
