"""How a report can be made again: the commands, and with what it was made."""

import dataclasses
import importlib.metadata
import pathlib
import platform
import shlex
import subprocess
from collections import Counter

import jax

from heatmap import fields
from heatmap.config import Config
from heatmap.report.findings import Comparison

_PACKAGES = ("heatmap", "jax", "jaxlib", "flax", "optax", "numpy", "plotly")


def environment(*others: str) -> list[tuple[str, str]]:
    """Lists the versions and devices of the machine that makes the report.

    Args:
      others: packages to list besides ours.
    """
    devices = Counter(f"{d.device_kind} ({d.platform})" for d in jax.devices())
    return [
        ("Python", platform.python_version()),
        ("System", f"{platform.system()} on {platform.machine()}"),
        ("Code", revision()),
        ("Devices", ", ".join(f"{count} × {kind}" for kind, count in devices.items())),
        *((name, _version(name)) for name in (*_PACKAGES, *others)),
    ]


def revision() -> str:
    """Names the commit of this code, with '-dirty' if it was changed since; else its version."""
    here = pathlib.Path(__file__).parent
    try:
        told = subprocess.run(
            ["git", "-C", here, "describe", "--always", "--dirty"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return f"heatmap {_version('heatmap')}"
    return told.stdout.strip()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def commands(comparison: Comparison) -> list[dict[str, str]]:
    """Spells the commands that train each method, score it and write the report.

    Every field of a config is a flag of its own, so that a later change of the defaults changes
    nothing.
    """
    folders = [shlex.quote(str(method.folder)) for method in comparison.methods]
    lines = []
    if comparison.command:
        lines.append({"title": "Train all and write this report", "command": comparison.command})
    for method, folder in zip(comparison.methods, folders, strict=True):
        flags = " ".join(_flags(method.config))
        train = f"python main.py --config=configs/common.py --workdir={folder} {flags}"
        lines.append({"title": f"Train {method.name}", "command": train})
        score = f"python -m heatmap.evaluate --workdir={folder} --split={comparison.split}"
        lines.append({"title": f"Score {method.name} again", "command": score})
    report = f"python -m heatmap.report {' '.join(folders)} --split={comparison.split}"
    title = "Compare these runs alone" if comparison.command else "Write this report"
    lines.append({"title": title, "command": f"{report} --out=report.html"})
    return lines


def _flags(config: Config) -> list[str]:
    flat = fields.flatten(dataclasses.asdict(config))
    return [f"--config.{name}={_quoted(value)}" for name, value in flat.items()]


def _quoted(value) -> str:
    """Quotes a value for a shell, legibly where a tuple holds plain names."""
    text = str(value)
    if isinstance(value, tuple) and '"' not in text and "\\" not in text:
        text = text.replace("'", '"')
    return shlex.quote(text)
