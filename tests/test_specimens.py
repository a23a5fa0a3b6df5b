"""Drawn specimens: what is labelled can be seen, and labels err as their annotators do."""

import csv
import hashlib

import numpy as np
import pytest
from PIL import Image

import input_pipeline
from configs import specimens as config_file
from heatmap import config as config_lib
from heatmap.errors import UserError
from heatmap.pairs import cheaper_order
from input_pipeline import beetles, specimen_files, specimens
from tests.helpers import make_config

# Of all labels and scales. A change here is a new data set.
SHA256 = "41343cd5b0056890ee40fb5a1ad9f9ef799191b8b30e7154ad8dfc935fcf7f59"


@pytest.fixture(scope="module")
def trays():
    """All trays of the data set, by name."""
    splits = map(specimens.draw_split, specimens.TRAYS)
    return {name: tray for split in splits for name, tray in split.items()}


@pytest.fixture(scope="module")
def records(trays):
    return specimens.records(trays, make_config().data)


def marked(tray):
    """The labels of a tray with each line's ends in the order of the true ones."""
    ones = np.ones(tray.ends.shape[:2])
    return cheaper_order(tray.ends, tray.keypoints, ones, beetles.POINTS.interchangeable_pairs)[0]


def test_labels_are_the_same_on_every_machine(trays):
    digest = hashlib.sha256()
    for tray in trays.values():
        digest.update(np.rint(tray.keypoints * 100).astype("<i4").tobytes())
        digest.update(f"{tray.px_per_cm:.1f}".encode())
    assert digest.hexdigest() == SHA256


def test_a_tray_is_a_function_of_its_series_and_number(trays):
    again, other, fresh = specimens.draw(2, 7), specimens.draw(2, 8), specimens.draw(4, 7)
    np.testing.assert_array_equal(again.pixels, trays["cal/07"].pixels)
    np.testing.assert_array_equal(again.keypoints, trays["cal/07"].keypoints)
    assert len({tray.pixels[0].tobytes() for tray in (again, other, fresh)}) == 3
    assert len({tray.px_per_cm for tray in (again, other, fresh)}) == 3


def test_every_specimen_has_a_row(trays, records):
    pictures = np.concatenate([tray.pixels for tray in trays.values()])
    np.testing.assert_array_equal(records.pixels, pictures)
    assert pictures.shape[1:] == (96, 96, 3)
    assert pictures.dtype == np.uint8
    assert len({picture.tobytes() for picture in pictures}) == len(records)
    assert len(set(records.ids)) == len(records)
    groups, sizes = np.unique(records.groups, return_counts=True)
    assert list(np.unique(sizes)) == [4, 5, 6]
    for split, count in specimens.TRAYS.items():
        of_split = records.splits == split
        assert sum(group.startswith(f"{split}/") for group in groups) == count
        assert set(records.groups[of_split]) == {f"{split}/{n:02d}" for n in range(count)}
    for name, tray in trays.items():
        mine = records.groups == name
        np.testing.assert_array_equal(records.keypoints[mine], tray.keypoints)
        assert set(records.px_per_cm[mine]) == {tray.px_per_cm}
    assert records.points == beetles.POINTS
    assert records.labelled.all()
    assert (records.keypoints > 2).all()
    assert (records.keypoints < 93).all()


@pytest.mark.parametrize("k", [0, 1, 3])  # both of the width, and the tip; the base meets a plate
def test_paper_begins_where_a_line_ends(trays, k):
    """Two pixels within an end it is darker than two pixels beyond it."""
    darker = []
    for tray in trays.values():
        grey = tray.pixels.mean(axis=-1)
        other = tray.ends[:, k - 1 if k % 2 else k + 1]
        way = tray.ends[:, k] - other
        way /= np.linalg.norm(way, axis=1, keepdims=True)
        for i, (end, outwards) in enumerate(zip(tray.ends[:, k], way, strict=True)):
            (x0, y0), (x1, y1) = (np.rint(end + s * outwards).astype(int) for s in (-2, 2))
            darker.append(grey[i, y1, x1] - grey[i, y0, x0])
    assert np.mean(np.array(darker) > 20) > 0.8  # a leg or a label lies over some


