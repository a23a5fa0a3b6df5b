"""How well each decoder reads perfect maps: the error that decoding alone adds, in input pixels.

    python -m benchmarks.decoders

Points at sub-pixel offsets are encoded as maps and decoded again, 256×256 pixels to 64×64 and
back. 'peak' maps are what squared error trains, 'logits' what cross-entropy trains.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np

from benchmarks import output
from configs import common
from heatmap import command_line, decoding, targets
from heatmap import config as config_lib
from heatmap.config import Config
from heatmap.errors import guard
from heatmap.losses import LOSSES

INPUT, MAPS = (256, 256), (64, 64)
SIGMAS = (1.0, 2.0, 3.0)


@dataclasses.dataclass(frozen=True)
class Case:
    """A decoder with its settings, and the loss whose maps it reads."""

    label: str
    loss: str
    decoder: str
    beta: float = 1.0
    radius: int = 3
    grid: str = "centres"


CASES = [
    Case("argmax", "mse", "argmax"),
    Case("DARK", "mse", "dark"),
    Case("DARK", "cross_entropy", "dark"),
    Case("local soft-argmax, radius 3", "mse", "local_soft_argmax"),
    Case("local soft-argmax, radius 9", "mse", "local_soft_argmax", radius=9),
    Case("local soft-argmax, radius 9", "cross_entropy", "local_soft_argmax", radius=9),
    Case("soft-argmax, β = 1 (the document)", "mse", "soft_argmax"),
    Case("soft-argmax, β = 20", "mse", "soft_argmax", beta=20.0),
    Case("soft-argmax, β = 1", "cross_entropy", "soft_argmax"),
    Case("soft-argmax, grid to the edges", "cross_entropy", "soft_argmax", grid="edges"),
]


def config_of(case: Case, sigma: float) -> Config:
    """Returns the config that decodes as the case says."""
    values = common.get_config()
    values.data.image_size, values.targets.heatmap_size = INPUT, MAPS
    values.targets.sigma, values.loss.name = sigma, case.loss
    values.decoder.update(name=case.decoder, beta=case.beta, radius=case.radius, grid=case.grid)
    return config_lib.from_mapping(values.to_dict())


def errors(case: Case, sigma: float, points: np.ndarray) -> np.ndarray:
    """Encodes points [N, 2] perfectly, decodes them, and returns what is off in input pixels."""
    config = config_of(case, sigma)
    maps = targets.gaussian(np, points[:, None], INPUT, MAPS, sigma)  # [N, h, w, 1]
    if LOSSES[case.loss].trains == "logits":
        maps = np.log(np.maximum(maps, 1e-30))
    found = decoding.decode(config, jnp.asarray(maps, jnp.float32)).keypoints
    return np.asarray(found, np.float64)[:, 0] - points


def offsets(margin: float, steps: int) -> np.ndarray:
    """Returns points [steps², 2] at every sub-pixel offset of a map pixel, far from the border."""
    along = margin + np.arange(steps) * (4 / steps)
    return np.stack(np.meshgrid(along, along), -1).reshape(-1, 2)


def interior_table(points: np.ndarray) -> list[str]:
    """Lays out the largest error and the RMSE of every case for each σ."""
    lines = [
        "| decoder | maps trained by | " + " | ".join(f"σ = {s:g}" for s in SIGMAS) + " |",
        "|---|---|" + "---|" * len(SIGMAS),
    ]
    for case in CASES:
        cells = []
        for sigma in SIGMAS:
            off = np.linalg.norm(errors(case, sigma, points), axis=1)
            cells.append(f"{off.max():.4f} ({np.sqrt(np.mean(off**2)):.4f})")
        lines.append(f"| {case.label} | {case.loss} | " + " | ".join(cells) + " |")
    return lines


def border_table(sigma: float) -> list[str]:
    """Lays out the error in x on the way from the left edge to the centre, by grid."""
    columns = (0.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 127.5)
    points = np.stack([np.array(columns), np.full(len(columns), 127.5)], -1)
    lines = [
        "| soft-argmax, grid to the | " + " | ".join(f"x = {x:g}" for x in columns) + " |",
        "|---|" + "---|" * len(columns),
    ]
    for grid in ("centres", "edges"):
        off = errors(Case("", "cross_entropy", "soft_argmax", grid=grid), sigma, points)[:, 0]
        lines.append(f"| {grid} | " + " | ".join(f"{e:+.2f}" for e in off) + " |")
    return lines


def main(arguments: list[str] | None = None) -> None:
    """Prints both tables as Markdown."""
    parser = command_line.parser("python -m benchmarks.decoders", __doc__)
    parser.add_argument(
        "--steps", type=output.count, default=16, help="sub-pixel offsets along each axis"
    )
    options = parser.parse_args(arguments)
    print("Largest error (RMSE) in input pixels, inside the picture:\n")
    print("\n".join(interior_table(offsets(96.0, options.steps))))
    print("\nError of x in input pixels near the left edge, σ = 2:\n")
    print("\n".join(border_table(2.0)))


if __name__ == "__main__":
    guard(main)
