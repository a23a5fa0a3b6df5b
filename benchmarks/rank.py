"""Whether a run knows where it errs, and finds wrong labels, on pictures it has not seen.

    python -m benchmarks.rank --workdir=runs/small

The first table compares the error of the pictures that heatmap.rank calls most uncertain with that
of all. For the second, labels are spoiled in a tenth of the pictures, in half of them one point
moved by 10 to 30 % of the extent of the points, in half a pair exchanged; it tells how many of
these pictures come first when labels are ranked, beside ranking by the error in pixels. The figure
is the contact sheet of one such list.
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks import output
from heatmap import compilation, rank
from heatmap.errors import UserError, guard
from heatmap.fields import choose
from heatmap.inference import judged as judged_lib
from heatmap.inference import predictor, ranking
from heatmap.inference.instances import Instances
from heatmap.inference.predictor import Predictor
from heatmap.keypoints import KeypointSet
from heatmap.pairs import cheaper_order, distance

_SHARE = 0.1  # of the pictures, that have a wrong label
_MOVED = (0.1, 0.3)  # by so many extents
_ROUNDS = 20
_SHOWN = 8


def uncertain(model: Predictor, records, found: Instances) -> list[dict[str, Any]]:
    """Sets the error of uncertain pictures beside that of all."""
    from scipy import stats

    weight = records.labelled.astype(np.float64)
    pairs = model.points.interchangeable_pairs
    truth, weight = cheaper_order(found.points, records.keypoints, weight, pairs)
    errors = np.where(weight > 0, distance(found.points, truth), 0).sum(1) / weight.sum(1)
    unsure = ranking.uncertainties(found, model.config)
    most = np.argsort(-unsure)[: max(1, len(unsure) // 5)]
    return [
        {
            "pictures": len(unsure),
            "mean error, px": float(errors.mean()),
            "of the most uncertain fifth": float(errors[most].mean()),
            "rank correlation": float(stats.spearmanr(unsure, errors)[0]),
        }
    ]


def spoil(records, points: KeypointSet, rng: np.random.Generator) -> tuple[Any, np.ndarray]:
    """Makes labels wrong in a tenth of the pictures, at least one.

    Args:
      records: whose points are all labelled.
      points: with pairs to exchange, or any two are.
      rng: of this draw.

    Returns:
      (the records, which of them are wrong).
    """
    wrong = np.zeros(len(records), bool)
    wrong[rng.permutation(len(records))[: max(1, round(_SHARE * len(records)))]] = True
    labels = records.keypoints.copy()
    for turn, row in enumerate(np.flatnonzero(wrong)):
        if turn % 2:
            pair = rng.permutation(points.count)[:2]
            if points.flip_pairs:
                pair = np.array(points.flip_pairs[rng.integers(len(points.flip_pairs))])
            labels[row, pair] = labels[row, pair[::-1]]
        else:
            angle, far = rng.uniform(0, 2 * np.pi), rng.uniform(*_MOVED)
            extent = distance(labels[row].min(axis=0), labels[row].max(axis=0))
            step = far * extent * np.array([np.cos(angle), np.sin(angle)])
            labels[row, rng.integers(points.count)] += step
    return dataclasses.replace(records, keypoints=labels), wrong


def doubtful(model: Predictor, name: str, records, found: Instances) -> list[dict[str, Any]]:
    """Counts how many wrong labels come first, on the average over draws."""
    shares: dict[str, list[float]] = {"doubt": [], "error in pixels": []}
    for seed in range(_ROUNDS):
        spoiled, wrong = spoil(records, model.points, np.random.default_rng(seed))
        judged = judged_lib.judge(model, name, spoiled, found, len(records))
        by_error = distance(found.points, judged.truth).max(axis=1)
        first = [doubt.row for doubt in judged.doubts[: wrong.sum()]]
        shares["doubt"].append(float(wrong[first].mean()))
        shares["error in pixels"].append(float(wrong[np.argsort(-by_error)[: wrong.sum()]].mean()))
    return [
        {"ranked by": by, "wrong labels": int(wrong.sum()), "found first": float(np.mean(found_by))}
        for by, found_by in shares.items()
    ]


def sheet(model: Predictor, name: str, records, found: Instances, path: pathlib.Path) -> None:
    """Draws the first pictures of one list."""
    spoiled, _ = spoil(records, model.points, np.random.default_rng(0))
    judged = judged_lib.judge(model, name, spoiled, found, _SHOWN)
    listed: Sequence = [(judged, doubt) for doubt in judged.doubts]
    rank.draw(path, judged_lib.look(model, listed), model.points)


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line and prints both tables."""
    parser = output.parser("rank", __doc__)
    parser.add_argument("--workdir", type=pathlib.Path, action="append", required=True)
    parser.add_argument("--flip", action="store_true", help="predict the mirrored picture too")
    parser.add_argument("--split", default="test")
    options = parser.parse_args(arguments)
    compilation.keep()
    import input_pipeline

    model = predictor.open_all(options.workdir, options.flip)
    records, split = input_pipeline.load(model.config.data)
    records = records.take(choose(split.rows, options.split, "--split"))
    records = records.take(records.labelled.all(axis=1))
    if not len(records):
        raise UserError(f"No instance of the {options.split} split has all its points labelled.")
    found = judged_lib.predict(model, records)
    for rows in (
        uncertain(model, records, found),
        doubtful(model, options.split, records, found),
    ):
        print("\n".join(output.table(rows)), end="\n\n", flush=True)
    path = options.out / "rank.png"
    sheet(model, options.split, records, found, path)
    print(f"wrote {path}")


if __name__ == "__main__":
    guard(main)
