"""Parity with PyTorch and transformers, the independent authors of the same networks.

They come with `pip install 'heatmap[parity]'`; without them, tests/test_vit.py and
tests/test_heads.py compare with NumPy. All weights are random, with every bias, norm and scale
drawn as well: as they are initialised, at 0 and 1, mistakes in them would not show.
"""

import dataclasses
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from heatmap import state as state_lib
from heatmap.models import convert, pretrained
from heatmap.models.heads import DeconvHead, SimpleHead
from heatmap.models.rngs import Rngs
from heatmap.models.vit import ARCHITECTURES, ViT, ViTConfig
from heatmap.models.weights import parameters

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TOLERANCE = 1e-5  # of the largest value
TWO_BLOCKS = {
    "rotary": ViTConfig.tiny16(),
    "gated": dataclasses.replace(ViTConfig.tiny16(), gated=True),
    "learned": ViTConfig.dinov2(24, 2, 3, registers=0),
    "learned, registers": ViTConfig.dinov2(24, 2, 3, registers=4),
}
SIZES = {16: [(256, 256), (192, 320)], 14: [(224, 224), (140, 280), (518, 518)]}
FULL_SIZE = [name for name in ARCHITECTURES if name != "tiny16"]
COPIES = 8  # of the weights that memory must hold: five at the peak, and room for other tests


def reference(config: ViTConfig):
    """The network of transformers, everything in it drawn."""
    common = {
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.heads,
        "patch_size": config.patch,
    }
    if not config.position_grid:
        settings = transformers.DINOv3ViTConfig(
            **common,
            intermediate_size=config.hidden,
            num_register_tokens=config.registers,
            use_gated_mlp=config.gated,
            hidden_act="silu" if config.gated else "gelu",
        )
        model = transformers.DINOv3ViTModel(settings)
    elif config.registers:
        common["image_size"] = config.patch * config.position_grid
        settings = transformers.Dinov2WithRegistersConfig(**common)
        model = transformers.Dinov2WithRegistersModel(settings)
    else:
        common["image_size"] = config.patch * config.position_grid
        model = transformers.Dinov2Model(transformers.Dinov2Config(**common))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            drawn = torch.randn(parameter.shape, generator=generator)
            if ("norm" in name and "weight" in name) or "lambda" in name:
                drawn = 1 + 0.2 * drawn
            elif parameter.ndim in (2, 4):
                drawn = drawn / parameter[0].numel() ** 0.5
            else:
                drawn = 0.5 * drawn
            parameter.copy_(drawn)
    return model.eval()


def converted(model, folder, name):
    """Our network, through the files that both commands write."""
    model.save_pretrained(folder / "published")
    written = convert.convert(folder / "published" / "model.safetensors", folder / "ours", name)
    mesh = state_lib.create_mesh()
    return written, pretrained.load(folder / "ours", mesh)[1]


def stages(config, tree, image):
    """Tokens before the first block, after it, features and CLS token."""
    graph = nnx.split(nnx.eval_shape(lambda: ViT(config, jnp.float32, Rngs(0))))[0]

    def run(tree, image):
        network = nnx.merge(graph, tree)
        embedded = network.embed(image)
        rotation = network.rotation(config.grid(*image.shape[1:3]))
        return embedded, network.blocks[0](embedded, rotation), *network(image)

    return jax.jit(run)(tree, image)


def reference_stages(config, model, image):
    with torch.no_grad():
        output = model(torch.tensor(image).permute(0, 3, 1, 2), output_hidden_states=True)
    last = output.last_hidden_state
    rows, columns = config.grid(*image.shape[1:3])
    features = last[:, 1 + config.registers :].reshape(len(image), rows, columns, -1)
    return *output.hidden_states[:2], features, last[:, 0]


def assert_parity(config, tree, model, size, batch=2):
    image = np.random.default_rng(0).normal(size=(batch, *size, 3)).astype(np.float32)
    for mine, theirs in zip(
        stages(config, tree, image), reference_stages(config, model, image), strict=True
    ):
        expected = theirs.numpy()
        assert mine.shape == expected.shape
        assert np.abs(mine - expected).max() <= TOLERANCE * np.abs(expected).max()


@pytest.fixture(scope="module", params=TWO_BLOCKS)
def two_blocks(request, tmp_path_factory):
    config = TWO_BLOCKS[request.param]
    model = reference(config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ARCHITECTURES, "two_blocks", config)
        _, tree = converted(model, tmp_path_factory.mktemp("weights"), "two_blocks")
    return config, tree, model


