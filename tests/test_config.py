"""The typed config: what it accepts, and the sentence for what it refuses."""

import ast
import copy
import dataclasses
import inspect
import json
import re

import pytest

from configs import common
from heatmap import config as config_lib
from heatmap import fields, workdir
from heatmap.config import RESUMABLE, Config, differences, flag_overrides, from_mapping
from heatmap.errors import UserError
from heatmap.fields import choose
from tests.helpers import MODEL_SETTINGS, make_config


def defaults():
    return common.get_config().to_dict()


def set_field(values, name, value):
    *groups, leaf = name.split(".")
    for group in groups:
        values = values[group]
    values[leaf] = value


def delete_field(values, name):
    *groups, leaf = name.split(".")
    for group in groups:
        values = values[group]
    del values[leaf]


def refusal(values):
    with pytest.raises(UserError) as caught:
        from_mapping(values)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith((".", "?"))
    return message


def leaves(values, prefix=""):
    for name, value in values.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name


def test_the_default_tree_is_exactly_the_typed_fields():
    assert sorted(leaves(defaults())) == sorted(fields.names_of(Config))


def test_common_assigns_every_field_once():
    tree = ast.parse(inspect.getsource(common))
    assigned = [
        target.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and not isinstance(node.value, ast.Call)
        for target in node.targets
        if isinstance(target, ast.Attribute)
    ]
    assert sorted(assigned) == sorted(n.rsplit(".", 1)[-1] for n in fields.names_of(Config))


def test_get_config_returns_a_fresh_copy():
    common.get_config().targets.sigma = 9.0
    assert common.get_config().targets.sigma != 9.0


def test_defaults_are_valid_and_frozen():
    config = from_mapping(defaults())
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.seed = 1
    assert hash(config) == hash(make_config())


@pytest.mark.parametrize("name", fields.names_of(Config))
def test_no_default_is_none(name):
    """A field that is None cannot be overridden by a flag."""
    value = common.get_config()
    for part in name.split("."):
        value = value[part]
    assert value is not None


# --- names ---


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("targets.sgima", "targets.sigma"),
        ("optim.learning_rat", "optim.learning_rate"),
        ("data.split.metod", "data.split.method"),
        ("learning_rate", "optim.learning_rate"),  # the group forgotten
        ("model.sigma", "targets.sigma"),  # the wrong group
        ("optim.epochs", "train.epochs"),
        ("seeed", "seed"),
    ],
)
def test_an_unknown_field_is_refused_with_the_nearest_name(name, meant):
    values = defaults()
    set_field(values, name, 1)
    assert refusal(values) == f"{name} is not a config field: did you mean {meant!r}?"


@pytest.mark.parametrize(
    ("name", "meant"),
    [("trian", "train"), ("optimm", "optim"), ("targts", "targets"), ("data.splits", "data.split")],
)
def test_a_misspelt_group_is_refused_with_the_nearest_group(name, meant):
    values = defaults()
    set_field(values, name, {"epochs": 1})
    assert refusal(values) == f"{name} is not a config field: did you mean {meant!r}?"


def test_a_name_like_no_other_lists_what_there_is():
    assert "choose from" in fields.nearest("zzzz", ["mse", "cross_entropy"])
    assert "cross_entropy, mse" in fields.nearest("zzzz", ["mse", "cross_entropy"])


@pytest.mark.parametrize("name", ["seed", "targets.sigma", "data.split.gap", "log"])
def test_a_missing_field_is_named(name):
    values = defaults()
    delete_field(values, name)
    assert f"lacks {name};" in refusal(values)


def test_a_field_that_came_later_may_be_missing():
    values = defaults()
    assert values["data"].pop("cache") == ""
    assert config_lib.from_mapping(values) == config_lib.from_mapping(defaults())


def test_all_missing_fields_of_a_group_are_named():
    values = defaults()
    delete_field(values, "train.epochs")
    delete_field(values, "train.steps")
    assert "lacks train.epochs, train.steps;" in refusal(values)


