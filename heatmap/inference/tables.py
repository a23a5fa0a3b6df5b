"""The tables of predictions: a row for each point, and a row for each measured length."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from heatmap.config import Config
from heatmap.inference import place
from heatmap.inference.instances import Instances
from heatmap.inference.scales import Scales
from heatmap.inference.uncertainty import Calibration
from heatmap.keypoints import KeypointSet
from heatmap.pairs import distance

Columns = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Meaning:
    """What is needed to turn instances into tables.

    Attributes:
      points: names, and the lengths to measure.
      config: of the run.
      calibration: of the predictor, or None.
      scales: of the pictures.
    """

    points: KeypointSet
    config: Config
    calibration: Calibration | None
    scales: Scales


def of_points(found: Instances, meaning: Meaning) -> Columns:
    """Lays out [N · K] rows: where each point is, and how far off it may be.

    Returns:
      source, frame, instance, point, x, y (px), score, var_x, cov_xy, var_y (px², of the place, not
      calibrated); with a calibration radius_80 … (px, of a disc that holds the true point with that
      probability), confidence and, where it is known, visibility.
    """
    names = meaning.points.names
    k = len(names)
    covariance = place.covariances(found, meaning.config)
    columns: dict[str, Any] = {
        "source": np.repeat(found.source, k),
        "frame": np.repeat(found.frame, k),
        "instance": np.repeat(found.instance, k).astype(np.int32),
        "point": np.tile(np.array(names), len(found)),
        "x": found.points[..., 0].ravel(),
        "y": found.points[..., 1].ravel(),
        "score": found.score.ravel(),
        "var_x": covariance[..., 0, 0].ravel(),
        "cov_xy": covariance[..., 0, 1].ravel(),
        "var_y": covariance[..., 1, 1].ravel(),
    }
    if calibration := meaning.calibration:
        radii = calibration.radii(found, names)
        for i, level in enumerate(calibration.levels):
            columns[f"radius_{percent(level)}"] = radii[..., i].ravel()
        if calibration.confidence:
            columns["confidence"] = calibration.confidence(found.score).ravel()
        if calibration.visibility:
            columns["visibility"] = calibration.visibility(found.score).ravel()
    return columns


def of_lengths(found: Instances, meaning: Meaning) -> Columns:
    """Lays out [N · M] rows: each measured length, and what the true one may be.

    Returns:
      source, frame, instance, measurement, px; with a calibration px_low_80, px_high_80 …, between
      which an annotator's length lies with that probability; with a scale the same in cm, and apart
      from it px_per_cm and cm_scale_sd, what the scale's uncertainty adds, for all lengths of a
      picture alike.
    """
    lines = meaning.points.measurements
    m = len(lines)
    lengths = np.stack([distance(found.points[:, a], found.points[:, b]) for _, a, b in lines], 1)
    lengths = np.where(np.isfinite(lengths), lengths, np.nan)  # of a point that was lost
    columns: dict[str, Any] = {
        "source": np.repeat(found.source, m),
        "frame": np.repeat(found.frame, m),
        "instance": np.repeat(found.instance, m).astype(np.int32),
        "measurement": np.tile(np.array([name for name, *_ in lines]), len(found)),
        "px": lengths.ravel(),
    }
    bounds: dict[str, np.ndarray] = {}
    if meaning.calibration:
        widths = meaning.calibration.half_widths(found, lines)
        for i, level in enumerate(meaning.calibration.levels):
            bounds[f"low_{percent(level)}"] = np.maximum(lengths - widths[..., i], 0)
            bounds[f"high_{percent(level)}"] = lengths + widths[..., i]
    columns |= {f"px_{name}": values.ravel() for name, values in bounds.items()}
    if meaning.scales.any:
        of_pictures = meaning.scales.of(found, meaning.config, meaning.calibration)
        scale, sd = (np.repeat(values, m) for values in of_pictures)
        columns["cm"] = columns["px"] / scale
        columns |= {f"cm_{name}": values.ravel() / scale for name, values in bounds.items()}
        columns |= {"px_per_cm": scale, "cm_scale_sd": columns["px"] / scale * (sd / scale)}
    return columns


def percent(level: float) -> str:
    """Spells a level in a column's name: 95, or 97.5 as 97_5."""
    return f"{100 * level:g}".replace(".", "_")


def batches(parts: Iterable[Columns]) -> Iterator[pa.RecordBatch]:
    """Makes Arrow batches of columns."""
    for columns in parts:
        yield pa.RecordBatch.from_pydict({name: pa.array(v) for name, v in columns.items()})


def unknown_lengths(calibration: Calibration, points: KeypointSet) -> Sequence[str]:
    """Names the measurements that a calibration has no interval for, at any level."""
    unknown = np.isnan(calibration.line_factors(points.measurements)).all(axis=1)
    return [name for (name, *_), lacks in zip(points.measurements, unknown, strict=True) if lacks]
