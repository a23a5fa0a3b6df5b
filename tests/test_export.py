"""Artefacts, run in their own runtimes by processes that cannot import this program."""

import dataclasses
import hashlib
import json
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from heatmap import predict, workdir
from heatmap import run as run_lib
from heatmap.errors import UserError, guard
from heatmap.export import __main__ as command
from heatmap.export import artefact, check, golden, program
from heatmap.inference import predictor, uncertainty
from heatmap.inference.uncertainty import Calibration, Line, Steps
from heatmap.keypoints import KeypointSet
from heatmap.train import train
from tests.helpers import MODEL_SETTINGS
from tests.test_train import tiny

HIDDEN = {"stablehlo": "tensorflow", "savedmodel": "jax,flax", "onnx": "jax,flax,tensorflow"}
# Predicts the pictures of one file and writes what is found to another.
OUTSIDE = """
import sys

folder, pictures, out, hidden = sys.argv[1:]
for name in ("heatmap", "input_pipeline", *hidden.split(",")):
    sys.modules[name] = None  # importing it fails
sys.dont_write_bytecode = True
sys.path.insert(0, folder)

import numpy as np
from check import load

predict = load(folder)
with np.load(pictures) as given:
    inputs = dict(given)
boxes = {name[4:]: inputs.pop(name) for name in list(inputs) if name.startswith("box_")}
found = {}
for name, image in inputs.items():
    for key, value in predict(image, *([boxes[name]] if boxes else [])).items():
        found[f"{name}.{key}"] = value
np.savez(out, **found)
"""
# As large as the input, smaller, larger by more than two, and wide.
SIZES = [(32, 32), (20, 27), (97, 150), (33, 130)]


def spots(height, width, seed=0):
    """A coloured picture with a bright and a dim spot, as the runs were trained on."""
    rng = np.random.default_rng([seed, height, width])
    rows, columns = np.mgrid[:height, :width]
    picture = rng.normal(40, 5, (height, width, 3))
    reach = (height * width) ** 0.5 / 16
    for size in (200, 100):
        x, y = rng.uniform(0.2, 0.8, 2) * (width, height)
        spot = np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * reach**2))
        picture += size * spot[..., None] * (1.0, 0.9, 0.8)
    return picture.clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def trained(tiny_root, tmp_path_factory) -> pathlib.Path:
    """The workdir of a finished run."""
    folder = tmp_path_factory.mktemp("runs") / "unet"
    train(tiny(tiny_root), folder)
    return folder


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    """Artefacts of the finished run by format, each written when it is first asked for."""
    folder = tmp_path_factory.mktemp("artefacts")

    def get(kind) -> pathlib.Path:
        out = folder / kind
        if not out.exists():
            require(kind)
            command.main([f"--workdir={trained}", f"--format={kind}", f"--out={out}"])
        return out

    return get


def require(kind):
    if kind == "onnx":
        pytest.importorskip("onnxruntime")


def random_run(name, **settings) -> run_lib.Run:
    """A model with fresh weights, its maps not nearly empty but large and uneven."""
    config = tiny("", **{"model.name": name, **MODEL_SETTINGS[name], **settings})
    run = run_lib.build(config, KeypointSet(("bright", "dim")))

    def enlarged(kernel):
        return 1000 * kernel if kernel.ndim == 4 and kernel.std() < 2e-3 else kernel

    params = jax.tree.map(enlarged, run.weights["params"])
    return dataclasses.replace(run, weights={**run.weights, "params": params})


def write(run, kind, folder, boxed=False):
    """Writes an artefact of a model without a workdir."""
    require(kind)
    folder.mkdir()
    command.FORMATS[kind].write(folder, program.build(run, boxed))
    inputs = {"image": spots(40, 70)}
    if boxed:
        inputs["box"] = np.float32([2, 3, 50, 30])
    picture = golden.Golden(inputs, golden.evaluator(run)(*inputs.values()), not boxed)
    artefact.write_around(folder, picture, run.points, {"format": kind})


