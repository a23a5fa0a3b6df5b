"""The readers of label files: what they read, and the sentence for everything that is wrong."""

import copy
import csv
import json
import pathlib
import shutil
import sys

import numpy as np
import pytest
from PIL import Image

from configs import common
from heatmap import config as config_lib
from heatmap.errors import UserError
from heatmap.keypoints import KeypointSet
from input_pipeline import coco, deeplabcut, labels, meaning, simple_json


def data_config(root="", group_by="", **fields):
    config = common.get_config()
    config.data.update(root=str(root), **fields)
    config.data.split.group_by = group_by
    return config_lib.from_mapping(config.to_dict()).data


def save(path, width=40, height=30, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)


@pytest.fixture
def shared() -> pathlib.Path:
    folder = pathlib.Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"the real data sets are not at {folder}")
    return folder


# The course's layout.

NAMES = ["head", "left_hand", "right_hand"]


def simple_content():
    return {
        "images": [
            {"id": 0, "file_name": "2.png", "video": "b", "keypoints": [[1, 2], [3.5, 4], [5, 6]]},
            {"id": 1, "file_name": "10.png", "video": "a", "keypoints": [[7, 8], None, [9, 10]]},
            {
                "id": 2,
                "file_name": "1.png",
                "video": "a",
                "keypoints": [[1, 1], [None, None], [2, 3]],
            },
        ],
        "keypoint_names": NAMES,
        "num_keypoints": 3,
    }


def write_simple(root, content, split="train", pictures=True):
    text = content if isinstance(content, str) else json.dumps(content)
    (root / f"{split}_annotations.json").write_text(text)
    if pictures:
        for name in ("1.png", "2.png", "10.png"):
            save(root / split / name)
    return root


def test_simple_json_reads_all_splits(tmp_path):
    write_simple(tmp_path, simple_content())
    val = simple_content()
    val["images"] = val["images"][:1]
    write_simple(tmp_path, val, "val")
    records = simple_json.read(data_config(tmp_path))
    assert records.points == KeypointSet(tuple(NAMES))
    assert records.ids.tolist() == ["train/2.png", "train/10.png", "train/1.png", "val/2.png"]
    assert records.splits.tolist() == ["train"] * 3 + ["val"]
    assert records.groups.tolist() == records.ids.tolist()
    assert records.order.tolist() == [1, 2, 0, 0]
    assert records.keypoints.dtype == np.float64
    assert records.keypoints[0].tolist() == [[1, 2], [3.5, 4], [5, 6]]
    assert records.keypoints[1].tolist() == [[7, 8], [0, 0], [9, 10]]
    assert records.labelled.tolist()[1:3] == [[True, False, True]] * 2
    assert records.boxes[1].tolist() == [6.5, 7.5, 9.5, 10.5]
    assert records.areas[1] == 9
    assert records.sizes.tolist() == [[30, 40]] * 4
    assert all(pathlib.Path(file).is_file() for file in records.files)
    assert records.skipped == ()


def test_simple_json_groups_by_a_field(tmp_path):
    write_simple(tmp_path, simple_content())
    records = simple_json.read(data_config(tmp_path, group_by="video"))
    assert records.groups.tolist() == ["b", "a", "a"]
    with pytest.raises(UserError, match=r"images\[0\].*group_by='vidio': did you mean 'video'"):
        simple_json.read(data_config(tmp_path, group_by="vidio"))


@pytest.mark.parametrize("center", [0.0, 0.5])
def test_the_pixel_origin_is_subtracted_once_and_only_from_labels(tmp_path, center):
    write_simple(tmp_path, simple_content())
    records = simple_json.read(data_config(tmp_path, pixel_center=center))
    assert records.keypoints[1].tolist() == [
        [7 - center, 8 - center],
        [0, 0],
        [9 - center, 10 - center],
    ]
    assert records.boxes[1].tolist() == [6.5 - center, 7.5 - center, 9.5 - center, 10.5 - center]


