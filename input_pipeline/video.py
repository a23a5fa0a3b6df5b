"""The frames of a video, by PyAV (the extra `video`), which brings FFmpeg's codecs.

One frame is in memory at a time. Frames are numbered from 0 in the order in which they are shown,
as the file holds them: none is dropped or doubled for the sake of an even rate.
"""

import contextlib
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from heatmap.errors import UserError

_WHOLE = 0.98  # of the frames that a file promises
_STILL = ("_pipe", "image2", "tty")  # single pictures and, to FFmpeg, plain text


class Broken(UserError):
    """A video that cannot be decoded further.

    Attributes:
      frame: the first that is missing.
    """

    def __init__(self, message: str, frame: int):
        super().__init__(message)
        self.frame = frame


def library() -> Any:
    """Imports PyAV.

    Raises:
      UserError: if it is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise UserError("Videos need PyAV: pip install -e '.[video]'.") from error
    # What matters is raised. At any other level FFmpeg's threads, to hand over what they log, wait
    # for the interpreter, which may be waiting for them to end: a deadlock.
    av.logging.set_level(None)
    return av


def is_one(path: pathlib.Path) -> bool:
    """Says whether FFmpeg finds moving pictures in a file, whatever its name.

    Raises:
      UserError: if PyAV is not installed.
    """
    av = library()
    with contextlib.suppress(av.FFmpegError, OSError), av.open(str(path)) as container:
        name = container.format.name
        return bool(container.streams.video) and not name.endswith(_STILL)
    return False


def frames(path: pathlib.Path) -> Iterator[tuple[int, np.ndarray]]:
    """Decodes a video.

    Yields:
      The number of each frame and its pixels as displayed, uint8 [H, W, 3].

    Raises:
      Broken: where the file cannot be opened, or decoded further.
      UserError: if PyAV is not installed.
    """
    av = library()
    number = 0
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            if not container.streams.video:
                raise Broken(f"{path} holds no pictures, only sound; leave it out.", 0)
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            if stream.sample_aspect_ratio not in (None, 0, 1):
                raise Broken(
                    f"The pixels of {path} are not square ({stream.sample_aspect_ratio}), so that "
                    "lengths across and down differ: convert it, with ffmpeg -vf "
                    "scale=iw*sar:ih,setsar=1 for example.",
                    0,
                )
            for frame in container.decode(stream):
                yield number, _displayed(frame)
                number += 1
            told = stream.frames  # 0 where the file does not say
            # FFmpeg takes a file that was cut off for a short one; edit lists drop a frame or two.
            if number < _WHOLE * told - 2:
                raise Broken(
                    f"The video {path} ends after {number} of {told} frames; copy it again.", number
                )
    except (av.FFmpegError, OSError) as error:
        raise Broken(
            f"The video {path} cannot be decoded from frame {number} on "
            f"({getattr(error, 'strerror', None) or error}); copy or convert it again.",
            number,
        ) from error
    if not number:
        raise Broken(f"The video {path} holds no frame; copy or convert it again.", 0)


def _displayed(frame: Any) -> np.ndarray:
    """Returns a frame's pixels, turned as the file says that it be shown."""
    pixels = frame.to_ndarray(format="rgb24")
    turns = round(getattr(frame, "rotation", 0) / 90) % 4
    return np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels


def count(path: pathlib.Path) -> int:
    """Returns how many frames a video says that it has, or 0 if it does not say."""
    av = library()
    with (
        contextlib.suppress(av.FFmpegError, OSError),
        av.open(str(path), metadata_errors="replace") as container,
    ):
        streams = container.streams.video
        if streams and streams[0].frames:
            return streams[0].frames
        if streams and streams[0].average_rate and container.duration:
            return int(container.duration / av.time_base * streams[0].average_rate)
    return 0


@contextlib.contextmanager
def writer(path: pathlib.Path, like: pathlib.Path, size: tuple[int, int]) -> Iterator[Any]:
    """Yields a function that appends a frame, uint8 [H, W, 3], to a new video.

    Args:
      path: of the new file, .mp4.
      like: the video whose rate it takes.
      size: (height, width); odd ones lose their last row or column, which the codec cannot hold.
    """
    av = library()
    with av.open(str(like), metadata_errors="replace") as original:
        rate = original.streams.video[0].average_rate or 25
    height, width = (side - side % 2 for side in size)
    with av.open(str(path), "w") as container:
        codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"

        def append(pixels: np.ndarray) -> None:
            cut = np.ascontiguousarray(pixels[:height, :width])
            container.mux(stream.encode(av.VideoFrame.from_ndarray(cut, format="rgb24")))

        yield append
        container.mux(stream.encode(None))
