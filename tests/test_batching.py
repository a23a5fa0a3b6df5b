"""Batches: which examples in what order, and that everything in a batch belongs together."""

import ctypes
import dataclasses
import os
import tracemalloc

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import jax
import numpy as np
import pytest
from PIL import Image

from heatmap import geometry, objective, targets
from heatmap.errors import UserError
from heatmap.keypoints import ABSENT, LABELLED, UNKNOWN, KeypointSet
from heatmap.state import create_mesh, sharded
from input_pipeline import augment, batching
from input_pipeline.records import Records
from tests.helpers import make_config

POINTS = KeypointSet(("head", "left", "right"), flip_pairs=((1, 2),))
SIZE = (24, 32)


def make_pixels(count, channels=3, size=SIZE):
    rng = np.random.default_rng(0)
    return rng.integers(0, 255, (count, *size, channels), dtype=np.uint8)


def make_records(count=10, channels=3, size=SIZE, **columns):
    """Pictures in memory, each with one instance."""
    rng = np.random.default_rng(1)
    fields = {
        "ids": np.array([f"im{i}" for i in range(count)]),
        "instances": np.zeros(count, np.int32),
        "groups": np.array([f"g{i}" for i in range(count)]),
        "order": np.arange(count),
        "splits": np.full(count, "train"),
        "keypoints": rng.uniform(2, 20, (count, POINTS.count, 2)),
        "labelled": np.ones((count, POINTS.count), bool),
        "boxes": np.tile(geometry.image_box(size), (count, 1)),
        "areas": np.full(count, 300.0),
        "sizes": np.tile(np.array(size, np.int32), (count, 1)),
        "files": np.full(count, ""),
        "orientations": np.ones(count, np.int32),
        "pixels": make_pixels(count, channels, size),
    }
    return Records(points=POINTS, **{**fields, **columns})


def on_disk(records, folder):
    """The same records with their pixels in PNG files."""
    files = [str(folder / f"{name}.png") for name in records.ids]
    for file, pixels in zip(files, records.pixels, strict=True):
        Image.fromarray(pixels.squeeze()).save(file)
    return dataclasses.replace(records, files=np.array(files), pixels=None)


def settings(**overrides):
    defaults = {
        "data.image_size": (16, 16),
        "data.channels": 3,
        "targets.heatmap_size": (8, 8),
        "train.batch_size": 4,
        "eval.batch_size": 4,
    }
    return make_config(**{**defaults, **overrides})


AUGMENTED = {
    "augment.crop_scale": (0.5, 1.0),
    "augment.rotation": 20.0,
    "augment.horizontal_flip": 0.5,
    "augment.brightness": 0.3,
    "augment.hue": 0.1,
}


EVERYTHING = AUGMENTED | {
    "augment.crop_ratio": (0.8, 1.2),
    "augment.scale": (0.8, 1.3),
    "augment.vertical_flip": 0.5,
    "augment.contrast": 0.3,
    "augment.saturation": 0.3,
}


def train(records, config, first=0, last=5):
    return list(batching.train_batches(records, config, first, last))


def assert_same(batch, other, keys=None):
    assert batch.keys() == other.keys()
    for key in keys or batch:
        np.testing.assert_array_equal(batch[key], other[key], err_msg=key)


# --- order --------------------------------------------------------------------------------------


def test_order_is_a_permutation_for_each_seed_and_epoch():
    orders = [batching.epoch_order(s, e, 50) for s, e in ((0, 0), (0, 1), (1, 0))]
    for order in orders:
        np.testing.assert_array_equal(np.sort(order), np.arange(50))
    assert len({tuple(order) for order in orders}) == 3
    np.testing.assert_array_equal(orders[0], batching.epoch_order(0, 0, 50))


def test_a_resumed_run_sees_the_batches_that_it_would_have_seen():
    records, config = make_records(), settings(**AUGMENTED)
    whole = train(records, config, 0, 6)
    for first in (1, 4):
        for batch, other in zip(train(records, config, first, 6), whole[first:], strict=True):
            assert_same(batch, other)


NUMBERS = {"data.cache": "device", "augment.where": "device"}  # batches without pixels


