"""Picture files before they are decoded: where they may lie, their size, whether they are whole.

Nothing here keeps pixels. The header gives the size and the EXIF orientation, which tf.io ignores
and the loader therefore has to undo; one full decode, thrown away, finds truncated and corrupt
files before training does. Pillow's format classes are opened directly, not through `Image.open`,
because that has a size limit of its own with its own warning and error; ours is
`data.max_megapixels`, and it is checked before a pixel is decoded.
"""

import io
import pathlib
import posixpath
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from PIL import BmpImagePlugin, GifImagePlugin, Image, ImageFile, JpegImagePlugin, PngImagePlugin

from heatmap import hardware
from heatmap.config import DataConfig
from heatmap.errors import UserError
from heatmap.geometry import Size

Header = tuple[int, int, int]  # height and width as displayed, and the EXIF orientation to undo

# What tf.io.decode_image reads, told apart as it tells them: by the first bytes, not by the name.
_FORMATS: tuple[tuple[bytes, type[ImageFile.ImageFile]], ...] = (
    (b"\x89PNG\r\n\x1a\n", PngImagePlugin.PngImageFile),
    (b"\xff\xd8\xff", JpegImagePlugin.JpegImageFile),
    (b"GIF8", GifImagePlugin.GifImageFile),
    (b"BM", BmpImagePlugin.BmpImageFile),
)
_CONVERT = "convert it to PNG and name the new file in the labels"
_ORIENTATION_TAG = 0x0112
# All that Pillow raises about a file it cannot make sense of.
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, Image.DecompressionBombError)


def safe_path(root: pathlib.Path, file_name: str, source: str) -> pathlib.Path:
    """Joins a file name from a label file to the folder that it must stay in.

    Args:
      root: the folder.
      file_name: a relative name, with / between folders.
      source: what named it, such as "annotations.json, image 3", for the message.

    Returns:
      The normalised path; whether a file is there is not checked.

    Raises:
      UserError: if the name is empty, absolute, or leaves the folder.
    """
    slashes = file_name.replace("\\", "/")  # a name written on Windows must not slip through
    normal = posixpath.normpath(slashes)
    if not file_name.strip() or normal == "." or "\0" in file_name:
        raise UserError(f"{source} has the file name {file_name!r}; give the name of a picture.")
    absolute = slashes.startswith("/") or pathlib.PureWindowsPath(file_name).drive
    if absolute or normal.split("/")[0] == "..":
        raise UserError(
            f"{source} has the file name {file_name!r}, which leaves the folder {root}; write it "
            "relative to that folder and keep the picture inside."
        )
    return root / posixpath.normpath(file_name)


def inspect(path: pathlib.Path, declared_size: Size | None = None) -> Header:
    """Reads the size of a picture as displayed, without decoding it.

    An EXIF orientation of 5 to 8 swaps height and width. If the annotations declare the stored
    size and not the swapped one, their points were placed on the picture as it is stored, so the
    orientation is then ignored.

    Args:
      path: the picture.
      declared_size: (height, width) that the annotations state, or None.

    Returns:
      (height, width, orientation); 1 is upright.

    Raises:
      UserError: if the file is missing, is no picture, or has a format that cannot be read.
    """
    try:
        with path.open("rb") as file, _open(path, file) as image:
            width, height = image.size
            orientation = _orientation(image)
    except FileNotFoundError as error:
        raise UserError(
            f"The picture {path} does not exist; check data.root and the file names in the labels."
        ) from error
    except _BROKEN as error:
        raise unreadable(path, error) from error
    if orientation < 5:
        return height, width, orientation
    if declared_size == (height, width) and height != width:
        return height, width, 1
    return width, height, orientation


def decode(path: pathlib.Path) -> None:
    """Decodes a picture once, to find out whether all of it is there.

    Raises:
      UserError: if the file is truncated or corrupt.
    """
    try:
        data = path.read_bytes()
        with _open(path, io.BytesIO(data)) as image:
            if image.format == "PNG":  # load() stops at the last pixel; libpng wants the rest too
                image.verify()
                if data.rfind(b"IEND") + 8 > len(data):
                    raise OSError("image file is truncated")
        with _open(path, io.BytesIO(data)) as image:
            image.load()
    except _BROKEN as error:
        raise unreadable(path, error) from error


