"""Whether calibrated intervals keep their word on trays that nothing has seen, time after time.

    python main.py --config=configs/specimens.py --workdir=runs/specimens
    python -m benchmarks.coverage --workdir=runs/specimens

Draws many independent pairs of a calibration and a test set, calibrates on the one as
heatmap.calibration does, and counts on the other how often intervals hold what the annotator
marked, each tray weighing the same. What is promised is the mean over such pairs: with n trays to
calibrate on it lies between the level and the level + 1/(n + 1) (heatmap/conformal.py). SE is its
standard error over the pairs; "inside" allows two of them on either side.

The confidence, P(error < 0.05 of the extent), is stated by the same calibrations and checked on the
same test sets, in a second table: what was stated on average in each bin, and how often it was so.
Nothing is promised of it; the difference has a standard error over the pairs, too.

Beside the first stands what comes of it if every specimen counts as a group of its own,
from all calibration trays and from the first few of them, of which groups would be refused.
"""

import dataclasses
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from benchmarks import output
from heatmap import compilation, conformal, state, workdir
from heatmap.errors import UserError, guard
from heatmap.inference import fitting, labelled, predictor, uncertainty
from heatmap.inference.labelled import Errors
from heatmap.inference.predictor import Predictor
from heatmap.keypoints import KeypointSet
from heatmap.report import reliability
from heatmap.report.plots import colour
from heatmap.report.reliability import Bin

FEW = 5  # trays, with 19 specimens or more: as many as 95 % takes if each were a group
WITHIN = 0.05  # of the extent is right, for the confidence
GROUPED, IGNORED, FROM_FEW = "trays", "groups ignored", f"groups ignored, {FEW} trays"


@dataclasses.dataclass(frozen=True)
class Trial:
    """What a calibration on one set comes to on another, each group weighing the same.

    Attributes:
      coverage: by what is measured and level.
      confidence: what was stated and observed.
    """

    coverage: dict[tuple[str, float], float]
    confidence: Sequence[Bin]


def trial(cal: Errors, test: Errors, points: KeypointSet, levels: Sequence[float]) -> Trial:
    """Calibrates on one set and tests on another."""
    found = fitting.calibrate(cal, points, "benchmark", levels, WITHIN, absent_known=False)
    rows = fitting.coverage(test, found, points)
    return Trial(
        {(row.what, row.level): row.coverage for row in rows},
        fitting.probabilities(test, found, absent_known=False),
    )


def trials(
    cal: Errors, test: Errors, points: KeypointSet, levels: Sequence[float]
) -> dict[str, Trial]:
    """Does a trial with trays as groups, and two that ignore them."""
    first = np.isin(cal.groups, np.unique(cal.groups)[:FEW])
    return {
        GROUPED: trial(cal, test, points, levels),
        IGNORED: trial(ungrouped(cal), test, points, levels),
        FROM_FEW: trial(ungrouped(take(cal, first)), test, points, levels),
    }


def take(errors: Errors, rows: np.ndarray) -> Errors:
    """Returns the errors of some examples, [N] bool or numbers."""
    names = [field.name for field in dataclasses.fields(Errors) if field.name != "found"]
    columns = {name: getattr(errors, name)[rows] for name in names}
    return Errors(found=errors.found.take(rows), **columns)


def ungrouped(errors: Errors) -> Errors:
    """Makes every example a group of its own."""
    return dataclasses.replace(errors, groups=np.arange(len(errors.groups)))


def summarise(done: Sequence[dict[str, Trial]], groups: int) -> list[dict[str, Any]]:
    """Lays out the mean coverage over pairs of sets.

    Args:
      done: what `trials` returned for each pair, at least two.
      groups: n, in each calibration set.

    Returns:
      A row for each measure and level.
    """
    rows = []
    for what, level in done[0][GROUPED].coverage:
        reached = np.array([one[GROUPED].coverage[what, level] for one in done])
        mean, error = float(reached.mean()), float(reached.std(ddof=1) / np.sqrt(len(done)))
        low, high = level - 2 * error, level + 1 / (groups + 1) + 2 * error
        others = {
            kind: float(np.mean([one[kind].coverage[what, level] for one in done]))
            for kind in (IGNORED, FROM_FEW)
        }
        rows.append(
            {
                "interval of": what,
                "level": level,
                "mean coverage": mean,
                "SE": error,
                "from": low,
                "to": high,
                "inside": "yes" if low <= mean <= high else "NO",
                **others,
            }
        )
    return sorted(rows, key=lambda row: row["level"])


def summarise_confidence(done: Sequence[Sequence[Bin]]) -> list[dict[str, Any]]:
    """Lays out what was stated and what was observed over all pairs of sets.

    Args:
      done: of each pair, at least two, the bins of the confidence.

    Returns:
      A row for all points and for each bin; the difference is a ratio of sums over the pairs, and
      its standard error that of such a ratio.
    """
    rows = []
    for least, most in sorted({(b.least, b.most) for found in done for b in found}):
        mine = [b for found in done for b in found if (b.least, b.most) == (least, most)]
        share, stated, observed = np.array([(b.share, b.stated, b.observed) for b in mine]).T
        total = share.sum()
        apart = float(share @ (observed - stated) / total)
        left = share * (observed - stated - apart)  # sums to nothing, also over pairs without any
        scale = np.sqrt(len(done) / (len(done) - 1)) / total
        rows.append(
            {
                "confidence stated": f"{least:.2f}–{most:.2f}",
                "share of points": float(total / len(done)),
                "mean": float(share @ stated / total),
                "observed": float(share @ observed / total),
                "difference": apart,
                "SE": float(scale * np.sqrt(left @ left)),
            }
        )
    everything = f"{reliability.EDGES[0]:.2f}–{reliability.EDGES[-1]:.2f}"
    return sorted(rows, key=lambda row: row["confidence stated"] != everything)


