"""A TensorFlow SavedModel: the pixel work of evaluation as it is, then a program made by JAX.

The picture is resampled by the very operators that evaluation uses, so pixels are the same, and the
network has one size, so it is compiled once whatever the sizes of the pictures.
"""

import pathlib
from collections.abc import Callable
from typing import Any

from heatmap import axes
from heatmap.config import DataConfig
from input_pipeline import augment, pictures
from input_pipeline.host import tf


def write(
    folder: pathlib.Path, core: Callable[[Any, Any], dict], config: DataConfig, boxed: bool
) -> None:
    """Writes a SavedModel with one signature, `serving_default`.

    Args:
      folder: to be made.
      core: what a picture goes through next, on tensors: (pixels [h, w, C] float32,
        original_from_input [3, 3] float32) -> outputs by name.
      config: how pictures become inputs.
      boxed: whether a picture comes with the box of an instance, [4].
    """
    inputs = [tf.TensorSpec((None, None, 3), tf.uint8, "image")]
    if boxed:
        inputs.append(tf.TensorSpec((4,), tf.float32, "box"))

    @tf.function(input_signature=inputs, autograph=False)
    def predict(image, *box):
        return core(*read(image, box, config))

    module = tf.Module()
    module.predict = predict
    tf.saved_model.save(module, str(folder), signatures={"serving_default": predict})


def read(image, box, config: DataConfig):
    """Maps a picture to what the network sees of it and the affine that leads back.

    Args:
      image: uint8 RGB [H, W, 3].
      box: a tuple that holds one [4], or nothing.
      config: `fit`, `box_padding`, `image_size` and `channels` apply.

    Returns:
      (pixels [h, w, C] float32, whole numbers; original_from_input [3, 3] float32).
    """
    if box:
        down, across = axes.of_box(tf.cast(box[0], tf.float64), config, tf.experimental.numpy)
    else:
        sides = tf.unstack(tf.cast(tf.shape(image), tf.int64))
        down, across = axes.of_picture(sides[0], sides[1], config, tf.experimental.numpy)
    factors = tf.stack([tf.cast(axis.factor, tf.int32) for axis in (down, across)])
    transform = _numbers([[across.step, 0, across.start], [0, down.step, down.start], [0, 0]])
    image = pictures.in_channels(image, config.channels)
    pixels = tf.round(augment.warp(image, factors, transform, config.image_size))
    shape = (*config.image_size, config.channels)
    affine = tf.reshape(_numbers(axes.original_from_input(down, across)), (3, 3))
    return tf.ensure_shape(pixels, shape), affine


def _numbers(rows):
    """Joins rows of numbers into one vector, float32."""
    return tf.stack([tf.cast(value, tf.float32) for row in rows for value in row])