# --- types ---


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("model.name", 3, ["type str", "3 (int)"]),
        ("data.root", None, ["type str", "None (NoneType)"]),
        ("seed", True, ["type int", "True (bool)"]),
        ("train.epochs", 3.0, ["type int", "3.0 (float)"]),
        ("train.epochs", "3", ["type int", "'3' (str)"]),
        ("targets.sigma", "2", ["type float", "'2' (str)"]),
        ("targets.sigma", True, ["type float", "True (bool)"]),
        ("model.skip", 1, ["type bool", "1 (int)"]),
        ("model.skip", "yes", ["type bool", "'yes' (str)"]),
        ("model.dtype", "float16", ["'float16'", "float32, bfloat16"]),
        ("targets.render", 1, ["=1", "host, device"]),
        ("data.image_size", 128, ["tuple", "128"]),
        ("data.image_size", "128", ["tuple", "'128'"]),
        ("data.image_size", (128, 128.0), ["data.image_size[1]", "type int"]),
        ("data.image_size", (128,), ["data.image_size"]),
        ("data.image_size", (128, 128, 3), ["data.image_size"]),
        ("data.mean", ("a",), ["data.mean[0]", "type float"]),
        ("data.flip_pairs", ("a", "b"), ["data.flip_pairs[0]", "tuple"]),
        ("data.flip_pairs", (("a", 2),), ["data.flip_pairs[0][1]", "type str"]),
        ("augment.scale", (0.5, 1.0, 2.0), ["augment.scale"]),
        ("targets.sigma", float("nan"), ["finite", "nan"]),
        ("optim.learning_rate", float("inf"), ["finite", "inf"]),
        ("data.mean", (float("-inf"),), ["data.mean[0]", "finite"]),
        ("train", 5, ["must hold fields"]),
        ("data.split", "given", ["must hold fields"]),
    ],
)
def test_an_ill_typed_field_is_refused_by_name(name, value, words):
    values = defaults()
    set_field(values, name, value)
    message = refusal(values)
    assert all(word in message for word in [name, *words]), message


def test_a_whole_number_serves_as_a_float_and_a_list_as_a_tuple():
    values = defaults()
    set_field(values, "targets.sigma", 3)
    set_field(values, "data.mean", [0, 1, 0.5])
    set_field(values, "data.channels", 3)
    set_field(values, "data.flip_pairs", [["a", "b"], ["c", "d"]])
    config = from_mapping(values)
    assert config.targets.sigma == 3.0
    assert isinstance(config.targets.sigma, float)
    assert config.data.mean == (0.0, 1.0, 0.5)
    assert config.data.flip_pairs == (("a", "b"), ("c", "d"))


@pytest.mark.parametrize("values", [None, [], "config", 3])
def test_what_is_no_mapping_is_refused(values):
    assert "must hold fields" in refusal(values)


# --- values ---


FROZEN = {**MODEL_SETTINGS["vit"], "model.name": "vit", "model.keep_features": True}


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"data.cache": "device"}, "set augment.where='device' too"),
        ({"model.keep_features": True}, "is for a frozen backbone"),
        ({**FROZEN, "model.freeze_backbone": False}, "is for a frozen backbone"),
        ({**FROZEN, "augment.rotation": 5.0}, "augmentation changes pictures each time"),
        ({**FROZEN, "augment.crop_scale": (0.9, 1.0)}, "augmentation changes pictures"),
        ({**FROZEN, "augment.hue": 0.1}, "augmentation changes pictures"),
    ],
)
def test_what_is_kept_must_stay_as_it_is(overrides, words):
    with pytest.raises(UserError, match=re.escape(words)):
        make_config(**overrides)


