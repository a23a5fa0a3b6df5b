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
from heatmap.state import divided, tree_sha256

Tree = Any
# Where each architecture's file, model.safetensors, is published on huggingface.co.
HUB = {
    "dinov3_vits16": "facebook/dinov3-vits16-pretrain-lvd1689m",
    "dinov3_vits16plus": "facebook/dinov3-vits16plus-pretrain-lvd1689m",
    "dinov3_vitb16": "facebook/dinov3-vitb16-pretrain-lvd1689m",
    "dinov3_vitl16": "facebook/dinov3-vitl16-pretrain-lvd1689m",
    "dinov3_vith16plus": "facebook/dinov3-vith16plus-pretrain-lvd1689m",
    "dinov2_vits14": "facebook/dinov2-small",
    "dinov2_vits14_reg": "facebook/dinov2-with-registers-small",
    "dinov2_vitb14": "facebook/dinov2-base",
    "dinov2_vitb14_reg": "facebook/dinov2-with-registers-base",
}


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


def load(folder: pathlib.Path, mesh: jax.sharding.Mesh) -> tuple[Description, Tree]:
    """Reads a converted backbone.

    Args:
      folder: from `save`.
      mesh: where its arrays go, from `state.create_mesh`.

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
        like = ocp.args.StandardRestore(checkpoint.shapes(wanted, divided(mesh, wanted)))
        tree = _restore(folder, parameters=like)["parameters"]
    except Exception as error:  # Orbax raises whatever it meets, and so do its files when damaged
        reason = textwrap.shorten(f"{type(error).__name__}: {error}", 200, placeholder=" …")
        raise _unusable(folder, f"cannot be read ({reason})") from error
    if tree_sha256(tree) != description.sha256:
        raise _unusable(folder, "is damaged: its arrays are not those that were written")
    return description, tree


def load_for(config: Config, mesh: jax.sharding.Mesh) -> Tree:
    """Reads the backbone that a config names, after checking that it is meant.

    Args:
      config: of a run with `model.backbone_init='pretrained'`.
      mesh: where the arrays go, from `state.create_mesh`.

    Raises:
      UserError: if it is missing, of another architecture, or saw other pixels in pretraining.
    """
    folder = find(config)
    description, tree = load(folder, mesh)
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
    folder = pathlib.Path(model.backbone_weights)
    if model.backbone_weights and folder.is_dir():
        return folder
    missing = (
        f"model.backbone_weights={model.backbone_weights!r} does not exist"
        if model.backbone_weights
        else f"model.backbone={model.backbone!r} needs pretrained weights"
    )
    name = model.backbone
    if name not in HUB:
        raise UserError(
            f"{missing}, and nobody has published any for {name!r}: name a folder of your own, or "
            "set model.backbone_init='random'."
        )
    terms = " (Apache-2.0)"
    if name.startswith("dinov3"):
        terms = " once you have accepted the DINOv3 License there"
    raise UserError(
        f"{missing}. Download model.safetensors from huggingface.co/{HUB[name]}{terms}, run "
        f"`python -m heatmap.models.convert model.safetensors weights/{name}`, and set "
        f"model.backbone_weights='weights/{name}'; or set model.backbone_init='random' to do "
        "without."
    )


def _checkpointer() -> ocp.Checkpointer:
    return ocp.Checkpointer(ocp.CompositeCheckpointHandler())


def _restore(folder: pathlib.Path, **items) -> Any:
    with _checkpointer() as checkpointer:
        return checkpointer.restore(folder.absolute(), args=ocp.args.Composite(**items))


def _unusable(folder: pathlib.Path, reason: str) -> UserError:
    return UserError(
        f"The backbone in {folder} {reason}: delete the folder and convert the weights again."
    )
