"""What the config says about the points, on top of what the data says."""

import dataclasses
from typing import Any

from heatmap.config import DataConfig
from heatmap.errors import UserError
from heatmap.keypoints import KeypointSet


def with_config(points: KeypointSet, config: DataConfig) -> KeypointSet:
    """Lets the non-empty fields of the config replace what the data says.

    Args:
      points: as read from the data.
      config: its `flip_pairs`, `interchangeable_pairs`, `torso`, `oks_sigmas` and
        `measurements` apply.

    Returns:
      The meaning to work with.

    Raises:
      UserError: naming the field, if it names an unknown point or has the wrong length.
    """
    changes: dict[str, Any] = {}
    for field in ("flip_pairs", "interchangeable_pairs"):
        if names := getattr(config, field):
            changes[field] = points.pairs(names, f"data.{field}")
    if config.torso:
        if len(config.torso) != 2:
            raise UserError(
                f"data.torso must be two names, whose distance is the reference; got "
                f"{config.torso!r}."
            )
        changes["torso"] = tuple((points.index(name, "data.torso"),) for name in config.torso)
    if config.oks_sigmas:
        if min(config.oks_sigmas) <= 0:
            raise UserError(f"data.oks_sigmas must be positive, got {config.oks_sigmas}.")
        changes["oks_sigmas"] = config.oks_sigmas
    if config.measurements:
        changes["measurements"] = tuple(
            (name, *(points.index(end, "data.measurements") for end in ends))
            for name, *ends in config.measurements
        )
    return dataclasses.replace(points, **changes)