def test_a_picture_without_labels_stays_and_has_the_whole_picture_as_box(tmp_path):
    content = simple_content()
    content["images"][2]["keypoints"] = [None] * 3
    write_simple(tmp_path, content)
    records = simple_json.read(data_config(tmp_path))
    assert not records.labelled[2].any()
    assert records.boxes[2].tolist() == [-0.5, -0.5, 39.5, 29.5]


def change(path, value):
    """Returns an edit of nested JSON: `change("images.0.id", 7)`."""

    def edit(content):
        *steps, last = (int(s) if s.isdigit() else s for s in path.split("."))
        for step in steps:
            content = content[step]
        if value is KeyError:
            del content[last]
        else:
            content[last] = value

    return edit


SIMPLE_ERRORS = [
    ("images.1.keypoints", [[1, 2]], r"images\[1\] \(10.png\) has 1 keypoints instead of 3 .*null"),
    ("images.1.keypoints.0.0", float("nan"), r"images\[1\] .*'head' .*must be a finite.*not nan"),
    ("images.1.keypoints.0.1", float("inf"), r"images\[1\] .*'head' .*must be a finite.*not inf"),
    ("images.1.keypoints.0.1", 10**400, "'head' .*must be a finite number"),
    ("images.1.keypoints.0.1", "8", "'head' .*must be a finite number, not '8'"),
    ("images.1.keypoints.0.1", True, "'head' .*must be a finite number, not True"),
    ("images.1.keypoints.0.1", None, "'head' .*must be a finite number, not None"),
    ("images.1.keypoints.0", [1, 2, 2], r"'head' must be \[x, y\] or null, not \[1, 2, 2\]"),
    (
        "images.1.keypoints.0",
        [300, 2],
        r"'head' at \(300, 2\) lies far outside the picture .*10.png",
    ),
    ("images.1.keypoints", KeyError, r"images\[1\] \(10.png\) lacks 'keypoints'"),
    ("images.1.file_name", KeyError, r"images\[1\] lacks 'file_name'"),
    ("images.1.file_name", 5, r"images\[1\]: 'file_name' must be text, not 5"),
    ("images.1.file_name", "../2.png", r"images\[1\] has the file name '../2.png', which leaves"),
    ("images.1.file_name", "/2.png", "which leaves the folder"),
    ("images.1.file_name", "2.png", "lists the file name '2.png' twice"),
    ("images.1.file_name", "./2.png", "lists the file name '2.png' twice"),
    ("images.1.id", 0, "lists the image id '0' twice"),
    ("images.1", [], r"images\[1\] must be an object"),
    ("images", KeyError, "train_annotations.json lacks 'images'"),
    ("images", [], "train_annotations.json lists no images"),
    ("images", {}, "'images' must be a list"),
    ("keypoint_names", KeyError, "lacks 'keypoint_names'"),
    ("keypoint_names", ["a", "a", "b"], "Two keypoints have the same name"),
    ("keypoint_names", ["a", 1, "b"], "names must be a list of texts"),
    ("num_keypoints", 4, "states num_keypoints=4 but lists 3"),
]


@pytest.mark.parametrize(("path", "value", "sentence"), SIMPLE_ERRORS)
@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_simple_json_refuses_bad_labels_in_a_sentence(tmp_path, path, value, sentence, on_error):
    content = simple_content()
    change(path, value)(content)
    write_simple(tmp_path, content)
    with pytest.raises(UserError, match=sentence) as caught:
        simple_json.read(data_config(tmp_path, on_error=on_error))
    assert "\n" not in str(caught.value)


BAD_TEXTS = [
    ("", "train_annotations.json is empty"),
    (" \n", "train_annotations.json is empty"),
    (
        '{"images": [\n  {"id": 1,}\n]}',
        "train_annotations.json is not valid JSON at line 2, column",
    ),
    ('{"images": ' + "[" * 200_000, r"train_annotations.json cannot be read"),
    ('{"images": ' + "1" * 5_000 + "}", r"train_annotations.json cannot be read"),
    ("[1, 2]", r"train_annotations.json must hold a JSON object .*not \[1, 2\]"),
]


