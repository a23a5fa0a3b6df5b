"""Pictures decoded: from their files each time, or once and kept.

A JPEG photograph takes longer to decode than all that follows. `keep` decodes every picture once
and stores it upright, area-averaged by a whole number as long as it stays twice as large as the
network's input: for a network, and for crops of a quarter of the picture, all of it is still there.
"""

import collections
import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from tqdm import tqdm

from heatmap import caches, geometry, hardware
from heatmap.config import DataConfig
from heatmap.errors import UserError
from input_pipeline import augment, images
from input_pipeline.host import tf
from input_pipeline.records import Records

MEMORY, DISK, DEVICE = "memory", "disk", "device"
_PIXELS, _INDEX = "pixels.bin", "index.json"
_FORMAT = b"1"  # another number for another way to make the same pictures
_KEPT_SCALE = 2  # times the input's resolution, at least


@dataclasses.dataclass(frozen=True)
class Kept:
    """Decoded pictures by the path of their file.

    Attributes:
      pictures: uint8 [h, w, 3], upright.
      factors: by which whole number each is smaller than in its file.
    """

    pictures: Mapping[str, np.ndarray]
    factors: Mapping[str, int]


def keep(records: Records, config: DataConfig) -> Records:
    """Decodes the pictures that records name, and returns the records with them.

    Args:
      records: without pixels in memory; others are returned as they are.
      config: `cache` says where to keep them: in 'memory', from which those to train on may be
        copied to each 'device', or on 'disk', where runs with the same pictures and input size
        share them.

    Raises:
      UserError: if one cannot be read, or they cannot be written.
    """
    if not config.cache or records.pixels is not None:
        return records
    factors = _factors(records, config)
    turned = dict(zip(records.files.tolist(), records.orientations.tolist(), strict=True))
    if config.cache in (MEMORY, DEVICE):
        pictures = dict(_decoded(turned, factors, config))
    else:
        pictures = _on_disk(turned, factors, config)
    size = sum(picture.nbytes for picture in pictures.values()) / 1e6
    note = f"keeps {len(pictures)} decoded pictures, {size:.0f} MB: data.cache={config.cache!r}"
    return dataclasses.replace(records, kept=Kept(pictures, factors), notes=(*records.notes, note))


def each(records: Records, config: DataConfig) -> Iterator[tuple[int, np.ndarray]]:
    """Yields every picture that records name once, decoded and upright.

    Args:
      records: whose pictures are in memory, kept, or files.
      config: how many threads read them.

    Yields:
      The first row that shows it, and uint8 [H, W, C]; as it is kept where it is.

    Raises:
      UserError: if a file is gone or broken.
    """
    if records.pixels is not None:
        yield from enumerate(records.pixels)
        return
    rows = np.sort(np.unique(records.files, return_index=True)[1])
    names = [str(file) for file in records.files[rows]]
    if records.kept:
        yield from ((int(r), records.kept.pictures[n]) for r, n in zip(rows, names, strict=True))
        return
    turned = dict(zip(names, records.orientations[rows].tolist(), strict=True))
    decoded = _decoded(turned, dict.fromkeys(names, 1), config)
    yield from ((int(row), picture) for row, (_, picture) in zip(rows, decoded, strict=True))


def decode(path):
    """Reads a picture file as RGB, uint8 [H, W, 3]."""
    image = tf.io.decode_image(tf.io.read_file(path), channels=3, expand_animations=False)
    image.set_shape((None, None, 3))
    return image


def in_channels(image, channels: int):
    """Makes a grey picture [H, W, 1] coloured, or a coloured one grey, where a network needs it."""
    if image.shape[-1] == channels:
        return image
    change = tf.image.grayscale_to_rgb if channels == 3 else tf.image.rgb_to_grayscale
    return change(tf.convert_to_tensor(image))


def upright(image, orientation):
    """Undoes an EXIF orientation (1 … 8) of [H, W, C]."""
    transposed = tf.transpose(image, (1, 0, 2))
    shown = [
        lambda: image,
        lambda: image[:, ::-1],
        lambda: image[::-1, ::-1],
        lambda: image[::-1],
        lambda: transposed,
        lambda: transposed[:, ::-1],
        lambda: transposed[::-1, ::-1],
        lambda: transposed[::-1],
    ]
    return tf.switch_case(orientation - 1, shown)


