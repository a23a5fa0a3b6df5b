"""How a picture of any size is read by a network of one size: the evaluation affine, by axes.

Without augmentation the affine of `geometry.crop_and_resize` neither turns nor mirrors, so it is
two formulas, one for each axis. They stand here in plain arithmetic on numbers that may be known
only when an exported program runs: any array library that has `//`, `/` and `where` can trace them.
Whole numbers stay whole as long as they can, so that float32 is enough to place a pixel.
"""

from typing import Any, NamedTuple

from heatmap.config import DataConfig


class Axis(NamedTuple):
    """One axis of a picture, scalars.

    Attributes:
      factor: so many pixels are averaged first, as `geometry.area_factors` says.
      step: from one input pixel to the next, in averaged pixels.
      start: of input pixel 0, in averaged pixels; `augment.warp_parameters` has both as well.
      scale: size of an input pixel in original ones.
      offset: original = (input + 0.5) · scale + offset.
    """

    factor: Any
    step: Any
    start: Any
    scale: Any
    offset: Any

    @property
    def at_zero(self) -> Any:
        """Where input pixel 0 is in the picture."""
        return 0.5 * self.scale + self.offset


def of_picture(height, width, config: DataConfig, xp) -> tuple[Axis, Axis]:
    """Says how a whole picture is read.

    Args:
      height: of the picture, a whole number of the array library; an array of no axes.
      width: likewise.
      config: `fit` and `image_size` apply.
      xp: the array library, or what has its `where` and `maximum`.

    Returns:
      (down, across).
    """
    to_height, to_width = config.image_size
    ratios = (height, to_height), (width, to_width)
    if config.fit == "pad":  # one scale for both: that of the axis which shrinks more
        wider = width * to_height >= height * to_width
        pixels = xp.where(wider, width, height)
        inputs = xp.where(wider, to_width, to_height)
        ratios = (pixels, inputs), (pixels, inputs)
    sides = (height, to_height), (width, to_width)
    axes = (_whole(*side, *ratio, xp) for side, ratio in zip(sides, ratios, strict=True))
    down, across = axes
    return down, across


def _whole(size, to_size: int, pixels, inputs, xp) -> Axis:
    """Reads all of an axis, centred, where `pixels` original ones become `inputs` of the input."""
    factor = xp.maximum(pixels // inputs, 1)
    beyond = size * inputs - pixels * to_size  # twice what is left over on either side, · inputs
    cell = inputs * factor
    return Axis(
        factor=factor,
        step=pixels / cell,
        start=(pixels + beyond - cell) / (2 * cell),
        scale=pixels / inputs,
        offset=(beyond - inputs) / (2 * inputs),
    )


def of_box(box, config: DataConfig, xp) -> tuple[Axis, Axis]:
    """Says how a part of a picture is read: padded, and grown to the shape of the input.

    Args:
      box: [4], edges (x0, y0, x1, y1) in original pixels.
      config: `box_padding` and `image_size` apply.
      xp: as for `of_picture`.

    Returns:
      (down, across).
    """
    to_height, to_width = config.image_size
    x0, y0, x1, y1 = (box[i] for i in range(4))
    width, height = (x1 - x0) * config.box_padding, (y1 - y0) * config.box_padding
    scale = xp.maximum(width / to_width, height / to_height)  # the same for both
    # A scale that should be whole must not fall below by the rounding of float32.
    factor = xp.maximum(xp.floor(scale * (1 + 1e-6)), 1.0)

    def axis(first, last, to_size: int) -> Axis:
        offset = (first + last - scale * to_size) / 2
        step = scale / factor
        start = (0.5 * scale + offset + 0.5) / factor - 0.5
        return Axis(factor, step, start, scale, offset)

    return axis(y0, y1, to_height), axis(x0, x1, to_width)


def original_from_input(down: Axis, across: Axis) -> list[list[Any]]:
    """Returns the rows of the affine [3, 3] that takes points of the input back to the picture."""
    return [[across.scale, 0, across.at_zero], [0, down.scale, down.at_zero], [0, 0, 1]]
