"""The round trip of points: augmented, encoded as targets, decoded, and taken back.

A perfect model gives back its targets; what is wrong then is the codec's. Points at every sub-pixel
offset go through the code that batches are made by, with the augmentation that the config draws,
and through that of evaluation.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from heatmap import decoding, geometry
from heatmap.checks import trips
from heatmap.checks.finding import FAIL, OK, WARN, Finding
from heatmap.checks.trips import Trip
from heatmap.config import Config
from heatmap.fields import choose
from heatmap.losses import LOSSES

NAME = "codec"
# Heatmap pixels. Every decoder errs as often to one side as to the other inside a map; the sweep's
# own unevenness leaves argmax with a tenth of this.
_BIAS = 0.02
_POOR = 0.1  # an RMSE that another decoder may be worth choosing for
_ROUNDING = 1e-3  # of single precision and the sweep


def promised(config: Config, name: str) -> float:
    """Returns the largest error inside a map that a decoder's description allows, heatmap pixels.

    The bounds are those that `heatmap.decoding` states and tests/test_decoding.py holds.
    """
    sigma, decoder = config.targets.sigma, config.decoder
    kind = choose(LOSSES, config.loss.name, "loss.name").trains
    worst = float(np.sqrt(0.5))  # any decoder must beat the largest pixel
    if trips.MARGIN * sigma > (min(config.targets.heatmap_size) - 1) / 2:
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
    routes = {
        "evaluated": trips.evaluated(config, records),
        "augmented": trips.augmented(config, records),
    }
    scale = _px_per_cm(records)
    measured = {
        name: {route: _measure(trip, config, name, scale) for route, trip in routes.items()}
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
        advice = _advice(own, config)
        return WARN, f"{own} by itself is off by {rmse:.2f} heatmap pixels{advice}: {numbers}"
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
        numbers = [f"{value:+.3f}" for value in straight["bias_px"]]
        numbers += [f"{straight['rmse_px']:.3f}"]
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


def _at_labels(config: Config, records) -> dict[str, Any]:
    """Measures the codec where the labels lie, borders included."""
    from input_pipeline import batching

    few = records.take(slice(trips.enough(records)))
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
    margin = trips.MARGIN * config.targets.sigma
    deep = (places >= margin).all(-1) & (places <= np.array(maps[::-1]) - 1 - margin).all(-1)
    return {
        "rmse_px": _rmse(errors[counted]),
        "rmse_heatmap": _rmse(trip.in_maps(errors, config)[counted]),
        "near_border": float(np.mean(~deep[counted])),
    }