def components(trays, values):
    """The standard deviations of one number a specimen: of trays, and within them (ANOVA)."""
    within = np.mean([np.var(v, ddof=1) for v in values])
    means = np.var([np.mean(v) for v in values], ddof=1)
    return np.sqrt(means - within * np.mean([1 / len(v) for v in values])), np.sqrt(within)


@pytest.mark.parametrize("line", ["width", "length"])
def test_what_a_tray_is_off_by_is_shared(trays, line):
    _, a, b = next(m for m in beetles.POINTS.measurements if m[0] == line)

    def length(points):
        return np.linalg.norm(points[:, a] - points[:, b], axis=1)

    off = [length(tray.keypoints) - length(tray.ends) for tray in trays.values()]
    of_tray, within = components(trays, off)
    assert of_tray == pytest.approx(2 * 0.7, rel=0.15)  # both ends outwards
    assert within == pytest.approx(np.sqrt(2) * 0.25, rel=0.1)
    assert abs(np.mean([v.mean() for v in off])) < 3 * 1.4 / np.sqrt(len(trays))
    for axis in (0, 1):
        middle = [
            (marked(tray) - tray.ends)[:, [a, b], axis].mean(axis=1) for tray in trays.values()
        ]
        of_tray, within = components(trays, middle)
        assert of_tray == pytest.approx(0.4, rel=0.15)
        assert within == pytest.approx(0.25 / np.sqrt(2), rel=0.1)


def test_a_line_begins_at_either_end(trays):
    ends, labels = (
        np.concatenate([getattr(tray, name) for tray in trays.values()])
        for name in ("ends", "keypoints")
    )
    for k in (0, 2):
        kept = np.linalg.norm(labels[:, k] - ends[:, k], axis=1) < 6
        assert np.mean(kept) == pytest.approx(0.5, abs=0.07)


def test_its_config_reads_it_with_trays_to_calibrate_on(trays):
    config = config_lib.from_mapping(config_file.get_config().to_dict())
    records, split = input_pipeline.load(config.data)
    assert list(split.rows) == ["train", "cal", "val", "test"]
    for name, rows in split.rows.items():
        groups = set(records.groups[rows])
        assert len(groups) == specimens.TRAYS[name]
        assert {group.split("/")[0] for group in groups} == {name}
    assert sum(map(len, split.rows.values())) == len(records)


def test_the_config_has_the_last_word_on_what_points_mean(trays):
    config = make_config(**{"data.measurements": (("across", "width_p0", "length_p1"),)})
    found = specimens.records({"test/00": trays["test/00"]}, config.data)
    assert found.points.measurements == (("across", 0, 3),)


@pytest.mark.parametrize("times", [1, 3])
def test_pictures_can_be_had_as_files(trays, tmp_path, capsys, times):
    specimen_files.main([str(tmp_path / "new"), f"--enlarge={times}"])
    assert "wrote 150 pictures" in capsys.readouterr().out
    with (tmp_path / "new" / "scales.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(list((tmp_path / "new").glob("*.png"))) == 150
    found = {row["file"]: float(row["px_per_cm"]) for row in rows}
    tray = trays["test/13"]
    for i, pixels in enumerate(tray.pixels):
        picture = np.asarray(Image.open(tmp_path / "new" / f"13-{i + 1}.png"))
        assert picture.shape == (96 * times, 96 * times, 3)
        blocks = picture.reshape(96, times, 96, times, 3)
        np.testing.assert_array_equal(
            blocks, np.broadcast_to(pixels[:, None, :, None], blocks.shape)
        )
        assert found[f"13-{i + 1}.png"] == pytest.approx(times * tray.px_per_cm)


def test_a_folder_is_never_written_into(tmp_path):
    with pytest.raises(UserError, match="name a new folder"):
        specimen_files.main([str(tmp_path)])


def test_pictures_are_enlarged_by_whole_numbers(tmp_path):
    with pytest.raises(UserError, match="from 1 to 40"):
        specimen_files.main([str(tmp_path / "new"), "--enlarge=0"])