def numbers_of(records, config, first=0, last=5):
    """All examples of so many batches in turn."""
    batches = train(records, config, first, last)
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def test_examples_do_not_depend_on_the_batches_that_they_are_in():
    """To the last bit, over several epochs of which no batch and no block is a divisor."""
    records, count = make_records(70), 700
    whole = None
    for batch_size in (1, 4, 100, 350, 700):
        config = settings(**EVERYTHING, **NUMBERS, **{"train.batch_size": batch_size})
        found = numbers_of(records, config, 0, count // batch_size)
        assert len(np.unique(found["input_from_original"][:, 0, 2])) == count
        assert_same(found, whole or found)
        whole = found


@pytest.mark.parametrize("first", [1, 3, 6])
def test_a_run_that_resumes_within_a_block_of_numbers_sees_the_same(first):
    records = make_records(70)
    config = settings(**EVERYTHING, **NUMBERS, **{"train.batch_size": 100})
    whole, rest = (numbers_of(records, config, start, 7) for start in (0, first))
    assert_same(rest, {name: array[100 * first :] for name, array in whole.items()})


def test_numbers_are_those_of_the_place_in_the_epoch():
    records, config = make_records(), settings(**EVERYTHING, **NUMBERS, seed=3)
    boxes = augment.source_boxes(records, config.data)
    found = numbers_of(records, config)
    for position in range(20):
        epoch, place = divmod(position, 10)
        row = batching.epoch_order(3, epoch, 10)[place]
        numbers = augment.uniforms(3, epoch, place, place + 1)
        drawn = augment.draw(boxes[row][None], numbers, config.augment, (16, 16))
        assert found["row"][position] == row
        assert np.all(found["input_from_original"][position] == drawn.input_from_original)
        assert np.all(found["colour"][position] == drawn.colour)


def test_pixels_are_moved_alike_wherever_they_are():
    """On the host, sent to the device, lying there, and where features take their place."""
    records = make_records(10)
    labels = ("row", "input_from_original", "keypoints", "visibility", "_mask")
    ways = [{}, {"augment.where": "device"}, NUMBERS]
    host, sent, there = (numbers_of(records, settings(**EVERYTHING, **way)) for way in ways)
    kept = list(batching.train_batches(records, settings(**EVERYTHING), 0, 5, features={}))
    for name in labels:
        features = np.concatenate([batch[name] for batch in kept])
        for other in (sent[name], there[name], features):
            np.testing.assert_array_equal(other, host[name], err_msg=name)
    for name in ("colour", "transform"):
        np.testing.assert_array_equal(sent[name], there[name], err_msg=name)


def test_memory_does_not_grow_with_epochs():
    """In thirty of them, orders would come to 5 MB and numbers to 80; a block takes about one."""
    records = dataclasses.replace(make_records(1), pixels=None).take(np.zeros(20_000, int))
    config = settings(**EVERYTHING, **{"train.batch_size": 1000})
    tracemalloc.start()
    held = [
        tracemalloc.get_traced_memory()[0]
        for _ in batching.train_batches(records, config, 0, 700, features={})
    ]
    tracemalloc.stop()
    assert held[-1] - held[100] < 2.5e6


def test_every_epoch_visits_every_example_once_though_batches_straddle_epochs():
    records, config = make_records(), settings()
    batches = train(records, config, 0, 10)
    assert all(len(b["row"]) == 4 for b in batches)
    assert all(np.all(b["_mask"] == 1) for b in batches)  # nothing is padded
    rows = np.concatenate([b["row"] for b in batches])
    for epoch in rows.reshape(4, 10):
        np.testing.assert_array_equal(np.sort(epoch), np.arange(10))
    assert len({tuple(epoch) for epoch in rows.reshape(4, 10)}) == 4


def test_a_batch_may_be_larger_than_the_data():
    rows = [b["row"] for b in train(make_records(3), settings(**{"train.batch_size": 8}), 0, 3)]
    for epoch in np.concatenate(rows).reshape(8, 3):
        np.testing.assert_array_equal(np.sort(epoch), np.arange(3))


def test_an_example_is_changed_anew_in_every_epoch():
    config = settings(**AUGMENTED, **{"train.batch_size": 10})
    affines = []
    for batch in train(make_records(), config, 0, 2):
        affines.append(batch["input_from_original"][np.argsort(batch["row"])])
    assert np.all(np.any(affines[0] != affines[1], axis=(1, 2)))


def test_another_seed_gives_another_order_and_other_changes():
    records = make_records()
    first, second = (train(records, settings(**AUGMENTED, seed=s), 0, 1)[0] for s in (0, 1))
    assert np.any(first["row"] != second["row"])


@pytest.mark.parametrize(
    ("overrides", "steps"),
    [({"train.steps": 7}, 7), ({"train.epochs": 3}, 8), ({"train.epochs": 2}, 5)],
)
def test_length_of_a_run(overrides, steps):
    """Ten examples in batches of four: the last epoch's last batch reaches into the next."""
    assert batching.steps_per_run(settings(**overrides), 10) == steps


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_divide_the_batch_between_them(monkeypatch, processes):
    records, config = make_records(), settings(**AUGMENTED)
    monkeypatch.setattr(jax, "device_count", lambda: processes)
    for batches in (lambda: train(records, config), lambda: list(evaluated(records, config))):
        whole, parts = batches(), []
        monkeypatch.setattr(jax, "process_count", lambda: processes)
        for index in range(processes):
            monkeypatch.setattr(jax, "process_index", lambda index=index: index)
            parts.append(batches())
        monkeypatch.setattr(jax, "process_count", lambda: 1)
        monkeypatch.setattr(jax, "process_index", lambda: 0)
        for batch, *shares in zip(whole, *parts, strict=True):
            joined = {k: np.concatenate([share[k] for share in shares]) for k in batch}
            assert_same(batch, joined)


def test_threads_do_not_change_the_batches(tmp_path):
    """Although some pictures take a hundred times as long as those that follow them."""
    records = on_disk(make_records(), tmp_path)
    for file in records.files[::3]:
        Image.fromarray(make_pixels(1, size=(1200, 1200))[0]).save(file, compress_level=1)
    one, four = (train(records, settings(**AUGMENTED, **{"data.workers": w}), 0, 4) for w in (1, 4))
    for batch, other in zip(one, four, strict=True):
        assert_same(batch, other)


class Memory(ctypes.Structure):
    """What glibc says of its heap; hblks counts the blocks that the system has lent one by one."""

    _fields_ = (
        *((name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks")),
        ("others", ctypes.c_size_t * 6),
    )


def test_large_blocks_are_still_kept_once_the_input_runs():
    """A training step asks for them anew each time."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallinfo2"):
        pytest.skip("memory is glibc's here: 2.33 or later")
    libc.mallinfo2.restype = Memory
    train(make_records(), settings())
    np.ones(2**24, np.uint8)  # freed at once: from now on, smaller blocks come of what is kept
    before = libc.mallinfo2().hblks
    block = np.ones(2**23, np.uint8)
    assert libc.mallinfo2().hblks == before, len(block)


# --- evaluation ---------------------------------------------------------------------------------


def evaluated(records, config):
    return batching.eval_batches(records, config)


def test_evaluation_can_be_gone_through_again():
    """Also when one has left off within it; tf.data is set up once."""
    batches = evaluated(make_records(10), settings(**{"eval.batch_size": 4}))
    next(iter(batches))
    first, again = list(batches), list(batches)
    assert [batch["row"].tolist() for batch in first] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 9, 9]]
    for a, b in zip(first, again, strict=True):
        for name, array in a.items():
            np.testing.assert_array_equal(array, b[name], err_msg=name)


@pytest.mark.parametrize(("count", "devices"), [(10, 1), (8, 1), (1, 1), (10, 8)])
def test_evaluation_covers_every_example_once(monkeypatch, count, devices):
    """The last batch is filled up, and the mask says with what; batches suit the devices."""
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    batches = list(evaluated(make_records(count), settings()))
    size = max(4, devices)
    assert {b["image"].shape for b in batches} == {(size, 16, 16, 3)}
    rows, mask = (np.concatenate([b[k] for b in batches]) for k in ("row", "_mask"))
    np.testing.assert_array_equal(rows[mask == 1], np.arange(count))
    np.testing.assert_array_equal(rows[:count], np.arange(count))  # padding comes last
    assert np.all(mask[count:] == 0)


def test_evaluation_does_not_depend_on_the_augmentation():
    records = make_records()
    plain, other = (
        list(evaluated(records, settings(**changes)))
        for changes in ({}, AUGMENTED | {"augment.contrast": 0.5, "augment.saturation": 0.5})
    )
    for batch, same in zip(plain, other, strict=True):
        assert_same(batch, same)


def test_evaluation_affines_are_those_of_the_batches():
    records, config = make_records(), settings()
    affines = np.concatenate([b["input_from_original"] for b in evaluated(records, config)])
    np.testing.assert_array_equal(affines[:10], batching.eval_affines(records, config))


# --- what a batch holds -------------------------------------------------------------------------


def test_shapes_and_types():
    (batch,) = train(make_records(), settings(**{"targets.render": "host"}), 0, 1)
    assert {k: (v.shape, v.dtype.name) for k, v in batch.items()} == {
        "image": ((4, 16, 16, 3), "uint8"),
        "keypoints": ((4, 3, 2), "float32"),
        "visibility": ((4, 3), "int32"),
        "row": ((4,), "int64"),
        "input_from_original": ((4, 3, 3), "float64"),
        "_mask": ((4,), "float32"),
        "heatmaps": ((4, 8, 8, 3), "float32"),
    }


def test_keypoints_go_through_the_affine_of_their_row_and_change_names_in_a_mirror():
    records = make_records()
    batches = train(records, settings(**AUGMENTED), 0, 5)
    mirrored = 0
    for batch in batches:
        for row, affine, found in zip(
            batch["row"], batch["input_from_original"], batch["keypoints"], strict=True
        ):
            expected = geometry.apply(affine, records.keypoints[row])
            if np.linalg.det(affine[:2, :2]) < 0:
                expected, mirrored = expected[[0, 2, 1]], mirrored + 1
            np.testing.assert_allclose(found, expected, atol=1e-4)
    assert 0 < mirrored < 20


@pytest.mark.parametrize(("missing", "value"), [("unknown", UNKNOWN), ("absent", ABSENT)])
def test_what_is_missing_is_unknown_or_absent(missing, value):
    labelled = np.ones((10, 3), bool)
    labelled[3, 1] = labelled[7] = False
    records = make_records(labelled=labelled)
    config = settings(**{"data.missing": missing, "augment.horizontal_flip": 1.0})
    for batch in evaluated(records, config):
        for row, visibility in zip(batch["row"], batch["visibility"], strict=True):
            np.testing.assert_array_equal(visibility, np.where(labelled[row], LABELLED, value))
    for batch in train(records, config):  # the label that is missing is now the other side's
        for row, visibility in zip(batch["row"], batch["visibility"], strict=True):
            mirrored = labelled[row][[0, 2, 1]]
            np.testing.assert_array_equal(visibility, np.where(mirrored, LABELLED, value))


@pytest.mark.parametrize("missing", ["unknown", "absent"])
def test_host_and_device_draw_the_same_targets(missing):
    labelled = np.random.default_rng(4).random((10, 3)) > 0.3
    records = make_records(labelled=labelled)
    host, device = (
        settings(**AUGMENTED, **{"targets.render": r, "data.missing": missing})
        for r in ("host", "device")
    )
    for a, b in zip(train(records, host), train(records, device), strict=True):
        assert "heatmaps" not in b
        drawn = objective.target_of(device, b)
        np.testing.assert_allclose(a["heatmaps"], drawn, atol=1e-6)
        assert_same({k: v for k, v in a.items() if k != "heatmaps"}, b)
        maps = targets.gaussian(np, b["keypoints"], (16, 16), (8, 8), device.targets.sigma)
        shown = (b["visibility"] == LABELLED)[:, None, None]
        np.testing.assert_allclose(drawn, maps * shown, atol=1e-5)


def test_what_goes_to_the_devices():
    (batch,) = train(make_records(), settings(**{"targets.render": "host"}), 0, 1)
    arrays = batching.to_devices(batch, sharded(create_mesh()))
    assert set(arrays) == {"image", "keypoints", "visibility", "_mask", "heatmaps"}
    for key, array in arrays.items():
        np.testing.assert_array_equal(array, batch[key])


def test_a_batch_that_cannot_be_divided_is_refused(monkeypatch):
    batching.check_batch_size(7)
    monkeypatch.setattr(jax, "device_count", lambda: 4)
    batching.check_batch_size(8)
    with pytest.raises(UserError, match=r"train\.batch_size=6 cannot be divided over 4 devices"):
        batching.check_batch_size(6)


# --- pixels -------------------------------------------------------------------------------------


@pytest.mark.parametrize("stored", [1, 3])
@pytest.mark.parametrize("wanted", [1, 3])
def test_files_and_memory_give_the_same_batch(tmp_path, stored, wanted):
    records = make_records(channels=stored)
    config = settings(**AUGMENTED, **{"data.channels": wanted})
    pairs = zip(
        train(records, config, 0, 3), train(on_disk(records, tmp_path), config, 0, 3), strict=True
    )
    for memory, files in pairs:
        assert memory["image"].shape == (4, 16, 16, wanted)
        assert_same(memory, files)


def test_grey_and_colour_convert_into_one_another():
    shades = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    same_size = {"data.image_size": (16, 16), "eval.batch_size": 1}
    for stored, wanted in ((1, 3), (3, 1)):
        records = make_records(1, size=(16, 16), pixels=np.repeat(shades, stored, axis=-1))
        (batch,) = evaluated(records, settings(**same_size, **{"data.channels": wanted}))
        np.testing.assert_array_equal(batch["image"], np.repeat(shades, wanted, axis=-1))
    colour = make_pixels(1, size=(16, 16))
    records = make_records(1, size=(16, 16), pixels=colour)
    (batch,) = evaluated(records, settings(**same_size, **{"data.channels": 1}))
    expected = colour @ np.array([0.299, 0.587, 0.114])
    assert np.abs(batch["image"][..., 0] - expected).max() < 1.01


def test_orientation_is_undone_before_the_affine(tmp_path):
    """Stored lying on its side, as cameras do, a picture gives the batch of the upright one."""
    upright = make_records(1, size=(16, 24))
    lying = dataclasses.replace(
        upright, pixels=np.rot90(upright.pixels, 1, axes=(1, 2)), orientations=np.array([6])
    )
    config = settings(**{"eval.batch_size": 1})
    (expected,) = evaluated(upright, config)
    (found,) = evaluated(on_disk(lying, tmp_path), config)
    assert_same(found, expected)


def shown_box(affine, size=(16, 16)):
    edges = np.array([[-0.5, -0.5], [size[1] - 0.5, size[0] - 0.5]])
    return geometry.apply(np.linalg.inv(affine), edges).ravel()


INSTANCES = {  # two in one picture, one in another
    "ids": np.array(["a", "a", "b"]),
    "instances": np.array([0, 1, 0]),
    "boxes": np.array([[2.0, 4, 10, 8], [12, 2, 20, 22], [5, 5, 9, 9]]),
}
PADDED = {0: [1, 1, 11, 11], 1: [3.5, -0.5, 28.5, 24.5], 2: [4.5, 4.5, 9.5, 9.5]}
WHOLE = [-0.5, -0.5, 31.5, 23.5]


@pytest.mark.parametrize(
    ("crop", "boxes"),
    [
        ("auto", [PADDED[0], PADDED[1], WHOLE]),
        ("box", [PADDED[0], PADDED[1], PADDED[2]]),
        ("image", [WHOLE] * 3),
    ],
)
def test_several_instances_are_cropped_by_their_padded_boxes(crop, boxes):
    """Boxes grow by a quarter about their centre, then to the input's shape."""
    records = make_records(3, **INSTANCES)
    affines = batching.eval_affines(records, settings(**{"data.crop": crop}))
    for affine, box in zip(affines, boxes, strict=True):
        np.testing.assert_allclose(shown_box(affine), box, atol=1e-9)


@pytest.mark.parametrize("fit", ["stretch", "pad"])
def test_padding_keeps_the_shape_and_stretching_fills_the_input(fit):
    affine = batching.eval_affines(make_records(1), settings(**{"data.fit": fit}))[0]
    box = WHOLE if fit == "stretch" else [-0.5, -4.5, 31.5, 27.5]
    np.testing.assert_allclose(shown_box(affine), box, atol=1e-9)
    assert (affine[0, 0] == pytest.approx(affine[1, 1])) == (fit == "pad")


@pytest.mark.parametrize("damage", ["deleted", "truncated", "text", "folder"])
def test_a_file_that_goes_bad_during_training_is_named(tmp_path, damage):
    records, config = on_disk(make_records(), tmp_path), settings()
    batches = batching.train_batches(records, config, 0, 50)
    next(batches)
    for path in tmp_path.glob("*.png"):
        data = path.read_bytes()
        path.unlink()
        if damage == "folder":
            path.mkdir()
        elif damage != "deleted":
            path.write_bytes(data[:-300] if damage == "truncated" else b"no picture")
    with pytest.raises(UserError, match=r"^The picture .*im0\.png \w"):
        list(batches)