@pytest.mark.parametrize(
    ("text", "sentence"), BAD_TEXTS, ids=["empty", "blank", "comma", "deep", "long", "list"]
)
def test_simple_json_refuses_what_does_not_parse(tmp_path, text, sentence):
    write_simple(tmp_path, text)
    with pytest.raises(UserError, match=sentence):
        simple_json.read(data_config(tmp_path))


def test_simple_json_needs_train_and_takes_the_byte_order_mark(tmp_path):
    write_simple(tmp_path, simple_content(), "val")
    with pytest.raises(UserError, match=r"There is no file .*train_annotations.json"):
        simple_json.read(data_config(tmp_path))
    write_simple(tmp_path, "\ufeff" + json.dumps(simple_content()))
    assert len(simple_json.read(data_config(tmp_path))) == 6


def test_all_splits_need_the_same_names(tmp_path):
    write_simple(tmp_path, simple_content())
    content = simple_content() | {"keypoint_names": NAMES[::-1]}
    write_simple(tmp_path, content, "val")
    with pytest.raises(UserError, match=r"val_annotations.json names .* same names in the same"):
        simple_json.read(data_config(tmp_path))


@pytest.mark.parametrize("reader", [simple_json, coco, deeplabcut])
@pytest.mark.parametrize(
    ("root", "sentence"), [("", "data.root is empty"), ("no/such", "data.root='no/such' is not a")]
)
def test_the_root_must_be_a_folder(reader, root, sentence):
    with pytest.raises(UserError, match=sentence):
        reader.read(data_config(root))


# Pictures, the same for every reader.


def test_a_missing_picture_is_named(tmp_path):
    write_simple(tmp_path, simple_content())
    (tmp_path / "train" / "10.png").unlink()
    with pytest.raises(UserError, match=r"10\.png does not exist; check data.root"):
        simple_json.read(data_config(tmp_path))


def test_a_truncated_picture_is_named_or_skipped(tmp_path):
    write_simple(tmp_path, simple_content())
    path = tmp_path / "train" / "10.png"
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(UserError, match=r"10\.png cannot be read .*truncated or corrupt"):
        simple_json.read(data_config(tmp_path))
    records = simple_json.read(data_config(tmp_path, on_error="skip"))
    assert records.ids.tolist() == ["train/2.png", "train/1.png"]
    assert len(records.skipped) == 1
    assert "10.png" in records.skipped[0]


def test_points_slightly_outside_the_picture_are_allowed(tmp_path):
    content = simple_content()
    content["images"][0]["keypoints"][0] = [-20, 45]
    write_simple(tmp_path, content)
    assert simple_json.read(data_config(tmp_path)).keypoints[0, 0].tolist() == [-20, 45]


# COCO.


def coco_content():
    def annotation(number, image, points, **fields):
        return {"id": number, "image_id": image, "category_id": 1, "keypoints": points, **fields}

    mouse = {
        "id": 1,
        "name": "mouse",
        "keypoints": ["nose", "left_ear", "right_ear"],
        "skeleton": [[1, 2], [1, 3]],
        "flip_pairs": [[2, 3]],
    }
    return {
        "images": [
            {"id": 7, "file_name": "f10.png", "width": 40, "height": 30, "day": 2, "split": "val"},
            {"id": 8, "file_name": "f9.png", "width": 40, "height": 30, "day": 1, "split": "train"},
            {"id": 9, "file_name": "never labelled.png"},
        ],
        "categories": [mouse, {"id": 2, "name": "cage", "keypoints": []}, {"id": 3, "name": "box"}],
        "annotations": [
            annotation(1, 8, [5, 6, 2, 7, 8, 1, 3, 3, 0], bbox=[4, 5, 10, 20], area=150.0),
            annotation(2, 7, [10, 11, 2, 12, 15, 2, 20, 13, 2]),
            annotation(3, 8, [1, 2, 2, 3, 4, 2, 5, 6, 2], bbox=[0, 0, 6, 7], area=0),
            annotation(4, 8, [0, 0, 0] * 3, bbox=[0, 0, 9, 9]),
            annotation(5, 8, [1, 2, 2, 3, 4, 2, 5, 6, 2], iscrowd=1),
            {"id": 6, "image_id": 8, "category_id": 2, "bbox": [0, 0, 1, 1]},
        ],
    }


