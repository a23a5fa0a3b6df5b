"""The resamplers inside artefacts give the very pixels that evaluation's gives.

Noise is the hardest picture: every grey value stands next to every other. Sizes include whole
ratios, where many values lie halfway between two whole ones and the last bit decides.
"""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import example, given
from hypothesis import strategies as st
from jax import export

from heatmap import axes, geometry
from heatmap.export import onnx_model, resampling
from input_pipeline import augment, pictures, saved_model
from tests.helpers import make_config, properties

SIDES = st.integers(1, 700)
INPUTS = [(32, 32), (64, 96), (224, 224)]


def data(size, channels=3, fit="stretch", crop="image"):
    fields = {"image_size": size, "channels": channels, "fit": fit, "crop": crop}
    return make_config(**{f"data.{name}": value for name, value in fields.items()}).data


def noise(height, width):
    return np.random.default_rng([height, width]).integers(0, 256, (height, width, 3), np.uint8)


def evaluated(image, config, box=None):
    """What evaluation sees of a picture, by matrices in double precision."""
    size = image.shape[:2]
    instance = geometry.image_box(size) if box is None else box
    source = augment.source_box(instance, size, config, alone=box is None)
    affine = geometry.crop_and_resize(source, config.image_size)
    read = pictures.in_channels(image, config.channels)
    return np.round(augment.warp(read, *augment.warp_parameters(affine), config.image_size))


@functools.cache
def by_jax(config):
    """Compiled as in an artefact: for sizes that are symbols."""

    def resample(image, *box):
        if box:
            down, across = axes.of_box(box[0], config, jnp)
        else:
            sides = (jnp.asarray(side, jnp.int32) for side in image.shape[:2])
            down, across = axes.of_picture(*sides, config, jnp)
        read = resampling.grey(image) if config.channels == 1 else image
        return resampling.resample(read, down, across, config.image_size)

    boxes = [jax.ShapeDtypeStruct((4,), jnp.float32)] * (config.crop == "box")
    image = jax.ShapeDtypeStruct(export.symbolic_shape("h, w, 3"), jnp.uint8)
    return jax.jit(export.export(jax.jit(resample))(image, *boxes).call)


@functools.cache
def by_onnxruntime(config):
    onnxruntime = pytest.importorskip("onnxruntime")
    graphs = pytest.importorskip("heatmap.export.onnx_graph")
    boxed = config.crop == "box"
    shape = (*config.image_size, config.channels)
    program = types.SimpleNamespace(
        config=types.SimpleNamespace(data=config), boxed=boxed, input_shape=shape
    )
    graph = graphs.Graph()
    pixels, _ = onnx_model.add_resampler(graph, program)
    inputs = {"image": (np.uint8, ("height", "width", 3))}
    inputs |= {"box": (np.float32, (4,))} if boxed else {}
    model = graph.finish(inputs, {"pixels": (pixels, shape)})
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return lambda *given: session.run(None, dict(zip(inputs, given, strict=True)))[0]


@functools.cache
def by_tensorflow(config):
    inputs = [tf.TensorSpec((None, None, 3), tf.uint8)]
    inputs += [tf.TensorSpec((4,), tf.float32)] * (config.crop == "box")
    traced = tf.function(
        lambda image, *box: saved_model.read(image, box, config),
        input_signature=inputs,
        autograph=False,
    )
    return lambda *given: traced(*given)[0].numpy()


RUNTIMES = {"jax": by_jax, "onnxruntime": by_onnxruntime, "tensorflow": by_tensorflow}


@pytest.mark.parametrize(
    "runtime", [pytest.param("jax", marks=pytest.mark.slow), "onnxruntime", "tensorflow"]
)
@pytest.mark.parametrize("channels", [1, 3])
@properties
@example(height=64, width=64, size=(224, 224), fit="stretch")  # 2/7 of a pixel at a time
@example(height=96, width=192, size=(224, 224), fit="pad")
@example(height=448, width=448, size=(224, 224), fit="stretch")  # means of four: many halves
@example(height=192, width=384, size=(64, 96), fit="pad")
@example(height=1, width=700, size=(32, 32), fit="stretch")
@given(
    height=SIDES,
    width=SIDES,
    size=st.sampled_from(INPUTS),
    fit=st.sampled_from(["stretch", "pad"]),
)
def test_a_whole_picture(runtime, channels, height, width, size, fit):
    config, image = data(size, channels, fit), noise(height, width)
    np.testing.assert_array_equal(RUNTIMES[runtime](config)(image), evaluated(image, config))


@pytest.mark.parametrize("runtime", RUNTIMES)
@properties
@given(
    centre=st.tuples(st.floats(0, 300), st.floats(0, 200)),
    sides=st.tuples(st.floats(20, 300), st.floats(20, 300)),
)
def test_a_box(runtime, centre, sides):
    """Places of boxes are computed in single precision by JAX: a few values round differently."""
    config, image = data((64, 96), crop="box"), noise(200, 300)
    middle, half = np.array(centre), np.array(sides) / 2
    box = np.float32([*(middle - half), *(middle + half)])
    found = RUNTIMES[runtime](config)(image, box)
    off = np.abs(found - evaluated(image, config, box.astype(np.float64)))
    assert off.max() <= 1
    assert (off > 0).mean() <= (2e-3 if runtime == "jax" else 0)
