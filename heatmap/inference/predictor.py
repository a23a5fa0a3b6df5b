"""Reads points off pictures with one trained model, or several that vote, also in the mirror.

What is averaged are the maps: a point between two peaks that no model has seen is no one's answer.
Peaks are averaged as they are, logits as probabilities; a network without maps by its coordinates.
Where the loss takes the ends of a pair in either order, each answer is first put into the order
that is nearest to the first one's.
"""

import functools
import hashlib
import json
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from heatmap import config as config_lib
from heatmap import decoding, geometry
from heatmap import run as run_lib
from heatmap import state as state_lib
from heatmap.checks import sides
from heatmap.config import Config
from heatmap.decoding import Decoded
from heatmap.errors import UserError
from heatmap.fields import choose
from heatmap.keypoints import KeypointSet, Pair
from heatmap.losses import LOSSES
from heatmap.run import Run

# What models that vote must have in common, besides their points: what they are given, and what
# their maps mean.
_SHARED = (
    *("data.image_size", "data.channels", "data.crop", "data.box_padding", "data.fit"),
    *("targets.heatmap_size", "targets.sigma", "targets.equal_energy"),
    *("loss.name", "loss.interchangeable", "model.shards"),
)
_TINY = 1e-12
_FEATURES = 64  # numbers that are kept of a picture to compare it by


class Examined(NamedTuple):
    """What models say of a batch of pictures, to rank the pictures by.

    Attributes:
      decoded: what they say together; where there are no maps, but several answers, with the
        covariance of these.
      features: [B, F] of the first model: pictures that look alike to it lie near one another.
    """

    decoded: Decoded
    features: jax.Array


