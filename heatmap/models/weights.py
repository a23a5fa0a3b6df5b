"""What the published DINOv2 and DINOv3 files call their arrays, and where these belong in our ViT.

A table is a list of rules from a pattern of names to paths of parameters; every array of a file
must be read by one rule and every parameter be found once, in its shape.
"""

import dataclasses
import itertools
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from heatmap.errors import UserError
from heatmap.models.rngs import Rngs
from heatmap.models.vit import ARCHITECTURES, ViT, ViTConfig
from heatmap.optim import path_name

Tree = Any


@dataclasses.dataclass(frozen=True)
class Rule:
    """How the arrays of one kind of name are read.

    Attributes:
      pattern: regular expression of the whole name; its group is the number of the block.
      paths: where the array goes, `{0}` being the block. Several: it is cut into as many equal
        parts along its first axis. '' marks a part that features do not need.
      transform: of each part.
    """

    pattern: str
    paths: tuple[str, ...]
    transform: Callable[[np.ndarray], np.ndarray] = np.asarray


def _last_axis(array: np.ndarray) -> np.ndarray:
    return array.reshape(array.shape[-1])


def _rows(array: np.ndarray) -> np.ndarray:
    return array.reshape(-1, array.shape[-1])


def _patches(kernel: np.ndarray) -> np.ndarray:
    """From a convolution [C, 3, p, p] to a matrix over the pixels of a patch, [p * p * 3, C]."""
    return kernel.transpose(2, 3, 1, 0).reshape(-1, kernel.shape[0])


def _linear(name: str, *paths: str) -> list[Rule]:
    """Reads a linear layer, or several that lie on top of each other in one array."""
    kernels, biases = (tuple(f"{path}/{leaf}" for path in paths) for leaf in ("kernel", "bias"))
    return [Rule(rf"{name}\.weight", kernels, np.transpose), Rule(rf"{name}\.bias", biases)]


def _norm(name: str, path: str) -> list[Rule]:
    return [Rule(rf"{name}\.weight", (f"{path}/scale",)), Rule(rf"{name}\.bias", (f"{path}/bias",))]


def _outside_blocks(prefix: str, patches: str, registers: str, norm: str) -> list[Rule]:
    return [
        Rule(rf"{prefix}cls_token", ("cls_token",), _last_axis),
        Rule(rf"{prefix}mask_token", ("",)),  # stands for hidden patches in pretraining
        Rule(rf"{prefix}{registers}", ("registers",), _rows),
        Rule(rf"{prefix}{patches}\.weight", ("patch_embed/kernel",), _patches),
        Rule(rf"{prefix}{patches}\.bias", ("patch_embed/bias",)),
        *_norm(norm, "norm"),
    ]


def _block(prefix: str, scale: str, linears: Mapping[str, str]) -> list[Rule]:
    """The rules of a block.

    Args:
      prefix: of the names in a block, with a group for its number.
      scale: the names of the layer scales but for their number, which is `{}`.
      linears: from the name of each linear layer to its path below the block.
    """
    rules = [_linear(prefix + name, f"blocks/{{0}}/{path}") for name, path in linears.items()]
    rules += [_norm(rf"{prefix}norm{i}", f"blocks/{{0}}/norm{i}") for i in (1, 2)]
    scales = [Rule(prefix + scale.format(i), (f"blocks/{{0}}/scale{i}",)) for i in (1, 2)]
    return [*itertools.chain(*rules), *scales]


def _attention(query: str, key: str, value: str, out: str) -> dict[str, str]:
    names = {"query": query, "key": key, "value": value, "out": out}
    return {rf"attention\.{name}": f"attention/{path}" for path, name in names.items()}


def _qkv(*bias_parts: str) -> list[Rule]:
    """Meta keep queries, keys and values in one layer."""
    weight, bias = _linear(
        r"blocks\.(\d+)\.attn\.qkv",
        *(f"blocks/{{0}}/attention/{p}" for p in ("query", "key", "value")),
    )
    kept = tuple(path if path.split("/")[-2] in bias_parts else "" for path in bias.paths)
    return [weight, dataclasses.replace(bias, paths=kept)]


_META_LINEARS = {r"attn\.proj": "attention/out", r"mlp\.fc1": "mlp/up", r"mlp\.fc2": "mlp/down"}
_META_GATED = {r"mlp\.w1": "mlp/gate", r"mlp\.w2": "mlp/up", r"mlp\.w3": "mlp/down"}

TABLES = {
    "DINOv3 of Hugging Face": [
        *_outside_blocks(r"embeddings\.", "patch_embeddings", "register_tokens", "norm"),
        *_block(
            r"layer\.(\d+)\.",
            r"layer_scale{}\.lambda1",
            _attention("q_proj", "k_proj", "v_proj", "o_proj")
            | {rf"mlp\.{name}_proj": f"mlp/{name}" for name in ("up", "gate", "down")},
        ),
    ],
    "DINOv2 of Hugging Face": [
        *_outside_blocks(
            r"embeddings\.", r"patch_embeddings\.projection", "register_tokens", "layernorm"
        ),
        Rule(r"embeddings\.position_embeddings", ("positions",), _rows),
        *_block(
            r"encoder\.layer\.(\d+)\.",
            r"layer_scale{}\.lambda1",
            _attention(
                r"(?:attention\.query|q_proj)",
                r"(?:attention\.key|k_proj)",
                r"(?:attention\.value|v_proj)",
                r"(?:output\.dense|o_proj)",
            )
            | {r"mlp\.fc1": "mlp/up", r"mlp\.fc2": "mlp/down"},
        ),
    ],
    "DINOv3 of Meta": [
        *_outside_blocks("", r"patch_embed\.proj", "storage_tokens", "norm"),
        *_qkv("query", "value"),
        Rule(r"blocks\.(\d+)\.attn\.qkv\.bias_mask", ("",)),  # its zeros are our missing key bias
        Rule(r"rope_embed\.periods", ("",)),  # computed
        *_block(r"blocks\.(\d+)\.", r"ls{}\.gamma", _META_LINEARS | _META_GATED),
    ],
    "DINOv2 of Meta": [
        *_outside_blocks("", r"patch_embed\.proj", "register_tokens", "norm"),
        Rule(r"pos_embed", ("positions",), _rows),
        *_qkv("query", "key", "value"),
        *_block(r"blocks\.(\d+)\.", r"ls{}\.gamma", _META_LINEARS),
    ],
}


