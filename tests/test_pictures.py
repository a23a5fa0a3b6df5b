"""Pictures that are decoded once and kept."""

import dataclasses
import json
import os
import pathlib

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import input_pipeline
from heatmap import caches
from heatmap import state as state_lib
from heatmap.errors import UserError
from heatmap.train import train
from input_pipeline import augment, batching, check, device, images, pictures, resident
from tests.conftest import write_spots
from tests.helpers import loss_of_each_step, properties
from tests.test_batching import AUGMENTED, make_pixels, make_records, on_disk, settings
from tests.test_train import tiny


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))


def batches(records, config):
    trained = list(batching.train_batches(records, config, 0, 4))
    return [*trained, *batching.eval_batches(records, config)]


def turn(records, orientation: int):
    """Stores the pictures turned, with the EXIF orientation that undoes it."""
    for file in records.files:
        image = Image.open(file)
        exif = Image.Exif()
        exif[0x0112] = orientation
        image.transpose(Image.Transpose.ROTATE_90).save(file, exif=exif)
    return dataclasses.replace(records, orientations=np.full(len(records), orientation))


@pytest.mark.parametrize("cache", ["memory", "disk"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_kept_pictures_give_the_same_batches(tmp_path, cache, orientation):
    """Bit for bit, where the pictures are not much larger than the input."""
    records = on_disk(make_records(), tmp_path)
    if orientation > 1:
        records = turn(records, orientation)
    config = settings(**AUGMENTED, **{"data.cache": cache})
    kept = pictures.keep(records, config.data)
    assert set(kept.kept.factors.values()) == {1}
    for batch, other in zip(batches(records, config), batches(kept, config), strict=True):
        assert batch.keys() == other.keys()
        for name in batch:
            np.testing.assert_array_equal(batch[name], other[name], err_msg=name)


def smooth(count, size):
    """Pictures without detail that a smaller copy would lose."""
    rows, columns = np.mgrid[: size[0], : size[1]] / max(size)
    phases = np.arange(count)[:, None, None, None] + np.arange(3)
    waves = np.sin(6 * rows[..., None] + phases) + np.cos(5 * columns[..., None] - phases)
    return np.round(127.5 + 60 * waves).astype(np.uint8)


@pytest.mark.parametrize("size", [(160, 240), (163, 245)])
def test_large_pictures_are_kept_at_twice_the_input(tmp_path, size):
    """Points stay where they are, and pixels within what rounding and interpolation leave."""
    records = on_disk(make_records(4, size=size, pixels=smooth(4, size)), tmp_path)
    config = settings(**AUGMENTED, **{"data.cache": "memory"})
    kept = pictures.keep(records, config.data)
    assert set(kept.kept.factors.values()) == {5}  # of 16×16 pixels: 32 along the shorter side
    assert kept.notes[-1].startswith(f"keeps {len(records)} decoded pictures, ")
    assert {p.shape for p in kept.kept.pictures.values()} == {
        (-(-size[0] // 5), -(-size[1] // 5), 3)
    }
    for batch, other in zip(batches(records, config), batches(kept, config), strict=True):
        np.testing.assert_array_equal(batch["keypoints"], other["keypoints"])
        off = np.abs(batch["image"].astype(float) - other["image"])
        assert off.mean() < 1.5
        inner = off[:, 2:-2, 2:-2]
        assert np.percentile(inner, 99) < 8


def test_a_small_box_keeps_its_picture_whole(tmp_path):
    records = on_disk(make_records(3, size=(160, 160)), tmp_path)
    config = settings(**{"data.crop": "box", "data.cache": "memory"})
    small = dataclasses.replace(records, boxes=np.tile([10.0, 10.0, 30.0, 30.0], (3, 1)))
    assert set(pictures.keep(records, config.data).kept.factors.values()) == {6}
    assert set(pictures.keep(small, config.data).kept.factors.values()) == {1}
    # Of two instances in one picture the smaller decides.
    both = dataclasses.replace(
        records,
        files=np.repeat(records.files[:1], 3),
        boxes=np.array([[0, 0, 159, 159], [10, 10, 30, 30], [0, 0, 159, 159.0]]),
    )
    assert pictures.keep(both, config.data).kept.factors == {str(records.files[0]): 1}


def test_the_disk_is_written_once_and_shared(tmp_path, monkeypatch):
    records = on_disk(make_records(), tmp_path)
    config = settings(**{"data.cache": "disk"}).data
    first = pictures.keep(records, config)
    (folder,) = caches.folder().glob("pictures-*")
    assert {path.name for path in folder.iterdir()} == {"pixels.bin", "index.json"}
    for file, picture in first.kept.pictures.items():
        np.testing.assert_array_equal(picture, np.asarray(Image.open(file)))

    # A second run reads what is there, whatever has become of the decoder.
    monkeypatch.setattr(pictures, "decode", None)
    again = pictures.keep(records, config)
    for file, picture in first.kept.pictures.items():
        np.testing.assert_array_equal(picture, again.kept.pictures[file])
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "caches"))

    # A picture that has been changed is another one, even if its size is the same.
    file = records.files[3]
    Image.fromarray(255 - make_pixels(1)[0]).save(file)
    os.utime(file, ns=(1, 1))
    changed = pictures.keep(records, config)
    np.testing.assert_array_equal(changed.kept.pictures[str(file)], 255 - make_pixels(1)[0])
    assert len(list(caches.folder().glob("pictures-*"))) == 2


def test_what_a_kill_left_is_no_cache(tmp_path, monkeypatch):
    records = on_disk(make_records(), tmp_path)
    config = settings(**{"data.cache": "disk"}).data
    read, seen = pictures.read, []

    def die_at_the_fifth(*arguments):
        seen.append(arguments)
        if len(seen) == 5:
            raise KeyboardInterrupt
        return read(*arguments)

    monkeypatch.setattr(pictures, "read", die_at_the_fifth)
    with pytest.raises(KeyboardInterrupt):
        pictures.keep(records, config)
    assert list(caches.folder().iterdir()) == []
    monkeypatch.setattr(pictures, "read", read)
    assert len(pictures.keep(records, config).kept.pictures) == 10


@pytest.mark.parametrize(
    "index", ["\x00", "[]", "{}", '{"a": 1}', '{"a": [0, 4.0, 4]}', '{"a": [0, -4, -4]}', "shift"]
)
def test_a_damaged_cache_is_made_anew(tmp_path, index):
    records = on_disk(make_records(), tmp_path)
    config = settings(**{"data.cache": "disk"}).data
    first = pictures.keep(records, config).kept.pictures
    (path,) = caches.folder().glob("pictures-*/index.json")
    if index == "shift":
        places = json.loads(path.read_text())
        shifted = {name: (place + 3, *size) for name, (place, *size) in places.items()}
        index = json.dumps(shifted)
    path.write_text(index)
    again = pictures.keep(records, config).kept.pictures
    for file, picture in first.items():
        np.testing.assert_array_equal(again[file], np.asarray(Image.open(file)))
        np.testing.assert_array_equal(again[file], picture)


def test_two_runs_that_write_at_once_do_not_mind(tmp_path, monkeypatch):
    records = on_disk(make_records(), tmp_path)
    config = settings(**{"data.cache": "disk"}).data
    write = pictures._write

    def sooner_and_later(*arguments):
        write(*arguments)
        write(*arguments)

    monkeypatch.setattr(pictures, "_write", sooner_and_later)
    assert len(pictures.keep(records, config).kept.pictures) == 10
    assert len(list(caches.folder().iterdir())) == 1


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path, monkeypatch):
    records = on_disk(make_records(), tmp_path)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"cannot be kept in .*XDG_CACHE_HOME"):
        pictures.keep(records, settings(**{"data.cache": "disk"}).data)