class Predictor:
    """Models that answer together.

    Attributes:
      runs: with their weights; the first one's config says how pictures are read and decoded.
      flip: whether each is also asked about the mirrored picture.
      config: of the first run.
      points: what the K points mean.
      mesh: the devices.
    """

    def __init__(self, runs: Sequence[Run], flip: bool = False):
        """Compiles nothing yet.

        Raises:
          UserError: if the models do not answer the same question, or a mirror would exchange their
            left and right unnoticed.
        """
        first, *others = runs
        self.runs, self.flip = tuple(runs), flip
        self.config, self.points, self.mesh = first.config, first.points, first.mesh
        for other in others:
            _check_alike(first, other)
        if flip:
            _check_mirror(self.points)
        trains = choose(LOSSES, self.config.loss.name, "loss.name").trains
        self._trains = trains
        self._pairs = self.points.interchangeable_pairs if self.config.loss.interchangeable else ()
        self._weights = [run.weights for run in runs]
        compiled = functools.partial(jax.jit, out_shardings=state_lib.replicated(self.mesh))
        self._step, self._examine = compiled(self._decode), compiled(self._look)

    def __call__(self, images) -> Decoded:
        """Reads the points of a batch of network inputs, uint8 [B, H, W, C], on the devices."""
        with jax.set_mesh(self.mesh):
            return self._step(self._weights, images)

    def examine(self, images) -> Examined:
        """Reads the points of a batch as a call does, and says what else there is to rank it by."""
        with jax.set_mesh(self.mesh):
            return self._examine(self._weights, images)

    def identity(self) -> str:
        """Hashes all that the answers depend on: weights, what models are given, the decoder."""
        settings = [
            {name: flat[name] for name in (*_SHARED, "data.mean", "data.std")}
            | {name: value for name, value in flat.items() if name.startswith("decoder.")}
            for flat in (config_lib.flat(run.config) for run in self.runs)
        ]
        hashes = [state_lib.tree_sha256(run.weights) for run in self.runs]
        told = json.dumps([settings, hashes, self.flip], sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()

    @property
    def free_pairs(self) -> tuple[Pair, ...]:
        """The pairs of which either order is right: the loss takes both, or no picture tells."""
        free = self.config.loss.interchangeable or not self.points.order_known
        return self.points.interchangeable_pairs if free else ()

    def _decode(self, weights: list[Any], images) -> Decoded:
        return decoding.decode(self.config, self._combined(self._outputs(weights, images)))

    def _look(self, weights: list[Any], images) -> Examined:
        outputs = self._outputs(weights, images)
        decoded = decoding.decode(self.config, self._combined(outputs))
        if self._trains == "coordinates" and len(outputs) > 1:
            places = jnp.stack([decoding.decode(self.config, o).keypoints for o in outputs])
            apart = places - places.mean(axis=0)
            covariance = jnp.einsum("mbki,mbkj->bkij", apart, apart) / len(outputs)
            decoded = decoded._replace(covariance=covariance)
        pixels = run_lib.normalise_pixels(images, self.config)
        # The compiler finds that `predict` has computed most of this already.
        features = self.runs[0].network.describe(weights[0], pixels)
        return Examined(decoded, _projected(features))

    def _outputs(self, weights: list[Any], images) -> list[jax.Array]:
        """Asks each model, also in the mirror; pairs are in the order of the first answer."""
        outputs: list[jax.Array] = []
        for run, parts in zip(self.runs, weights, strict=True):
            pixels = run_lib.normalise_pixels(images, run.config)
            outputs.append(run.network.predict(parts, pixels))
            if self.flip:
                outputs.append(self._unmirrored(run.network.predict(parts, pixels[:, :, ::-1])))
        if len(outputs) == 1:
            return outputs
        axis = 1 if self._trains == "coordinates" else 3
        first, *others = (self._comparable(output) for output in outputs)
        ordered = [first, *(_in_order_of(first, other, self._pairs, axis) for other in others)]
        return [self._readable(vote) for vote in ordered]

    def _unmirrored(self, output):
        """Turns what a model says of the mirrored picture into what it means for the picture."""
        permutation = self.points.flip_permutation()
        if self._trains == "coordinates":
            return (output * jnp.array([-1.0, 1.0]) + jnp.array([1.0, 0.0]))[:, permutation]
        return output[:, :, ::-1, permutation]

    def _combined(self, outputs: list[jax.Array]) -> jax.Array:
        if len(outputs) == 1:
            return outputs[0]
        return self._readable(sum(map(self._comparable, outputs)) / len(outputs))

    def _comparable(self, output):
        """Turns logits, which are known up to a constant, into probabilities."""
        return jax.nn.softmax(output, axis=(1, 2)) if self._trains == "logits" else output

    def _readable(self, vote):
        """Inverts `_comparable`."""
        return jnp.log(jnp.maximum(vote, _TINY)) if self._trains == "logits" else vote


def open_all(folders: Sequence[pathlib.Path], flip: bool = False) -> Predictor:
    """Opens the best checkpoints of workdirs.

    Raises:
      UserError: if one is no workdir of a trained run, or they do not answer the same question.
    """
    return Predictor([run_lib.open_run(folder) for folder in folders], flip)


def lack_of_boxes(config: Config) -> str:
    """Says what is wanting in whole pictures that a run is asked about, or '' if nothing is."""
    if config.data.crop != "box":
        return ""
    return (
        "This run was trained on crops by boxes (data.crop='box') and given whole pictures without "
        "any, so that its points may be far off: give the boxes of the instances."
    )


def in_original_pixels(
    decoded: Decoded, input_from_original: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Takes what was read off [N, …] in input pixels back to the pictures.

    Args:
      decoded: on the host or a device.
      input_from_original: [N, 3, 3], without rotation, as pictures are predicted.

    Returns:
      (points [N, K, 2]; their maps' covariance [N, K, 2, 2] px²; pixels of the picture to one of
      the input, [N, 2], across and down).
    """
    back = geometry.invert(input_from_original)
    points = geometry.apply(back, np.asarray(decoded.keypoints, np.float64))
    linear = back[:, None, :2, :2]
    covariance = np.asarray(decoded.covariance, np.float64)
    covariance = linear @ covariance @ np.swapaxes(linear, -1, -2)
    return points, covariance, np.abs(np.diagonal(back[:, :2, :2], axis1=1, axis2=2))


def _projected(features):
    """Keeps few numbers of [B, F]: a random projection keeps distances (Johnson, Lindenstrauss)."""
    width = features.shape[-1]
    if width <= _FEATURES:
        return features
    directions = jax.random.normal(jax.random.key(0), (width, _FEATURES)) / _FEATURES**0.5
    return features.astype(jnp.float32) @ directions


def _in_order_of(first, other, pairs: Sequence[Pair], axis: int):
    """Exchanges the ends of each pair in `other` where that brings them nearer to `first`.

    Args:
      first: [B, …] with the points on `axis`.
      other: likewise.
      pairs: of points.
      axis: of the points.
    """

    def apart(i: int, j: int) -> jax.Array:  # [B]
        difference = jnp.take(first, i, axis) - jnp.take(other, j, axis)
        return (difference**2).reshape(len(first), -1).sum(axis=1)

    for a, b in pairs:
        swap = apart(a, b) + apart(b, a) < apart(a, a) + apart(b, b)
        order = list(range(other.shape[axis]))
        order[a], order[b] = b, a
        swapped = jnp.take(other, jnp.array(order), axis)
        other = jnp.where(swap.reshape(-1, *[1] * (other.ndim - 1)), swapped, other)
    return other


def _check_mirror(points: KeypointSet) -> None:
    if lost := sides.not_renamed(points):
        names = ", ".join(f"{points.names[a]}/{points.names[b]}" for a, b in lost)
        raise UserError(
            f"--flip would average {names} crosswise, as this run's data do not pair them: leave "
            f"--flip out, or train with {sides.spelt(points, lost)}."
        )


def _check_alike(first: Run, other: Run) -> None:
    if first.points != other.points:
        raise UserError(
            "Models that vote must find the same points, and these find "
            f"{', '.join(first.points.names)} and {', '.join(other.points.names)} (or their pairs "
            "and lines differ); name workdirs of one data set."
        )
    ours, theirs = config_lib.flat(first.config), config_lib.flat(other.config)
    differing = [f"{n}={ours[n]!r} and {theirs[n]!r}" for n in _SHARED if ours[n] != theirs[n]]
    if differing:
        raise UserError(
            f"Models that vote must be given the same pictures and draw the same maps, and these "
            f"were trained with {'; '.join(differing)}."
        )
