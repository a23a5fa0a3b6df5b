"""Points on their way through augmentation, targets and a decoder, and back to their picture.

They go through the code that batches are made by, with what the config draws.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from heatmap import geometry
from heatmap.config import Config
from heatmap.fields import choose
from heatmap.losses import LOSSES
from heatmap.report import budget

_POINTS = 4096
MARGIN = 4.0  # σ: nearer to the border a Gaussian is cut off
# Both coordinates of numbers whose multiples fill a square evenly (Roberts' R2 sequence).
_EVEN = np.array([0.7548776662466927, 0.5698402909980532])


@dataclasses.dataclass(frozen=True)
class Trip:
    """Points on their way.

    Attributes:
      original: [N, K, 2] in pixels of the original pictures.
      network: [N, K, 2] float32 in pixels of the network's input, renamed where that is mirrored.
      affines: [N, 3, 3] input_from_original.
      permutation: [K], how a mirror renames.
    """

    original: np.ndarray
    network: np.ndarray
    affines: np.ndarray
    permutation: np.ndarray

    def errors(self, config: Config) -> np.ndarray:
        """Reads perfect targets of the points and returns what is off, [N, K, 2] original px."""
        found = budget.read_targets(config, self.network).astype(np.float64)
        back = geometry.apply(geometry.invert(self.affines), found)
        mirrored = np.linalg.det(self.affines[:, :2, :2]) < 0
        return np.where(mirrored[:, None, None], back[:, self.permutation], back) - self.original

    def in_maps(self, errors: np.ndarray, config: Config) -> np.ndarray:
        """Turns errors in original pixels into those in pixels of the map."""
        return errors @ np.swapaxes(self.affines[:, :2, :2], 1, 2) / stride(config)


def stride(config: Config) -> np.ndarray:
    """Returns (x, y), input pixels in a heatmap pixel; 1 for a model without maps."""
    if choose(LOSSES, config.loss.name, "loss.name").trains == "coordinates":
        return np.ones(2)
    size, maps = config.data.image_size, config.targets.heatmap_size
    return np.array([size[1] / maps[1], size[0] / maps[0]])


def sweep(config: Config, shape: Sequence[int], start: int = 0) -> np.ndarray:
    """Spreads points evenly over the inside of the maps, at every sub-pixel offset.

    Args:
      config: its sizes and `targets.sigma` apply.
      shape: of the result, without the last axis.
      start: another one continues an earlier sweep.

    Returns:
      [*shape, 2] in pixels of the network's input.
    """
    height, width = config.targets.heatmap_size
    last = np.array([width - 1.0, height - 1.0])
    margin = np.minimum(MARGIN * config.targets.sigma, last / 4)
    place = (0.5 + np.arange(start, start + int(np.prod(shape)))[:, None] * _EVEN) % 1
    points = margin + place * (last - 2 * margin)
    return geometry.rescale(points, (height, width), config.data.image_size).reshape(*shape, 2)


def evaluated(config: Config, records) -> Trip:
    """Sends the sweep through the affines of evaluation.

    Args:
      config: of the run.
      records: `input_pipeline.Records`, as many as are needed of them.
    """
    from input_pipeline import batching

    few = records.take(slice(enough(records)))
    affines = batching.eval_affines(few, config)
    return _trip(
        config, few, affines, lambda changed: batching.eval_batches(changed, config, features={})
    )


def augmented(config: Config, records) -> Trip:
    """Sends the sweep through the affines that the first epoch draws, mirrors included.

    Args:
      config: of the run.
      records: `input_pipeline.Records` that train, as many as are needed of them.
    """
    from input_pipeline import batching

    few = records.take(slice(enough(records)))
    steps = batching.last_step_of(1, len(few), config.train.batch_size)

    def batches(changed):
        return batching.train_batches(changed, config, 0, steps, features={})

    drawn = _joined(batches(few), len(few))
    affines = np.empty((len(few), 3, 3))
    affines[drawn["row"]] = drawn["input_from_original"]  # they do not depend on the points
    return _trip(config, few, affines, batches)


def enough(records) -> int:
    """Returns how many records have points enough for a sweep."""
    return -(-_POINTS // records.points.count)


def _trip(config: Config, records, affines: np.ndarray, batches) -> Trip:
    """Puts the sweep where `affines` will take it to, and lets batches be made of it.

    Small data sets are gone through several times, each time with other points.
    """
    passes = -(-enough(records) // len(records))
    shape = (len(records), records.points.count)
    originals, parts = [], []
    for start in range(passes):
        wanted = sweep(config, shape, start * int(np.prod(shape)))
        original = geometry.apply(geometry.invert(affines), wanted)
        changed = dataclasses.replace(records, keypoints=original, labelled=np.ones(shape, bool))
        part = _joined(batches(changed), len(records))
        parts.append(part)
        originals.append(original[part["row"]])
    return Trip(
        original=np.concatenate(originals),
        network=np.concatenate([part["keypoints"] for part in parts]),
        affines=np.concatenate([part["input_from_original"] for part in parts]),
        permutation=records.points.flip_permutation(),
    )


def _joined(batches: Iterable[Mapping[str, np.ndarray]], count: int) -> dict[str, np.ndarray]:
    """Joins the first examples of batches; those of a second epoch, and padding, come after."""
    every = list(batches)
    return {
        name: np.concatenate([batch[name] for batch in every])[:count]
        for name in ("row", "keypoints", "input_from_original")
    }