def convert(entries: Mapping[str, np.ndarray], architecture: str = "") -> tuple[str, Tree]:
    """Turns the arrays of a published file into the parameters of our ViT.

    Args:
      entries: by name.
      architecture: a key of ARCHITECTURES; '' recognises it by the shapes.

    Returns:
      (architecture, parameters in float32).

    Raises:
      UserError: for an array that is missing, doubled, misshapen or unread.
    """
    found = _read(entries)
    architecture = architecture or _recognise(found)
    wanted = parameters(ARCHITECTURES[architecture])
    shapes = {path_name(p): a.shape for p, a in jax.tree_util.tree_leaves_with_path(wanted)}
    if missing := sorted(set(shapes) - set(found)):
        raise UserError(f"the file has no array for {_few(missing)} of {architecture}")
    if unread := sorted(found[path][0] for path in set(found) - set(shapes)):
        raise UserError(f"{architecture} has no place for {_few(unread)}")
    for path, (name, array) in found.items():
        if array.shape != shapes[path]:
            raise UserError(
                f"{name} would give {path} the shape {array.shape}, and {architecture} needs "
                f"{shapes[path]}"
            )
    return architecture, jax.tree_util.tree_map_with_path(
        lambda path, _: np.ascontiguousarray(found[path_name(path)][1], np.float32), wanted
    )


def parameters(config: ViTConfig) -> Tree:
    """Describes the parameters of an architecture as a tree of `jax.ShapeDtypeStruct`."""
    model = nnx.eval_shape(lambda: ViT(config, jnp.float32, Rngs(0)))
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def _read(entries: Mapping[str, np.ndarray]) -> dict[str, tuple[str, np.ndarray]]:
    """Applies the table that reads most of the names; returns {path: (name, array)}."""
    # Newer Hugging Face files put a part of their names below `model.`.
    plain = {name: name.removeprefix("model.") for name in entries}
    matched = {
        kind: {name: _rule(rules, short) for name, short in plain.items()}
        for kind, rules in TABLES.items()
    }
    kind = max(matched, key=lambda kind: sum(rule is not None for rule in matched[kind].values()))
    unread = sorted(name for name, rule in matched[kind].items() if rule is None)
    if len(unread) == len(entries):
        raise UserError(f"the file holds no DINOv2 or DINOv3 backbone, only: {_few(unread)}")
    if unread:
        raise UserError(f"the file is taken for {kind}, which has no array named {_few(unread)}")
    found: dict[str, tuple[str, np.ndarray]] = {}
    for name, rule in matched[kind].items():
        assert rule is not None  # see `unread`
        for path, array in _apply(rule, plain[name], entries[name]).items():
            if path in found:
                raise UserError(f"{found[path][0]} and {name} are the same parameter, {path}")
            found[path] = name, array
    return found


def _rule(rules: list[Rule], name: str) -> Rule | None:
    return next((rule for rule in rules if re.fullmatch(rule.pattern, name)), None)


def _apply(rule: Rule, name: str, array: np.ndarray) -> dict[str, np.ndarray]:
    match = re.fullmatch(rule.pattern, name)
    assert match is not None  # the rule was chosen by it
    if rule.paths == ("",):
        return {}
    try:
        parts = [rule.transform(part) for part in np.split(array, len(rule.paths))]
    except (ValueError, IndexError) as error:
        raise UserError(f"{name} has the shape {array.shape}, which cannot be read") from error
    named = zip(rule.paths, parts, strict=True)
    return {path.format(*match.groups()): part for path, part in named if path}


def _recognise(found: Mapping[str, tuple[str, np.ndarray]]) -> str:
    """Names the architecture that has the file's sizes."""

    def rows(path: str) -> int:
        return len(found[path][1]) if path in found else 0

    blocks = {int(path.split("/")[1]) for path in found if path.startswith("blocks/")}
    sizes = {
        "width": rows("norm/scale"),
        "depth": len(blocks),
        "patch": math.isqrt(rows("patch_embed/kernel") // 3),
        "registers": rows("registers"),
        "gated": any("/gate/" in path for path in found),
        "position_grid": math.isqrt(max(0, rows("positions") - 1)),
    }
    for name, config in ARCHITECTURES.items():
        if all(getattr(config, field) == value for field, value in sizes.items()):
            return name
    described = ", ".join(f"{field}={value}" for field, value in sizes.items())
    raise UserError(
        f"no known architecture has {described}; name the nearest with --arch, one of "
        f"{', '.join(ARCHITECTURES)}, to see what differs"
    )


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
