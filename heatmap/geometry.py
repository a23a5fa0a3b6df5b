"""The coordinate convention, and the affines that carry points between images.

A point is (x, y) in pixels and a whole number is the *centre* of a pixel: pixel (row i, column j)
is centred on (x=j, y=i), so an image of width W covers [-0.5, W-0.5]. A resize by s therefore maps
x to (x + 0.5)·s - 0.5 (unbiased data processing, Huang et al., CVPR 2020, arXiv:1911.07524).

An affine is a 3×3 matrix that acts on column vectors (x, y, 1) and is named `to_from_from`:
`input_from_original` maps a point of the original image to the network's input. Sizes are
(height, width), as everywhere in the code; boxes are (x0, y0, x1, y1), the outer *edges* of what
they hold, so that a whole image has the box (-0.5, -0.5, W-0.5, H-0.5).
"""

import functools

import numpy as np

Size = tuple[int, int]


def scale(x, factor):
    """Maps pixel-centre coordinates through a resize by `factor`: (x + 0.5)·factor - 0.5."""
    return (x + 0.5) * factor - 0.5


def _affine(a, b, c, d, e, f) -> np.ndarray:
    """Makes affines [..., 3, 3] of the rows (a, b, c) and (d, e, f), numbers or arrays [...]."""
    affines = np.zeros((*np.broadcast(a, b, c, d, e, f).shape, 3, 3))
    for place, entry in enumerate((a, b, c, d, e, f)):
        affines[..., place // 3, place % 3] = entry
    affines[..., 2, 2] = 1.0
    return affines


def scaling(sx, sy) -> np.ndarray:
    """Returns the affines of resizes by sx across and sy down, half-pixel exact.

    Args:
      sx: a number or an array [...].
      sy: likewise.

    Returns:
      [..., 3, 3].
    """
    return _affine(sx, 0.0, 0.5 * sx - 0.5, 0.0, sy, 0.5 * sy - 0.5)


def resize(from_size: Size, to_size: Size) -> np.ndarray:
    """Returns the 3×3 affine that stretches an image of (height, width) onto another size."""
    return scaling(to_size[1] / from_size[1], to_size[0] / from_size[0])


def image_box(size) -> np.ndarray:
    """Returns the boxes (x0, y0, x1, y1) [..., 4] that whole images of sizes [..., 2] cover."""
    size = np.asarray(size)
    return np.concatenate([np.full(size.shape, -0.5), size[..., ::-1] - 0.5], axis=-1)


def crop_and_resize(box, to_size: Size) -> np.ndarray:
    """Returns the affines that map boxes onto whole images of (height, width).

    Args:
      box: (x0, y0, x1, y1) [..., 4], the edges of the crop in pixels of the source.
      to_size: (height, width) of the destination.

    Returns:
      [..., 3, 3].

    Raises:
      ValueError: if a box has no area.
    """
    box = np.asarray(box, np.float64)
    x0, y0, x1, y1 = np.moveaxis(box, -1, 0)
    extended = (x1 > x0) & (y1 > y0)
    if not extended.all():
        raise ValueError(f"a crop needs a positive extent, got {tuple(box[~extended][0].tolist())}")
    sx, sy = to_size[1] / (x1 - x0), to_size[0] / (y1 - y0)
    return _affine(sx, 0.0, -sx * x0 - 0.5, 0.0, sy, -sy * y0 - 0.5)


def fit_box(box, to_size: Size) -> np.ndarray:
    """Grows boxes [..., 4] about their centres to the aspect ratio of `to_size` (letter-boxing)."""
    x0, y0, x1, y1 = np.moveaxis(np.asarray(box, np.float64), -1, 0)
    width, height = x1 - x0, y1 - y0
    aspect = to_size[1] / to_size[0]
    grown_w, grown_h = np.maximum(width, height * aspect), np.maximum(height, width / aspect)
    return _centred(x0, y0, x1, y1, grown_w / 2, grown_h / 2)


def pad_box(box, factor: float) -> np.ndarray:
    """Scales boxes [..., 4] about their centres by `factor`."""
    x0, y0, x1, y1 = np.moveaxis(np.asarray(box, np.float64), -1, 0)
    return _centred(x0, y0, x1, y1, (x1 - x0) / 2 * factor, (y1 - y0) / 2 * factor)


def _centred(x0, y0, x1, y1, half_w, half_h) -> np.ndarray:
    """Returns boxes [..., 4] about the centres of others, so far to either side."""
    cx, cy = (x0 + x1) / 2, (y0 + y1) / 2
    return np.stack([cx - half_w, cy - half_h, cx + half_w, cy + half_h], axis=-1)


def horizontal_flip(width: int) -> np.ndarray:
    """Returns the 3×3 affine x' = W-1-x."""
    return _affine(-1.0, 0.0, width - 1.0, 0.0, 1.0, 0.0)


def vertical_flip(height: int) -> np.ndarray:
    """Returns the 3×3 affine y' = H-1-y."""
    return _affine(1.0, 0.0, 0.0, 0.0, -1.0, height - 1.0)


def rotation(radians, size: Size) -> np.ndarray:
    """Returns the affines of rotations about the centre ((W-1)/2, (H-1)/2), clockwise as displayed.

    Args:
      radians: a number or an array [...].
      size: (height, width) of the image.

    Returns:
      [..., 3, 3].
    """
    c, s = np.cos(radians), np.sin(radians)
    return _about_centre(c, -s, s, c, size)


def zoom(factor, size: Size) -> np.ndarray:
    """Returns the affines that enlarge about the centre ((W-1)/2, (H-1)/2).

    Args:
      factor: a number or an array [...].
      size: (height, width) of the image.

    Returns:
      [..., 3, 3].
    """
    return _about_centre(factor, 0.0, 0.0, factor, size)


def _about_centre(a, b, c, d, size: Size) -> np.ndarray:
    """Makes affines [..., 3, 3] of linear parts ((a, b), (c, d)) that leave the centre in place."""
    cx, cy = (size[1] - 1) / 2, (size[0] - 1) / 2
    return _affine(a, b, cx - a * cx - b * cy, c, d, cy - c * cx - d * cy)


def compose(*affines: np.ndarray) -> np.ndarray:
    """Multiplies affines [..., 3, 3], whose leading axes broadcast.

    The last argument acts first, as in `c_from_b, b_from_a`.
    """
    return functools.reduce(np.matmul, affines, np.eye(3))


def invert(affine: np.ndarray) -> np.ndarray:
    """Inverts affines [..., 3, 3].

    Raises:
      numpy.linalg.LinAlgError: if one is singular.
    """
    return np.linalg.inv(affine)


def apply(affine, points):
    """Maps points [..., K, 2] through affines [..., 3, 3]; leading axes broadcast."""
    linear, offset = affine[..., :2, :2], affine[..., :2, 2]
    return points @ np.swapaxes(linear, -1, -2) + offset[..., None, :]


def area_factors(input_from_original: np.ndarray) -> np.ndarray:
    """Says by which whole factors to area-average before a bilinear warp.

    A bilinear read samples four neighbours, so an affine that shrinks by more than two aliases.
    The shrink along an original axis is the inverse of the length of that axis' column.

    Args:
      input_from_original: [..., 3, 3].

    Returns:
      [..., 2] int32, (down, across), each at least 1; what is left to shrink after the average is
      less than 2.
    """
    columns = input_from_original[..., :2, 1::-1]  # of y, of x: one original pixel, in input
    lengths = np.linalg.norm(columns, axis=-2)
    return np.maximum(1, np.floor(1.0 / lengths + 1e-9)).astype(np.int32)


def inside(points, size: Size):
    """Says which points [..., 2] lie on an image of (height, width), edges included."""
    x, y = points[..., 0], points[..., 1]
    return (x >= -0.5) & (x <= size[1] - 0.5) & (y >= -0.5) & (y <= size[0] - 0.5)


def normalise(points, size: Size, xp=np):
    """Maps pixels [..., 2] to [0, 1] by ((x + 0.5)/W, (y + 0.5)/H), the regression target."""
    return (points + 0.5) / xp.asarray([size[1], size[0]], dtype=points.dtype)


def denormalise(coordinates, size: Size, xp=np):
    """Inverts `normalise`: [0, 1] coordinates [..., 2] back to pixels."""
    return coordinates * xp.asarray([size[1], size[0]], dtype=coordinates.dtype) - 0.5


def rescale(points, from_size: Size, to_size: Size, xp=np):
    """Carries points [..., 2] through a plain resize between two (height, width) grids."""
    return denormalise(normalise(points, from_size, xp), to_size, xp)
