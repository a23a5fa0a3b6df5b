"""Backbones as their authors publish them: our parameters under other names, in other layouts."""

import jax
import numpy as np

from heatmap.models.weights import parameters


def random_parameters(config, seed=0):
    """Draws every norm, bias, scale and matrix, none of them as it is initialised."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        if path[-1].key in ("scale", "scale1", "scale2"):
            values = rng.normal(1, 0.3, leaf.shape)
        else:
            values = rng.normal(0, leaf.shape[0] ** -0.5 if leaf.ndim == 2 else 0.5, leaf.shape)
        return values.astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, parameters(config))


def linear(name, p):
    """A linear layer of PyTorch: [out, in], and perhaps no bias."""
    bias = {f"{name}.bias": p["bias"]} if "bias" in p else {}
    return {f"{name}.weight": p["kernel"].T, **bias}


def norm(name, p):
    return {f"{name}.weight": p["scale"], f"{name}.bias": p["bias"]}


def patch_convolution(name, p, patch):
    kernel = p["kernel"].reshape(patch, patch, 3, -1).transpose(3, 2, 0, 1)
    return {f"{name}.weight": kernel, f"{name}.bias": p["bias"]}


def hugging_face_dinov3(tree, config, blocks="layer"):
    entries = {
        "embeddings.cls_token": tree["cls_token"][None, None],
        "embeddings.mask_token": np.zeros((1, 1, config.width), np.float32),
        "embeddings.register_tokens": tree["registers"][None],
        **patch_convolution("embeddings.patch_embeddings", tree["patch_embed"], config.patch),
        **norm("norm", tree["norm"]),
    }
    for i, block in tree["blocks"].items():
        attention = block["attention"]
        for theirs, ours in (("q", "query"), ("k", "key"), ("v", "value"), ("o", "out")):
            entries |= linear(f"{blocks}.{i}.attention.{theirs}_proj", attention[ours])
        for name, layer in block["mlp"].items():
            entries |= linear(f"{blocks}.{i}.mlp.{name}_proj", layer)
        for number in (1, 2):
            entries |= norm(f"{blocks}.{i}.norm{number}", block[f"norm{number}"])
            entries[f"{blocks}.{i}.layer_scale{number}.lambda1"] = block[f"scale{number}"]
    return entries


def hugging_face_dinov2(tree, config):
    entries = {
        "embeddings.cls_token": tree["cls_token"][None, None],
        "embeddings.mask_token": np.zeros((1, config.width), np.float32),
        "embeddings.position_embeddings": tree["positions"][None],
        **patch_convolution(
            "embeddings.patch_embeddings.projection", tree["patch_embed"], config.patch
        ),
        **norm("layernorm", tree["norm"]),
    }
    if config.registers:
        entries["embeddings.register_tokens"] = tree["registers"][None]
    for i, block in tree["blocks"].items():
        attention, name = block["attention"], f"encoder.layer.{i}"
        for part in ("query", "key", "value"):
            entries |= linear(f"{name}.attention.attention.{part}", attention[part])
        entries |= linear(f"{name}.attention.output.dense", attention["out"])
        entries |= linear(f"{name}.mlp.fc1", block["mlp"]["up"])
        entries |= linear(f"{name}.mlp.fc2", block["mlp"]["down"])
        for number in (1, 2):
            entries |= norm(f"{name}.norm{number}", block[f"norm{number}"])
            entries[f"{name}.layer_scale{number}.lambda1"] = block[f"scale{number}"]
    return entries


def meta(tree, config):
    """Either family; DINOv3 has a mask with zeros for the biases of the keys."""
    learned = bool(config.position_grid)
    entries = {
        "cls_token": tree["cls_token"][None, None],
        "mask_token": np.zeros((1, config.width), np.float32),
        **patch_convolution("patch_embed.proj", tree["patch_embed"], config.patch),
        **norm("norm", tree["norm"]),
    }
    if learned:
        entries["pos_embed"] = tree["positions"][None]
    else:
        entries["rope_embed.periods"] = np.ones(config.width // config.heads // 4, np.float32)
    if config.registers:
        entries["register_tokens" if learned else "storage_tokens"] = tree["registers"][None]
    for i, block in tree["blocks"].items():
        attention, name = block["attention"], f"blocks.{i}"
        parts = [attention[part] for part in ("query", "key", "value")]
        unused = np.full(config.width, 7, np.float32)  # what the mask makes zero
        biases = [part.get("bias", unused) for part in parts]
        entries[f"{name}.attn.qkv.weight"] = np.concatenate([p["kernel"].T for p in parts])
        entries[f"{name}.attn.qkv.bias"] = np.concatenate(biases)
        if not config.key_bias:
            entries[f"{name}.attn.qkv.bias_mask"] = np.repeat(np.float32([1, 0, 1]), config.width)
        entries |= linear(f"{name}.attn.proj", attention["out"])
        layers = ("gate", "up", "down") if config.gated else ("up", "down")
        for number, layer in enumerate(layers, start=1):
            kind = "w" if config.gated else "fc"
            entries |= linear(f"{name}.mlp.{kind}{number}", block["mlp"][layer])
        for number in (1, 2):
            entries |= norm(f"{name}.norm{number}", block[f"norm{number}"])
            entries[f"{name}.ls{number}.gamma"] = block[f"scale{number}"]
    return entries
