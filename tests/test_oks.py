"""Object keypoint similarity against pycocotools and hand computation."""

import contextlib
import dataclasses
import io

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from heatmap import metrics
from heatmap.keypoints import KeypointSet
from tests.predicted import CONFIG, ORDERED, POINTS, assert_same, build, random


def coco_stats(p: metrics.Predictions, sigmas) -> dict[str, float]:
    """Runs pycocotools on the same instances."""
    names, image = np.unique(p.ids, return_inverse=True)
    annotations: list[dict] = []
    results: list[dict] = []
    for i in np.lexsort((p.instances, image)):
        (x0, y0, x1, y1), label = p.boxes[i], p.weight[i] > 0
        common = {"image_id": int(image[i]) + 1, "category_id": 1, "id": len(results) + 1}
        truth = np.concatenate([p.truth[i], 2.0 * label[:, None]], axis=1)
        annotations.append(
            common
            | {"area": p.areas[i], "bbox": [x0, y0, x1 - x0, y1 - y0], "iscrowd": 0}
            | {"keypoints": truth.ravel().tolist(), "num_keypoints": int(label.sum())}
        )
        found = np.concatenate([p.predicted[i], np.ones((len(label), 1))], axis=1)
        results.append(
            {"image_id": common["image_id"], "category_id": 1, "score": float(p.score[i].mean())}
            | {"keypoints": found.ravel().tolist()}
        )
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "images": [{"id": j + 1} for j in range(len(names))],
            "categories": [{"id": 1}],
            "annotations": annotations,
            "info": {},
        }
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(results), "keypoints")
        evaluation.params.kpt_oks_sigmas = np.array(sigmas)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    keys = {"oks_ap": 0, "oks_ap50": 1, "oks_ap75": 2, "oks_ar": 5}
    return {key: float(evaluation.stats[i]) for key, i in keys.items()}


@pytest.mark.parametrize(("n", "images"), [(1, 1), (12, 12), (40, 9), (60, 2)])
@pytest.mark.parametrize("labelled", [0.3, 0.9])
@pytest.mark.parametrize("seed", range(4))
def test_oks_equals_pycocotools(n, images, labelled, seed):
    predictions = random(seed, n, images, labelled)
    predictions.weight[0, 0] = 1  # something must count
    # Near neighbours, so that a detection may take another instance's label.
    predictions.truth[1::2] = (
        predictions.truth[::2][: n // 2] + 4 * predictions.score[1::2, :, None]
    )
    predictions.score[::4] = 0.5  # ties
    expected = coco_stats(predictions, POINTS.oks_sigmas)
    scores = metrics.oks_ap(predictions, ORDERED, CONFIG)
    assert scores.keys() == expected.keys()
    for key, value in expected.items():
        assert scores[key] == pytest.approx(value, abs=1e-9), key


def test_oks_by_hand():
    points = KeypointSet(("a", "b"), oks_sigmas=(0.5, 0.5))  # k = 1
    offset = np.sqrt(-2 * 100 * np.log(0.72))  # an exponent of ln 0.72 at an area of 100 px²
    truth = np.zeros((1, 2, 2))
    predictions = build(truth + np.array([offset, 0]), truth, areas=np.array([100.0]))
    scores = metrics.oks_ap(predictions, points, CONFIG)
    expected = {"oks_ap": 0.5, "oks_ap50": 1.0, "oks_ap75": 0.0, "oks_ar": 0.5}  # 0.5 … 0.7 hit
    assert_same(scores, expected)
    lost = dataclasses.replace(predictions, predicted=np.full((1, 2, 2), np.nan))
    assert metrics.oks_ap(lost, points, CONFIG)["oks_ap50"] == 0.0


def test_oks_breaks_ties_like_pycocotools():
    # The surer detection lies midway: only if it takes the later label can the other one be right.
    points = KeypointSet(("a",), oks_sigmas=(0.1,))
    predictions = build(
        [[[50.0, 50]], [[38.0, 50]]],
        [[[40.0, 50]], [[60.0, 50]]],
        ids=np.array(["x", "x"]),
        instances=np.arange(2),
        score=np.array([[0.9], [0.1]]),
    )
    scores = metrics.oks_ap(predictions, points, CONFIG)
    assert_same(scores, coco_stats(predictions, points.oks_sigmas))
    assert scores["oks_ap50"] == pytest.approx(1.0)


def test_unordered_oks_orders_a_label_for_each_detection():
    # Two instances in one picture are predicted crosswise and each under the other's number.
    points = KeypointSet(("a", "b"), interchangeable_pairs=((0, 1),), oks_sigmas=(0.05, 0.05))
    truth = np.array([[[0, 0], [50, 0]], [[400, 300], [420, 380]]])
    predicted = truth[::-1, ::-1]
    predictions = build(predicted, truth, ids=np.array(["x", "x"]), instances=np.arange(2))
    scores = metrics.oks_ap(predictions, points, CONFIG)
    assert (scores["oks_ap"], scores["oks_ap/unordered"]) == (0.0, pytest.approx(1.0))


def test_oks_needs_sigmas():
    assert metrics.oks_ap(random(7), dataclasses.replace(POINTS, oks_sigmas=()), CONFIG) == {}
