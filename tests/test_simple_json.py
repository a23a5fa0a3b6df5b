"""The course's layout: what is read, and the sentence for everything that is wrong."""

import json
import pathlib

import numpy as np
import pytest

from heatmap.errors import UserError
from heatmap.keypoints import KeypointSet
from input_pipeline import simple_json
from tests.label_files import change, data_config, save

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
