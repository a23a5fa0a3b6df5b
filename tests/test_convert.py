"""The command that converts weights, what it writes, and how that is read back."""

import dataclasses
import hashlib
import subprocess
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy

from heatmap import state as state_lib
from heatmap.errors import UserError
from heatmap.models import convert, pretrained
from heatmap.models.vit import ARCHITECTURES
from tests import published
from tests.helpers import make_config

TINY = ARCHITECTURES["tiny16"]
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def tree():
    return published.random_parameters(TINY)


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "model.safetensors"
    write_safetensors(path, published.hugging_face_dinov3(tree(), TINY))
    return path


def write_safetensors(path, entries):
    contiguous = {name: np.ascontiguousarray(array) for name, array in entries.items()}
    safetensors.numpy.save_file(contiguous, path)


def load(folder):
    return pretrained.load(folder, state_lib.create_mesh())


def assert_is_tree(found):
    assert jax.tree.structure(found) == jax.tree.structure(tree())
    for mine, expected in zip(jax.tree.leaves(found), jax.tree.leaves(tree()), strict=True):
        np.testing.assert_array_equal(mine, expected)


def test_the_command_writes_what_load_reads(source, tmp_path, capsys):
    folder = tmp_path / "weights" / "tiny"
    convert.main([str(source), str(folder)])
    description, found = load(folder)
    assert_is_tree(found)
    assert dataclasses.asdict(description) == {
        "architecture": "tiny16",
        "source": "model.safetensors",
        "source_sha256": hashlib.sha256(source.read_bytes()).hexdigest(),
        "sha256": state_lib.tree_sha256(tree()),
        **IMAGENET,
    }
    printed = capsys.readouterr().out
    assert "--config.model.backbone=tiny16" in printed
    assert f"--config.model.backbone_weights={folder}" in printed


def test_the_pixels_of_pretraining_are_kept(source, tmp_path):
    arguments = [str(source), str(tmp_path / "out"), "--mean", "0.4", "0.4", "0.3"]
    convert.main([*arguments, "--std", "0.2", "0.1", "0.1", "--arch", "tiny16"])
    description, _ = load(tmp_path / "out")
    assert (description.mean, description.std) == ((0.4, 0.4, 0.3), (0.2, 0.1, 0.1))


def test_bfloat16_files_are_read(tmp_path):
    entries = published.hugging_face_dinov3(tree(), TINY)
    rounded = {name: array.astype(jax.numpy.bfloat16) for name, array in entries.items()}
    write_safetensors(tmp_path / "half.safetensors", rounded)
    convert.convert(tmp_path / "half.safetensors", tmp_path / "out")
    found = load(tmp_path / "out")[1]["norm"]["bias"]
    np.testing.assert_array_equal(found, tree()["norm"]["bias"].astype(jax.numpy.bfloat16))


def refusal(*arguments):
    with pytest.raises(UserError) as caught:
        convert.convert(*arguments)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    return message


def test_an_existing_folder_is_left_alone(source, tmp_path):
    (tmp_path / "thesis").mkdir()
    assert "thesis exists already" in refusal(source, tmp_path / "thesis")
    assert not list((tmp_path / "thesis").iterdir())


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("absent.safetensors", None, "is not a file"),
        ("model.onnx", b"", "must end in .safetensors or .pth"),
        ("empty.safetensors", b"", "is not a safetensors file that can be read"),
        ("junk.safetensors", b"junk" * 100, "is not a safetensors file that can be read"),
    ],
)
def test_what_is_no_file_of_weights_is_refused(tmp_path, name, content, sentence):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    message = refusal(tmp_path / name, tmp_path / "out")
    assert sentence in message
    assert name in message
    assert not (tmp_path / "out").exists()


def test_a_file_that_does_not_fit_is_named(tmp_path):
    entries = published.hugging_face_dinov3(tree(), TINY)
    entries["classifier.weight"] = np.zeros((2, 2), np.float32)
    write_safetensors(tmp_path / "model.safetensors", entries)
    message = refusal(tmp_path / "model.safetensors", tmp_path / "out")
    assert message.startswith(str(tmp_path / "model.safetensors"))
    assert "classifier.weight" in message
    assert not (tmp_path / "out").exists()


