"""COCO keypoint files: what is read, and the sentence for everything that is wrong."""

import json

import pytest
from PIL import Image

from heatmap.errors import UserError
from input_pipeline import coco
from tests.label_files import change, data_config, save


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
