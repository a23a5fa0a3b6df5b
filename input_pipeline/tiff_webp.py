"""Pictures that TensorFlow does not read and a camera or microscope writes: TIFF and WebP.

They are predicted, not trained on: Pillow decodes them outside of tf.data.
"""

import pathlib
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageFile, ImageOps, TiffImagePlugin, WebPImagePlugin

from heatmap.errors import UserError
from input_pipeline import images

SUFFIXES = (".tif", ".tiff", ".webp")
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_EIGHT_BITS = ("1", "L", "P", "PA", "LA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
_SIXTEEN_BITS = ("I;16", "I;16B", "I;16L")


def is_one(path: pathlib.Path) -> bool:
    """Says by its first bytes whether a file is TIFF or WebP."""
    try:
        with path.open("rb") as file:
            return _kind(file) is not None
    except OSError:
        return False


def _kind(file: BinaryIO) -> type[ImageFile.ImageFile] | None:
    start = file.read(12)
    file.seek(0)
    if start.startswith(_TIFF):
        return TiffImagePlugin.TiffImageFile
    webp = start.startswith(b"RIFF") and start.endswith(b"WEBP")
    return WebPImagePlugin.WebPImageFile if webp else None


def read(path: pathlib.Path, max_megapixels: float) -> np.ndarray:
    """Decodes a picture as it is displayed.

    Of 16 bits the upper 8 are kept, as of a PNG's.

    Args:
      path: of a file that `is_one`.
      max_megapixels: more are refused before a pixel is decoded.

    Returns:
      uint8 [H, W, 3].

    Raises:
      UserError: if it is broken, too large, of several pages, or of numbers that are no shades.
    """
    try:
        with path.open("rb") as file:
            kind = _kind(file)
            if kind is None:
                raise OSError("it has changed")
            with kind(file) as image:
                width, height = image.size
                images.check_megapixels(path, (height, width), max_megapixels)
                _check(path, image)
                return _shades(ImageOps.exif_transpose(image))
    except UserError:
        raise
    except Exception as error:  # Pillow's TIFF reader raises whatever broken tags lead to
        raise images.unreadable(path, error) from error


def _check(path: pathlib.Path, image: ImageFile.ImageFile) -> None:
    pages = getattr(image, "n_frames", 1)
    if pages > 1:
        raise UserError(f"The picture {path} has {pages} pages; save each as a file of its own.")
    if image.mode not in (*_EIGHT_BITS, *_SIXTEEN_BITS):
        raise UserError(
            f"The picture {path} has pixels of the kind {image.mode}, which are no shades from "
            "black to white; save it with 8 or 16 bits."
        )


def _shades(image: Image.Image) -> np.ndarray:
    """Returns uint8 [H, W, 3] of any kind of picture that `_check` lets pass."""
    if image.mode in _SIXTEEN_BITS:
        grey = (np.asarray(image) >> 8).astype(np.uint8)
        return np.repeat(grey[..., None], 3, axis=-1)
    return np.array(image.convert("RGB"))
