"""What holds for every reader of label files, and what they find in real data sets."""

import csv
import importlib
import shutil

import numpy as np
import pytest
from PIL import Image

import input_pipeline
from heatmap.errors import UserError
from heatmap.keypoints import KeypointSet
from input_pipeline import coco, deeplabcut, labels, meaning, simple_json
from tests.label_files import data_config
from tests.test_coco import coco_content, write_coco

NAMES = ["head", "left_hand", "right_hand"]


@pytest.mark.parametrize("place", input_pipeline.DATASETS.values())
def test_every_source_stands_where_it_is_said_to(place):
    module, function = place.split(":")
    assert callable(getattr(importlib.import_module(module), function))


@pytest.mark.parametrize("reader", [simple_json, coco, deeplabcut])
@pytest.mark.parametrize(
    ("root", "sentence"), [("", "data.root is empty"), ("no/such", "data.root='no/such' is not a")]
)
def test_the_root_must_be_a_folder(reader, root, sentence):
    with pytest.raises(UserError, match=sentence):
        reader.read(data_config(root))


# What the config says about the points.


def test_the_config_replaces_what_the_data_says(tmp_path):
    config = data_config(
        write_coco(tmp_path, coco_content()),
        flip_pairs=(("nose", "left_ear"),),
        interchangeable_pairs=(("left_ear", "right_ear"),),
        torso=("nose", "right_ear"),
        oks_sigmas=(0.1, 0.2, 0.3),
        measurements=(("span", "right_ear", "left_ear"),),
    )
    points = coco.read(config).points
    assert points.flip_pairs == ((0, 1),)
    assert points.interchangeable_pairs == ((1, 2),)
    assert points.torso == ((0,), (2,))
    assert points.oks_sigmas == (0.1, 0.2, 0.3)
    assert points.measurements == (("span", 2, 1),)
    assert points.skeleton == ((0, 1), (0, 2))


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"flip_pairs": (("head", "lefthand"),)}, "data.flip_pairs .*did you mean 'left_hand'"),
        ({"interchangeable_pairs": (("head",),)}, "data.interchangeable_pairs must be pairs"),
        ({"torso": ("head",)}, "data.torso must be two names"),
        ({"torso": ("head", "foot")}, "data.torso names the unknown keypoint 'foot'"),
        ({"measurements": (("a", "head", "foot"),)}, "data.measurements names .* 'foot'"),
        ({"measurements": (("a", "head", "head"),)}, "'a' must lie between two"),
        ({"oks_sigmas": (0.1,)}, "There are 1 OKS sigmas for 3 keypoints"),
        ({"oks_sigmas": (0.1, 0.0, 0.1)}, "data.oks_sigmas must be positive"),
    ],
)
def test_the_config_must_fit_the_points(fields, sentence):
    with pytest.raises(UserError, match=sentence):
        meaning.with_config(KeypointSet(tuple(NAMES)), data_config(**fields))


def test_natural_order():
    names = ["img10", "img9", "a", "img009b", "10", "9"]
    assert sorted(names, key=labels.natural_key) == ["9", "10", "a", "img9", "img009b", "img10"]


# Real data, where it is there.


def test_real_openfield(shared_data):
    records = coco.read(data_config(shared_data / "mouse_openfield"))
    assert (len(records), records.points.count, records.labelled.sum()) == (116, 4, 464)
    assert records.points.pair_names("flip_pairs") == [("leftear", "rightear")]
    assert records.order.tolist() == list(range(116))


def test_real_reaching_lacks_fifteen_per_cent(shared_data):
    records = coco.read(data_config(shared_data / "mouse_reaching"))
    assert (len(records), records.points.count, records.labelled.sum()) == (55, 5, 233)


def test_real_glue_tubes_has_several_instances(shared_data):
    records = coco.read(data_config(shared_data / "glue_tubes"))
    assert (len(records), len(set(records.ids)), records.labelled.all()) == (226, 134, True)
    pictures = {(name, split) for name, split in zip(records.ids, records.splits, strict=True)}
    assert sum(split == "train" for _, split in pictures) == 111


def test_real_deeplabcut_agrees_with_its_coco_copy(shared_data, tmp_path):
    project = shared_data / "native" / "openfield-Pranav-2018-10-30"
    native = deeplabcut.read(data_config(project, verify=False))
    copied = coco.read(data_config(shared_data / "mouse_openfield", verify=False))
    expected = (native.keypoints + 0.5) * 0.8 - 0.5
    assert np.abs(expected - copied.keypoints).max() < 0.006  # the copy is rounded
    shutil.copytree(project, tmp_path, dirs_exist_ok=True)
    (tmp_path / "labeled-data" / "m4s1" / "CollectedData_Pranav.csv").unlink()
    pytest.importorskip("tables")
    np.testing.assert_array_equal(
        deeplabcut.read(data_config(tmp_path, verify=False)).keypoints, native.keypoints
    )


def test_real_reaching_table_has_blank_cells(shared_data, tmp_path):
    source = shared_data / "native" / "reaching-dlc-csv"
    folder = tmp_path / "labeled-data" / "reachingvideo1"
    folder.mkdir(parents=True)
    shutil.copy(source / "config.yaml", tmp_path)
    shutil.copy(source / "CollectedData_Mackenzie.csv", folder)
    with (folder / "CollectedData_Mackenzie.csv").open(newline="") as file:
        names = [cells[0] for cells in list(csv.reader(file))[3:]]
    for name in names:
        Image.new("1", (832, 747)).save(tmp_path / name)
    records = deeplabcut.read(data_config(tmp_path))
    assert (len(records), records.labelled.sum()) == (55, 233)
    assert records.points.skeleton == ((0, 1), (3, 4))