@pytest.mark.parametrize("which", range(3))
def test_every_stage_is_that_of_transformers(two_blocks, which):
    config, tree, model = two_blocks
    sizes = SIZES[config.patch]
    assert_parity(config, tree, model, sizes[which % len(sizes)])


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL_SIZE)
def test_full_size_files_round_trip_to_the_same_features(tmp_path, name):
    config = ARCHITECTURES[name]
    size = sum(leaf.size for leaf in jax.tree.leaves(parameters(config))) * 4
    if COPIES * size > os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"):
        pytest.skip(f"{name} needs {COPIES * size / 1e9:.0f} GB of memory here")
    model = reference(config)
    written, tree = converted(model, tmp_path, "")
    assert written.architecture == name
    assert_parity(config, tree, model, SIZES[config.patch][0], batch=1)
    if name == "dinov3_vits16":
        assert_parity(config, tree, model, SIZES[config.patch][1], batch=1)


def test_metas_masked_key_bias_is_no_key_bias(tmp_path):
    """Meta's file of a network is read as the same network as Hugging Face's."""
    from tests import published

    tree = published.random_parameters(ViTConfig.tiny16())
    entries = {
        "hf.safetensors": published.hugging_face_dinov3(tree, ViTConfig.tiny16()),
        "meta.pth": published.meta(tree, ViTConfig.tiny16()),
    }
    contiguous = {n: np.ascontiguousarray(a) for n, a in entries["hf.safetensors"].items()}
    safetensors.numpy.save_file(contiguous, tmp_path / "hf.safetensors")
    torch.save({n: torch.tensor(a) for n, a in entries["meta.pth"].items()}, tmp_path / "meta.pth")
    hashes = {convert.convert(tmp_path / n, tmp_path / f"{n}-out").sha256 for n in entries}
    assert len(hashes) == 1


def test_deconv_head_is_pytorchs():
    width, points = 24, 3
    head = DeconvHead(width, (4, 5), (16, 20), points, jnp.float32, Rngs(0))
    peers = []
    with torch.no_grad():
        for deconv, norm, features in zip(head.deconvs, head.norms, (256, 128), strict=True):
            peer = torch.nn.ConvTranspose2d(width, features, 4, stride=2, padding=1)
            group = torch.nn.GroupNorm(32, features)
            torch.nn.init.normal_(group.weight)
            torch.nn.init.normal_(group.bias)
            mirrored = peer.weight.numpy()[:, :, ::-1, ::-1].transpose(2, 3, 0, 1)
            deconv.kernel[...], deconv.bias[...] = jnp.array(mirrored), jnp.array(peer.bias.numpy())
            norm.scale[...] = jnp.array(group.weight.numpy())
            norm.bias[...] = jnp.array(group.bias.numpy())
            peers += [peer, group, torch.nn.ReLU()]
            width = features
        last = torch.nn.Conv2d(width, points, 1)
        head.last.kernel[...] = jnp.array(last.weight.numpy().transpose(2, 3, 1, 0))
        head.last.bias[...] = jnp.array(last.bias.numpy())
        image = np.random.default_rng(0).normal(size=(2, 4, 5, 24)).astype(np.float32)
        whole = torch.nn.Sequential(*peers, last)
        expected = whole(torch.tensor(image).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy()
    found = head(jnp.array(image), None)
    assert np.abs(found - expected).max() <= TOLERANCE * np.abs(expected).max()


def test_simple_head_is_vitposes():
    from transformers.models.vitpose.modeling_vitpose import VitPoseSimpleDecoder

    settings = transformers.VitPoseConfig(
        backbone_config=transformers.VitPoseBackboneConfig(hidden_size=12), scale_factor=4
    )
    settings.num_labels = 3
    peer = VitPoseSimpleDecoder(settings).eval()
    head = SimpleHead(12, (4, 5), (16, 20), 3, jnp.float32, Rngs(0))
    head.conv.kernel[...] = jnp.array(peer.conv.weight.detach().numpy().transpose(2, 3, 1, 0))
    head.conv.bias[...] = jnp.array(peer.conv.bias.detach().numpy())
    features = np.random.default_rng(0).normal(size=(2, 4, 5, 12)).astype(np.float32)
    with torch.no_grad():
        expected = peer(torch.tensor(features).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy()
    found = head(jnp.array(features), None)
    assert np.abs(found - expected).max() <= TOLERANCE * np.abs(expected).max()
