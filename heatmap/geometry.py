"""The coordinate convention, and the affines that carry points between images.

A point is (x, y) in pixels and a whole number is the *centre* of a pixel: pixel (row i, column j)
is centred on (x=j, y=i), so an image of width W covers [-0.5, W-0.5]. A resize by s therefore maps
x to (x + 0.5)·s - 0.5 (unbiased data processing, Huang et al., CVPR 2020, arXiv:1911.07524).

An affine is a 3×3 matrix that acts on column vectors (x, y, 1) and is named `to_from_from`:
`input_from_original` maps a point of the original image to the network's input. Sizes are
(height, width), as everywhere in the code; boxes are (x0, y0, x1, y1), the outer *edges* of what
they hold, so that a whole image has the box (-0.5, -0.5, W-0.5, H-0.5).
"""

import numpy as np

Size = tuple[int, int]


def scale(x, factor):
    """Maps pixel-centre coordinates through a resize by `factor`: (x + 0.5)·factor - 0.5."""
    return (x + 0.5) * factor - 0.5


def scaling(sx: float, sy: float) -> np.ndarray:
    """Returns the 3×3 affine of a resize by sx across and sy down, half-pixel exact."""
    return np.array([[sx, 0.0, 0.5 * sx - 0.5], [0.0, sy, 0.5 * sy - 0.5], [0.0, 0.0, 1.0]])


def resize(from_size: Size, to_size: Size) -> np.ndarray:
    """Returns the 3×3 affine that stretches an image of (height, width) onto another size."""
    return scaling(to_size[1] / from_size[1], to_size[0] / from_size[0])


def image_box(size: Size) -> np.ndarray:
    """Returns the box (x0, y0, x1, y1) that a whole image of (height, width) covers."""
    return np.array([-0.5, -0.5, size[1] - 0.5, size[0] - 0.5])


def crop_and_resize(box, to_size: Size) -> np.ndarray:
    """Returns the 3×3 affine that maps a box onto a whole image of (height, width).

    Args:
      box: (x0, y0, x1, y1), the edges of the crop in pixels of the source.
      to_size: (height, width) of the destination.

    Raises:
      ValueError: if the box has no area.
    """
    x0, y0, x1, y1 = (float(v) for v in box)
    if not (x1 > x0 and y1 > y0):
        raise ValueError(f"a crop needs a positive extent, got {(x0, y0, x1, y1)}")
    sx, sy = to_size[1] / (x1 - x0), to_size[0] / (y1 - y0)
    return np.array([[sx, 0.0, -sx * x0 - 0.5], [0.0, sy, -sy * y0 - 0.5], [0.0, 0.0, 1.0]])


def fit_box(box, to_size: Size) -> np.ndarray:
    """Grows a box about its centre until it has the aspect ratio of `to_size` (letter-boxing)."""
    x0, y0, x1, y1 = (float(v) for v in box)
    width, height = x1 - x0, y1 - y0
    aspect = to_size[1] / to_size[0]
    grown_w, grown_h = max(width, height * aspect), max(height, width / aspect)
    cx, cy = (x0 + x1) / 2, (y0 + y1) / 2
    return np.array([cx - grown_w / 2, cy - grown_h / 2, cx + grown_w / 2, cy + grown_h / 2])


def pad_box(box, factor: float) -> np.ndarray:
    """Scales a box about its centre by `factor`."""
    x0, y0, x1, y1 = (float(v) for v in box)
    cx, cy = (x0 + x1) / 2, (y0 + y1) / 2
    half_w, half_h = (x1 - x0) / 2 * factor, (y1 - y0) / 2 * factor
    return np.array([cx - half_w, cy - half_h, cx + half_w, cy + half_h])


def horizontal_flip(width: int) -> np.ndarray:
    """Returns the 3×3 affine x' = W-1-x."""
    return np.array([[-1.0, 0.0, width - 1.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])


def vertical_flip(height: int) -> np.ndarray:
    """Returns the 3×3 affine y' = H-1-y."""
    return np.array([[1.0, 0.0, 0.0], [0.0, -1.0, height - 1.0], [0.0, 0.0, 1.0]])


def rotation(radians: float, size: Size) -> np.ndarray:
    """Returns the 3×3 rotation about the centre ((W-1)/2, (H-1)/2), clockwise as displayed."""
    c, s = np.cos(radians), np.sin(radians)
    cx, cy = (size[1] - 1) / 2, (size[0] - 1) / 2
    return np.array([[c, -s, cx - c * cx + s * cy], [s, c, cy - s * cx - c * cy], [0.0, 0.0, 1.0]])


def compose(*affines: np.ndarray) -> np.ndarray:
    """Multiplies affines so that the last argument acts first, as in `c_from_b, b_from_a`."""
    result = np.eye(3)
    for affine in affines:
        result = result @ affine
    return result


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


def area_factors(input_from_original: np.ndarray) -> tuple[int, int]:
    """Says by which whole factors (down, across) to area-average before a bilinear warp.

    A bilinear read samples four neighbours, so an affine that shrinks by more than two aliases.
    The shrink along an original axis is the inverse of the length of that axis' column.

    Args:
      input_from_original: [3, 3].

    Returns:
      (fy, fx), each at least 1; what is left to shrink after the average is less than 2.
    """
    lengths = np.linalg.norm(input_from_original[:2, :2], axis=0)  # one original pixel, in input
    fx, fy = (max(1, int(np.floor(1.0 / length + 1e-9))) for length in lengths)
    return fy, fx


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