def write_coco(root, content):
    text = content if isinstance(content, str) else json.dumps(content)
    (root / "annotations.json").write_text(text)
    for name in ("f9.png", "f10.png"):
        save(root / "images" / name)
    return root


def test_coco_reads_instances(tmp_path):
    records = coco.read(data_config(write_coco(tmp_path, coco_content())))
    assert records.points.names == ("nose", "left_ear", "right_ear")
    assert records.points.skeleton == ((0, 1), (0, 2))
    assert records.points.flip_pairs == ((1, 2),)
    assert records.ids.tolist() == ["f9.png", "f10.png", "f9.png"]
    assert records.instances.tolist() == [0, 0, 1]
    assert records.order.tolist() == [0, 1, 0]  # f9 is before f10
    assert records.splits.tolist() == ["train", "val", "train"]
    assert records.groups.tolist() == ["f9.png", "f10.png", "f9.png"]
    assert records.labelled.tolist()[0] == [True, True, False]
    assert records.keypoints[0].tolist() == [[5, 6], [7, 8], [0, 0]]
    assert records.boxes.tolist() == [
        [3.5, 4.5, 13.5, 24.5],
        [9.5, 10.5, 20.5, 15.5],
        [-0.5, -0.5, 5.5, 6.5],
    ]
    assert records.areas.tolist() == [150, 55, 42]
    assert records.sizes.tolist() == [[30, 40]] * 3


def test_coco_pixel_origin_moves_points_not_boxes(tmp_path):
    config = data_config(write_coco(tmp_path, coco_content()), pixel_center=0.5)
    records = coco.read(config)
    assert records.keypoints[0].tolist() == [[4.5, 5.5], [6.5, 7.5], [0, 0]]
    assert records.boxes[0].tolist() == [3.5, 4.5, 13.5, 24.5]


def test_coco_groups_by_a_field(tmp_path):
    content = coco_content()
    content["images"].pop()
    write_coco(tmp_path, content)
    assert coco.read(data_config(tmp_path, group_by="day")).groups.tolist() == ["1", "2", "1"]
    with pytest.raises(UserError, match=r"group_by='dya': did you mean 'day'"):
        coco.read(data_config(tmp_path, group_by="dya"))


def test_coco_category_may_carry_pairs_and_sigmas(tmp_path):
    content = coco_content()
    content["categories"][0] |= {"interchangeable_pairs": [[2, 3]], "oks_sigmas": [0.1, 0.2, 0.2]}
    points = coco.read(data_config(write_coco(tmp_path, content))).points
    assert points.interchangeable_pairs == ((1, 2),)
    assert points.oks_sigmas == (0.1, 0.2, 0.2)


def test_coco_category_is_chosen_by_name(tmp_path):
    content = coco_content()
    content["categories"][2]["keypoints"] = ["a"]
    write_coco(tmp_path, content)
    with pytest.raises(UserError, match=r"several categories .* data.category .* mouse, box"):
        coco.read(data_config(tmp_path))
    with pytest.raises(UserError, match=r"data.category='moose' .* did you mean 'mouse'"):
        coco.read(data_config(tmp_path, category="moose"))
    with pytest.raises(UserError, match=r"data.category='cage' is no category with keypoints"):
        coco.read(data_config(tmp_path, category="cage"))
    assert len(coco.read(data_config(tmp_path, category="mouse"))) == 3


def test_coco_points_on_the_stored_picture_switch_exif_off(tmp_path):
    write_coco(tmp_path, coco_content())
    tags = Image.Exif()
    tags[0x0112] = 6
    save(tmp_path / "images" / "f9.png", 40, 30, exif=tags)  # declared as stored: 40x30
    save(tmp_path / "images" / "f10.png", 30, 40, exif=tags)  # declared as displayed
    records = coco.read(data_config(tmp_path))
    assert records.orientations.tolist() == [1, 6, 1]
    assert records.sizes.tolist() == [[30, 40]] * 3


