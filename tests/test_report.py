"""Reports of trained runs, from the command line to the files."""

import dataclasses
import itertools
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from heatmap import prediction_table
from heatmap.errors import UserError, guard
from heatmap.report import __main__ as command
from heatmap.report import analysis, examples, markdown, methods
from heatmap.report.findings import Ablation, AblationRow, Gallery
from heatmap.train import train
from tests.methods import figures, method, off_by
from tests.test_train import tiny

EMPTY = Gallery((), {}, ())


@pytest.fixture(scope="module")
def pair(tiny_root, tmp_path_factory):
    """Workdirs of the two kinds of networks on the same data, the first with maps of stages."""
    folder = tmp_path_factory.mktemp("pair")
    settings = {"eval.sheet_every_evals": 1, "eval.sheet_examples": 2}
    train(tiny(tiny_root, **settings), folder / "unet")
    regression = {"model.name": "regression", "loss.name": "coordinate_mse"}
    train(tiny(tiny_root, **settings, **regression), folder / "regression")
    return folder / "unet", folder / "regression"


@pytest.fixture(scope="module")
def page(pair, tmp_path_factory):
    """The folder of a report of both, and its text."""
    out = tmp_path_factory.mktemp("page")
    command.main([*map(str, pair), f"--out={out}/report.md"])
    return out, (out / "report.md").read_text()


def test_a_report_has_its_sections_and_figures(page):
    folder, text = page
    assert text.startswith("# unet and regression on test\n")
    headings = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert headings == [
        "Percentage of correct keypoints", "Keypoints", "Samples", "Failures", "Maps of unet",
        "Why", "Does the score tell the error?", "Error budget", "Training", "Settings",
        "How the numbers were made",
    ]  # fmt: skip
    shown = re.findall(r"\]\((figures/[^)]*)\)", text)
    assert {"figures/pck.png", "figures/stages_0.png", "figures/samples.png"} <= set(shown)
    assert sorted(shown) == sorted(f"figures/{p.name}" for p in (folder / "figures").iterdir())
    for name in shown:
        assert np.asarray(Image.open(folder / name)).std() > 5, name


def test_the_table_holds_the_scores_of_the_run(page, pair):
    _, text = page
    score = methods.open_method(pair[0], "test").scores["test/pck@0.05"]
    assert re.search(rf"\| unet \| {score:.3f} ", text)


def test_a_gallery_holds_what_the_models_said(pair):
    comparison, gallery = command.report(list(pair), "test", [])
    unet, regression = comparison.methods
    assert len(gallery.samples) == 6
    example = gallery.samples[2]
    assert example.id == unet.predictions.ids[example.row]
    assert example.picture.shape == (32, 32, 1)
    # The pictures of this data set are as large as the input, so that the pixels are the same.
    np.testing.assert_allclose(example.truth, unet.predictions.truth[example.row], atol=1e-4)
    np.testing.assert_allclose(example.predicted[1], regression.predictions.predicted[example.row])
    maps, none = example.maps
    assert none is None
    assert maps.shape == (16, 16, 2)
    assert (maps.min(), maps.max()) >= (0, 0)
    assert maps.max() <= 1
    peak = np.array(np.unravel_index(maps[..., 0].argmax(), (16, 16)))[::-1]
    assert np.hypot(*(2 * peak + 0.5 - example.predicted[0, 0])) < 4
    np.testing.assert_allclose(example.boxes, [[-0.5, -0.5, 31.5, 31.5]] * 2)
    (key,) = [k for k in gallery.failures if k[2] == "both_wrong"]
    rows = [case.row for case in comparison.failures[0].cases["both_wrong"]]
    assert [e.row for e in gallery.failures[key]] == list(dict.fromkeys(rows))[:6]
    stages = [s for s in gallery.stages if s.method == "unet"]
    assert [s.id for s in stages] == ["val/000.png", "val/001.png"]
    assert stages[0].steps == tuple(sorted(stages[0].steps))
    assert stages[0].maps.shape == (len(stages[0].steps), 16, 16, 2)
    assert set(np.unique(stages[0].maps.max(axis=(1, 2)))) <= {0.0, 1.0}  # by its own largest value
    assert not [s for s in gallery.stages if s.method == "regression"]
    assert [b.method for b in comparison.budgets] == ["unet"] * 2 + ["regression"] * 2


def test_rows_of_another_order_are_looked_at_where_they_are(pair, tmp_path):
    """The file of the second run is shuffled; its examples keep their pictures and predictions."""
    shuffled = tmp_path / "shuffled"
    shutil.copytree(pair[1], shuffled)
    path = shuffled / "predictions" / "test.parquet"
    names = methods.open_method(shuffled, "test").points.names
    rows = np.array([4, 2, 0, 1, 5, 3])
    mixed = prediction_table.load(path, names).take(rows)
    prediction_table.save(path, mixed, names, csv=False)
    runs = methods.open_methods([shuffled, pair[1]], "test")
    np.testing.assert_array_equal(runs[0].errors, runs[1].errors)
    sources = examples.open_sources(runs)
    seen = examples.look(runs, sources, "test", [0, 3])
    straight = examples.look(runs[1:], sources[1:], "test", [0, 3])
    assert [seen[0].id, seen[3].id] == ["test/004.png", "test/001.png"]
    for row in (0, 3):
        assert straight[row].id == seen[row].id
        np.testing.assert_array_equal(seen[row].picture, straight[row].picture)
        np.testing.assert_array_equal(seen[row].predicted[0], seen[row].predicted[1])


