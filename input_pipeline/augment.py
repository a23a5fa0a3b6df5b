"""Pixels and the affine that moved them, together.

Every random number of an example is drawn here on the host, from (seed, epoch, index) alone, so
that the same step sees the same batch whatever the number of workers or processes. The affine is
composed in double precision; the same matrix moves the keypoints and, through `warp`, resamples
the pixels once.
"""

import dataclasses

import numpy as np

from heatmap import geometry
from heatmap.colour import GREY
from heatmap.config import AugmentConfig, DataConfig
from input_pipeline.host import tf
from input_pipeline.records import Records


@dataclasses.dataclass(frozen=True)
class Drawn:
    """What happens to one picture.

    Attributes:
      input_from_original: [3, 3] float64.
      colour: [4] float32: brightness, contrast and saturation factors, and the shift of hue.
    """

    input_from_original: np.ndarray
    colour: np.ndarray


NO_COLOUR = np.array([1.0, 1.0, 1.0, 0.0], np.float32)


def source_box(box, size: geometry.Size, config: DataConfig, alone: bool) -> np.ndarray:
    """Chooses what part of a picture an instance is read from.

    Args:
      box: (x0, y0, x1, y1) of the instance.
      size: (height, width) of the picture.
      config: `crop`, `box_padding`, `fit` and `image_size` decide.
      alone: whether the picture holds no other instance.

    Returns:
      Box (x0, y0, x1, y1) in the picture's pixels; it may reach beyond the border.
    """
    whole = config.crop == "image" or (config.crop == "auto" and alone)
    if whole:
        chosen = geometry.image_box(size)
        return geometry.fit_box(chosen, config.image_size) if config.fit == "pad" else chosen
    # A crop of one animal keeps its shape: boxes differ in aspect from picture to picture.
    return geometry.fit_box(geometry.pad_box(box, config.box_padding), config.image_size)


def source_boxes(records: Records, config: DataConfig) -> np.ndarray:
    """Returns what part of its picture each record is read from, [N, 4], as `source_box`."""
    _, index, counts = np.unique(records.ids, return_inverse=True, return_counts=True)
    alone = counts[index] == 1
    return np.stack(
        [
            source_box(box, tuple(size), config, bool(one))
            for box, size, one in zip(records.boxes, records.sizes, alone, strict=True)
        ]
    )


def draw(
    box: np.ndarray, config: AugmentConfig, input_size: geometry.Size, rng: np.random.Generator
) -> Drawn:
    """Draws the affine and the colours of one example.

    A random crop of the box is resized to the input (Szegedy et al., CVPR 2015), zoomed and
    rotated about the centre, and flipped. A crop whose area and ratio would take it beyond the box
    is cut to the box.

    Args:
      box: (x0, y0, x1, y1) that `source_box` chose.
      config: the ranges.
      input_size: (height, width) of the network's input.
      rng: seeded by (seed, epoch, index).

    Returns:
      The affine and the colour factors.
    """
    u = rng.random(12)  # always as many, so that one setting does not shift another's numbers
    x0, y0, x1, y1 = box
    area = config.crop_scale[0] + u[0] * (config.crop_scale[1] - config.crop_scale[0])
    low, high = np.log(config.crop_ratio)
    ratio = np.exp(low + u[1] * (high - low))
    width = (x1 - x0) * min(1.0, np.sqrt(area * ratio))
    height = (y1 - y0) * min(1.0, np.sqrt(area / ratio))
    left, top = x0 + u[2] * (x1 - x0 - width), y0 + u[3] * (y1 - y0 - height)
    crop = geometry.crop_and_resize((left, top, left + width, top + height), input_size)

    zoom = config.scale[0] + u[4] * (config.scale[1] - config.scale[0])
    turned = np.deg2rad(config.rotation) * (2 * u[5] - 1) * (u[6] < config.rotation_prob)
    flip_x = geometry.horizontal_flip(input_size[1]) if u[7] < config.horizontal_flip else np.eye(3)
    flip_y = geometry.vertical_flip(input_size[0]) if u[8] < config.vertical_flip else np.eye(3)
    centre = np.eye(3)
    centre[:2, 2] = (input_size[1] - 1) / 2, (input_size[0] - 1) / 2
    zoomed = geometry.compose(centre, np.diag([zoom, zoom, 1.0]), geometry.invert(centre))
    rotated = geometry.rotation(turned, input_size)

    spread = np.array([config.brightness, config.contrast, config.saturation])
    factors = 1 + spread * (2 * u[9:12] - 1)
    hue = config.hue * (2 * rng.random() - 1)
    return Drawn(
        geometry.compose(flip_y, flip_x, rotated, zoomed, crop),
        np.array([*factors, hue], np.float32),
    )