COCO_ERRORS = [
    ("annotations.1.keypoints", [1, 2, 2], r"id 2\), image f10.png has 3 numbers .*instead of 9"),
    ("annotations.1.keypoints.4", float("nan"), r"id 2\).*'left_ear'.*must be a finite.*not nan"),
    ("annotations.1.keypoints.0", float("-inf"), r"id 2\).*'nose'.*must be a finite.*not -inf"),
    ("annotations.1.keypoints.0", None, "'nose'.*must be a finite number, not None"),
    ("annotations.1.keypoints.2", 3, r"id 2\).*each v in 'keypoints' must be 0 .missing., 1"),
    ("annotations.1.keypoints.0", 81, r"'nose' at \(81, 11\) lies far outside"),
    ("annotations.1.keypoints", KeyError, "image f10.png lacks 'keypoints'"),
    ("annotations.1.image_id", 99, "belongs to image_id 99, which the images do not list"),
    ("annotations.1.image_id", KeyError, "lacks 'image_id'"),
    ("annotations.1.category_id", KeyError, r"annotations\[1\] lacks 'category_id'"),
    ("annotations.1.id", 1, "lists the annotation id 1 twice"),
    ("annotations.0.bbox", [1, 2, 3], r"'bbox' must be \[x, y, width, height\]"),
    ("annotations.0.bbox.2", 0, "'bbox' has the size 0x20, which must be positive"),
    ("annotations.0.bbox.0", float("nan"), "'bbox' must be a finite number"),
    ("annotations.0.area", -3, "'area' must not be negative"),
    ("annotations.0.area", float("nan"), "'area' must be a finite number"),
    ("annotations", KeyError, "annotations.json lacks 'annotations'"),
    ("annotations", [], "annotations.json holds no labelled keypoint"),
    ("images.0.id", 8, "lists the image id 8 twice"),
    ("images.0.id", KeyError, r"images\[0\] \(f10.png\) lacks 'id'"),
    ("images.0.file_name", "f9.png", "lists the file name 'f9.png' twice"),
    ("images.0.file_name", "../f9.png", "has the file name '../f9.png', which leaves the folder"),
    ("images.0.file_name", "f11.png", "f11.png does not exist"),
    ("images.0.width", 20, r"states 20x30 pixels, but the picture .*f10.png has 40x30"),
    ("images.0.width", "40", "'width' must be a whole number, not '40'"),
    ("images.0.width", KeyError, "lacks 'width'"),
    ("images.0.height", 0, "'height' and 'width' must be positive"),
    ("images.0.split", 3, "'split' must be text, not 3"),
    ("categories", KeyError, "lacks 'categories'"),
    ("categories.0.keypoints", [], "has no category with keypoints"),
    ("categories.0.keypoints", [1, 2], "names must be a list of texts"),
    (
        "categories.0.skeleton",
        [[0, 1]],
        r"'skeleton' must hold pairs of .* from 1 to 3, not \[0, 1",
    ),
    ("categories.0.flip_pairs", [[2, 4]], "'flip_pairs' must hold pairs .*from 1 to 3"),
    ("categories.0.flip_pairs", [["a", "b"]], "'flip_pairs' must hold pairs .*from 1 to 3"),
    (
        "categories.0.flip_pairs",
        [[1, 2], [2, 3]],
        "category 'mouse': flip_pairs name a point twice",
    ),
    ("categories.0.oks_sigmas", [0.1], "There are 1 OKS sigmas for 3 keypoints"),
    ("categories.0.oks_sigmas", [0.1, 0, 1], "'oks_sigmas' must be positive"),
    ("categories.1.id", 1, "lists the category id 1 twice"),
]