def read(file: str, orientation: int, factor: int = 1) -> np.ndarray:
    """Decodes one picture, upright and averaged by a whole number.

    Args:
      file: its path.
      orientation: of its EXIF block, to be undone.
      factor: so many pixels along either side become one.

    Returns:
      [H, W, 3] uint8.

    Raises:
      UserError: if the file is gone or broken.
    """
    try:
        image = upright(decode(file), tf.constant(orientation))
    except tf.errors.OpError:
        _refuse(file)
        raise
    if factor > 1:
        image = augment.area_average(image, (factor, factor))
        image = tf.cast(tf.round(image), tf.uint8)
    return image.numpy()


def _factors(records: Records, config: DataConfig) -> dict[str, int]:
    """Says for each file by which whole number its picture may be averaged."""
    affines = geometry.crop_and_resize(augment.source_boxes(records, config), config.image_size)
    enlarged = geometry.scaling(_KEPT_SCALE, _KEPT_SCALE) @ affines
    factors: dict[str, int] = {}
    least = geometry.area_factors(enlarged).min(axis=-1)
    for file, factor in zip(records.files.tolist(), least.tolist(), strict=True):
        factors[file] = min(factor, factors.get(file, factor))
    return factors


def _decoded(
    turned: Mapping[str, int], factors: Mapping[str, int], config: DataConfig
) -> Iterator[tuple[str, np.ndarray]]:
    """Yields every picture with its file, in their order, and no more ahead than threads."""
    workers = config.workers or hardware.cpus()
    waiting: collections.deque = collections.deque()
    with (
        ThreadPoolExecutor(workers) as pool,
        tqdm(desc="decoding", total=len(factors), unit="picture", file=sys.stderr) as bar,
    ):
        for file in [*factors, *[None] * workers]:
            if file:
                waiting.append((file, pool.submit(read, file, turned[file], factors[file])))
            if waiting and (file is None or len(waiting) > workers):
                first, picture = waiting.popleft()
                yield first, picture.result()
                bar.update()


def _on_disk(
    turned: Mapping[str, int], factors: Mapping[str, int], config: DataConfig
) -> dict[str, np.ndarray]:
    """Maps the pictures of a folder that is written first if no run has done so."""
    folder = caches.folder() / f"pictures-{_key(turned, factors)}"
    if _index(folder, factors) is None:
        try:
            shutil.rmtree(folder, ignore_errors=True)
            _write(folder, turned, factors, config)
        except OSError as error:
            raise UserError(
                f"The pictures cannot be kept in {folder} ({error.strerror or error}); free some "
                "space, point XDG_CACHE_HOME elsewhere, or set data.cache to 'memory' or ''."
            ) from error
    pixels = np.memmap(folder / _PIXELS, np.uint8, "r")
    return {
        file: pixels[offset : offset + height * width * 3].reshape(height, width, 3)
        for file, (offset, height, width) in (_index(folder, factors) or {}).items()
    }


def _index(folder: pathlib.Path, files: Collection[str]) -> dict[str, tuple[int, int, int]] | None:
    """Reads the place, height and width of each picture of a folder.

    Returns None if it is not whole: caches are tidied up file by file.
    """
    try:
        index, end = json.loads((folder / _INDEX).read_text()), 0
        for place, height, width in index.values():
            if place != end or any(type(side) is not int or side < 1 for side in (height, width)):
                return None
            end += 3 * height * width
        whole = (folder / _PIXELS).stat().st_size == end and index.keys() == set(files)
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return None
    return index if whole else None


def _refuse(file: str) -> None:
    """Raises the sentence about a picture that cannot be read, if it can be told why."""
    images.inspect(pathlib.Path(file))
    images.decode(pathlib.Path(file))


def _key(turned: Mapping[str, int], factors: Mapping[str, int]) -> str:
    """Names a set of pictures by their files, sizes and times, and what is done to them."""
    digest = hashlib.sha256(_FORMAT)
    for file in sorted(factors):
        try:
            told = os.stat(file)
        except OSError:
            _refuse(file)
            raise
        named = (str(pathlib.Path(file).absolute()), told.st_size, told.st_mtime_ns)
        digest.update(repr((*named, turned[file], factors[file])).encode())
    return digest.hexdigest()[:16]


def _write(
    folder: pathlib.Path,
    turned: Mapping[str, int],
    factors: Mapping[str, int],
    config: DataConfig,
) -> None:
    """Writes the folder under another name, which it loses when it is whole."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = pathlib.Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        index, offset = {}, 0
        with (temporary / _PIXELS).open("wb") as file:
            for name, picture in _decoded(turned, factors, config):
                file.write(picture.tobytes())
                index[name] = (offset, *picture.shape[:2])
                offset += picture.nbytes
        (temporary / _INDEX).write_text(json.dumps(index))
        try:
            temporary.rename(folder)
        except OSError:
            if _index(folder, factors) is None:  # else another run was sooner
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
