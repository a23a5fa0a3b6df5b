"""Builds what a config describes, and opens what a workdir holds."""

import dataclasses
import math
import pathlib
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from heatmap import checkpoint, models, objective, workdir
from heatmap import config as config_lib
from heatmap import state as state_lib
from heatmap.config import Config
from heatmap.errors import UserError
from heatmap.keypoints import KeypointSet
from heatmap.models import pretrained
from heatmap.models.rngs import Rngs
from heatmap.state import BACKBONE, Network, Tree


@dataclasses.dataclass(frozen=True)
class Run:
    """A model with the meaning of what it finds.

    Attributes:
      config: the run's config.
      points: what the K points mean.
      network: the static part of the model.
      mesh: the devices.
      weights: {'params', 'frozen', 'stats'}, on the devices of the mesh.
    """

    config: Config
    points: KeypointSet
    network: Network
    mesh: jax.sharding.Mesh
    weights: dict[str, Tree]


def check(config: Config, points: KeypointSet) -> None:
    """Finds that the parts of a model fit one another, and makes none of its arrays.

    Raises:
      UserError: naming the fields that do not fit.
    """
    _describe(config, points)


def build(config: Config, points: KeypointSet) -> Run:
    """Builds a model with fresh weights, after checking that the parts fit one another.

    The backbone, if the model has one, comes from its file or from the seed.

    Raises:
      UserError: naming the fields that do not fit.
    """
    network, shapes = _describe(config, points)
    mesh = state_lib.create_mesh(config.model.shards)

    def initialise():
        model = models.create(config, points.count, Rngs(config.seed))
        weights = _split(config, model)[1]
        return {part: _without_backbone(tree) for part, tree in weights.items()}

    weights = _in_place(initialise, mesh)
    for part, backbone in _backbone(config, points, shapes, mesh).items():
        weights[part][BACKBONE] = backbone
    return Run(config, points, network, mesh, weights)


def open_run(folder: pathlib.Path, config: Config | None = None) -> Run:
    """Opens the best checkpoint of a workdir.

    Args:
      folder: a workdir.
      config: settings to use in place of the stored ones, such as another decoder.

    Returns:
      The run with its trained weights.

    Raises:
      UserError: if the folder is no workdir, or has no checkpoint yet.
    """
    config = config or workdir.read_config(folder)
    meta = checkpoint.Checkpoints(folder, checkpoint.LATEST).meta()
    check_config(folder, meta, config, ignore=(*config_lib.RESUMABLE, "decoder.", "eval."))
    if meta["best"] is None:
        raise UserError(f"{folder} has not been evaluated yet; train on first.")
    best = checkpoint.Checkpoints(folder, checkpoint.BEST)
    points = KeypointSet.from_json(meta["points"])
    network, shapes = _describe(config, points)
    # Fewer devices than trained it may not divide alike.
    mesh = state_lib.create_mesh(math.gcd(config.model.shards, jax.device_count()))
    like = checkpoint.shapes(shapes, state_lib.divided(mesh, shapes))
    frozen = {}
    if BACKBONE in shapes["frozen"]:
        frozen[BACKBONE] = _backbone(config, points, shapes, mesh)["frozen"]
    weights = best.restore(like, meta["best"]["step"], frozen)
    return Run(config, points, network, mesh, weights)


def check_config(
    folder: pathlib.Path, meta: checkpoint.Meta, config: Config, ignore: tuple[str, ...]
) -> None:
    """Refuses a config that is not the one stored in a checkpoint.

    Raises:
      UserError: naming the fields that differ, other than those to ignore.
    """
    stored = config_lib.from_mapping(meta["config"])
    changed = config_lib.differences(stored, config, ignore)
    if changed:
        raise UserError(
            f"The checkpoints in {folder} are of another config ({'; '.join(changed)}); choose "
            "another --workdir or the same settings."
        )


def network_input(batch: Mapping[str, jax.Array], config: Config):
    """Returns what the network is given of a batch: its pictures, or features kept of them."""
    if "patches" in batch:
        return batch["patches"], batch["cls_token"]
    return normalise_pixels(batch["image"], config)


def normalise_pixels(image: jax.Array, config: Config) -> jax.Array:
    """Turns uint8 pixels [B, H, W, C] into what the network sees: (x/255 - mean)/std, float32."""
    mean, std = (jnp.array(v, jnp.float32) for v in (config.data.mean, config.data.std))
    return (image.astype(jnp.float32) / 255.0 - mean) / std


def _describe(config: Config, points: KeypointSet) -> tuple[Network, dict[str, Tree]]:
    """Returns the static part of a model and the shapes of its weights, checked but not made."""
    if config.loss.interchangeable and not points.interchangeable_pairs:
        raise UserError(
            "loss.interchangeable=True, and no points are: name them in data.interchangeable_pairs."
        )
    model = nnx.eval_shape(lambda: models.create(config, points.count, Rngs(config.seed)))
    objective.check(config, model.output)
    return _split(config, model)


def _split(config: Config, model: nnx.Module) -> tuple[Network, dict[str, Tree]]:
    """Divides a model as `state.split_model` does, its backbone frozen where the config says so."""
    frozen = config.optim.freeze_paths
    if config.model.freeze_backbone and hasattr(model, BACKBONE):
        frozen = (f"^{BACKBONE}/", *frozen)
    return state_lib.split_model(model, frozen)


def _in_place(initialise: Callable[[], Tree], mesh: jax.sharding.Mesh) -> Tree:
    """Makes arrays where they stay, by one program: the same numbers on any number of devices."""
    places = state_lib.divided(mesh, jax.eval_shape(initialise))
    # It runs once, and on a CPU takes far longer to be compiled well than to run.
    on_cpu = mesh.devices.flat[0].platform == "cpu"
    options = {"xla_backend_optimization_level": "1"} if on_cpu else None
    return jax.jit(initialise, out_shardings=places, compiler_options=options)()


def _without_backbone(tree: Tree) -> Tree:
    return {name: part for name, part in tree.items() if name != BACKBONE}


def _backbone(
    config: Config, points: KeypointSet, shapes: dict[str, Tree], mesh: jax.sharding.Mesh
) -> dict[str, Tree]:
    """Makes a backbone's parameters: reads those that were pretrained, or draws them anew.

    Returns:
      For each part of the weights that has some of them, {'params', 'frozen'}, its own.
    """
    parts = {part: tree[BACKBONE] for part, tree in shapes.items() if BACKBONE in tree}
    if not parts:
        return {}
    if config.model.backbone_init == "pretrained":
        whole = pretrained.load_for(config, mesh)
    else:

        def initialise():
            model = models.create(config, points.count, Rngs(config.seed))
            return nnx.to_pure_dict(nnx.state(getattr(model, BACKBONE), nnx.Param))

        whole = _in_place(initialise, mesh)
    arrays = dict(jax.tree_util.tree_leaves_with_path(whole))
    return jax.tree_util.tree_map_with_path(lambda path, _: arrays[path[1:]], parts)