@pytest.mark.parametrize(("path", "value", "sentence"), COCO_ERRORS)
def test_coco_refuses_bad_labels_in_a_sentence(tmp_path, path, value, sentence):
    content = coco_content()
    change(path, value)(content)
    write_coco(tmp_path, content)
    with pytest.raises(UserError, match=sentence) as caught:
        coco.read(data_config(tmp_path))
    assert str(tmp_path) in str(caught.value)


def test_coco_four_zeros_are_no_box(tmp_path):
    content = coco_content()
    content["annotations"][0]["bbox"] = [0, 0, 0, 0]
    records = coco.read(data_config(write_coco(tmp_path, content)))
    assert records.boxes[0].tolist() == [4.5, 5.5, 7.5, 8.5]


# DeepLabCut.

CONFIG = """
Task: reach
scorer: Ann
multianimalproject:
bodyparts:
- nose
- no
- tail
skeleton:
- - nose
  - tail
- - objectA
  - bodypart1
"""
ROWS = [[1.5, 2, "", "", 5, 6], [3, 4, 7, 8, 9, 10]]
FRAMES = ["img10.png", "img9.png"]
PARTS = ["nose", "no", "tail"]


def dlc_lines(index="one", rows=ROWS, parts=PARTS, individuals=None, video="m1"):
    """Returns the cells of a CollectedData table."""
    blank = [""] * (2 if index == "three" else 0)
    count = len(parts) * len(individuals or [""])
    header = [["scorer", *blank, *["Ann"] * 2 * count]]
    if individuals:
        header += [["individuals", *blank, *np.repeat(individuals, 2 * len(parts))]]
    header += [["bodyparts", *blank, *np.repeat(parts * len(individuals or [""]), 2)]]
    header += [["coords", *blank, *["x", "y"] * count]]
    if index == "three":
        keys = [["labeled-data", video, frame] for frame in FRAMES]
    else:
        slash = "\\" if index == "windows" else "/"
        keys = [[slash.join(("labeled-data", video, frame))] for frame in FRAMES]
    return header + [[*key, *row] for key, row in zip(keys, rows, strict=True)]


def write_dlc(root, lines=None, config=CONFIG, scorer="Ann", video="m1"):
    (root / "config.yaml").write_text(config)
    folder = root / "labeled-data" / video
    for frame in FRAMES:
        save(folder / frame)
    with (folder / f"CollectedData_{scorer}.csv").open("w", newline="") as file:
        csv.writer(file).writerows(dlc_lines(video=video) if lines is None else lines)
    return root


@pytest.mark.parametrize("index", ["one", "three", "windows"])
def test_deeplabcut_reads_both_index_layouts(tmp_path, index):
    (tmp_path / "labeled-data" / "not labelled yet").mkdir(parents=True)
    records = deeplabcut.read(data_config(write_dlc(tmp_path, dlc_lines(index))))
    assert records.points.names == ("nose", "no", "tail")  # 'no' is a name, not false
    assert records.points.skeleton == ((0, 2),)  # the template's names are left out
    assert records.ids.tolist() == ["m1/img10.png", "m1/img9.png"]
    assert records.groups.tolist() == ["m1", "m1"]
    assert records.order.tolist() == [1, 0]
    assert records.keypoints[0].tolist() == [[1.5, 2], [0, 0], [5, 6]]
    assert records.labelled.tolist() == [[True, False, True], [True] * 3]
    assert records.splits.tolist() == ["", ""]


def test_deeplabcut_takes_the_order_of_points_from_the_config(tmp_path):
    config = CONFIG.replace("- nose\n- no\n- tail", "- tail\n- nose\n- no")
    records = deeplabcut.read(data_config(write_dlc(tmp_path, config=config)))
    assert records.points.names == ("tail", "nose", "no")
    assert records.keypoints[1].tolist() == [[9, 10], [3, 4], [7, 8]]


def test_deeplabcut_pixel_origin(tmp_path):
    records = deeplabcut.read(data_config(write_dlc(tmp_path), pixel_center=0.5))
    assert records.keypoints[0].tolist() == [[1, 1.5], [0, 0], [4.5, 5.5]]


