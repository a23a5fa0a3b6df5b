"""Tables of published names: every naming to the same parameters, and every misfit refused."""

import dataclasses

import jax
import numpy as np
import pytest

from heatmap.errors import UserError
from heatmap.models import weights
from heatmap.models.vit import ARCHITECTURES, ViTConfig
from tests import published

SMALL_DINOV2 = dataclasses.replace(ViTConfig.dinov2(24, 2, 3, registers=0), position_grid=5)
SMALL = {
    "tiny16": ViTConfig.tiny16(),
    "small_gated": dataclasses.replace(ViTConfig.tiny16(), gated=True),
    "small_dinov2": SMALL_DINOV2,
    "small_dinov2_reg": dataclasses.replace(SMALL_DINOV2, registers=4),
}


def newest_hugging_face_dinov3(tree, config):
    return published.hugging_face_dinov3(tree, config, blocks="model.layer")


def all_below_model(tree, config):
    entries = published.hugging_face_dinov3(tree, config)
    return {f"model.{name}": array for name, array in entries.items()}


def newest_hugging_face_dinov2(tree, config):
    names = {
        "attention.attention.query": "attention.q_proj",
        "attention.output.dense": "attention.o_proj",
    }
    names |= {f"attention.attention.{n}": f"attention.{n[0]}_proj" for n in ("key", "value")}
    entries = published.hugging_face_dinov2(tree, config)
    for theirs, newer in names.items():
        entries = {name.replace(theirs, newer): array for name, array in entries.items()}
    return entries


FILES = [
    (published.hugging_face_dinov3, "tiny16"),
    (published.hugging_face_dinov3, "small_gated"),
    (newest_hugging_face_dinov3, "tiny16"),
    (all_below_model, "tiny16"),
    (published.meta, "tiny16"),
    (published.meta, "small_gated"),
    (published.hugging_face_dinov2, "small_dinov2"),
    (published.hugging_face_dinov2, "small_dinov2_reg"),
    (newest_hugging_face_dinov2, "small_dinov2"),
    (published.meta, "small_dinov2"),
    (published.meta, "small_dinov2_reg"),
]


@pytest.fixture(autouse=True)
def _small_architectures(monkeypatch):
    for name, config in SMALL.items():
        monkeypatch.setitem(ARCHITECTURES, name, config)


def entries(write=published.hugging_face_dinov3, name="tiny16"):
    return write(published.random_parameters(SMALL[name]), SMALL[name])


@pytest.mark.parametrize(("write", "name"), FILES)
def test_every_naming_is_read_and_its_architecture_recognised(write, name):
    architecture, tree = weights.convert(entries(write, name))
    assert architecture == name
    expected = published.random_parameters(SMALL[name])
    assert jax.tree.structure(tree) == jax.tree.structure(expected)
    for mine, theirs in zip(jax.tree.leaves(tree), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(mine, theirs)
        assert mine.dtype == np.float32
        assert mine.flags.c_contiguous


@pytest.mark.parametrize(
    ("write", "name", "count"),
    [
        (published.hugging_face_dinov3, "dinov3_vits16", 211),
        (published.meta, "dinov3_vits16", 188),
        (published.hugging_face_dinov2, "dinov2_vits14", 223),
    ],
)
def test_published_files_have_as_many_arrays(write, name, count):
    """What the tests write has the number of arrays that the real files have."""
    config = ARCHITECTURES[name]
    tree = jax.tree.map(
        lambda a: np.broadcast_to(np.float32(0), a.shape), weights.parameters(config)
    )
    assert len(write(tree, config)) == count


def test_numbers_of_half_precision_become_float32():
    halves = {name: array.astype(np.float16) for name, array in entries().items()}
    _, tree = weights.convert(halves)
    assert {a.dtype for a in jax.tree.leaves(tree)} == {np.dtype("float32")}


def test_architectures_differ_in_what_is_recognised():
    found = {}
    for name, config in ARCHITECTURES.items():
        fields = ("width", "depth", "patch", "registers", "gated", "position_grid")
        found.setdefault(tuple(getattr(config, field) for field in fields), []).append(name)
    assert all(len(names) == 1 for names in found.values()), found


def missing(e):
    del e["layer.1.mlp.up_proj.bias"]


def without_a_block(e):
    for name in [name for name in e if name.startswith("layer.1.")]:
        del e[name]


def doubled(e):
    e["model.layer.0.norm1.weight"] = e["layer.0.norm1.weight"]


def unread(e):
    e["head.weight"] = np.zeros((3, 64), np.float32)


def key_bias(e):
    e["layer.0.attention.k_proj.bias"] = np.zeros(64, np.float32)


def misshapen(e):
    e["layer.0.mlp.up_proj.weight"] = e["layer.0.mlp.up_proj.weight"].T


def misshapen_patches(e):
    e["embeddings.patch_embeddings.weight"] = np.zeros((64, 3), np.float32)


def misshapen_token(e):
    e["embeddings.cls_token"] = np.zeros((2, 64), np.float32)


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (missing, r"has no array for blocks/1/mlp/up/bias of tiny16"),
        (
            doubled,
            r"layer\.0\.norm1\.weight and model\.layer\.0\.norm1\.weight are the same .*scale",
        ),
        (unread, r"taken for DINOv3 of Hugging Face, which has no array named head\.weight"),
        (key_bias, r"tiny16 has no place for layer\.0\.attention\.k_proj\.bias"),
        (
            misshapen,
            r"mlp\.up_proj\.weight would give blocks/0/mlp/up/kernel the shape \(128, 64\)",
        ),
        (
            misshapen_patches,
            r"patch_embeddings\.weight has the shape \(64, 3\), which cannot be read",
        ),
        (misshapen_token, r"cls_token has the shape \(2, 64\), which cannot be read"),
        (without_a_block, r"no known architecture has width=64, depth=1, .* name .* with --arch"),
        (dict.clear, r"holds no DINOv2 or DINOv3 backbone"),
    ],
)
def test_whatever_does_not_fit_is_refused(spoil, sentence):
    spoilt = entries()
    spoil(spoilt)
    with pytest.raises(UserError, match=sentence):
        weights.convert(spoilt)


def test_a_named_architecture_says_what_differs():
    spoilt = entries()
    without_a_block(spoilt)
    with pytest.raises(
        UserError, match=r"has no array for blocks/1/attention/.* and \d+ more of tiny16"
    ):
        weights.convert(spoilt, "tiny16")


def test_metas_qkv_of_another_length_is_refused():
    spoilt = entries(published.meta)
    spoilt["blocks.0.attn.qkv.bias"] = np.zeros(64, np.float32)
    with pytest.raises(UserError, match=r"qkv\.bias has the shape \(64,\), which cannot be read"):
        weights.convert(spoilt)


def test_another_models_file_is_refused():
    other = {f"conv{i}.weight": np.zeros((3, 3)) for i in range(5)}
    with pytest.raises(UserError, match=r"no DINOv2 or DINOv3 backbone, only: conv0.*and 2 more"):
        weights.convert(other)