def test_a_rotation_that_never_happens_changes_nothing():
    make_config(**FROZEN, **{"augment.rotation": 5.0, "augment.rotation_prob": 0.0})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model.shards", 0),
        ("train.steps_per_dispatch", 0),
        ("seed", -1),
        ("seed", 2**32),  # jax.random.key would quietly treat it as another seed
        ("train.batch_size", 0),
        ("eval.batch_size", 0),
        ("train.max_hours", -1.0),
        ("data.channels", 4),
        ("targets.sigma", 0.0),
        ("decoder.beta", 0.0),
        ("decoder.radius", 0),
        ("data.box_padding", 0.9),
        ("data.pixel_center", 1.5),
        ("optim.learning_rate", 0.0),
        ("optim.ema_decay", 1.0),
        ("optim.decay_fraction", 1.1),
        ("optim.warmup_steps", -1),
        ("optim.clip_norm", -1.0),
        ("optim.weight_decay", -0.1),
        ("model.dropout", 1.0),
        ("eval.pck_thresholds", (0.1, 0.0)),
        ("eval.sheet_every_evals", 0),
        ("log.every_steps", 0),
        ("train.eval_every_epochs", 0),  # with eval_every_steps = 0 nothing would be evaluated
        ("train.eval_every_steps", -5),
        ("train.save_every_steps", -1),
        ("data.std", (0.0,)),
        ("data.mean", (0.5, 0.5)),
        ("data.std", (1.0, 1.0, 1.0)),
        ("data.image_size", (0, 128)),
        ("targets.heatmap_size", (64, 2)),
        ("data.split.fractions", (0.8, 0.1, 0.2)),
        ("data.split.fractions", (1.2, -0.1, -0.1)),
        ("data.split.folds", 1),
        ("data.split.fold", 1),
        ("data.split.gap", -1),
        ("data.split.cal", 0.9),
        ("augment.crop_scale", (1.0, 0.5)),
        ("augment.scale", (0.0, 1.0)),
        ("augment.rotation", -5.0),
        ("augment.rotation_prob", 1.1),
        ("augment.horizontal_flip", -0.1),
        ("augment.brightness", 1.5),
        ("augment.hue", 0.6),
    ],
)
def test_an_impossible_value_is_refused_by_name(name, value):
    values = defaults()
    set_field(values, name, value)
    assert name in refusal(values)


@pytest.mark.parametrize(("epochs", "steps"), [(0, 0), (30, 500), (-1, 0), (0, -1)])
def test_exactly_one_of_epochs_and_steps_must_be_positive(epochs, steps):
    values = defaults()
    values["train"].update(epochs=epochs, steps=steps)
    message = refusal(values)
    assert "train.epochs" in message
    assert "train.steps" in message


def test_steps_may_replace_epochs_as_the_evaluation_clock():
    config = make_config(**{"train.eval_every_epochs": 0, "train.eval_every_steps": 10})
    assert config.train.eval_every_steps == 10


# --- the command line ---


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, (30, 0)),
        ({"train.steps": 500}, (0, 500)),
        ({"train.epochs": 5}, (5, 0)),
        ({"train.steps": 0}, (30, 0)),  # a zero switches nothing else off
        ({"train.epochs": 0, "train.steps": 7}, (0, 7)),
        ({"train.epochs": 5, "train.steps": 7}, (5, 7)),  # both: left for the check to refuse
    ],
)
def test_a_length_on_the_command_line_replaces_the_other(given, expected):
    values = defaults()
    for name, value in given.items():
        set_field(values, name, value)
    before = copy.deepcopy(values)
    train = flag_overrides(values, given)["train"]
    assert (train["epochs"], train["steps"]) == expected
    assert values == before  # a copy is changed, not the argument


def test_epochs_on_the_command_line_replace_the_steps_of_a_config_file():
    values = defaults()
    values["train"].update(epochs=3, steps=500)  # the file said steps, the flag said epochs
    train = flag_overrides(values, {"train.epochs": 3})["train"]
    assert (train["epochs"], train["steps"]) == (3, 0)


