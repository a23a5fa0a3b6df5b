"""Pixels and the affine that moved them, together.

Every random number of an example is drawn here on the host, from the seed, the epoch and the
example's place in it alone, so that the same step sees the same batch whatever the number of
workers or processes. Numbers of many examples are drawn, and their affines composed, at once: one
by one they would keep an accelerator waiting. An affine is composed in double precision; the same
matrix moves the keypoints and, through `warp`, resamples the pixels once.
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
    """What happens to the pictures of B examples.

    Attributes:
      input_from_original: [B, 3, 3] float64.
      colour: [B, 4] float32: brightness, contrast and saturation factors, and the shift of hue.
    """

    input_from_original: np.ndarray
    colour: np.ndarray


NO_COLOUR = np.array([1.0, 1.0, 1.0, 0.0], np.float32)
_COUNTED = 4  # numbers that come of each count of Philox
UNIFORMS = 4 * _COUNTED  # numbers of an example, of which `draw` uses thirteen


def source_box(box, size, config: DataConfig, alone) -> np.ndarray:
    """Chooses what part of its picture each instance is read from.

    Args:
      box: (x0, y0, x1, y1) [..., 4] of the instances.
      size: (height, width) [..., 2] of their pictures.
      config: `crop`, `box_padding`, `fit` and `image_size` decide.
      alone: [...], whether the picture holds no other instance.

    Returns:
      Boxes (x0, y0, x1, y1) [..., 4] in the picture's pixels; they may reach beyond the border.
    """
    whole = geometry.image_box(size)
    if config.fit == "pad":
        whole = geometry.fit_box(whole, config.image_size)
    # A crop of one animal keeps its shape: boxes differ in aspect from picture to picture.
    own = geometry.fit_box(geometry.pad_box(box, config.box_padding), config.image_size)
    shows_all = np.logical_or(config.crop == "image", np.logical_and(config.crop == "auto", alone))
    return np.where(shows_all[..., None], whole, own)


def source_boxes(records: Records, config: DataConfig) -> np.ndarray:
    """Returns what part of its picture each record is read from, [N, 4], as `source_box`."""
    _, index, counts = np.unique(records.ids, return_inverse=True, return_counts=True)
    return source_box(records.boxes, records.sizes, config, counts[index] == 1)


def uniforms(seed: int, epoch: int, first: int, last: int) -> np.ndarray:
    """Draws the numbers of the examples at the places first … last - 1 of an epoch.

    The generator counts (Philox, Salmon et al., SC 2011): it starts at any place as fast as at the
    first, and nothing needs to be kept of those before.

    Args:
      seed: of the run.
      epoch: from 0.
      first: place in the order of the epoch, from 0.
      last: the place to stop before.

    Returns:
      [last - first, UNIFORMS] float64, in [0, 1).
    """
    counts = UNIFORMS // _COUNTED
    generator = np.random.Generator(np.random.Philox([seed, 1, epoch], counter=counts * first))
    return generator.random((last - first, UNIFORMS))


def draw(
    boxes: np.ndarray, numbers: np.ndarray, config: AugmentConfig, input_size: geometry.Size
) -> Drawn:
    """Turns random numbers into the affines and the colours of examples.

    A random crop of the box is resized to the input (Szegedy et al., CVPR 2015), zoomed and
    rotated about the centre, and flipped. A crop whose area and ratio would take it beyond the box
    is cut to the box.

    Args:
      boxes: (x0, y0, x1, y1) [B, 4] that `source_box` chose.
      numbers: [B, UNIFORMS] from `uniforms`. Each column has its own use, so that one setting does
        not shift another's numbers.
      config: the ranges.
      input_size: (height, width) of the network's input.

    Returns:
      The affines and the colour factors.
    """
    area, ratio, across, down, zoom, angle, turns, flips_x, flips_y = numbers.T[:9]
    area = config.crop_scale[0] + area * (config.crop_scale[1] - config.crop_scale[0])
    low, high = np.log(config.crop_ratio)
    ratio = np.exp(low + ratio * (high - low))
    x0, y0, x1, y1 = boxes.T
    width = (x1 - x0) * np.minimum(1.0, np.sqrt(area * ratio))
    height = (y1 - y0) * np.minimum(1.0, np.sqrt(area / ratio))
    left, top = x0 + across * (x1 - x0 - width), y0 + down * (y1 - y0 - height)
    crop = np.stack([left, top, left + width, top + height], axis=-1)

    zoom = config.scale[0] + zoom * (config.scale[1] - config.scale[0])
    angle = np.deg2rad(config.rotation) * (2 * angle - 1) * (turns < config.rotation_prob)
    input_from_original = geometry.compose(
        _where(flips_y < config.vertical_flip, geometry.vertical_flip(input_size[0])),
        _where(flips_x < config.horizontal_flip, geometry.horizontal_flip(input_size[1])),
        geometry.rotation(angle, input_size),
        geometry.zoom(zoom, input_size),
        geometry.crop_and_resize(crop, input_size),
    )
    spread = np.array([config.brightness, config.contrast, config.saturation, config.hue])
    colour = NO_COLOUR + spread * (2 * numbers[:, 9:13] - 1)
    return Drawn(input_from_original, colour.astype(np.float32))


def _where(chosen: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Returns an affine where [B] says so, and elsewhere what changes nothing, [B, 3, 3]."""
    return np.where(chosen[:, None, None], affine, np.eye(3))


def mirrored(input_from_original: np.ndarray) -> np.ndarray:
    """Says which affines [..., 3, 3] show the picture in a mirror: left and right change names.

    One flip mirrors; two flips are a rotation by 180 degrees and do not.
    """
    return np.linalg.det(input_from_original[..., :2, :2]) < 0


def warp_parameters(input_from_original: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the numbers that `warp` needs.

    Args:
      input_from_original: [..., 3, 3].

    Returns:
      (area factors [..., 2] int32, down and across; [..., 8] float32 projective transform from
      pixels of the input to pixels of the area-averaged picture).
    """
    factors = geometry.area_factors(input_from_original)
    averaged_from_original = geometry.scaling(1 / factors[..., 1], 1 / factors[..., 0])
    transform = averaged_from_original @ geometry.invert(input_from_original)
    flat = transform.reshape(*transform.shape[:-2], 9)
    return factors, flat[..., :8].astype(np.float32)


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