def test_without_pictures_neither_data_nor_weights_are_needed(pair, tiny_root, tmp_path, capsys):
    moved = tmp_path / "moved"
    shutil.copytree(pair[0], moved)
    config = moved / "config.json"
    config.write_text(config.read_text().replace(str(tiny_root), str(tmp_path / "gone")))
    shutil.rmtree(moved / "checkpoints" / "best")
    command.main([str(moved), f"--out={tmp_path}/out.md", "--no-pictures"])
    text = (tmp_path / "out.md").read_text()
    assert "There is no error budget" in text
    assert "samples.png" not in text
    assert "wrote" in capsys.readouterr().out


def test_several_files_of_maps_are_thinned_by_factors_of_steps(pair, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(pair[0], copy)
    content = min((copy / "heatmaps").iterdir()).read_bytes()
    for file in (copy / "heatmaps").iterdir():
        file.unlink()
    for step in range(1, 65):
        (copy / "heatmaps" / f"{step:07d}.npz").write_bytes(content)
    runs = methods.open_methods([copy], "test")
    (source,) = examples.open_sources(runs)
    assert examples.stages(runs[0], source)[0].steps == (1, 2, 5, 12, 28, 64)


def bad(arguments, capsys) -> str:
    """Runs the command, which must end with one sentence and exit code 2."""
    with pytest.raises(SystemExit) as exit_:
        guard(lambda: command.main([str(a) for a in arguments]))
    assert exit_.value.code == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    assert len(message.strip().splitlines()) == 1
    return message


def test_bad_input_is_one_sentence(pair, tmp_path, capsys):
    out = f"--out={tmp_path}/report.md"
    assert "holds no config.json" in bad([tmp_path, out], capsys)
    assert "given twice" in bad([pair[0], pair[0], out], capsys)
    assert "--split='tset'" in bad([*pair, out, "--split=tset"], capsys)
    assert "train.parquet" in bad([*pair, out, "--split=train"], capsys)
    assert "ends in '.pdf'" in bad([*pair, f"--out={tmp_path}/report.pdf"], capsys)
    assert "sweep.csv" in bad([*pair, out, f"--sweep={tmp_path}"], capsys)
    assert "--threshold=2" in bad([*pair, out, "--threshold=2"], capsys)
    assert f"{tmp_path}/gone" in bad([*pair, out, f"--root={tmp_path}/gone"], capsys)
    assert not list(tmp_path.iterdir())


def test_a_folder_gets_every_format(tmp_path):
    assert set(command.outputs(tmp_path)) == {tmp_path / f"report{s}" for s in command.WRITERS}
    assert list(command.outputs(tmp_path / "a.md")) == [tmp_path / "a.md"]
    with pytest.raises(UserError, match=r"ends in '\.txt'"):
        command.outputs(tmp_path / "a.txt")


@pytest.mark.parametrize(
    "name",
    ["<script>alert(1)</script>.png", "a|b.png", "`x`.png", "![x](http://e.com)", "$x_1$ & *y*",
     "line\nbreak", "# heading", "1. item", "- item"],
)  # fmt: skip
def test_names_stay_text(tmp_path, name):
    """In Markdown and in matplotlib, which would read $…$ as a formula."""
    truth = figures(12)
    first = method(name, truth, off_by(truth, np.full((12, 3), 2.0)))
    second = method("plain", truth, off_by(truth, np.full((12, 3), 30.0)))
    ids = np.array([name] * 12)
    runs = [
        dataclasses.replace(m, predictions=dataclasses.replace(m.predictions, ids=ids))
        for m in (first, second)
    ]
    sweep = Ablation(name, (name,), (name,), (AblationRow((name,), 1, (0.5,), (np.nan,)),), (name,))
    comparison = analysis.compare(runs, "test", ablations=[sweep], draws=20)
    path = tmp_path / "report.md"
    markdown.write(path, comparison, EMPTY)
    text = path.read_text()
    assert "<" not in text
    assert not re.search(r"(?<!\\)`", text)
    assert "://" not in text
    assert "\nbreak" not in text
    assert not re.search(r"^\s*(- )?(# heading|1\. item|- item)", text, re.MULTILINE)
    assert all("figures/" in link for link in re.findall(r"(?<!\\)\]\([^)]*\)", text))
    tables = [line for line in text.splitlines() if line.startswith("|")]
    for before, line in itertools.pairwise(tables):
        if "---" in line:  # a header and its rule have as many cells
            assert len(re.findall(r"(?<!\\)\|", before)) == len(re.findall(r"\|", line))
    assert re.search(r"(?<!\\)\$", text) is None


def test_the_command_that_made_everything_is_given_as_it_is(pair, tmp_path):
    comparison, _ = command.report(list(pair), "test", [], pictures=False)
    typed = "python launch/study.py --out=<a|b>\n\n# heading"
    path = tmp_path / "report.md"
    markdown.write(path, dataclasses.replace(comparison, command=typed), EMPTY)
    lines = path.read_text().splitlines()
    assert "    python launch/study.py --out=<a|b>  # heading" in lines
    markdown.write(path, comparison, EMPTY)
    assert "were made by" not in path.read_text()