def pairs(
    model: Predictor, sets: int, cal_trays: int, test_trays: int
) -> Iterator[tuple[Errors, Errors]]:
    """Draws and predicts a calibration and a test set, so many times; no tray comes twice."""
    from input_pipeline import specimens

    series = len(specimens.TRAYS)  # the first that is no part of the data set
    for i in tqdm(range(series, series + sets), unit="pair", file=sys.stderr):
        names = ["cal"] * cal_trays + ["test"] * test_trays
        trays = {f"{name}/{n:03d}": specimens.draw(i, n) for n, name in enumerate(names)}
        errors = labelled.measure(model, specimens.records(trays, model.config.data), model.points)
        of_cal = np.char.startswith(errors.groups, "cal/")
        yield take(errors, of_cal), take(errors, ~of_cal)


def draw(rows: Sequence[output.Row], groups: int, axes) -> None:
    """Draws the mean coverage less the level, ± 2 SE, and the band that is promised."""
    axes.axhspan(0, 100 / (groups + 1), color="0.9", zorder=0, label="promised of the mean")
    axes.axhline(0, color="0.5", linewidth=1)
    levels = sorted({row["level"] for row in rows})
    kinds = list(dict.fromkeys(row["interval of"] for row in rows))
    for k, kind in enumerate(kinds):
        mine = [row for row in rows if row["interval of"] == kind]
        place = np.array([levels.index(row["level"]) for row in mine]) + 0.2 * (k - 1)
        above = [100 * (row["mean coverage"] - row["level"]) for row in mine]
        error = [200 * row["SE"] for row in mine]
        axes.errorbar(place, above, error, fmt="o", capsize=3, color=colour(k), label=kind)
        for column, mark in ((IGNORED, "_"), (FROM_FEW, "x")):
            height = [100 * (row[column] - row["level"]) for row in mine]
            axes.plot(place, height, mark, color=colour(k))
    for column, mark in ((IGNORED, "_"), (FROM_FEW, "x")):
        axes.plot([], [], mark, color="0.3", label=column)
    axes.set_xticks(range(len(levels)), [f"{level:.0%}" for level in levels])
    axes.set(xlabel="level", ylabel="mean coverage − level, percentage points, ± 2 SE")
    axes.legend(frameon=False, fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, 1.14))


def draw_confidence(rows: Sequence[output.Row], axes) -> None:
    """Draws the share observed over the confidence stated, ± 2 SE, by bin."""
    axes.plot([0, 1], [0, 1], color="0.5", linewidth=1)
    _, *bins = rows
    stated, observed = ([row[name] for row in bins] for name in ("mean", "observed"))
    axes.errorbar(stated, observed, [2 * row["SE"] for row in bins], fmt="o", capsize=3)
    axes.set(xlabel="confidence stated", ylabel="share observed, ± 2 SE", aspect="equal")


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line, repeats the experiment and publishes it."""
    parser = output.parser("coverage", __doc__)
    parser.add_argument(
        "--workdir", type=pathlib.Path, required=True, help="of a run trained on specimens"
    )
    parser.add_argument("--sets", type=int, default=50, help="pairs of sets; default: 50")
    parser.add_argument("--cal_trays", type=int, default=40, help="of a set; default: 40")
    parser.add_argument("--test_trays", type=int, default=40, help="of a set; default: 40")
    options = parser.parse_args(arguments)
    if options.sets < 2 or options.cal_trays < 1 or options.test_trays < 1:
        raise UserError("--sets is 2 or more, --cal_trays and --test_trays are positive.")
    needed = conformal.groups_needed(max(uncertainty.LEVELS))
    if options.cal_trays < needed:
        raise UserError(
            f"--cal_trays={options.cal_trays} are too few for intervals at "
            f"{max(uncertainty.LEVELS):.0%}, which take {needed}."
        )
    config = workdir.read_config(options.workdir)
    if config.data.name != "specimens":
        raise UserError(
            f"{options.workdir} was trained on {config.data.name}, of which no fresh groups can be "
            "drawn; name a run of configs/specimens.py."
        )
    compilation.keep()
    state.divide_cpu(config.eval.batch_size)
    model = predictor.open_all([options.workdir])
    done = [
        trials(cal, test, model.points, uncertainty.LEVELS)
        for cal, test in pairs(model, options.sets, options.cal_trays, options.test_trays)
    ]
    rows = summarise(done, options.cal_trays)
    output.publish(options.out, "coverage", rows, lambda axes: draw(rows, options.cal_trays, axes))
    stated = summarise_confidence([one[GROUPED].confidence for one in done])
    output.publish(
        options.out, "confidence", stated, lambda axes: draw_confidence(stated, axes), "coverage"
    )


if __name__ == "__main__":
    guard(main)