def test_a_write_that_fails_leaves_no_folder(source, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("orbax.checkpoint.args.JsonSave", full)
    with pytest.raises(OSError, match="No space"):
        convert.convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_mistakes_are_a_sentence_and_exit_code_2(tmp_path):
    process = subprocess.run(
        [sys.executable, "-m", "heatmap.models.convert", str(tmp_path / "no.pth"), "out"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 2
    assert "no.pth is not a file" in process.stderr
    assert len(process.stderr.splitlines()) == 1


# --- PyTorch's files ----------------------------------------------------------------------------


def test_without_pytorch_its_files_are_refused_with_the_way_out(tmp_path, monkeypatch):
    (tmp_path / "model.pth").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "torch", None)
    message = refusal(tmp_path / "model.pth", tmp_path / "out")
    assert "needs PyTorch: pip install torch, or convert the .safetensors file" in message


def test_metas_file_is_read(tmp_path):
    torch = pytest.importorskip("torch")
    entries = published.meta(tree(), TINY)
    tensors = {name: torch.tensor(array) for name, array in entries.items()}
    torch.save(tensors, tmp_path / "model.pth")
    assert convert.convert(tmp_path / "model.pth", tmp_path / "out").architecture == "tiny16"
    assert_is_tree(load(tmp_path / "out")[1])


class Code:
    """Pickled as a call: what a file from anywhere must not be able to do."""

    def __reduce__(self):
        return (print, ("this must not run",))


@pytest.mark.parametrize(
    "content",
    [{"norm.weight": Code()}, {"model": {"norm.weight": 1}}, [1, 2], b"cut", b""],
    ids=["code", "nested", "list", "junk", "empty"],
)
def test_other_contents_are_refused_and_never_run(tmp_path, content, capsys):
    torch = pytest.importorskip("torch")
    path = tmp_path / "model.pth"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    assert "model.pth" in refusal(path, tmp_path / "out")
    assert "must not run" not in capsys.readouterr().out


# --- what was written, read back ----------------------------------------------------------------


@pytest.fixture
def folder(source, tmp_path):
    convert.convert(source, tmp_path / "weights")
    return tmp_path / "weights"


@pytest.mark.parametrize("part", ["parameters", "description"])
def test_a_folder_with_a_missing_part_is_refused(folder, part):
    (folder / part).rename(folder / f"{part}-gone")
    with pytest.raises(UserError, match=r"cannot be read .*: delete the folder and convert"):
        load(folder)


def test_a_flipped_bit_is_refused(folder):
    large = max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(large.read_bytes())
    data[len(data) // 2] ^= 0x10
    large.write_bytes(data)
    with pytest.raises(UserError, match=r"is damaged|cannot be read"):
        load(folder)


def test_arrays_that_are_not_those_described_are_refused(tmp_path):
    wrong = pretrained.Description("tiny16", "model.safetensors", "0", "0", (0.5,) * 3, (0.5,) * 3)
    pretrained.save(tmp_path / "weights", tree(), wrong)
    with pytest.raises(UserError, match="is damaged: its arrays are not those that were written"):
        load(tmp_path / "weights")


def test_an_architecture_of_another_version_is_refused(tmp_path):
    wrong = pretrained.Description("vit99", "a", "0", "0", (0.5,) * 3, (0.5,) * 3)
    pretrained.save(tmp_path / "weights", tree(), wrong)
    with pytest.raises(UserError, match=r"cannot be read \(KeyError: 'vit99'\)"):
        load(tmp_path / "weights")


def config_for(folder, **overrides):
    settings = {
        "model.name": "vit",
        "model.backbone": "tiny16",
        "model.backbone_weights": str(folder),
        "data.channels": 3,
        "data.mean": IMAGENET["mean"],
        "data.std": IMAGENET["std"],
    }
    return make_config(**(settings | overrides))


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (
            {"model.backbone": "dinov2_vits14"},
            r"holds 'tiny16': set model\.backbone to it, or name",
        ),
        ({"data.mean": (0.5, 0.5, 0.5)}, r"data\.mean=.* set data\.mean to \(0\.485, 0\.456"),
        ({"data.std": (1.0,)}, r"data\.std=\(1\.0,\) is not what .* was pretrained with"),
    ],
)
def test_weights_that_the_config_does_not_fit_are_refused(folder, overrides, sentence):
    config = config_for(folder, **overrides)
    with pytest.raises(UserError, match=sentence):
        pretrained.load_for(config, state_lib.create_mesh())


def test_weights_that_the_config_fits_are_read(folder):
    mesh = state_lib.create_mesh()
    assert_is_tree(pretrained.load_for(config_for(folder), mesh))


@pytest.mark.parametrize("folder", ["", "nowhere/dinov3"])
@pytest.mark.parametrize(
    ("backbone", "hub", "licence"),
    [
        ("dinov3_vits16", "facebook/dinov3-vits16-pretrain-lvd1689m", "DINOv3 License"),
        ("dinov3_vitl16", "facebook/dinov3-vitl16-pretrain-lvd1689m", "DINOv3 License"),
        ("dinov2_vitb14_reg", "facebook/dinov2-with-registers-base", "Apache-2.0"),
    ],
)
def test_missing_weights_say_where_they_are_and_how_to_convert_them(folder, backbone, hub, licence):
    with pytest.raises(UserError) as caught:
        pretrained.find(config_for(folder, **{"model.backbone": backbone}))
    message = str(caught.value)
    assert f"python -m heatmap.models.convert model.safetensors weights/{backbone}`" in message
    assert licence in message
    assert f"huggingface.co/{hub} " in message
    assert "\n" not in message
    assert "model.backbone_init='random'" in message
    assert (f"model.backbone_weights={folder!r} does not exist" in message) == bool(folder)


def test_weights_that_nobody_has_published_are_not_to_be_downloaded():
    with pytest.raises(UserError, match="nobody has published any for 'tiny16'"):
        pretrained.find(config_for(""))
    assert set(pretrained.HUB) == set(ARCHITECTURES) - {"tiny16"}