def run_outside(folder, images, tmp_path) -> dict[str, dict[str, np.ndarray]]:
    """Predicts pictures by name in a process without this program, and without other runtimes."""
    kind = json.loads((folder / "metadata.json").read_text())["format"]
    np.savez(tmp_path / "pictures.npz", **images)
    places = [folder, tmp_path / "pictures.npz", tmp_path / "found.npz"]
    process = subprocess.run(
        [sys.executable, "-I", "-c", OUTSIDE, *map(str, places), HIDDEN[kind]],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    found = {name: {} for name in images if not name.startswith("box_")}
    with np.load(tmp_path / "found.npz") as stored:
        for key, value in stored.items():
            name, output = key.split(".")
            found[name][output] = value
    return found


def assert_agree(found, expected):
    """Raw maps within 1e-4, and of the points at least 99.9 % within 1e-3 px."""
    assert set(found) == set(expected)
    for name in expected:
        raw = "maps" if "maps" in expected[name] else "coordinates"
        np.testing.assert_allclose(found[name][raw], expected[name][raw], rtol=0, atol=1e-4)
    off = np.concatenate(
        [np.hypot(*(found[n]["points"] - expected[n]["points"]).T) for n in expected]
    )
    assert (off <= 1e-3).mean() >= 0.999, off


def assert_found(run, folder, tmp_path):
    """Compares an artefact with the evaluation of the run that it is of, on all SIZES."""
    images = {f"{h}x{w}": spots(h, w) for h, w in SIZES}
    found = run_outside(folder, images, tmp_path)
    predict = golden.evaluator(run)
    assert_agree(found, {size: predict(image) for size, image in images.items()})


# Of the three formats, TensorFlow takes longest to start; one test of it suffices every day.
DAILY = ["stablehlo", "onnx", pytest.param("savedmodel", marks=pytest.mark.slow)]


@pytest.mark.parametrize("kind", DAILY)
def test_an_artefact_finds_what_the_program_finds(trained, exported, kind, tmp_path):
    assert_found(run_lib.open_run(trained), exported(kind), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", command.FORMATS)
def test_an_artefact_finds_what_the_run_wrote_down(trained, exported, tiny_root, kind, tmp_path):
    """The parquet of the run comes from its own evaluation, batches and all."""
    rows = pq.read_table(trained / "predictions" / "test.parquet").to_pydict()
    keys = {name: name.replace("/", "_").replace(".", "_") for name in rows["id"]}
    images = {
        key: np.array(Image.open(tiny_root / name).convert("RGB")) for name, key in keys.items()
    }
    found = run_outside(exported(kind), images, tmp_path)
    points = json.loads((exported(kind) / "metadata.json").read_text())["points"]
    for i, name in enumerate(rows["id"]):
        result, k = found[keys[name]], points.index(rows["point"][i])
        expected = [rows["x"][i], rows["y"][i]]
        np.testing.assert_allclose(result["points"][k], expected, rtol=0, atol=1e-3)
        assert result["score"][k] == pytest.approx(rows["score"][i], abs=1e-5)
        assert result["entropy"][k] == pytest.approx(rows["entropy"][i], abs=1e-4)


@pytest.fixture(scope="module")
def calibrated(tiny_root, tmp_path_factory) -> pathlib.Path:
    """The workdir of a run with a length to measure, and a calibration made up by hand."""
    folder = tmp_path_factory.mktemp("runs") / "calibrated"
    train(tiny(tiny_root, **{"data.measurements": (("apart", "bright", "dim"),)}), folder)
    made_up = Calibration(
        identity=predictor.open_all([folder]).identity(),
        levels=(0.8, 0.95),
        groups=30,
        examples=30,
        points={"bright": (1.0, 2.5), "dim": (1.5, np.nan)},
        lines={"apart": Line(0, 1, (0.75, 1.5))},
        within=0.05,
        confidence=Steps((0.1, 0.2, 0.3), (0.1, 0.5, 0.9)),
        visibility=Steps((0.25,), (0.6,)),
    )
    uncertainty.save(folder, made_up)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", DAILY)
def test_an_artefact_says_what_heatmap_predict_says(calibrated, kind, tmp_path):
    """Points, intervals, confidence and lengths, of picture files of all SIZES."""
    require(kind)
    images = {f"{h}x{w}": spots(h, w) for h, w in SIZES}
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for name, pixels in images.items():
        Image.fromarray(pixels).save(pictures / f"{name}.png")
    asked = [f"--workdir={calibrated}", "--measure=back=dim-bright"]
    predict.main([*asked, str(pictures), f"--out={tmp_path / 'predicted'}"])
    command.main([*asked, f"--format={kind}", f"--out={tmp_path / 'out'}"])
    found = run_outside(tmp_path / "out", images, tmp_path)
    points, lengths = (
        pq.read_table(tmp_path / "predicted" / f"{name}.parquet").to_pandas()
        for name in ("points", "lengths")
    )
    for name, outputs in found.items():
        rows = points[points["source"].str.endswith(f"/{name}.png")]
        np.testing.assert_allclose(outputs["points"], rows[["x", "y"]], rtol=0, atol=1e-3)
        radii = rows[["radius_80", "radius_95"]]
        np.testing.assert_allclose(outputs["radius"], radii, rtol=1e-3)
        np.testing.assert_allclose(outputs["confidence"], rows["confidence"], rtol=1e-6)
        np.testing.assert_allclose(outputs["visibility"], rows["visibility"], rtol=1e-6)
        rows = lengths[lengths["source"].str.endswith(f"/{name}.png")]
        assert rows["measurement"].tolist() == ["apart", "back"]
        np.testing.assert_allclose(outputs["lengths"], rows["px"], rtol=0, atol=2e-3)
        widths = rows["px_high_95"] - rows["px"]
        np.testing.assert_allclose(outputs["half_widths"][:, 1], widths, rtol=1e-3)
    told = json.loads((tmp_path / "out" / "metadata.json").read_text())
    assert told["levels"] == [0.8, 0.95]
    assert told["measurements"] == [["apart", 0, 1], ["back", 1, 0]]


def test_lengths_need_no_calibration(trained, tmp_path, capsys):
    require("stablehlo")
    out = tmp_path / "out"
    asked = [f"--workdir={trained}", "--format=stablehlo", f"--out={out}"]
    command.main([*asked, "--measure=span=bright-dim"])
    assert "no intervals" in capsys.readouterr().out
    image = spots(45, 64)
    found = run_outside(out, {"one": image}, tmp_path)["one"]
    bright, dim = found["points"]
    assert found["lengths"][0] == pytest.approx(np.hypot(*(bright - dim)))
    assert not {"radius", "half_widths"} & set(found)
    assert json.loads((out / "metadata.json").read_text())["measurements"] == [["span", 0, 1]]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(MODEL_SETTINGS) - {"unet"}))
