"""What there is to predict: which files of a folder, in which formats, under which names."""

import os
import shutil

import numpy as np
import pytest
from PIL import Image

from heatmap import predict
from heatmap.errors import UserError
from input_pipeline import images, sources, tiff_webp, video
from tests.projects import write_film
from tests.test_images import exif
from tests.test_predict import film, points, run, spots  # noqa: F401 - two are fixtures


def gradient(height=20, width=30):
    rows, columns = np.mgrid[:height, :width]
    return np.stack([8 * columns, 12 * rows, 3 * (rows + columns)], axis=-1).astype(np.uint8)


def read(path):
    return sources.read_picture(path, 64.0)


@pytest.mark.parametrize("options", [{}, {"compression": "tiff_lzw"}, {"big_tiff": True}])
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "1"])
def test_tiff_is_read_as_png_is(tmp_path, mode, options):
    image = Image.fromarray(gradient()).convert(mode)
    image.save(tmp_path / "a.tif", **options)
    image.save(tmp_path / "a.png")
    np.testing.assert_array_equal(read(tmp_path / "a.tif"), read(tmp_path / "a.png"))


def test_webp_is_read_as_png_is(tmp_path):
    image = Image.fromarray(gradient())
    image.save(tmp_path / "a.webp", lossless=True)
    np.testing.assert_array_equal(read(tmp_path / "a.webp"), gradient())


@pytest.mark.parametrize("order", ["<", ">"])
def test_of_sixteen_bits_the_upper_ones_are_kept(tmp_path, order):
    grey = gradient()[..., 0].astype(np.uint16) * 257
    mode = {"<": "I;16", ">": "I;16B"}[order]
    data = grey.astype(f"{order}u2").tobytes()
    Image.frombytes(mode, (30, 20), data).save(tmp_path / "a.tif")
    Image.frombytes("I;16", (30, 20), grey.astype("<u2").tobytes()).save(tmp_path / "a.png")
    found = read(tmp_path / "a.tif")
    np.testing.assert_array_equal(found, np.repeat(gradient()[..., :1], 3, axis=-1))
    np.testing.assert_array_equal(found, read(tmp_path / "a.png"))