def mirrored(input_from_original: np.ndarray) -> bool:
    """Says whether an affine shows the picture in a mirror, so that left and right change names.

    One flip mirrors; two flips are a rotation by 180 degrees and do not.
    """
    return bool(np.linalg.det(input_from_original[:2, :2]) < 0)


def warp_parameters(input_from_original: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the numbers that `warp` needs.

    Args:
      input_from_original: [3, 3].

    Returns:
      (area factors [2] int32, down and across; [8] float32 projective transform from pixels of the
      input to pixels of the area-averaged picture).
    """
    fy, fx = geometry.area_factors(input_from_original)
    averaged_from_original = geometry.scaling(1 / fx, 1 / fy)
    transform = averaged_from_original @ geometry.invert(input_from_original)
    return np.array([fy, fx], np.int32), transform.reshape(9)[:8].astype(np.float32)


def warp(image, factors, transform, input_size: geometry.Size):
    """Resamples a picture: a whole-number area average where it shrinks a lot, then bilinear.

    Beyond the border the nearest pixel is repeated, so that a plain resize does not darken edges.

    Args:
      image: [H, W, C] tensor, any real type.
      factors: [2] from `warp_parameters`.
      transform: [8] from `warp_parameters`.
      input_size: (height, width) of the result.

    Returns:
      [h, w, C] float32 in the range of `image`.
    """
    image = tf.cond(
        tf.reduce_max(factors) > 1,
        lambda: area_average(image, factors),
        lambda: tf.cast(image, tf.float32),
    )
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=image[None],
        transforms=transform[None],
        output_shape=tf.constant(input_size, tf.int32),
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="NEAREST",
    )[0]


def area_average(image, factors):
    """Averages blocks of factors[0] × factors[1] pixels; the last ones repeat the border.

    Args:
      image: [H, W, C], uint8 or float32.
      factors: [2] whole numbers.

    Returns:
      [⌈H/factors[0]⌉, ⌈W/factors[1]⌉, C] float32.
    """
    size = tf.shape(image)[:2]
    averaged = -(-size // factors)
    below, beside = tf.unstack(averaged * factors - size)
    image = tf.concat([image, tf.repeat(image[-1:], below, axis=0)], axis=0)
    image = tf.concat([image, tf.repeat(image[:, -1:], beside, axis=1)], axis=1)
    # Ten times as fast as a mean over the axes of a reshaped picture.
    return tf.raw_ops.ResizeArea(images=image[None], size=averaged)[0]


def jitter(image, colour, config: AugmentConfig):
    """Changes brightness, contrast, saturation and hue, in that order, as torchvision defines them.

    Args:
      image: [h, w, C] float32 in [0, 255].
      colour: [4] from `draw`.
      config: settings of zero cost nothing.

    Returns:
      [h, w, C] float32 in [0, 255].
    """

    coloured = image.shape[-1] == 3

    def clipped(image):
        return tf.clip_by_value(image, 0.0, 255.0)

    if config.brightness:
        image = clipped(image * colour[0])
    if config.contrast:
        means = tf.reduce_mean(image, axis=(0, 1))
        grey = tf.tensordot(means, GREY, 1) if coloured else means
        image = clipped(colour[1] * image + (1 - colour[1]) * grey)
    if config.saturation and coloured:  # a blend with the grey picture, as one matrix
        towards_grey = tf.repeat(tf.constant(GREY)[:, None], 3, axis=1)
        image = clipped(image @ (colour[2] * tf.eye(3) + (1 - colour[2]) * towards_grey))
    if config.hue and coloured:
        image = tf.image.adjust_hue(image / 255.0, colour[3]) * 255.0
    return image