@pytest.mark.parametrize(
    ("cache", "on_error", "decoded"),
    [("", "raise", True), ("memory", "raise", False), ("memory", "skip", True)],
)
def test_what_will_be_kept_is_decoded_before_only_to_be_left_out(
    tiny_root, monkeypatch, cache, on_error, decoded
):
    seen = []
    monkeypatch.setattr(images, "decode", seen.append)
    config = tiny(tiny_root, **{"data.cache": cache, "data.on_error": on_error}).data
    records, _ = input_pipeline.load(config)
    assert len(seen) == (len(records) if decoded else 0)
    assert (records.kept is not None) == bool(cache)


def test_a_check_decodes_also_what_a_run_would_keep(tmp_path):
    root = write_spots(tmp_path / "data")
    broken = next((root / "train").glob("*.png"))
    broken.write_bytes(broken.read_bytes()[:-20])
    with pytest.raises(UserError, match=f"{broken.name} cannot be read"):
        check.check(tiny(root, **{"data.cache": "memory"}).data)


@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_a_picture_that_is_gone_or_broken_is_one_sentence(tmp_path, cache):
    records = on_disk(make_records(), tmp_path)
    config = settings(**{"data.cache": cache}).data
    whole = pathlib.Path(records.files[4]).read_bytes()
    pathlib.Path(records.files[4]).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"im4\.png cannot be read"):
        pictures.keep(records, config)
    pathlib.Path(records.files[4]).unlink()
    with pytest.raises(UserError, match=r"im4\.png does not exist"):
        pictures.keep(records, config)
    assert not list(caches.folder().glob("*"))


