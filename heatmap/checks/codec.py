"""The round trip of points: augmented, encoded as targets, decoded, and taken back.

A perfect model gives back its targets; what is wrong then is the codec's. Points at every sub-pixel
offset go through the code that batches are made by, with the augmentation that the config draws,
and through that of evaluation.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from heatmap import decoding, geometry
from heatmap.checks.finding import FAIL, OK, WARN, Finding
from heatmap.config import Config
from heatmap.fields import choose
from heatmap.losses import LOSSES
from heatmap.report import budget

NAME = "codec"
_POINTS = 4096
_MARGIN = 4.0  # σ: nearer to the border a Gaussian is cut off
# Heatmap pixels. Every decoder errs as often to one side as to the other inside a map; what is left
# of the sweep's own unevenness is a fifth of this.
_BIAS = 0.02
_POOR = 0.1  # an RMSE that another decoder may be worth choosing for
_ROUNDING = 1e-3  # of single precision and the sweep
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
    margin = np.minimum(_MARGIN * config.targets.sigma, last / 4)
    place = (0.5 + np.arange(start, start + int(np.prod(shape)))[:, None] * _EVEN) % 1
    points = margin + place * (last - 2 * margin)
    return geometry.rescale(points, (height, width), config.data.image_size).reshape(*shape, 2)


def promised(config: Config, name: str) -> float:
    """Returns the largest error inside a map that a decoder's description allows, heatmap pixels.

    The bounds are those that `heatmap.decoding` states and tests/test_decoding.py holds.
    """
    sigma, decoder = config.targets.sigma, config.decoder
    kind = choose(LOSSES, config.loss.name, "loss.name").trains
    worst = float(np.sqrt(0.5))  # any decoder must beat the largest pixel
    if _MARGIN * sigma > (min(config.targets.heatmap_size) - 1) / 2:
        return worst  # such a map has no inside
    if name in ("dark", "coordinates"):
        return 0.0
    if name == "soft_argmax" and kind == "logits" and decoder.grid == "centres":
        return 0.0
    if name == "local_soft_argmax":
        bounds = {3: 0.012, 2: 0.12, 1: 0.44}
        width = next((w for w in bounds if decoder.radius >= w * sigma), 0)
        return bounds.get(width, worst)
    return worst


def check(config: Config, records) -> Finding:
    """Sends points through the codec and back, with every decoder that reads the config's maps.

    Args:
      config: of the run.
      records: `input_pipeline.Records` that train.
    """
    kind = choose(LOSSES, config.loss.name, "loss.name").trains
    own = decoding.decoder_name(config)
    others = [n for n, d in decoding.DECODERS.items() if kind in d.reads and n != own]
    trips = {"evaluated": _evaluated(config, records), "augmented": _augmented(config, records)}
    scale = _px_per_cm(records)
    measured = {
        name: {route: _measure(trip, config, name, scale) for route, trip in trips.items()}
        for name in (own, *others)
    }
    labels = _at_labels(config, records)
    limits = {"bias": _BIAS, "rmse": promised(config, own) + _ROUNDING}
    data = {"decoder": own, "heatmap_px": limits, "decoders": measured, "labels": labels}
    level, message = _judge(own, measured[own], limits, labels, config)
    return Finding(level, NAME, message, _table(measured), data)


def _judge(
    own: str, found: Mapping[str, Any], limits: Mapping[str, float], labels: Any, config: Config
) -> tuple[str, str]:
    bias = max(max(map(abs, part["bias_heatmap"])) for part in found.values())
    rmse = max(part["rmse_heatmap"] for part in found.values())
    straight = found["evaluated"]
    numbers = (
        f"bias ({straight['bias_px'][0]:+.3f}, {straight['bias_px'][1]:+.3f}) px, RMSE "
        f"{straight['rmse_px']:.3f} px of the original inside the map"
    )
    if labels["rmse_px"] is not None:
        numbers += f", {labels['rmse_px']:.3f} px at your labels"
    if bias > limits["bias"]:
        return FAIL, (
            f"{own} is biased by {bias:.2f} heatmap pixels, which no decoder should be, so that "
            f"every prediction is off: {numbers}"
        )
    if rmse > limits["rmse"]:
        return FAIL, (
            f"{own} reads perfect maps with an error of {rmse:.2f} heatmap pixels, more than the "
            f"{limits['rmse']:.3f} of its description: choose another decoder, or a larger "
            f"targets.sigma than {config.targets.sigma:g}; {numbers}"
        )
    if rmse > _POOR:
        return (
            WARN,
            f"{own} by itself is off by {rmse:.2f} heatmap pixels{_advice(own, config)}: {numbers}",
        )
    if labels["rmse_heatmap"] is not None and labels["rmse_heatmap"] > max(_POOR, 2 * rmse):
        return WARN, (
            f"{own} is pulled inside near the border of the map, where {labels['near_border']:.0%} "
            f"of your labels lie; dark is not: {numbers}"
        )
    return OK, f"{own} reads perfect targets back: {numbers}"


def _advice(name: str, config: Config) -> str:
    if name == "argmax":
        return ", because it knows whole pixels only; dark is exact"
    if name == "local_soft_argmax" and config.decoder.radius < 3 * config.targets.sigma:
        return f"; set decoder.radius to {int(np.ceil(3 * config.targets.sigma))}, three σ"
    return "; dark is exact"


def _table(measured: Mapping[str, Mapping[str, Any]]) -> tuple[str, ...]:
    """Lays the decoders out below one another."""
    in_cm = any(routes["evaluated"]["rmse_cm"] is not None for routes in measured.values())
    heads = ["bias x", "bias y", "RMSE", *(["RMSE cm"] if in_cm else []), "augmented RMSE"]
    width = max(map(len, measured))
    rows = [f"{'px':<{width}}  " + "  ".join(f"{head:>8}" for head in heads)]
    for name, routes in measured.items():
        straight = routes["evaluated"]
        numbers = [f"{value:+.3f}" for value in straight["bias_px"]] + [
            f"{straight['rmse_px']:.3f}"
        ]
        numbers += [f"{straight['rmse_cm']:.4f}"] if in_cm else []
        numbers += [f"{routes['augmented']['rmse_px']:.3f}"]
        cells = (f"{n:>{max(8, len(h))}}" for n, h in zip(numbers, heads, strict=True))
        rows.append(f"{name:<{width}}  " + "  ".join(cells))
    return tuple(rows)


def _measure(trip: Trip, config: Config, name: str, px_per_cm: float | None) -> dict[str, Any]:
    decoder = dataclasses.replace(config.decoder, name=name)
    errors = trip.errors(dataclasses.replace(config, decoder=decoder))
    in_maps = trip.in_maps(errors, config)
    rmse = _rmse(errors)
    return {
        "bias_px": errors.mean(axis=(0, 1)).tolist(),
        "rmse_px": rmse,
        "rmse_cm": rmse / px_per_cm if px_per_cm else None,
        "bias_heatmap": in_maps.mean(axis=(0, 1)).tolist(),
        "rmse_heatmap": _rmse(in_maps),
    }


def _rmse(errors: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.sum(errors**2, axis=-1))))


def _px_per_cm(records) -> float | None:
    known = records.px_per_cm[np.isfinite(records.px_per_cm)]
    return float(np.median(known)) if len(known) else None


def _evaluated(config: Config, records) -> Trip:
    """Sends the sweep through the affines of evaluation."""
    from input_pipeline import batching

    few = records.take(slice(_enough(records)))
    affines = batching.eval_affines(few, config)
    return _trip(
        config, few, affines, lambda changed: batching.eval_batches(changed, config, features={})
    )


def _augmented(config: Config, records) -> Trip:
    """Sends the sweep through the affines that the first epoch draws, mirrors included."""
    from input_pipeline import batching

    few = records.take(slice(_enough(records)))
    steps = batching.last_step_of(1, len(few), config.train.batch_size)

    def batches(changed):
        return batching.train_batches(changed, config, 0, steps, features={})

    drawn = _joined(batches(few), len(few))
    affines = np.empty((len(few), 3, 3))
    affines[drawn["row"]] = drawn["input_from_original"]  # they do not depend on the points
    return _trip(config, few, affines, batches)


def _enough(records) -> int:
    return -(-_POINTS // records.points.count)


def _trip(config: Config, records, affines: np.ndarray, batches) -> Trip:
    """Puts the sweep where `affines` will take it to, and lets batches be made of it.

    Small data sets are gone through several times, each time with other points.
    """
    passes = -(-_enough(records) // len(records))
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


def _at_labels(config: Config, records) -> dict[str, Any]:
    """Measures the codec where the labels lie, borders included."""
    from input_pipeline import batching

    few = records.take(slice(_enough(records)))
    affines = batching.eval_affines(few, config)
    network = geometry.apply(affines, few.keypoints)
    counted = few.labelled & geometry.inside(network, config.data.image_size)
    if not counted.any():
        return {"rmse_px": None, "rmse_heatmap": None, "near_border": None}
    still = np.arange(few.points.count)
    trip = Trip(few.keypoints, network.astype(np.float32), affines, still)
    errors = trip.errors(config)
    size, maps = config.data.image_size, config.targets.heatmap_size
    places = geometry.rescale(network, size, maps)
    margin = _MARGIN * config.targets.sigma
    deep = (places >= margin).all(-1) & (places <= np.array(maps[::-1]) - 1 - margin).all(-1)
    return {
        "rmse_px": _rmse(errors[counted]),
        "rmse_heatmap": _rmse(trip.in_maps(errors, config)[counted]),
        "near_border": float(np.mean(~deep[counted])),
    }
