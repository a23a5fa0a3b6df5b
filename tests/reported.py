"""A comparison and a gallery that the tests of the report share, with names that try to be code."""

import pathlib

import numpy as np

from heatmap.keypoints import KeypointSet
from heatmap.report import analysis, methods
from heatmap.report.findings import (
    DECODING,
    REMAINDER,
    RESIZE,
    Ablation,
    AblationRow,
    Budget,
    BudgetPart,
    Comparison,
    Example,
    Gallery,
    LogLine,
    Stage,
)
from tests.helpers import make_config
from tests.predicted import build

SCRIPT = "<script>document.title='owned'</script>.png"
IMAGE = "\"><img src=x onerror=document.title='owned'>"
CLOSING = "</script><!--<script>"
NAMES = ("unet <b>σ</b>", IMAGE)
POINTS = KeypointSet(
    names=("nose", "left hand", "right hand", CLOSING),
    skeleton=((0, 1), (0, 2)),
    interchangeable_pairs=((1, 2),),
    order_known=False,
)
_SIDE = 64


def comparison(count: int = 24, names: tuple[str, ...] = NAMES, seed: int = 0) -> Comparison:
    """Compares a good method with maps and a worse one without."""
    rng = np.random.default_rng(seed)
    truth = rng.uniform(8, _SIDE - 8, (count, POINTS.count, 2))
    ids = np.array([SCRIPT, *(f"picture {i}.png" for i in range(1, count))])
    weight = rng.random((count, POINTS.count)) < 0.95
    runs = []
    for m, name in enumerate(names):
        noise = rng.normal(size=truth.shape) * (1.0 + 3.0 * m) * rng.choice([1, 6], (count, 4, 1))
        has_maps = m == 0
        scores = rng.random((count, POINTS.count)) if has_maps else np.full(weight.shape, np.nan)
        predictions = build(
            truth + noise, truth, weight, ids=ids, groups=ids, score=scores, entropy=5 * scores
        )
        log = [LogLine(e, 10 * e, 1 / e, 1.1 / e if e > 1 else np.nan) for e in range(1, 6)]
        model = "unet" if has_maps else "regression"
        loss = "mse" if has_maps else "coordinate_mse"
        config = make_config(**{"model.name": model, "loss.name": loss})
        folder = pathlib.Path("runs") / model
        runs.append(methods.describe(name, folder, config, POINTS, {}, log, predictions))
    budgets = [
        Budget(name, only_right, 90, 3.0, 2.0, parts, (4.0, 4.0))
        for name in names
        for only_right in (False, True)
        for parts in [
            (
                BudgetPart(DECODING, 0.5, 0.4, 0.1),
                BudgetPart(RESIZE, 0.1, 0.1, 0.01),
                BudgetPart(REMAINDER, 2.8, np.nan, 0.89),
            )
        ]
    ]
    rows = tuple(
        AblationRow((str(s), CLOSING), 2, (0.9 - s / 100, s / 3), (0.01, np.nan)) for s in (1, 2, 3)
    )
    metrics = ("test/pck@0.05", "test/error_px/median")
    sweep = Ablation("sigmas", ("targets.sigma", "data.root"), metrics, rows, (IMAGE,))
    return analysis.compare(runs, "test", budgets, [sweep], draws=200)


def gallery(found: Comparison) -> Gallery:
    """Draws pictures of the first rows and of the worst failures."""
    groups = {}
    for pair in found.failures:
        for group, cases in pair.cases.items():
            rows = list(dict.fromkeys(case.row for case in cases))[:2]
            groups[pair.first, pair.second, group] = tuple(example(found, row) for row in rows)
    first = example(found, 0)
    maps = np.stack([first.maps[0] * share for share in (0.2, 0.6, 1.0)])
    stage = Stage(found.methods[0].name, SCRIPT, first.picture, first.truth, (10, 20, 30), maps)
    return Gallery(tuple(example(found, row) for row in range(3)), groups, (stage,))


def example(found: Comparison, row: int) -> Example:
    """Draws one picture with a map at each true point."""
    rows, columns = np.mgrid[:_SIDE, :_SIDE]
    first = found.methods[0].predictions
    truth = np.where(first.weight[row][:, None] > 0, first.truth[row], np.nan)
    squares = (columns[..., None] - truth[:, 0]) ** 2 + (rows[..., None] - truth[:, 1]) ** 2
    maps = np.nan_to_num(np.exp(-squares / 18)).astype(np.float32)
    box = (-0.5, -0.5, _SIDE - 0.5, _SIDE - 0.5)
    return Example(
        row=row,
        id=str(first.ids[row]),
        instance=0,
        picture=(60 + 150 * maps.max(axis=-1, keepdims=True)).astype(np.uint8),
        truth=truth,
        predicted=np.stack([method.predictions.predicted[row] for method in found.methods]),
        maps=tuple(maps if m == 0 else None for m in range(len(found.methods))),
        boxes=np.array([box] * len(found.methods)),
    )