@pytest.mark.parametrize("damage", ["no pixels", "few pixels", "no index", "bad index"])
def test_a_damaged_cache_is_written_anew(tmp_path, damage):
    records = on_disk(make_records(), tmp_path)
    config = settings(**{"data.cache": "disk"}).data
    before = {file: p.copy() for file, p in pictures.keep(records, config).kept.pictures.items()}
    (folder,) = caches.folder().glob("pictures-*")
    name = "pixels.bin" if "pixels" in damage else "index.json"
    if damage.startswith("no"):
        (folder / name).unlink()
    else:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: len(content) // 2])
    after = pictures.keep(records, config).kept.pictures
    for file, picture in before.items():
        np.testing.assert_array_equal(picture, after[file])


def test_pictures_in_memory_already_are_left_alone():
    records = make_records()
    assert pictures.keep(records, settings(**{"data.cache": "disk"}).data) is records
    assert not caches.folder().exists()


def test_the_index_names_every_picture(tmp_path):
    records = on_disk(make_records(), tmp_path)
    pictures.keep(records, settings(**{"data.cache": "disk"}).data)
    (index,) = caches.folder().glob("pictures-*/index.json")
    assert json.loads(index.read_text()).keys() == set(records.files)


# --- augmentation on the device -----------------------------------------------------------------


def of_host_and_device(records, **overrides):
    """Returns the training pictures of both, [N, h, w, C] float64."""
    found = []
    for where in ("host", "device"):
        config = settings(**{**AUGMENTED, **overrides, "augment.where": where})
        trained = list(batching.train_batches(records, config, 0, 5))
        assert ("source" in trained[0]) == (where == "device")
        images = [b["image"] if where == "host" else device.render(b, {}, config) for b in trained]
        found.append(np.concatenate(images).astype(float))
    return found


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"augment.hue": 0.2, "augment.saturation": 0.5, "augment.contrast": 0.5},
        {"data.channels": 1},
        {"augment.scale": (1.0, 3.0), "augment.rotation": 180.0, "data.fit": "pad"},
    ],
)
def test_the_device_draws_what_the_host_draws(overrides, channels):
    """But for values halfway between two whole numbers, where rounding may go either way."""
    host, there = of_host_and_device(make_records(channels=channels), **overrides)
    np.testing.assert_allclose(there, host, atol=1)
    assert np.mean(there != host) < 0.001


def test_kept_pictures_of_many_sizes_are_sent_to_the_device(tmp_path):
    """Of other sizes and shapes, some of which are averaged first."""
    parts = []
    for i, size in enumerate([(160, 240), (70, 30), (41, 52), (16, 16)]):
        (tmp_path / str(i)).mkdir()
        parts.append(on_disk(make_records(1, size=size, ids=np.array([f"{i}"])), tmp_path / str(i)))
    columns = ("ids", "files", "sizes", "boxes", "orientations", "keypoints", "labelled")
    whole = {name: np.concatenate([getattr(p, name) for p in parts]) for name in columns}
    records = dataclasses.replace(
        make_records(4, pixels=make_pixels(4)).take(np.arange(4)), pixels=None, **whole
    )
    kept = pictures.keep(records, settings(**{"data.cache": "memory"}).data)
    assert len({p.shape for p in kept.kept.pictures.values()}) == 4
    host, there = of_host_and_device(kept)
    np.testing.assert_allclose(there, host, atol=2)  # an average is rounded before it is sent
    assert np.mean(there != host) < 0.25
    config = settings(**AUGMENTED, **{"augment.where": "device", "data.cache": "device"})
    assert_equal_pixels(of_residents(kept, config), there)


def test_a_device_is_sent_decoded_pictures_only(tmp_path):
    records = on_disk(make_records(), tmp_path)
    with pytest.raises(UserError, match=r"set data\.cache"):
        of_host_and_device(records)