def test_deeplabcut_several_animals_are_instances(tmp_path):
    config = (
        "multianimalproject: true\nscorer: Ann\nuniquebodyparts: []\nbodyparts: MULTI!\n"
        "multianimalbodyparts: [nose, tail]\n"
    )
    rows = [[1, 2, 3, 4, 5, 6, "", ""], [1, 2, 3, 4, "", "", "", ""]]
    lines = dlc_lines("three", rows, ["nose", "tail"], ["mus1", "mus2"])
    records = deeplabcut.read(data_config(write_dlc(tmp_path, lines, config)))
    assert records.ids.tolist() == ["m1/img10.png", "m1/img10.png", "m1/img9.png"]
    assert records.instances.tolist() == [0, 1, 0]
    assert records.keypoints[1].tolist() == [[5, 6], [0, 0]]
    write_dlc(tmp_path, lines, config.replace("uniquebodyparts: []", "uniquebodyparts: [corner]"))
    with pytest.raises(UserError, match=r"'uniquebodyparts', .* not supported"):
        deeplabcut.read(data_config(tmp_path))


def test_deeplabcut_several_scorers(tmp_path):
    write_dlc(tmp_path, scorer="Ann")
    lines = dlc_lines(rows=[[1] * 6, [2] * 6])
    write_dlc(tmp_path, lines, scorer="Bob")
    assert deeplabcut.read(data_config(tmp_path)).keypoints[0, 0, 0] == 1.5
    (tmp_path / "config.yaml").write_text(CONFIG.replace("scorer: Ann", "scorer: Cleo"))
    with pytest.raises(UserError, match=r"several scorers \(.*Ann.csv, .*Bob.csv\), none .*'Cleo'"):
        deeplabcut.read(data_config(tmp_path))


def edited(row, column, value):
    lines = copy.deepcopy(dlc_lines())
    lines[row][column] = value
    return lines


DLC_ERRORS = [
    (
        edited(3, 1, ""),
        r"CollectedData_Ann.csv, line 4 \(.*img10.png\): .*'nose' has only one of x",
    ),
    (edited(3, 1, "inf"), "line 4 .*'nose' must be a finite number, not inf"),
    (edited(3, 1, "abc"), "line 4 .*'nose' must be a finite number, not 'abc'"),
    (edited(3, 1, "4000"), r"'nose' at \(4000, 2\) lies far outside"),
    (edited(3, 0, "labeled-data/../../a.png"), "line 4 has the file name .*leaves the folder"),
    (edited(3, 0, "/data/m1/img9.png"), "line 4 has the file name .*leaves the folder"),
    (edited(3, 0, "labeled-data/m1/img9.png"), "the picture 'labeled-data/m1/img9.png' twice"),
    (edited(3, 0, "labeled-data/m1/gone.png"), "gone.png does not exist"),
    (edited(1, 1, "snout"), "has the points snout, nose, no, tail, but .*config.yaml has nose, no"),
    ([*dlc_lines()[:3], ["labeled-data/m1/img9.png", 1, 2]], "line 4 has 3 cells instead of 7"),
    (dlc_lines()[:3], "has no labels"),
    (dlc_lines()[3:], "does not begin with the header rows scorer, bodyparts and coords"),
    ([], "CollectedData_Ann.csv is empty"),
]


@pytest.mark.parametrize(("lines", "sentence"), DLC_ERRORS)
def test_deeplabcut_refuses_bad_tables_in_a_sentence(tmp_path, lines, sentence):
    write_dlc(tmp_path, lines)
    with pytest.raises(UserError, match=sentence):
        deeplabcut.read(data_config(tmp_path))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("scorer: [Ann", "config.yaml is not valid YAML .*line 1"),
        ("- a", "config.yaml must be an object"),
        ("scorer: Ann", "config.yaml lacks 'bodyparts'"),
        ("bodyparts: nose", "'bodyparts' must be a list, not 'nose'"),
        ("bodyparts: [nose, no, nose]", "config.yaml: Two keypoints have the same name"),
        ("", "config.yaml is empty"),
    ],
)
def test_deeplabcut_refuses_a_bad_config_in_a_sentence(tmp_path, text, sentence):
    write_dlc(tmp_path, config=text)
    with pytest.raises(UserError, match=sentence):
        deeplabcut.read(data_config(tmp_path))


