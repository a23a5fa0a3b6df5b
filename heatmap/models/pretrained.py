"""Converted backbones on disk: an Orbax checkpoint that says what it is and where it comes from.

`python -m heatmap.models.convert` writes them, `model.backbone_weights` names them. A run's own
checkpoints hold only the hash of a frozen backbone, and find it here again.
"""

import dataclasses
import pathlib
import textwrap
from typing import Any

import jax
import orbax.checkpoint as ocp

from heatmap import checkpoint
from heatmap.config import Config
from heatmap.errors import UserError
from heatmap.models import weights
from heatmap.models.vit import ARCHITECTURES
from heatmap.state import tree_sha256

Tree = Any
WHERE = (
    "DINOv2 (Apache-2.0) is at huggingface.co/facebook/dinov2-small; DINOv3 at "
    "huggingface.co/facebook/dinov3-vits16-pretrain-lvd1689m, after you have accepted the DINOv3 "
    "License there. Download model.safetensors and run `python -m heatmap.models.convert "
    "model.safetensors weights/{backbone}`"
)


@dataclasses.dataclass(frozen=True)
class Description:
    """What a converted backbone is.

    Attributes:
      architecture: a key of ARCHITECTURES.
      source: name of the file that was converted.
      source_sha256: of that file.
      sha256: of the arrays (`state.tree_sha256`).
      mean: that pixels in [0, 1] are less in pretraining, one per channel.
      std: that they are then divided by.
    """

    architecture: str
    source: str
    source_sha256: str
    sha256: str
    mean: tuple[float, ...]
    std: tuple[float, ...]


def save(folder: pathlib.Path, tree: Tree, description: Description) -> None:
    """Writes a converted backbone whole or not at all: under another name, then renamed.

    Args:
      folder: must not exist.
      tree: parameters of a ViT.
      description: goes beside them.
    """
    with _checkpointer() as checkpointer:
        checkpointer.save(
            folder.absolute(),
            args=ocp.args.Composite(
                parameters=ocp.args.StandardSave(tree),
                description=ocp.args.JsonSave(dataclasses.asdict(description)),
            ),
        )


def load(folder: pathlib.Path, sharding: jax.sharding.Sharding) -> tuple[Description, Tree]:
    """Reads a converted backbone.

    Args:
      folder: from `save`.
      sharding: where its arrays go.

    Returns:
      (what it is, parameters).

    Raises:
      UserError: if it is missing, damaged or of an architecture that is not known.
    """
    try:
        stored = _restore(folder, description=ocp.args.JsonRestore())["description"]
        ranges = {name: tuple(stored[name]) for name in ("mean", "std")}
        description = Description(**{**stored, **ranges})
        wanted = weights.parameters(ARCHITECTURES[description.architecture])
        like = ocp.args.StandardRestore(checkpoint.shapes(wanted, sharding))
        tree = _restore(folder, parameters=like)["parameters"]
    except Exception as error:  # Orbax raises whatever it meets, and so do its files when damaged
        reason = textwrap.shorten(f"{type(error).__name__}: {error}", 200, placeholder=" …")
        raise _unusable(folder, f"cannot be read ({reason})") from error
    if tree_sha256(tree) != description.sha256:
        raise _unusable(folder, "is damaged: its arrays are not those that were written")
    return description, tree


def load_for(config: Config, sharding: jax.sharding.Sharding) -> Tree:
    """Reads the backbone that a config names, after checking that it is meant.

    Args:
      config: of a run with `model.backbone_init='pretrained'`.
      sharding: where the arrays go.

    Raises:
      UserError: if it is missing, of another architecture, or saw other pixels in pretraining.
    """
    folder = find(config)
    description, tree = load(folder, sharding)
    if description.architecture != config.model.backbone:
        raise UserError(
            f"model.backbone_weights={str(folder)!r} holds {description.architecture!r}: set "
            f"model.backbone to it, or name the weights of {config.model.backbone!r}."
        )
    for name in ("mean", "std"):
        used, needed = getattr(config.data, name), getattr(description, name)
        if used != needed:
            raise UserError(
                f"data.{name}={used} is not what {folder} was pretrained with: set data.{name} to "
                f"{needed}."
            )
    return tree


def find(config: Config) -> pathlib.Path:
    """Returns the folder of a config's converted backbone.

    Raises:
      UserError: saying where weights are to be had and how they are converted, if there is none.
    """
    model = config.model
    where = WHERE.format(backbone=model.backbone)
    if not model.backbone_weights:
        raise UserError(
            f"model.backbone={model.backbone!r} needs pretrained weights. {where}, then set "
            f"model.backbone_weights='weights/{model.backbone}'; or set "
            "model.backbone_init='random' to do without."
        )
    folder = pathlib.Path(model.backbone_weights)
    if not folder.is_dir():
        raise UserError(
            f"model.backbone_weights={model.backbone_weights!r} does not exist. Put the converted "
            f"weights there, or convert them: {where}."
        )
    return folder


def _checkpointer() -> ocp.Checkpointer:
    return ocp.Checkpointer(ocp.CompositeCheckpointHandler())


def _restore(folder: pathlib.Path, **items) -> Any:
    with _checkpointer() as checkpointer:
        return checkpointer.restore(folder.absolute(), args=ocp.args.Composite(**items))


def _unusable(folder: pathlib.Path, reason: str) -> UserError:
    return UserError(
        f"The backbone in {folder} {reason}: delete the folder and convert the weights again."
    )