def check(
    files: Sequence[pathlib.Path], declared_sizes: Sequence[Size | None], config: DataConfig
) -> tuple[list[Header | None], tuple[str, ...]]:
    """Inspects all pictures in threads, and decodes each once if `data.verify`.

    Args:
      files: P pictures.
      declared_sizes: for each, (height, width) stated by the annotations, or None.
      config: its `max_megapixels`, `verify`, `workers` and `on_error` apply.

    Returns:
      For each picture (height, width, orientation), or None for a bad one; and a sentence for
      each bad one.

    Raises:
      UserError: at the first bad picture under `on_error='raise'`; if all are bad under 'skip'.
    """

    def examine(path: pathlib.Path, declared: Size | None) -> Header | str:
        try:
            height, width, orientation = inspect(path, declared)
            check_megapixels(path, (height, width), config.max_megapixels)
            if config.verify:
                decode(path)
        except UserError as error:
            return str(error)
        return height, width, orientation

    headers: list[Header | None] = []
    problems: list[str] = []
    with ThreadPoolExecutor(config.workers or hardware.cpus()) as pool:
        for result in pool.map(examine, files, declared_sizes):
            if isinstance(result, str):
                if config.on_error == "raise":
                    pool.shutdown(wait=False, cancel_futures=True)
                    raise UserError(f"{result} (data.on_error='skip' leaves such pictures out.)")
                problems.append(result)
            headers.append(None if isinstance(result, str) else result)
    if problems and len(problems) == len(files):
        raise UserError(f"None of the {len(files)} pictures can be used; first: {problems[0]}")
    return headers, tuple(problems)


def is_one(path: pathlib.Path) -> bool:
    """Says by its first bytes whether a file is a picture of a format that is trained on."""
    try:
        with path.open("rb") as file:
            return file.read(16).startswith(tuple(magic for magic, _ in _FORMATS))
    except OSError:
        return False


def _open(path: pathlib.Path, file) -> ImageFile.ImageFile:
    """Opens a picture by its first bytes; reads no further than the header."""
    start = file.read(16)
    file.seek(0)
    if not start:
        raise UserError(f"The picture {path} is empty; put the whole file there.")
    for magic, image_class in _FORMATS:
        if start.startswith(magic):
            image = image_class(file)
            break
    else:
        raise UserError(
            f"The picture {path} is not PNG, JPEG, GIF or BMP, whatever its name says; {_CONVERT}."
        )
    # tf.io reads palette indices as grey levels, and packed or compressed BMP not at all.
    if image.format == "BMP":
        codec, *_, arguments = image.tile[0]
        raw = arguments[0] if isinstance(arguments, tuple) else arguments
        if codec != "raw" or raw not in ("L", "BGR", "BGRX", "BGRA"):
            raise UserError(
                f"The picture {path} is a BMP with a palette, packed pixels or compression; "
                f"{_CONVERT}."
            )
    return image


def _orientation(image: ImageFile.ImageFile) -> int:
    """Reads the EXIF orientation, 1 where there is none or it makes no sense.

    `image.getexif()` would do, but it decodes the whole of a PNG that has no EXIF block.
    """
    exif = Image.Exif()
    try:
        exif.load(image.info.get("exif", b""))
        value = exif.get(_ORIENTATION_TAG, 1)
    except Exception:  # a broken EXIF block does not make the picture unusable
        return 1
    return value if value in range(1, 9) else 1


def check_megapixels(path: pathlib.Path, size: Size, limit: float) -> None:
    """Refuses a picture of more than `data.max_megapixels`, before a pixel is decoded.

    Raises:
      UserError: naming the picture and both numbers.
    """
    megapixels = size[0] * size[1] / 1e6
    if megapixels > limit:
        raise UserError(
            f"The picture {path} has {size[1]}x{size[0]} = {megapixels:.1f} megapixels, more than "
            f"data.max_megapixels={limit:g}; shrink it together with its labels, or raise the "
            "limit."
        )


def unreadable(path: pathlib.Path, error: BaseException) -> UserError:
    """Phrases what the system or Pillow says of a file."""
    if isinstance(error, OSError) and error.strerror:  # said by the system, not by Pillow
        return UserError(f"The picture {path} cannot be opened: {error.strerror}; mend that.")
    return UserError(
        f"The picture {path} cannot be read ({error}); it is truncated or corrupt, so copy or "
        "export it again."
    )