def test_deeplabcut_refuses_one_picture_in_two_tables(tmp_path):
    write_dlc(tmp_path)
    write_dlc(tmp_path, dlc_lines(video="m1"), video="m2")
    with pytest.raises(UserError, match=r"lists the picture 'labeled-data/m1/img10.png' twice"):
        deeplabcut.read(data_config(tmp_path))


def test_deeplabcut_groups_by_video_only(tmp_path):
    write_dlc(tmp_path)
    assert len(deeplabcut.read(data_config(tmp_path, group_by="video"))) == 2
    with pytest.raises(UserError, match=r"data.split.group_by='day' is not known"):
        deeplabcut.read(data_config(tmp_path, group_by="day"))


def test_deeplabcut_reads_hdf_where_there_is_no_csv(tmp_path, monkeypatch):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("tables")
    write_dlc(tmp_path)
    expected = deeplabcut.read(data_config(tmp_path))
    path = tmp_path / "labeled-data" / "m1" / "CollectedData_Ann.csv"
    frame = pandas.read_csv(path, header=[0, 1, 2], index_col=0)
    frame.to_hdf(path.with_suffix(".h5"), key="df_with_missing")
    path.unlink()
    records = deeplabcut.read(data_config(tmp_path))
    np.testing.assert_array_equal(records.keypoints, expected.keypoints)
    np.testing.assert_array_equal(records.labelled, expected.labelled)
    assert records.files.tolist() == expected.files.tolist()
    path.with_suffix(".h5").write_bytes(b"rubbish")
    with pytest.raises(UserError, match=r"CollectedData_Ann.h5 cannot be read as a table"):
        deeplabcut.read(data_config(tmp_path))
    monkeypatch.setitem(sys.modules, "tables", None)
    with pytest.raises(UserError, match=r"two more packages: pip install -e '.\[deeplabcut\]'"):
        deeplabcut.read(data_config(tmp_path))


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


def test_real_openfield(shared):
    records = coco.read(data_config(shared / "mouse_openfield"))
    assert (len(records), records.points.count, records.labelled.sum()) == (116, 4, 464)
    assert records.points.pair_names("flip_pairs") == [("leftear", "rightear")]
    assert records.order.tolist() == list(range(116))


def test_real_reaching_lacks_fifteen_per_cent(shared):
    records = coco.read(data_config(shared / "mouse_reaching"))
    assert (len(records), records.points.count, records.labelled.sum()) == (55, 5, 233)


def test_real_glue_tubes_has_several_instances(shared):
    records = coco.read(data_config(shared / "glue_tubes"))
    assert (len(records), len(set(records.ids)), records.labelled.all()) == (226, 134, True)
    pictures = {(name, split) for name, split in zip(records.ids, records.splits, strict=True)}
    assert sum(split == "train" for _, split in pictures) == 111


def test_real_deeplabcut_agrees_with_its_coco_copy(shared, tmp_path):
    project = shared / "native" / "openfield-Pranav-2018-10-30"
    native = deeplabcut.read(data_config(project, verify=False))
    copied = coco.read(data_config(shared / "mouse_openfield", verify=False))
    expected = (native.keypoints + 0.5) * 0.8 - 0.5
    assert np.abs(expected - copied.keypoints).max() < 0.006  # the copy is rounded
    shutil.copytree(project, tmp_path, dirs_exist_ok=True)
    (tmp_path / "labeled-data" / "m4s1" / "CollectedData_Pranav.csv").unlink()
    pytest.importorskip("tables")
    np.testing.assert_array_equal(
        deeplabcut.read(data_config(tmp_path, verify=False)).keypoints, native.keypoints
    )


def test_real_reaching_table_has_blank_cells(shared, tmp_path):
    source = shared / "native" / "reaching-dlc-csv"
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
