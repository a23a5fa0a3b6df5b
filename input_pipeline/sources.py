"""What to predict: picture files, folders and globs of them, and the frames of videos.

Pictures are decoded and resampled in threads, a few ahead at most, so that memory depends
neither on how many there are nor on how long a video is. What cannot be read is told and left out.
"""

import collections
import dataclasses
import functools
import glob
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np

from heatmap import geometry, hardware
from heatmap.config import Config
from heatmap.errors import UserError
from input_pipeline import augment, batching, images, labels, pictures, tiff_webp, video
from input_pipeline.host import tf

PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", *tiff_webp.SUFFIXES)
VIDEOS = (
    *(".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".ogv", ".ts"),
    *(".flv", ".mts", ".m2ts", ".3gp", ".mxf"),
)
# What a folder may hold besides that is told, as someone may expect an answer for it.
UNREAD = (
    *(".heic", ".heif", ".avif", ".jxl", ".jp2", ".j2k", ".jfif", ".jpe", ".dng", ".cr2", ".cr3"),
    *(".nef", ".arw", ".orf", ".raf", ".rw2", ".psd", ".tga", ".ppm", ".pgm", ".pnm", ".exr"),
    *(".czi", ".nd2", ".lif", ".svs", ".vob", ".asf", ".rm", ".h264", ".hevc", ".seq", ".mj2"),
)
WHOLE = -1  # the frame number of a picture
_LARGEST_BOX = 10  # times its picture
_LONGEST = 100  # letters of a name in a message
_AHEAD = 4  # pictures a thread that may be read before they are asked for; each is whole in memory

Boxes = Mapping[str, Sequence[np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Source:
    """A picture or a video.

    Attributes:
      name: as it was given, a folder's with what follows it, / between folders.
      path: of the file.
      is_video: whether it has frames.
      stamp: size and time of change, by which a file that was replaced is known.
    """

    name: str
    path: pathlib.Path
    is_video: bool
    stamp: str


@dataclasses.dataclass(frozen=True)
class Problem:
    """What could not be read, and why.

    Attributes:
      name: of the source.
      frame: from which on, or WHOLE.
      reason: a sentence.
    """

    name: str
    frame: int
    reason: str


@dataclasses.dataclass(frozen=True)
class End:
    """Says that the last frame of a video has been seen.

    Attributes:
      source: the video.
      frames: how many it has.
    """

    source: Source
    frames: int


@dataclasses.dataclass(frozen=True)
class Item:
    """One instance, as the network is given it.

    Attributes:
      number: of the box in its picture, from 0.
      box: (x0, y0, x1, y1), the edges of the instance in its picture.
      image: uint8 [h, w, C].
      input_from_original: [3, 3] float64.
    """

    number: int
    box: np.ndarray
    image: np.ndarray
    input_from_original: np.ndarray


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture or frame that has been read.

    Attributes:
      source: that it is of.
      frame: of a video, from 0, or WHOLE.
      size: (height, width).
      items: its instances, perhaps none.
    """

    source: Source
    frame: int
    size: geometry.Size
    items: tuple[Item, ...]


Event = Picture | Problem | End


def find(
    inputs: Sequence[str], but: pathlib.Path | None = None
) -> tuple[list[Source], list[Problem]]:
    """Lists the pictures and videos that are named, each once.

    Args:
      inputs: files, folders (read with all folders in them) and globs; in folders, files are told
        apart by their suffix.
      but: a folder whose files are left out when another that holds it is read: what was drawn
        for an earlier answer is no question.

    Returns:
      (in the order given, a folder's in natural order, so that 2.png comes before 10.png; what
      looks like a picture or video and is not read, and why).

    Raises:
      UserError: for a name that is nothing, a folder without pictures, or another kind of file.
    """
    found: dict[str, Source] = {}
    problems: dict[str, Problem] = {}
    for given in inputs:
        try:
            files, unread = _files_of(given, but)
        except (OSError, RuntimeError) as error:  # the latter for ~NOBODY
            reason = getattr(error, "strerror", None) or error
            raise UserError(
                f"{_short(given)} cannot be looked for ({reason}); name pictures, videos, folders "
                "or globs of them."
            ) from error
        for path in unread:
            reason = f"{_told(path)} is in a format that is not read; convert it, or leave it out."
            problems[path.as_posix()] = Problem(_told(path), WHOLE, reason)
        ranks = labels.natural_ranks([p.as_posix() for p in files])
        for file in sorted(files, key=lambda p: ranks[p.as_posix()]):
            name = file.as_posix()
            if _told(file) != name:
                reason = f"The name of {_told(file)} is not valid UTF-8; rename the file."
                problems[name] = Problem(_told(file), WHOLE, reason)
            elif name not in found:
                found[name] = _source(file)
    if not found:
        raise UserError(next(iter(problems.values())).reason)
    return list(found.values()), list(problems.values())


def _files_of(
    given: str, but: pathlib.Path | None
) -> tuple[list[pathlib.Path], list[pathlib.Path]]:
    """Lists the files of an input, and those of a folder that are in formats that are not read."""
    path = pathlib.Path(given).expanduser()
    unread: list[pathlib.Path] = []
    if path.is_dir():
        files = [p for p in path.rglob("*") if p.suffix.lower() in (*PICTURES, *VIDEOS, *UNREAD)]
        files = [p for p in files if p.is_file() and not _is_hidden(p.relative_to(path))]
        files = [p for p in files if but is None or but.absolute() not in p.absolute().parents]
        unread = sorted(p for p in files if p.suffix.lower() in UNREAD)
        files = [p for p in files if p.suffix.lower() not in UNREAD]
        what = f"The folder {given} holds no pictures ({' '.join(PICTURES)}) and no videos"
        if unread:
            what += f", but {len(unread)} files such as {unread[0].name}, which are not read"
    elif path.is_file():
        files, what = [path], ""
    else:
        files = [pathlib.Path(p) for p in glob.glob(str(path), recursive=True)]
        files = [p for p in files if p.is_file()]
        what = f"There is no {_short(given)}, and no file whose name fits it"
    if not files:
        raise UserError(f"{what}; name pictures, videos, folders or globs of them.")
    return files, unread


def _short(given: str) -> str:
    return given if len(given) <= _LONGEST else f"{given[:_LONGEST]}…"


def _told(path: pathlib.Path) -> str:
    """Spells a path so that any file can hold it, \\udcff for a byte that is no UTF-8."""
    return path.as_posix().encode("utf-8", "backslashreplace").decode("utf-8")


def _is_hidden(path: pathlib.Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _source(path: pathlib.Path) -> Source:
    suffix = path.suffix.lower()
    is_video = suffix in VIDEOS
    if suffix not in (*PICTURES, *VIDEOS):  # and yet it was named
        is_video = not images.is_one(path) and not tiff_webp.is_one(path)
        if is_video and not video.is_one(path):
            raise UserError(
                f"{path} is neither a picture ({' '.join(PICTURES)}) nor a video that FFmpeg "
                "reads; convert it, or leave it out."
            )
    told = path.stat()
    return Source(path.as_posix(), path, is_video, f"{told.st_size}-{told.st_mtime_ns}")


def picture_name(source: str, frame: int) -> str:
    """Names a picture or frame where one text has to do: video.mp4#000012."""
    return source if frame < 0 else f"{source}#{frame:06d}"


def check_entries(sources: Sequence[Source], entries: Iterable[str], table: str) -> None:
    """Refuses a table whose names fit several sources, each of which would take its line.

    Args:
      sources: from `find`.
      entries: the names in the table, whole or the end of a path.
      table: what it is, for the message.

    Raises:
      UserError: for the first such name.
    """
    known = set(entries)
    taken: dict[str, str] = {}
    for source in sources:
        entry = next((end for end in ends_of(source.name) if end in known), None)
        if entry is not None and taken.setdefault(entry, source.name) != source.name:
            raise UserError(
                f"{table} names {entry}, which may be {taken[entry]} or {source.name}; write more "
                "of its path there."
            )


def ends_of(name: str) -> list[str]:
    """Lists what a path may be called: itself, and it without its first folders."""
    parts = name.split("/")
    return ["/".join(parts[start:]) for start in range(len(parts))]


def boxes_of(name: str, boxes: Boxes) -> Sequence[np.ndarray] | None:
    """Finds the boxes of a source: by its name, or by the part of it that a file names; or None."""
    return next((boxes[end] for end in ends_of(name) if end in boxes), None)


def read(
    sources: Iterable[Source],
    config: Config,
    boxes: Boxes | None,
    first_frame: Callable[[Source], int],
    every: int = 1,
) -> Iterator[Event]:
    """Yields every picture and frame with its instances, in order, or why there are none.

    Args:
      sources: from `find`.
      config: of the run; how pictures are cropped and resized.
      boxes: of instances by file name, or None to take whole pictures. A source that is not listed
        is a problem; one that is listed without a box has no instance.
      first_frame: says from which frame on a video is wanted.
      every: of a video only the frames 0, every, 2 · every, ….
    """
    workers = config.data.workers or hardware.cpus()
    waiting: collections.deque[Future[Event]] = collections.deque()
    with ThreadPoolExecutor(workers) as pool:
        for task in _tasks(sources, config, boxes, first_frame, every):
            waiting.append(pool.submit(task))
            if len(waiting) > _AHEAD * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _tasks(
    sources: Iterable[Source],
    config: Config,
    boxes: Boxes | None,
    first_frame: Callable[[Source], int],
    every: int,
) -> Iterator[Callable[[], Event]]:
    """Yields the work of each picture and frame; frames are decoded here, one after another."""
    for source in sources:
        if source.is_video:
            yield from _frames(source, config, boxes, first_frame(source), every)
        else:
            yield functools.partial(_whole_picture, source, config, boxes)


def _frames(
    source: Source, config: Config, boxes: Boxes | None, first: int, every: int
) -> Iterator[Callable[[], Event]]:
    number = -1
    try:
        for number, pixels in video.frames(source.path):
            if number >= first and number % every == 0:
                yield functools.partial(boxed, source, number, pixels, config, boxes)
    except video.Broken as error:
        yield functools.partial(Problem, source.name, error.frame, str(error))
    else:
        yield functools.partial(End, source, number + 1)


def _whole_picture(source: Source, config: Config, boxes: Boxes | None) -> Picture | Problem:
    try:
        pixels = read_picture(source.path, config.data.max_megapixels)
    except UserError as error:
        return Problem(source.name, WHOLE, str(error))
    return boxed(source, WHOLE, pixels, config, boxes)


def boxed(
    source: Source, frame: int, pixels: np.ndarray, config: Config, boxes: Boxes | None
) -> Picture | Problem:
    """Makes the inputs of a picture's own boxes; a frame may have some, or its video for all."""
    if boxes is None:
        return prepared(source, frame, pixels, config, None)
    mine = boxes_of(picture_name(source.name, frame), boxes)
    mine = boxes_of(source.name, boxes) if mine is None else mine
    if mine is None:
        reason = f"The boxes do not list {source.name}; add it, if only without a box."
        return Problem(source.name, frame, reason)
    height, width = pixels.shape[:2]
    for box in mine:
        if max(box[2] - box[0], box[3] - box[1]) > _LARGEST_BOX * max(height, width):
            reason = (
                f"A box of {source.name} is far larger than its {width}x{height} pixels; mend it."
            )
            return Problem(source.name, frame, reason)
    return prepared(source, frame, pixels, config, mine)


def pixels_of(
    source: Source, frames: Iterable[int], max_megapixels: float
) -> Iterator[tuple[int, np.ndarray]]:
    """Reads a picture, or a few frames of a video, again.

    Args:
      source: that has been read before.
      frames: wanted, perhaps WHOLE.
      max_megapixels: of a picture.

    Yields:
      The number of each frame, ascending, and its pixels, uint8 [H, W, 3].

    Raises:
      UserError: if it can be read no longer.
    """
    if not source.is_video:
        yield WHOLE, read_picture(source.path, max_megapixels)
        return
    wanted = set(frames)
    for number, pixels in video.frames(source.path):
        if number in wanted:
            yield number, pixels
        if number >= max(wanted):
            return


def read_picture(path: pathlib.Path, max_megapixels: float) -> np.ndarray:
    """Decodes a picture as it is displayed, uint8 [H, W, 3].

    Raises:
      UserError: if it cannot be read, or is larger than allowed.
    """
    if tiff_webp.is_one(path):
        return tiff_webp.read(path, max_megapixels)
    height, width, orientation = images.inspect(path)
    images.check_megapixels(path, (height, width), max_megapixels)
    try:
        return pictures.read(str(path), orientation)
    except tf.errors.OpError as error:  # of which Pillow knows nothing
        raise UserError(
            f"The picture {path} cannot be read ({error.message:.200}); export it again."
        ) from error


def prepared(
    source: Source,
    frame: int,
    pixels: np.ndarray,
    config: Config,
    boxes: Sequence[np.ndarray] | None,
) -> Picture:
    """Makes the network's input of each instance of a picture, as evaluation does.

    Args:
      source: of the picture.
      frame: its number, or WHOLE.
      pixels: uint8 [H, W, 3].
      config: of the run.
      boxes: edges of the instances, or None: the whole picture is one.
    """
    size = (pixels.shape[0], pixels.shape[1])
    chosen = [geometry.image_box(size)] if boxes is None else list(boxes)
    found: list[Item] = []
    for i, box in enumerate(chosen):
        area = augment.source_box(box, size, config.data, alone=len(chosen) == 1)
        affine = geometry.crop_and_resize(area, config.data.image_size)
        factors, transform = augment.warp_parameters(affine)
        example = {
            "source": tf.constant(pixels),
            "orientation": tf.constant(1),
            "factors": tf.constant(factors),
            "transform": tf.constant(transform),
        }
        image = batching.render_picture(example, config, recolour=False)["image"].numpy()
        found.append(Item(i, box, image, affine))
    return Picture(source, frame, size, tuple(found))
