"""The typed config: a ConfigDict or JSON file in, frozen dataclasses out.

`configs/common.py` holds every default with its unit and meaning; this file holds the types, and
refuses what does not fit them with a sentence that names the field and the nearest valid name. A
field that came later has a default here, with which older workdirs are read as they were written.
"""

import dataclasses
import json
import re
from collections.abc import Mapping
from typing import Any, Literal

from heatmap import fields
from heatmap.errors import UserError

NamePairs = tuple[tuple[str, ...], ...]
NamedLines = tuple[tuple[str, str, str], ...]  # (name, point, point)
Size = tuple[int, int]  # (height, width)
Range = tuple[float, float]  # (low, high)


@dataclasses.dataclass(frozen=True)
class SplitConfig:
    """How records are divided into train, cal, val and test."""

    method: Literal["given", "hash", "blocks", "species_groups"]
    group_by: str
    fractions: tuple[float, float, float]
    folds: int
    fold: int
    gap: int
    salt: int
    cal: float = 0.0


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where examples come from and how they become inputs."""

    name: str
    root: str
    arms: Literal["own_side", "free"]
    category: str
    image_size: Size
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop: Literal["auto", "box", "image"]
    box_padding: float
    fit: Literal["stretch", "pad"]
    missing: Literal["unknown", "absent"]
    pixel_center: float
    flip_pairs: NamePairs
    interchangeable_pairs: NamePairs
    torso: tuple[str, ...]
    oks_sigmas: tuple[float, ...]
    measurements: NamedLines
    not_two_points: Literal["drop", "mask"]
    on_error: Literal["raise", "skip"]
    verify: bool
    max_megapixels: float
    workers: int
    split: SplitConfig
    cache: Literal["", "memory", "disk", "device"] = ""


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """Random changes of the training pictures."""

    where: Literal["host", "device"]
    crop_scale: Range
    crop_ratio: Range
    scale: Range
    rotation: float
    rotation_prob: float
    horizontal_flip: float
    vertical_flip: float
    brightness: float
    contrast: float
    saturation: float
    hue: float


@dataclasses.dataclass(frozen=True)
class TargetsConfig:
    """The Gaussian maps."""

    heatmap_size: Size
    sigma: float
    equal_energy: bool
    render: Literal["host", "device"]


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The network."""

    name: str
    skip: bool
    dropout: float
    dtype: Literal["float32", "bfloat16"]
    backbone: str
    backbone_init: Literal["pretrained", "random"]
    backbone_weights: str
    freeze_backbone: bool
    head: str
    keep_features: bool = False
    remat: bool = False
    shards: int = 1


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """The training objective."""

    name: str
    interchangeable: bool
    coordinate_weight: float
    oob_policy: Literal["supervise_oob", "mask_any_oob", "mask_all_oob"]


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """How maps become coordinates."""

    name: str
    beta: float
    radius: int
    grid: Literal["centres", "edges"]
    force: bool


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """Optimiser and learning-rate schedule."""

    name: str
    learning_rate: float
    schedule: str
    warmup_steps: int
    decay_fraction: float
    step_boundaries: tuple[float, ...]
    step_factor: float
    momentum: float
    weight_decay: float
    decay_paths: tuple[str, ...]
    freeze_paths: tuple[str, ...]
    clip_norm: float
    ema_decay: float


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Length of training, checkpoints and validation."""

    epochs: int
    steps: int
    batch_size: int
    max_hours: float
    save_every_steps: int
    eval_every_epochs: int
    eval_every_steps: int
    best_metric: str
    steps_per_dispatch: int = 1


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """What is measured."""

    batch_size: int
    metrics: tuple[str, ...]
    pck_thresholds: tuple[float, ...]
    pck_references: tuple[str, ...]
    csv: bool
    sheet_examples: int
    sheet_every_evals: int


@dataclasses.dataclass(frozen=True)
class LogConfig:
    """Where progress is written."""

    every_steps: int
    tensorboard: bool
    wandb: bool
    project: str
    tags: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that decides a run."""

    seed: int
    data: DataConfig
    augment: AugmentConfig
    targets: TargetsConfig
    model: ModelConfig
    loss: LossConfig
    decoder: DecoderConfig
    optim: OptimConfig
    train: TrainConfig
    eval: EvalConfig
    log: LogConfig

    def to_json(self) -> str:
        """Returns the config as JSON text, which `from_mapping` takes when parsed."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"


# What a resumed run may change: how long it trains, where it reports, how it is divided between
# devices, and where its data and the weights of its backbone lie, which hashes know again; never
# what it learns.
RESUMABLE = (
    "train.epochs",
    "train.steps",
    "train.max_hours",
    "log.",
    "data.root",
    "model.backbone_weights",
    "model.remat",
    "model.shards",
)


def from_mapping(values: Mapping[str, Any]) -> Config:
    """Builds and checks a Config.

    Args:
      values: a nested mapping, such as a ConfigDict's `to_dict()` or parsed JSON.

    Returns:
      The frozen config.

    Raises:
      UserError: for an unknown, missing, ill-typed or impossible field, by its dotted name.
    """
    config = fields.parse(Config, values)
    _check(config)
    return config


def flat(config: Config) -> dict[str, Any]:
    """Spells a config as {dotted name: value}."""
    return fields.flatten(dataclasses.asdict(config))


def differences(a: Config, b: Config, ignore: tuple[str, ...] = ()) -> list[str]:
    """Lists the fields in which two configs differ as `field: value in a -> value in b`."""
    left, right = flat(a), flat(b)
    return [
        f"{name}: {left[name]!r} -> {right[name]!r}"
        for name in left
        if left[name] != right[name] and not name.startswith(ignore or "\0")
    ]


def _check(config: Config) -> None:
    """Refuses values that have the right type and make no sense."""
    data, train = config.data, config.train
    rules = [
        (
            (train.epochs > 0) != (train.steps > 0),
            "exactly one of train.epochs and train.steps must be positive, got "
            f"{train.epochs} and {train.steps} (0 switches one off)",
        ),
        (0 <= config.seed < 2**32, f"seed must lie in [0, 2**32), got {config.seed}"),
        (train.batch_size > 0, f"train.batch_size must be positive, got {train.batch_size}"),
        (config.eval.batch_size > 0, f"eval.batch_size must be positive: {config.eval.batch_size}"),
        (train.max_hours >= 0, f"train.max_hours must not be negative, got {train.max_hours}"),
        (data.channels in (1, 3), f"data.channels must be 1 (grey) or 3 (RGB): {data.channels}"),
        (config.targets.sigma > 0, f"targets.sigma must be positive, got {config.targets.sigma}"),
        (config.decoder.beta > 0, f"decoder.beta must be positive, got {config.decoder.beta}"),
        (config.decoder.radius > 0, f"decoder.radius must be positive: {config.decoder.radius}"),
        (data.box_padding >= 1, f"data.box_padding must be at least 1, got {data.box_padding}"),
        (0 <= data.pixel_center <= 1, f"data.pixel_center must lie in [0, 1]: {data.pixel_center}"),
        (config.optim.learning_rate > 0, "optim.learning_rate must be positive"),
        (0 <= config.optim.ema_decay < 1, "optim.ema_decay must lie in [0, 1)"),
        (0 <= config.optim.decay_fraction <= 1, "optim.decay_fraction must lie in [0, 1]"),
        (0 <= config.model.dropout < 1, "model.dropout must lie in [0, 1)"),
        (all(t > 0 for t in config.eval.pck_thresholds), "eval.pck_thresholds must be positive"),
        (all(s > 0 for s in data.std), f"data.std must be positive, got {data.std}"),
        *_least_rules(config),
        *_split_rules(data.split),
        *_optim_rules(config.optim),
        *_augment_rules(config.augment),
        *_keeping_rules(config),
    ]
    for field, sizes in (
        ("data.image_size", data.image_size),
        ("targets.heatmap_size", config.targets.heatmap_size),
    ):
        ok = min(sizes) >= 3
        rules.append((ok, f"{field} must be (height, width), 3 pixels or more each, got {sizes}"))
    for field, values in (("data.mean", data.mean), ("data.std", data.std)):
        ok = len(values) in (1, data.channels)
        rules.append((ok, f"{field} needs 1 or {data.channels} values, got {len(values)}"))
    for ok, message in rules:
        if not ok:
            raise UserError(message + ".")


def _least_rules(config: Config) -> list[tuple[bool, str]]:
    train, optim = config.train, config.optim
    least = {
        "data.workers": (config.data.workers, 0),
        "model.shards": (config.model.shards, 1),
        "augment.rotation": (config.augment.rotation, 0),
        "loss.coordinate_weight": (config.loss.coordinate_weight, 0),
        "optim.warmup_steps": (optim.warmup_steps, 0),
        "optim.momentum": (optim.momentum, 0),
        "optim.weight_decay": (optim.weight_decay, 0),
        "optim.clip_norm": (optim.clip_norm, 0),
        "train.save_every_steps": (train.save_every_steps, 0),
        "train.steps_per_dispatch": (train.steps_per_dispatch, 1),
        "train.eval_every_steps": (train.eval_every_steps, 0),
        "train.eval_every_epochs": (train.eval_every_epochs, 0 if train.eval_every_steps else 1),
        "eval.sheet_examples": (config.eval.sheet_examples, 0),
        "eval.sheet_every_evals": (config.eval.sheet_every_evals, 1),
        "log.every_steps": (config.log.every_steps, 1),
    }
    return [
        (value >= bound, f"{field} must be at least {bound}, got {value}")
        for field, (value, bound) in least.items()
    ]


def _split_rules(split: SplitConfig) -> list[tuple[bool, str]]:
    fractions = split.fractions
    folds = split.folds
    return [
        (
            min(fractions) >= 0 and abs(sum(fractions) - 1) < 1e-6,
            f"data.split.fractions must be (train, val, test) and sum to 1, got {fractions}",
        ),
        (folds == 0 or folds >= 2, f"data.split.folds must be 0 (off) or at least 2, got {folds}"),
        (
            0 <= split.fold < max(folds, 1),
            f"data.split.fold must lie in [0, {max(folds, 1)}), got {split.fold}",
        ),
        (
            folds == 0 or split.method == "blocks",
            f"data.split.folds={folds} divides blocks of time, and data.split.method is "
            f"{split.method!r}: set it to 'blocks', or folds to 0",
        ),
        (
            0 <= split.cal < 1 and (split.cal == 0 or split.cal < fractions[0]),
            f"data.split.cal is taken from the share that trains, {fractions[0]:g}, and must be "
            f"less than that, got {split.cal:g}",
        ),
        (
            split.cal == 0 or split.method != "blocks",
            "data.split.cal holds out whole groups, and data.split.method='blocks' divides them: "
            "choose 'hash' (videos must be groups of their own), or leave cal at 0",
        ),
        (split.gap >= 0, f"data.split.gap must not be negative, got {split.gap}"),
    ]


def _optim_rules(optim: OptimConfig) -> list[tuple[bool, str]]:
    rules = [
        (0 <= optim.step_factor <= 1, f"optim.step_factor must lie in [0, 1]: {optim.step_factor}"),
        (
            all(0 < share < 1 for share in optim.step_boundaries),
            f"optim.step_boundaries must be shares of the run, between 0 and 1, got "
            f"{optim.step_boundaries}",
        ),
        (
            optim.weight_decay == 0 or optim.name == "adamw",
            f"optim.weight_decay={optim.weight_decay} does nothing under optim.name="
            f"{optim.name!r}: choose adamw, or set it to 0",
        ),
        (
            optim.momentum == 0 or optim.name == "sgd",
            f"optim.momentum={optim.momentum} does nothing under optim.name={optim.name!r}: choose "
            "sgd, or set it to 0",
        ),
    ]
    for field in ("decay_paths", "freeze_paths"):
        for pattern in getattr(optim, field):
            try:
                re.compile(pattern)
            except re.error as error:
                rules.append(
                    (False, f"optim.{field}: {pattern!r} is no regular expression ({error})")
                )
    return rules


def _augment_rules(augment: AugmentConfig) -> list[tuple[bool, str]]:
    rules = []
    for field in ("crop_scale", "crop_ratio", "scale"):
        bounds = getattr(augment, field)
        ok = 0 < bounds[0] <= bounds[1]
        rules.append((ok, f"augment.{field} must be (low, high) with 0 < low <= high: {bounds}"))
    for field in ("rotation_prob", "horizontal_flip", "vertical_flip"):
        value = getattr(augment, field)
        rules.append((0 <= value <= 1, f"augment.{field} must be a probability, got {value}"))
    for field, most in (("brightness", 1), ("contrast", 1), ("saturation", 1), ("hue", 0.5)):
        value = getattr(augment, field)
        rules.append((0 <= value <= most, f"augment.{field} must lie in [0, {most}], got {value}"))
    return rules


def _keeping_rules(config: Config) -> list[tuple[bool, str]]:
    model, augment = config.model, config.augment
    ranges = (augment.crop_scale, augment.crop_ratio, augment.scale)
    zero = (
        *(augment.rotation * augment.rotation_prob, augment.horizontal_flip, augment.vertical_flip),
        *(augment.brightness, augment.contrast, augment.saturation, augment.hue),
    )
    return [
        (
            config.data.cache != "device" or augment.where == "device",
            "data.cache='device' keeps the training pictures where the host cannot augment them: "
            "set augment.where='device' too, or data.cache to 'memory'",
        ),
        (
            not model.keep_features or (model.name == "vit" and model.freeze_backbone),
            "model.keep_features=True is for a frozen backbone: set model.name='vit' and "
            "model.freeze_backbone=True, or leave it out",
        ),
        (
            not model.keep_features or (set(ranges) == {(1.0, 1.0)} and not any(zero)),
            "model.keep_features=True computes features once, and augmentation changes pictures "
            "each time: set the fields of augment to what configs/common.py gives them, or leave "
            "it out",
        ),
    ]


def flag_overrides(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Lets a length given on the command line replace the other kind of length.

    A config file says `train.epochs=30`; `--config.train.steps=500` alone then means 500 steps,
    not a contradiction. Giving both stays an error.

    Args:
      values: the nested config with the overrides applied.
      overrides: dotted names and values that came from the command line.

    Returns:
      A copy of `values`, with the other of epochs and steps set to 0.
    """
    result = {key: dict(v) if isinstance(v, Mapping) else v for key, v in values.items()}
    for given, other in (("epochs", "steps"), ("steps", "epochs")):
        if overrides.get(f"train.{given}") and f"train.{other}" not in overrides:
            result["train"][other] = 0
    return result
