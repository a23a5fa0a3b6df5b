"""DeepLabCut projects: what is read, and the sentence for everything that is wrong."""

import copy
import csv
import sys

import numpy as np
import pytest

from heatmap.errors import UserError
from input_pipeline import deeplabcut
from tests.label_files import data_config, save

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
    with pytest.raises(UserError, match=r"Ann.h5 cannot be read as a table") as caught:
        deeplabcut.read(data_config(tmp_path))
    assert "\n" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "tables", None)
    with pytest.raises(UserError, match=r"two more packages: pip install -e '.\[deeplabcut\]'"):
        deeplabcut.read(data_config(tmp_path))