@pytest.mark.parametrize("kind", ["onnx", "stablehlo", "savedmodel"])
def test_every_model(name, kind, tmp_path):
    run = random_run(name)
    write(run, kind, tmp_path / "out")
    assert_found(run, tmp_path / "out", tmp_path)


VARIANTS = {
    "letter-boxed colour, log-probabilities": {
        "data.channels": 3,
        "data.fit": "pad",
        "data.mean": (0.4, 0.5, 0.6),
        "data.std": (0.2, 0.3, 0.4),
        "loss.name": "cross_entropy",
        "decoder.name": "soft_argmax",
    },
    "half precision, no skips": {"model.dtype": "bfloat16", "model.skip": False},
}


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_other_settings(variant, tmp_path):
    run = random_run("unet", **VARIANTS[variant])
    write(run, "onnx", tmp_path / "out")
    assert_found(run, tmp_path / "out", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("head", ["simple", "cls_mlp"])
def test_other_heads(head, tmp_path):
    loss = "coordinate_mse" if head == "cls_mlp" else "mse"
    run = random_run("vit", **{"model.head": head, "loss.name": loss})
    write(run, "onnx", tmp_path / "out")
    assert_found(run, tmp_path / "out", tmp_path)


@pytest.mark.parametrize(
    "kind",
    ["onnx", *(pytest.param(k, marks=pytest.mark.slow) for k in ("stablehlo", "savedmodel"))],
)
def test_a_model_of_boxes_takes_one(trained, kind, tmp_path):
    run = run_lib.open_run(trained)
    write(run, kind, tmp_path / "out", boxed=True)
    image, box = spots(97, 150), np.float32([20.5, 10.25, 90.5, 80.0])
    found = run_outside(tmp_path / "out", {"a": image, "box_a": box}, tmp_path)
    predict = golden.evaluator(run)
    expected = predict(image, box.astype(np.float64))
    assert_agree(found, {"a": expected})
    assert np.abs(predict(image)["maps"] - expected["maps"]).max() > 0.01  # not the whole picture


def test_the_folder_says_what_it_holds(exported):
    folder = exported("stablehlo")
    assert {p.name for p in folder.iterdir()} == {
        "model.stablehlo", "metadata.json", "golden.npz", "golden.png", "check.py",
    }  # fmt: skip
    told = json.loads((folder / "metadata.json").read_text())
    assert told["points"] == ["bright", "dim"]
    assert set(told["outputs"]) == {"points", "maps", "score", "entropy"}
    assert set(told["versions"]) == {"heatmap", "jax", "jaxlib"}
    assert len(told["weights_sha256"]) == 64
    assert np.asarray(Image.open(folder / "golden.png")).std() > 10


def test_a_large_golden_picture_is_made_smaller_with_its_box(trained, tiny_root, monkeypatch):
    monkeypatch.setattr(golden, "_LARGEST", 16)
    picture = golden.choose(trained, run_lib.open_run(trained), boxed=True)
    stored = np.array(Image.open(tiny_root / "val" / "000.png"), float)
    means = np.round(stored.reshape(16, 2, 16, 2).mean((1, 3)))
    np.testing.assert_array_equal(picture.inputs["image"], np.repeat(means[..., None], 3, -1))
    labels = json.loads((tiny_root / "val_annotations.json").read_text())["images"][0]
    whole = picture.inputs["box"] * 2 + 0.5  # pixels twice as large, the first one's edge at -0.5
    points = np.array(labels["keypoints"])  # their extent is the box, a pixel's half around each
    extent = [*(points.min(0) - 0.5), *(points.max(0) + 0.5)]
    np.testing.assert_allclose(whole, extent, atol=1e-4)


def test_a_model_that_disagrees_is_not_loaded(exported, tmp_path):
    """The self-check: other weights than those that the golden points are of."""
    broken = shutil.copytree(exported("stablehlo"), tmp_path / "broken")
    with np.load(broken / "golden.npz") as stored:
        arrays = dict(stored)
    arrays["points"] = arrays["points"] + np.float32([0.002, 0])
    np.savez(broken / "golden.npz", **arrays)
    with pytest.raises(RuntimeError, match=r"bright is off by 0\.002"):
        check.load(broken)
    check.load(broken, check=False)
    process = subprocess.run(
        [sys.executable, broken / "check.py"], capture_output=True, text=True, check=False
    )
    assert process.returncode == 1
    assert "fails its golden check" in process.stderr


def cut(path):
    path.write_bytes(path.read_bytes()[:-40])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def retold(**changes):
    return lambda path: path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def without(name, **changes):
    def damage(path):
        with np.load(path) as stored:
            arrays = {**stored, **changes}
        arrays.pop(name, None)
        np.savez(path, **arrays)

    return damage


DAMAGES = {
    "model cut": ("model.stablehlo", cut),
    "one bit of the model": ("model.stablehlo", flip),
    "no model": ("model.stablehlo", pathlib.Path.unlink),
    "metadata cut": ("metadata.json", cut),
    "metadata no text": ("metadata.json", lambda path: path.write_bytes(b"\xff")),
    "metadata a list": ("metadata.json", lambda path: path.write_text("[]")),
    "no metadata": ("metadata.json", pathlib.Path.unlink),
    "another format": ("metadata.json", retold(format=["onnx"])),
    "points no list": ("metadata.json", retold(points="bright")),
    "another count of points": ("metadata.json", retold(points=["bright"])),
    "no hashes": ("metadata.json", retold(sha256={})),
    "golden cut": ("golden.npz", cut),
    "one bit of golden": ("golden.npz", flip),
    "no golden": ("golden.npz", pathlib.Path.unlink),
    "no image": ("golden.npz", without("image")),
    "no maps": ("golden.npz", without("maps")),
    "another image": ("golden.npz", without("", image=np.zeros((3, 3)))),
    "a box too many": ("golden.npz", without("", box=np.zeros(4))),
    "other outputs": ("golden.npz", without("", score=np.zeros(5))),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_artefact_is_a_sentence_that_names_the_file(exported, tmp_path, damage):
    broken = shutil.copytree(exported("stablehlo"), tmp_path / "broken")
    name, change = DAMAGES[damage]
    change(broken / name)
    with pytest.raises(check.Refused, match=f"(?s)^{broken}/.*{name}.*\\.$") as caught:
        check.load(broken)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["stablehlo", "onnx"])
def test_what_its_runtime_cannot_read_is_a_sentence(exported, tmp_path, kind):
    """A model of a later runtime, for example: the hash is right."""
    later = shutil.copytree(exported(kind), tmp_path / "later")
    (later / f"model.{kind}").write_bytes(b"")
    hashes = {f"model.{kind}": hashlib.sha256().hexdigest()}
    retold(sha256=hashes)(later / "metadata.json")
    with pytest.raises(check.Refused, match=rf"model\.{kind} cannot be read .* too old"):
        check.load(later)


def test_the_command_line_names_a_damaged_file(exported, tmp_path):
    broken = shutil.copytree(exported("stablehlo"), tmp_path / "broken")
    command_line = [sys.executable, broken / "check.py"]
    (tmp_path / "no.npy").write_bytes(b"no picture")
    for more, name in ([f"--image={tmp_path / 'no.npy'}"], "no.npy"), ([], "model.stablehlo"):
        process = subprocess.run(
            [*command_line, *more], capture_output=True, text=True, check=False
        )
        assert process.returncode == 2
        assert name in process.stderr
        assert process.stderr.count("\n") == 1, process.stderr
        flip(broken / "model.stablehlo")


def outputs(maps, points):
    return {"maps": np.float32(maps), "points": np.float32(points), "score": np.ones(1, np.float32)}


def test_one_of_two_equal_peaks_is_listed_not_refused():
    maps = np.zeros((4, 4, 1))
    maps[0, 0], maps[3, 3] = 1.0, 0.99995
    expected, other = outputs(maps, [[0.0, 0.0]]), maps.copy()
    other[3, 3] = 1.00004
    told = check.compare(outputs(other, [[3.0, 3.0]]), expected, ["tip"])
    assert told["swapped"] == ["tip"]
    assert told["wrong"] == []
    other[3, 3] = 1.0002  # not equal within the tolerance of maps
    told = check.compare(outputs(other, [[3.0, 3.0]]), expected, ["tip"])
    assert len(told["wrong"]) == 1
    maps[3, 3] = 0.9997  # maps agree, the peaks do not
    told = check.compare(outputs(maps, [[3.0, 3.0]]), outputs(maps, [[0.0, 0.0]]), ["tip"])
    assert told["wrong"] == ["tip is off by 4.24 px"]


def test_nothing_is_left_of_an_export_that_failed(trained, tmp_path, monkeypatch):
    def disagree(folder):
        raise RuntimeError("does not agree")

    monkeypatch.setattr(command.artefact, "check", disagree)
    with pytest.raises(RuntimeError, match="does not agree"):
        command.main([f"--workdir={trained}", "--format=stablehlo", f"--out={tmp_path / 'out'}"])
    assert list(tmp_path.iterdir()) == []


def test_further_outputs_go_inside(trained):
    """The hook of whatever is computed from maps and the way back to the picture."""

    def extra(found, original_from_input, points):
        return {"width": original_from_input[0, 0] * found.height[0], "twice": 2 * points}

    run = run_lib.open_run(trained)
    image = spots(45, 64)
    found = jax.jit(program.build(run, boxed=False, extra=extra).whole)(image)
    np.testing.assert_allclose(found["width"], 2 * found["maps"].max((0, 1)), rtol=1e-6)
    np.testing.assert_allclose(found["twice"], 2 * found["points"])


def mistakes(folder, tmp_path):
    """Arguments and a word of the sentence that answers them."""
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "something").touch()
    unfinished = shutil.copytree(folder, tmp_path / "unfinished")
    (unfinished / workdir.METRICS).unlink()
    format_of = "--format=stablehlo"
    return {
        "no workdir": ([f"--workdir={tmp_path}", format_of], "holds no config.json"),
        "unfinished": ([f"--workdir={unfinished}", format_of], "has not finished training"),
        "full": (
            [f"--workdir={folder}", format_of, f"--out={tmp_path / 'full'}"],
            "exists already",
        ),
        "moved": ([f"--workdir={folder}", format_of, f"--root={tmp_path / 'gone'}"], "gone"),
        "length": (
            [f"--workdir={folder}", format_of, "--measure=span=bright"],
            "two different points",
        ),
    }


def test_a_mistake_is_a_sentence(trained, tmp_path, capsys):
    for arguments, word in mistakes(trained, tmp_path).values():
        with pytest.raises(SystemExit) as caught:
            guard(lambda arguments=arguments: command.main(arguments))
        assert caught.value.code == 2
        told = capsys.readouterr().err
        assert word in told
        assert "Traceback" not in told


def test_without_onnx_there_is_a_sentence(trained, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"onnx.*pip install -e '\.\[export\]'"):
        command.main([f"--workdir={trained}", "--format=onnx", f"--out={tmp_path / 'o'}"])


def test_what_no_file_can_hold_is_refused(trained, monkeypatch):
    monkeypatch.setattr(program, "_MOST_GIGABYTES", 1e-4)
    with pytest.raises(UserError, match="holds 2"):
        program.build(run_lib.open_run(trained), boxed=False)


def test_whole_pictures_need_no_boxes(trained, tmp_path):
    config = workdir.read_config(trained)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, crop="image"))
    with pytest.raises(UserError, match="no --boxes"):
        command.export(trained, "stablehlo", tmp_path / "out", config, boxes=True)
