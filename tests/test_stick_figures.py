import dataclasses
import hashlib
import itertools

import numpy as np
import pytest
import tensorflow_datasets as tfds

from configs.common import get_config
from heatmap.config import from_mapping
from heatmap.errors import UserError
from input_pipeline import stick_figures

# Of all pictures and points of a variant. A change here is a new data set: raise its VERSION.
SHA256 = {
    "own_side": "ba7634b6653aeefd02f92f222aed7dee7c26b0fb85ebb2f62027d689ea265013",
    "free": "e218fc8172faf3527d6385d7385092481b6742b14787163ef489fac587c73343",
}
PICTURES = [(s, i) for s, count in stick_figures.COUNTS.items() for i in range(count)]


@pytest.fixture(scope="module")
def drawn():
    """Draws every variant once: {arms: (images, keypoints)} in the order of PICTURES."""
    sets = {}
    for arms in stick_figures.ARMS:
        images, keypoints = zip(*(stick_figures.draw(arms, s, i) for s, i in PICTURES), strict=True)
        sets[arms] = np.stack(images), np.stack(keypoints)
    return sets


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("tfds")


def data_config(root, **changes):
    config = from_mapping(get_config().to_dict()).data
    return dataclasses.replace(config, root=str(root), **changes)


@pytest.mark.parametrize("arms", stick_figures.ARMS)
def test_pictures_are_the_same_on_every_machine(drawn, arms):
    digest = hashlib.sha256()
    for image, keypoints in zip(*drawn[arms], strict=True):
        digest.update(image.tobytes())
        digest.update(keypoints.tobytes())
    assert digest.hexdigest() == SHA256[arms]


@pytest.mark.parametrize("arms", stick_figures.ARMS)
def test_shapes_and_margins(drawn, arms):
    images, keypoints = drawn[arms]
    assert images.shape == (1400, 128, 128, 1)
    assert images.dtype == np.uint8
    assert keypoints.shape == (1400, 5, 2)
    assert keypoints.dtype == np.float32
    assert keypoints.min() >= 1.5  # the picture begins at -0.5 and ends at 127.5
    assert keypoints.max() <= 125.5
    assert len({image.tobytes() for image in images}) == 1400


@pytest.mark.parametrize("arms", stick_figures.ARMS)
def test_worst_case_stays_inside(monkeypatch, arms):
    class Chosen(np.random.Generator):
        def random(self):
            return chosen.pop(0) if chosen else super().random()

    monkeypatch.setattr(np.random, "Generator", Chosen)
    for x, y, *swings in itertools.product((0.0, 1.0), (0.0, 1.0), (0.0, 0.5, 1.0), (0.0, 1.0)):
        chosen = [1.0, x, y, *swings, 1.0]  # the largest figure with the widest spread
        _, keypoints = stick_figures.draw(arms, "train", 0)
        assert not chosen
        assert np.ptp(keypoints[:, 1]) > 80
        assert keypoints.min() >= 1.5
        assert keypoints.max() <= 125.5


def test_variants_differ_in_the_arms_alone(drawn):
    own_side, free = drawn["own_side"][1], drawn["free"][1]
    np.testing.assert_array_equal(own_side[:, [0, 3, 4]], free[:, [0, 3, 4]])
    assert (own_side[:, 1:3] != free[:, 1:3]).any(axis=(1, 2)).all()


def test_left_is_left_in_the_picture(drawn):
    for arms, sided in (("own_side", [1, 2]), ("free", [])):
        keypoints = drawn[arms][1]
        middle = keypoints[:, 0, 0]  # the head is above the shoulder
        for left, right in [(3, 4), *([sided] if sided else [])]:
            assert (keypoints[:, left, 0] < middle).all()
            assert (keypoints[:, right, 0] > middle).all()


def test_ceiling_of_free_arms(drawn):
    keypoints = drawn["free"][1].astype(np.float64)
    reference = np.linalg.norm(np.ptp(keypoints, axis=1), axis=-1)
    apart = np.linalg.norm(keypoints[:, 1] - keypoints[:, 2], axis=-1) > 2 * 0.05 * reference
    # Apart: one of the two hands is right in expectation. Else a guess between them serves both.
    assert 1 - apart.mean() / 5 == pytest.approx(0.86, abs=0.01)
    first_is_left = keypoints[:, 1, 0] < keypoints[:, 2, 0]
    assert first_is_left.mean() == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("arms", stick_figures.ARMS)
def test_strokes_end_at_the_points(drawn, arms):
    images, keypoints = drawn[arms]
    for image, points in zip(images[:200, ..., 0].astype(float), keypoints[:200], strict=True):
        ground, spread = np.median(image), np.std(image)
        for x, y in np.rint(points[1:]).astype(int):
            patch = np.abs(image[y - 1 : y + 2, x - 1 : x + 2] - ground)
            assert patch.max() > max(35, spread)