# --- JSON ---


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"targets.sigma": 1.0, "train.steps": 3, "data.name": 'a "quoted" näme'},
        {"data.flip_pairs": (("a", "b"), ("c", "d")), "log.tags": ("x",), "data.root": "/tmp/é"},
    ],
)
def test_json_round_trip(overrides):
    config = make_config(**overrides)
    again = config_lib.from_mapping(json.loads(config.to_json()))
    assert again == config
    assert again.to_json() == config.to_json()


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "3", "{}", '{"seed": NaN}', json.dumps({"sede": 1}), "\xff{}", "9" * 9999],
)
def test_a_broken_file_is_refused_by_its_name(text, tmp_path):
    path = tmp_path / workdir.CONFIG
    path.write_text(text, encoding="latin-1")
    with pytest.raises(UserError, match=f"^{path}"):
        workdir.read_config(tmp_path)


# --- comparing and choosing ---


def test_differences_are_listed_by_dotted_name():
    other = make_config(**{"targets.sigma": 1.0, "data.split.gap": 4})
    assert differences(make_config(), make_config()) == []
    assert differences(make_config(), other) == [
        "data.split.gap: 1 -> 4",
        "targets.sigma: 2.0 -> 1.0",
    ]


@pytest.mark.parametrize(
    ("name", "value", "ignored"),
    [
        ("train.epochs", 99, True),
        ("train.steps", 99, True),
        ("train.max_hours", 2.0, True),
        ("log.every_steps", 7, True),
        ("log.tags", ("a",), True),
        ("model.backbone_weights", "moved", True),  # known again by their hash
        ("model.backbone", "dinov3_vitb16", False),
        ("train.batch_size", 8, False),
        ("train.save_every_steps", 8, False),
        ("seed", 3, False),
        ("optim.learning_rate", 3e-4, False),
        ("data.split.salt", 1, False),
    ],
)
def test_only_length_logging_and_places_may_change_on_resume(name, value, ignored):
    found = differences(make_config(), make_config(**{name: value}), RESUMABLE)
    assert bool(found) is not ignored


def test_choose_finds_or_names_the_nearest():
    table = {"mse": 1, "cross_entropy": 2}
    assert choose(table, "mse", "loss.name") == 1
    with pytest.raises(UserError) as caught:
        choose(table, "crossentropy", "loss.name")
    assert str(caught.value) == (
        "loss.name='crossentropy' is not known: did you mean 'cross_entropy'?"
    )
    with pytest.raises(UserError, match="choose from cross_entropy, mse"):
        choose(table, "zzzz", "loss.name")


def test_the_helper_of_these_tests_refuses_a_field_that_does_not_exist():
    with pytest.raises((KeyError, AttributeError, UserError)):
        make_config(**{"targets.sgima": 1.0})
    assert isinstance(make_config(), Config)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        ({"data.split.folds": 5, "data.split.method": "hash"}, "divides blocks of time"),
        ({"data.split.cal": 0.2, "data.split.method": "blocks"}, "holds out whole groups"),
        ({"optim.freeze_paths": ("[",)}, r"optim.freeze_paths: '\[' is no regular expression"),
        ({"optim.decay_paths": ("(",)}, r"optim.decay_paths: '\(' is no regular expression"),
        ({"optim.step_factor": -1.0}, r"optim.step_factor must lie in \[0, 1\]"),
        ({"optim.step_boundaries": (0.5, 1.5)}, "shares of the run"),
        ({"optim.weight_decay": 0.1}, "does nothing under optim.name='adam': choose adamw"),
        ({"optim.momentum": 0.9}, "does nothing under optim.name='adam': choose sgd"),
    ],
)
def test_settings_that_do_nothing_or_would_fail_later_are_refused(overrides, sentence):
    with pytest.raises(UserError, match=sentence):
        make_config(**overrides)