@pytest.mark.parametrize("suffix", ["tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_as_they_are_displayed(tmp_path, suffix, orientation):
    options = {"lossless": True} if suffix == "webp" else {}
    image = Image.fromarray(gradient())
    image.save(tmp_path / f"a.{suffix}", exif=exif(orientation), **options)
    image.save(tmp_path / "a.png", exif=exif(orientation))
    np.testing.assert_array_equal(read(tmp_path / f"a.{suffix}"), read(tmp_path / "a.png"))


@pytest.mark.parametrize(
    ("name", "save", "message"),
    [
        ("pages.tif", {"save_all": True, "append_images": [Image.new("RGB", (3, 3))]}, "2 pages"),
        ("shades.tif", {"mode": "F"}, "of the kind F"),
        ("large.tif", {"size": (9000, 8000)}, "72.0 megapixels"),
        ("cut.tif", {"cut": 200}, "cut.tif cannot be read"),
        ("cut.webp", {"cut": 60}, "cut.webp cannot be read"),
    ],
)
def test_what_cannot_be_read_is_a_sentence(tmp_path, name, save, message):
    options = dict(save)
    mode, size, cut = (options.pop(key, None) for key in ("mode", "size", "cut"))
    image = Image.new("1", size) if size else Image.fromarray(gradient())
    image = image.convert("L").convert(mode) if mode else image
    path = tmp_path / name
    image.save(path, **({"compression": "group4"} if size else {}), **options)
    if cut:
        path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(UserError, match=message):
        read(path)


def test_a_folder_says_what_it_leaves_out(run, tiny_root, tmp_path, capsys):  # noqa: F811
    given = tmp_path / "given"
    given.mkdir()
    for i in range(3):
        shutil.copyfile(tiny_root / "test" / f"{i:03d}.png", given / f"{i}.png")
        (given / f"{i}.HEIC").write_bytes(b"x")
    Image.open(given / "0.png").save(given / "3.tiff")
    (given / "raw.czi").write_bytes(b"x")
    (given / "notes.txt").write_text("")
    (given / "bad.png").write_text("no picture")
    out = tmp_path / "out"
    predict.main([f"--workdir={run}", str(given), f"--out={out}"])
    told = capsys.readouterr().out
    assert "1 could not be read" in told
    assert "4 files were left out (3 .HEIC, 1 .czi)" in told
    listed = (out / "problems.csv").read_text()
    assert listed.count("is in a format that is not read") == 4
    assert "bad.png" in listed
    assert "notes.txt" not in listed
    assert points(out)["source"].nunique() == 4


def test_a_folder_of_other_formats_only_is_refused(tmp_path):
    (tmp_path / "a.heic").write_bytes(b"x")
    with pytest.raises(UserError, match=r"but 1 files such as a\.heic, which are not read"):
        sources.find([str(tmp_path)])


@pytest.mark.parametrize(
    "name", ["film.flv", "film.mts", "film.3gp", "film.mxf", "film", "film.dv"]
)
def test_a_video_that_is_named_is_tried_whatever_its_suffix(film, tmp_path, name):  # noqa: F811
    path = tmp_path / "named" / name
    path.parent.mkdir()
    shutil.copyfile(film, path)
    ((found,), problems) = sources.find([str(path)])
    assert found.is_video
    assert problems == []
    assert len(list(video.frames(path))) == 20


def test_a_picture_that_is_named_needs_no_suffix(tmp_path):
    for form in ("PNG", "WEBP"):
        Image.fromarray(gradient()).save(tmp_path / form, format=form)
        ((found,), _) = sources.find([str(tmp_path / form)])
        assert not found.is_video
        assert read(found.path).shape == (20, 30, 3)
    (tmp_path / "notes.txt").write_text("some words\n" * 100)
    with pytest.raises(UserError, match="neither a picture"):
        sources.find([str(tmp_path / "notes.txt")])


def test_a_name_that_is_no_text_is_a_problem(run, tiny_root, tmp_path, capsys):  # noqa: F811
    given = tmp_path / "given"
    given.mkdir()
    shutil.copyfile(tiny_root / "test" / "000.png", given / "a.png")
    bad = os.fsencode(given) + b"/caf\xe9.png"
    try:
        with open(bad, "wb") as file:
            file.write((given / "a.png").read_bytes())
    except OSError:
        pytest.skip("this file system takes only names that are text")
    out = tmp_path / "out"
    predict.main([f"--workdir={run}", str(given), f"--out={out}"])
    assert points(out)["source"].nunique() == 1
    assert "caf\\udce9.png is not valid UTF-8" in (out / "problems.csv").read_text()
    assert "1 files were left out" in capsys.readouterr().out
    with pytest.raises(UserError, match="not valid UTF-8; rename"):
        sources.find([os.fsdecode(bad)])


@pytest.mark.parametrize("given", ["x" * 300, "x/" * 3000, "~nobody_of_this_name/a.png"])
def test_a_name_that_cannot_be_looked_for_is_one_short_sentence(given):
    with pytest.raises(UserError, match="cannot be looked for") as raised:
        sources.find([given])
    assert len(str(raised.value)) < 300
    assert "\n" not in str(raised.value)


def test_formats_are_told_by_their_first_bytes(tmp_path):
    assert not tiff_webp.is_one(tmp_path)
    assert not images.is_one(tmp_path / "missing")
    (tmp_path / "riff.webp").write_bytes(b"RIFF\0\0\0\0WAVE")
    assert not tiff_webp.is_one(tmp_path / "riff.webp")


def test_moving_pictures_are_told_from_still_ones(film, tmp_path):  # noqa: F811
    write_film(tmp_path / "a.avi", [spots(i) for i in range(3)])
    assert video.is_one(film)
    assert video.is_one(tmp_path / "a.avi")
    for name, form in (("a", "PNG"), ("b", "TIFF")):
        Image.fromarray(gradient()).save(tmp_path / name, format=form)
        assert not video.is_one(tmp_path / name)