def test_stroke_covers_its_area_about_its_middle():
    coverage = np.zeros((40, 50))
    stick_figures._stroke(coverage, (8.3, 10.6), (33.7, 24.2), 2.0)
    rows, columns = np.indices(coverage.shape)
    total = coverage.sum()
    length = np.hypot(33.7 - 8.3, 24.2 - 10.6)
    assert total == pytest.approx(2.0 * length + np.pi, rel=0.02)  # and two half discs
    assert (columns * coverage).sum() / total == pytest.approx(21.0, abs=0.05)
    assert (rows * coverage).sum() / total == pytest.approx(17.4, abs=0.05)


def test_ring_covers_its_area_about_its_centre():
    coverage = np.zeros((40, 50))
    stick_figures._ring(coverage, (20.3, 15.8), 8.0, 1.5)
    rows, columns = np.indices(coverage.shape)
    total = coverage.sum()
    assert total == pytest.approx(2 * np.pi * 8.0 * 1.5, rel=0.02)
    assert (columns * coverage).sum() / total == pytest.approx(20.3, abs=0.05)
    assert (rows * coverage).sum() / total == pytest.approx(15.8, abs=0.05)


def test_stroke_is_cut_at_the_border():
    whole, part = np.zeros((60, 60)), np.zeros((30, 30))
    stick_figures._stroke(whole, (-5.0, 3.0), (40.0, 50.0), 3.0)
    stick_figures._stroke(part, (-5.0, 3.0), (40.0, 50.0), 3.0)
    np.testing.assert_array_equal(part, whole[:30, :30])


@pytest.mark.parametrize("arms", stick_figures.ARMS)
def test_reads_what_was_drawn_and_says_nothing(root, drawn, arms, capfd):
    records = stick_figures.read(data_config(root, arms=arms, channels=3))
    assert capfd.readouterr() == ("", "")
    assert list(records.ids) == sorted(records.ids)
    names = {"train": "train", "validation": "val", "test": "test"}
    row_of = {f"{names[s]}/{i:05d}": row for row, (s, i) in enumerate(PICTURES)}
    rows = [row_of[name] for name in records.ids]
    images, keypoints = drawn[arms]
    np.testing.assert_array_equal(records.pixels, images[rows])
    np.testing.assert_array_equal(records.keypoints, keypoints[rows])
    assert records.keypoints.dtype == np.float64
    np.testing.assert_array_equal(records.splits, [name.split("/")[0] for name in records.ids])
    np.testing.assert_array_equal(records.order, [int(name.split("/")[1]) for name in records.ids])
    np.testing.assert_array_equal(records.groups, records.ids)
    for field in dataclasses.fields(records):
        value = getattr(records, field.name)
        assert not isinstance(value, np.ndarray) or len(value) == 1400
    assert records.labelled.all()
    assert records.points.order_known == (arms == "own_side")
    assert records.points.pair_names("interchangeable_pairs") == [("left_hand", "right_hand")]


def test_boxes_hold_the_points(root):
    records = stick_figures.read(data_config(root))
    low, high = records.boxes[:, None, :2], records.boxes[:, None, 2:]
    assert ((records.keypoints > low) & (records.keypoints < high)).all()
    extent = np.ptp(records.keypoints, axis=1)
    np.testing.assert_allclose((high - low)[:, 0], 1.1 * extent)
    np.testing.assert_allclose(records.areas, 1.21 * extent[:, 0] * extent[:, 1])


def test_config_can_change_the_meaning_of_the_points(root):
    config = data_config(root, torso=("left_foot", "right_foot"))
    assert stick_figures.read(config).points.torso == ((3,), (4,))


def test_is_drawn_once_and_known_to_tfds(root, monkeypatch):
    stick_figures.read(data_config(root, arms="free"))
    monkeypatch.delattr(stick_figures, "draw")
    assert len(stick_figures.read(data_config(root, arms="free"))) == 1400
    builder = tfds.builder("stick_figures/free", data_dir=str(root))
    assert {n: s.num_examples for n, s in builder.info.splits.items()} == stick_figures.COUNTS


def test_another_process_may_finish_first(root, monkeypatch):
    stick_figures.read(data_config(root))

    def lose(*args, **kwargs):
        raise OSError("Directory not empty")

    monkeypatch.setattr(stick_figures.StickFigures, "download_and_prepare", lose)
    assert len(stick_figures.read(data_config(root))) == 1400


def test_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match=r"file/folder/.*data\.root"):
        stick_figures.read(data_config(tmp_path / "file" / "folder"))