def of_residents(records, config):
    """Returns the training pictures that the devices draw of those they hold."""
    everywhere = state_lib.replicated(state_lib.create_mesh())
    size = batching.source_size(records)
    held = resident.place(records, size, config.data.channels, everywhere)
    trained = list(batching.train_batches(records, config, 0, 5))
    assert not {"image", "source"} & trained[0].keys()
    return np.concatenate([device.render(b, held, config) for b in trained]).astype(float)


def assert_equal_pixels(there, expected):
    """But for the few whose place or average rounds otherwise in another program."""
    np.testing.assert_allclose(there, expected, atol=1)
    assert np.mean(there != expected) < 0.001


@pytest.mark.parametrize(("channels", "wanted"), [(1, 1), (3, 3), (1, 3), (3, 1)])
def test_resident_pictures_are_drawn_as_those_that_are_sent(channels, wanted):
    records = make_records(channels=channels)
    overrides = {"data.channels": wanted, "augment.where": "device"}
    _, sent = of_host_and_device(records, **overrides)
    config = settings(**AUGMENTED, **overrides, **{"data.cache": "device"})
    assert_equal_pixels(of_residents(records, config), sent)


def test_several_instances_share_their_resident_picture(tmp_path):
    records = on_disk(make_records(3), tmp_path)
    records = dataclasses.replace(records, files=records.files[[1, 0, 1]])
    np.testing.assert_array_equal(resident.places(records), [1, 0, 1])
    kept = pictures.keep(records, settings(**{"data.cache": "memory"}).data)
    everywhere = state_lib.replicated(state_lib.create_mesh())
    held = resident.place(kept, batching.source_size(kept), 3, everywhere)
    assert held["pictures"].shape[0] == 2
    for row, place in enumerate(resident.places(records)):
        picture = kept.kept.pictures[records.files[row]]
        np.testing.assert_array_equal(held["pictures"][place], picture)


@given(
    size=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    factors=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    channels=st.sampled_from([1, 3]),
)
@properties
def test_the_device_averages_as_the_host(size, factors, channels):
    """Within a padded array, whatever lies beyond the picture."""
    source = np.random.default_rng(0).integers(0, 256, (20, 20, channels), dtype=np.uint8)
    picture = source[: size[0], : size[1]]
    expected = augment.area_average(picture, np.array(factors)).numpy()
    averaged, new_size = device.area_average(
        source[None], np.array([size], np.int32), np.array([factors], np.int32)
    )
    height, width = new_size[0]
    assert (height, width) == expected.shape[:2]
    np.testing.assert_allclose(averaged[0, :height, :width], expected, atol=0.501)


def test_averages_are_exact_where_running_sums_overflow():
    bright = np.full((1, 4200, 4200, 1), 255, np.uint8)  # 4.5e9 > 2**32
    size, factors = np.array([[4200, 4200]], np.int32), np.array([[3, 3]], np.int32)
    averaged, _ = device.area_average(bright, size, factors)
    assert np.unique(averaged[0, :1400, :1400]) == [255]


def test_residents_that_do_not_fit_are_refused(monkeypatch):
    class Small:
        def memory_stats(self):
            return {"bytes_limit": 3000, "bytes_in_use": 1000}

        def __repr__(self):
            return "Small(0)"

    monkeypatch.setattr(jax, "local_devices", lambda: [Small()])
    with pytest.raises(UserError, match=r"Small\(0\) has 0\.0 GB left.*data\.cache"):
        resident.place(make_records(), (64, 64), 3, None)


@pytest.mark.slow
@pytest.mark.parametrize("render", ["host", "device"])
def test_a_run_that_augments_on_the_device_learns_the_same(tiny_root, tmp_path, render):
    """From pictures in files that are kept, with either way to render targets."""

    def losses(name, **changes):
        common = {
            "augment.horizontal_flip": 0.5,
            "augment.brightness": 0.2,
            "augment.rotation": 20.0,
            "data.cache": "disk",
            "targets.render": render,
            "train.steps": 12,
            "optim.learning_rate": 1e-4,
            "log.every_steps": 1,
            "log.tensorboard": True,
        }
        train(tiny(tiny_root, **{**common, **changes}), tmp_path / name)
        assert list(caches.folder().glob("pictures-*"))
        return loss_of_each_step(tmp_path / name)

    expected = losses("host", **{"augment.where": "host"})
    assert losses("device", **{"augment.where": "device"}) == pytest.approx(expected, rel=1e-4)
    held = {"augment.where": "device", "data.cache": "device"}
    assert losses("held", **held) == pytest.approx(expected, rel=1e-4)
    assert losses("other", **{"augment.rotation": 90.0}) != pytest.approx(expected, rel=1e-3)
