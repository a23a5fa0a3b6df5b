"""python -m heatmap.calibration, from a run of seconds to a prediction with intervals."""

import dataclasses
import json

import numpy as np
import pyarrow.parquet as pq
import pytest

import input_pipeline
from heatmap import calibration, predict
from heatmap.errors import UserError
from heatmap.inference import labelled, predictor
from heatmap.train import train
from tests.helpers import TINY, make_config


@pytest.fixture(scope="module")
def run(tiny_root, tmp_path_factory):
    """With a dozen pictures to calibrate on, each a group: enough for 90 %, too few for 95 %."""
    folder = tmp_path_factory.mktemp("runs") / "cal"
    config = make_config(
        **{
            **TINY,
            "data.root": str(tiny_root),
            "data.split.method": "hash",
            "data.split.cal": 0.4,
        }
    )
    train(config, folder)
    return folder


def test_a_length_that_is_named_later_has_intervals(run, tiny_root, tmp_path, capsys):
    span = "--measure=span=bright-dim"
    command = [f"--workdir={run}", str(tiny_root / "test"), span]
    calibration.main([f"--workdir={run}"])
    predict.main([*command, f"--out={tmp_path / 'before'}"])
    assert "no intervals for span" in capsys.readouterr().out
    calibration.main([f"--workdir={run}", span])
    told = capsys.readouterr().out
    assert "\nspan " in told
    assert "- where too few groups show it; it takes 4 at 80%, 9 at 90%, 19 at 95%" in told
    assert "confidence 0.00-1.00" in told
    assert "no visibility: the labels do not tell absent points" in told
    predict.main([*command, f"--out={tmp_path / 'after'}", "--overlay"])
    assert "no intervals" not in capsys.readouterr().out
    lengths = pq.read_table(tmp_path / "after" / "lengths.parquet").to_pandas()
    assert np.isfinite(lengths["px_high_90"]).all()
    assert lengths["px_high_95"].isna().all()
    (tested,) = (run / "calibration").glob("*-test.json")
    rows = json.loads(tested.read_text())
    assert {row["what"] for row in rows["coverage"]} == {"points", "span"}
    assert rows["probabilities"][0]["what"] == "confidence"
    assert (run / "figures" / "calibration.png").stat().st_size > 5_000


@pytest.mark.parametrize(
    ("interchangeable", "order_known", "free"),
    [(False, True, False), (True, True, True), (False, False, True)],
)
def test_a_disc_is_of_the_point_that_it_names(run, monkeypatch, interchangeable, order_known, free):
    """Unless the loss took the pair in either order, or no picture shows which is which."""
    model = predictor.open_all([run])
    records, _ = input_pipeline.load(model.config.data)
    loss = dataclasses.replace(model.config.loss, interchangeable=interchangeable)
    points = dataclasses.replace(
        model.points, interchangeable_pairs=((0, 1),), order_known=order_known
    )
    monkeypatch.setattr(model, "config", dataclasses.replace(model.config, loss=loss))
    monkeypatch.setattr(model, "points", points)
    exchanged = dataclasses.replace(records, keypoints=records.keypoints[:, ::-1])
    straight, crosswise = (
        labelled.measure(model, labels, points).points for labels in (records, exchanged)
    )
    assert np.allclose(straight, crosswise) == free


def test_slips_are_sentences(run):
    with pytest.raises(UserError, match="--measure span=bright must name two different points"):
        calibration.main([f"--workdir={run}", "--measure=span=bright"])
    with pytest.raises(UserError, match="too few for intervals at 95%, which take 19"):
        calibration.main([f"--workdir={run}", "--levels", "0.95"])
