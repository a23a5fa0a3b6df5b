"""Picture files: sizes, EXIF, broken and hostile files, and names that leave the folder."""

import pathlib
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from configs import common
from heatmap import config as config_lib
from heatmap.errors import UserError
from input_pipeline import images


def data_config(**fields):
    config = common.get_config()
    config.data.update(fields)
    return config_lib.from_mapping(config.to_dict()).data


def picture(mode="RGB", width=30, height=20):
    pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def save(path, image=None, **options):
    (image or picture()).save(path, **options)
    return path


def png_header(path, width, height):
    """Writes a valid, tiny PNG whose header promises many pixels."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    return path


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


@pytest.mark.parametrize(
    ("suffix", "mode"),
    [
        ("png", "RGB"),
        ("png", "1"),
        ("png", "P"),
        ("png", "LA"),
        ("jpg", "RGB"),
        ("jpg", "L"),
        ("gif", "P"),
        ("bmp", "RGB"),
        ("bmp", "L"),
    ],
)
def test_inspect_and_decode_read_what_tf_reads(tmp_path, suffix, mode):
    path = save(tmp_path / f"a.{suffix}", picture(mode))
    assert images.inspect(path) == (20, 30, 1)
    images.decode(path)


def test_the_content_decides_the_format_not_the_name(tmp_path):
    path = save(tmp_path / "a.tiff", format="JPEG")
    assert images.inspect(path) == (20, 30, 1)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_exif_orientation_gives_the_size_as_displayed(tmp_path, suffix, orientation):
    path = save(tmp_path / f"a.{suffix}", exif=exif(orientation))
    with Image.open(path) as image:
        width, height = ImageOps.exif_transpose(image).size
    assert images.inspect(path) == (height, width, orientation)


@pytest.mark.parametrize(
    ("declared", "expected"),
    [
        ((30, 20), (30, 20, 6)),  # as displayed
        ((20, 30), (20, 30, 1)),  # as stored: the points were placed without the rotation
        ((99, 98), (30, 20, 6)),  # neither
        (None, (30, 20, 6)),
    ],
)
def test_the_declared_size_decides_whether_exif_applies(tmp_path, declared, expected):
    path = save(tmp_path / "a.jpg", exif=exif(6))
    assert images.inspect(path, declared) == expected


def test_exif_of_a_square_picture_applies_whatever_is_declared(tmp_path):
    path = save(tmp_path / "a.jpg", picture(width=20), exif=exif(8))
    assert images.inspect(path, (20, 20)) == (20, 20, 8)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
@pytest.mark.parametrize("tags", [b"Exif\0\0rubbish", b"Exif\0\0II*\0\xff\xff\xff\xff"])
def test_broken_exif_counts_as_none(tmp_path, tags):
    path = save(tmp_path / "a.jpg", exif=tags)
    assert images.inspect(path) == (20, 30, 1)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("gone.png", None, "The picture .*gone.png does not exist; check data.root"),
        ("empty.png", b"", "The picture .*empty.png is empty"),
        ("text.png", b"not a picture at all", "text.png is not PNG, JPEG, GIF or BMP.*convert it"),
        ("half.png", b"\x89PNG\r\n\x1a\n\0\0", "half.png cannot be read .*truncated or corrupt"),
        ("half.jpg", b"\xff\xd8\xff\xe0", "half.jpg cannot be read .*truncated or corrupt"),
    ],
)
def test_inspect_refuses_in_a_sentence(tmp_path, name, content, sentence):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=sentence):
        images.inspect(tmp_path / name)


def test_inspect_says_what_the_system_says(tmp_path):
    with pytest.raises(UserError, match="cannot be opened: Is a directory"):
        images.inspect(tmp_path)


@pytest.mark.parametrize(("suffix", "kind"), [("tif", "TIFF"), ("webp", "WEBP"), ("png", "TIFF")])
def test_other_formats_must_be_converted(tmp_path, suffix, kind):
    path = save(tmp_path / f"a.{suffix}", format=kind)
    with pytest.raises(UserError, match=r"a\.\w+ is not PNG, JPEG, GIF or BMP.* convert it to PNG"):
        images.inspect(path)


@pytest.mark.parametrize("mode", ["P", "1"])
def test_a_bmp_that_tf_would_misread_must_be_converted(tmp_path, mode):
    path = save(tmp_path / "a.bmp", picture(mode))
    with pytest.raises(UserError, match=r"a\.bmp is a BMP with a palette.* convert it to PNG"):
        images.inspect(path)


@pytest.mark.parametrize("cut", [1, 5, 13, 100, 900])
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_decode_finds_a_truncated_file(tmp_path, suffix, cut):
    path = save(tmp_path / f"a.{suffix}", picture(width=60))
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(UserError, match=r"a\.\w+ cannot be read .*; it is truncated or corrupt"):
        images.decode(path)


def test_decode_finds_a_flipped_byte(tmp_path):
    path = save(tmp_path / "a.png")
    data = bytearray(path.read_bytes())
    data[-20] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(UserError, match="truncated or corrupt"):
        images.decode(path)


@pytest.mark.parametrize("size", [(10000, 10000), (40000, 20000)])
def test_too_many_megapixels_are_refused_before_decoding(tmp_path, monkeypatch, size):
    path = png_header(tmp_path / "huge.png", *size)
    monkeypatch.setattr(images, "decode", lambda path: pytest.fail("decoded a huge picture"))
    sentence = rf"huge.png has {size[0]}x{size[1]} = {size[0] * size[1] / 1e6:.1f} megapixels"
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Pillow's own limit warns, then raises
        with pytest.raises(UserError, match=rf"{sentence}, more than data.max_megapixels=64; "):
            images.check([path], [None], data_config())


def test_a_raised_limit_lets_a_large_picture_pass(tmp_path):
    path = save(tmp_path / "large.png", Image.new("1", (10000, 9500)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        headers, _ = images.check([path], [None], data_config(max_megapixels=96.0))
    assert headers == [(9500, 10000, 1)]


@pytest.fixture
def five(tmp_path) -> list[pathlib.Path]:
    """Good, truncated, missing, TIFF, good."""
    paths = [save(tmp_path / f"{i}.png") for i in range(5)]
    paths[1].write_bytes(paths[1].read_bytes()[:-200])
    paths[2].unlink()
    save(paths[3], format="TIFF")
    return paths


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_check_raises_at_the_first_bad_picture(five, workers):
    with pytest.raises(UserError, match=r"1\.png cannot be read .*data.on_error='skip' leaves"):
        images.check(five, [None] * 5, data_config(workers=workers))


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_check_skips_bad_pictures_and_lists_them(five, workers):
    config = data_config(workers=workers, on_error="skip")
    headers, problems = images.check(five, [None] * 5, config)
    assert [header is not None for header in headers] == [True, False, False, False, True]
    assert len(problems) == 3
    for name, reason, problem in zip(
        ("1.png", "2.png", "3.png"),
        ("truncated", "does not exist", "convert"),
        problems,
        strict=True,
    ):
        assert name in problem
        assert reason in problem


def test_check_without_verify_reads_headers_only(five):
    config = data_config(verify=False, on_error="skip")
    headers, problems = images.check(five, [None] * 5, config)
    assert headers[1] == (20, 30, 1)
    assert len(problems) == 2


def test_check_refuses_when_nothing_is_left(five):
    with pytest.raises(UserError, match=r"None of the 3 pictures can be used; first: .*1\.png"):
        images.check(five[1:4], [None] * 3, data_config(on_error="skip"))


@pytest.mark.parametrize("name", ["a.png", "sub/a.png", "./a.png", "sub/../a.png", "..a.png"])
def test_safe_path_stays_in_the_folder(tmp_path, name):
    path = images.safe_path(tmp_path, name, "labels.json, image 3")
    assert path.resolve().is_relative_to(tmp_path.resolve())
    assert ".." not in path.parts


@pytest.mark.parametrize(
    "name",
    ["../a.png", "sub/../../a.png", "/etc/passwd", "..", "..\\a.png", "C:\\a.png", "\\a.png"],
)
def test_safe_path_refuses_to_leave_the_folder(tmp_path, name):
    with pytest.raises(
        UserError, match=r"labels.json, image 3 has the file name .*leaves the fold"
    ):
        images.safe_path(tmp_path, name, "labels.json, image 3")


@pytest.mark.parametrize("name", ["", " ", ".", "a/..", "a\0.png"])
def test_safe_path_refuses_what_names_no_file(tmp_path, name):
    with pytest.raises(UserError, match=r"labels.json, image 3 has the file name .*give the name"):
        images.safe_path(tmp_path, name, "labels.json, image 3")
