"""The doctor as a user meets it: what it catches, what it lets pass, exit codes and files."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from heatmap import decoding, doctor, prediction_table
from heatmap.errors import UserError
from tests.conftest import write_spots
from tests.predicted import build

ROOT = pathlib.Path(__file__).parents[1]
SMALL = [
    "--config=configs/sigma2.py",
    "--config.data.name=simple_json",
    "--config.data.image_size=(32,32)",
    "--config.targets.heatmap_size=(16,16)",
    "--config.targets.sigma=1.0",
    "--config.train.batch_size=4",
]


def diagnose(root, folder, *arguments):
    """Runs the doctor in this process; returns the exit code and the findings by check."""
    flags = [*SMALL, f"--config.data.root={root}", f"--out={folder}", *arguments]
    code = 0
    try:
        doctor.main(flags)
    except SystemExit as left:
        code = left.code
    report = json.loads((folder / "doctor.json").read_text(), parse_constant=pytest.fail)
    assert report["failed"] == (code == 1)
    return code, {finding["check"]: finding for finding in report["findings"]}


def relabel(root, split, change):
    """Changes the labels of a simple_json split in place."""
    path = root / f"{split}_annotations.json"
    labels = json.loads(path.read_text())
    change(labels)
    path.write_text(json.dumps(labels))


@pytest.fixture
def root(tmp_path):
    return write_spots(tmp_path / "data")


def test_sound_data_pass(root, tmp_path, capsys):
    code, found = diagnose(root, tmp_path / "out", "--no_step")
    assert code == 0
    assert {finding["level"] for finding in found.values()} == {"ok"}
    printed = capsys.readouterr().out
    for check, finding in found.items():
        assert f"ok    {check}" in printed
        assert finding["message"].split()[0] in printed
    with Image.open(tmp_path / "out" / "contact_sheet.png") as sheet:
        assert sheet.width > 300


def test_exchanged_left_and_right_fail(tmp_path):
    """Faces: two eyes above a mouth, in one of which the eyes have changed names."""
    folder = write_spots(tmp_path / "data")
    rng = np.random.default_rng(0)

    def faces(labels):
        labels["keypoint_names"], labels["num_keypoints"] = ["left_eye", "right_eye", "mouth"], 3
        for image in labels["images"]:
            middle = rng.uniform(14, 18, 2)
            face = middle + np.array([[-5, -4], [5, -4], [0, 6]]) + rng.normal(0, 0.5, (3, 2))
            image["keypoints"] = face.tolist()

    for split in ("train", "val", "test"):
        relabel(folder, split, faces)
    assert diagnose(folder, tmp_path / "sound", "--no_step")[0] == 0

    def exchange(labels):
        points = labels["images"][7]["keypoints"]
        points[0], points[1] = points[1], points[0]

    relabel(folder, "train", exchange)
    code, found = diagnose(folder, tmp_path / "out", "--no_step")
    assert code == 1
    assert found["left/right"]["level"] == "FAIL"
    assert found["left/right"]["data"]["left_eye/right_eye"]["swapped"] == ["train/007.png"]
    flipped = diagnose(
        folder, tmp_path / "flip", "--no_step", "--config.augment.horizontal_flip=0.5"
    )
    assert flipped[1]["mirror"]["level"] == "FAIL"


def test_a_picture_of_two_splits_fails(root, tmp_path):
    shutil.copy(root / "train" / "003.png", root / "test" / "002.png")
    code, found = diagnose(root, tmp_path / "out", "--no_step")
    assert code == 1
    shared = found["duplicates"]["data"]["across_splits"]
    assert shared == [["train: train/003.png", "test: test/002.png"]]


def test_half_a_pixel_in_a_decoder_fails(root, tmp_path, monkeypatch):
    honest = decoding.DECODERS["dark"]

    def shifted(maps, kind, config):
        return honest.locate(maps, kind, config) + 0.5

    broken = decoding.Decoder(shifted, honest.reads)
    monkeypatch.setitem(decoding.DECODERS, "dark", broken)
    code, found = diagnose(root, tmp_path / "out", "--no_step")
    assert code == 1
    assert found["codec"]["level"] == "FAIL"
    bias = found["codec"]["data"]["decoders"]["dark"]["evaluated"]["bias_px"]
    np.testing.assert_allclose(bias, [1.0, 1.0], atol=0.01)  # two pixels in one of the map


def test_squared_error_with_plain_soft_argmax_fails(root, tmp_path):
    code, found = diagnose(root, tmp_path / "out", "--config.decoder.name=soft_argmax")
    assert code == 1
    assert found["config"]["level"] == "FAIL"
    assert "decoder.name='soft_argmax'" in found["config"]["message"]
    assert "choose argmax, local_soft_argmax, dark" in found["config"]["message"]
    assert found["codec"]["level"] == "FAIL"
    assert "cost" not in found


def test_labels_in_the_frame_of_a_larger_picture_fail(root, tmp_path):
    def double(labels):
        points = np.array([[12, 14], [20, 25]])
        labels["images"][3]["keypoints"] = (2 * points + 0.5).tolist()

    relabel(root, "val", double)
    code, found = diagnose(root, tmp_path / "out", "--no_step")
    assert code == 1
    assert found["frame"]["level"] == "FAIL"
    assert found["frame"]["data"]["far_out"] == ["val/003.png"]


def run(*arguments, cwd=ROOT):
    return subprocess.run(
        [sys.executable, "-m", "heatmap.doctor", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.mark.slow
def test_a_run_is_timed(root, tmp_path):
    regression = ["--config.model.name=regression", "--config.loss.name=coordinate_mse"]
    code, found = diagnose(root, tmp_path / "out", *regression)
    assert code == 0
    assert found["cost"]["data"]["steps"] == 150
    assert found["cost"]["data"]["hours"] > 0
    assert "ms a step" in found["cost"]["message"]


@pytest.mark.slow
def test_exit_code_one_and_files_in_the_folder_of_runs(root, tmp_path):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    wrong = "--config.decoder.name=soft_argmax"
    result = run(*SMALL, f"--config.data.root={root}", wrong, cwd=tmp_path)
    assert result.returncode == 1, result.stderr
    assert "FAIL  config" in result.stdout
    assert "Traceback" not in result.stderr
    assert "wrote runs/doctor-sigma2/doctor.json" in result.stdout
    assert (tmp_path / "runs" / "doctor-sigma2" / "contact_sheet.png").is_file()


def test_a_mistake_is_exit_code_two(tmp_path):
    result = run(*SMALL, f"--config.data.root={tmp_path / 'nowhere'}")
    assert result.returncode == 2
    assert "nowhere" in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize("wrong", ["--config.nonsense=1", "--workdir=/nowhere"])
def test_what_cannot_be_read_is_one_sentence(root, tmp_path, wrong):
    with pytest.raises(UserError, match=r"nonsense|/nowhere"):
        diagnose(root, tmp_path, "--no_step", wrong)


def test_a_trained_run_shows_labels_that_it_contradicts(root, tmp_path):
    rng = np.random.default_rng(0)
    truth = rng.uniform(0, 30, (12, 2, 2))
    predictions = build(truth + rng.normal(0, 1, truth.shape), truth)
    path = tmp_path / "run" / "predictions" / "test.parquet"
    prediction_table.save(path, predictions, ("bright", "dim"), csv=False)
    _, found = diagnose(root, tmp_path / "out", "--no_step", f"--workdir={tmp_path / 'run'}")
    assert found["predictions"]["data"]["labels"] == 24
