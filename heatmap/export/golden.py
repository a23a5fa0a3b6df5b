"""The golden picture of an artefact: one of the validation split, and what is to be found on it.

What is to be found comes from the program's own evaluation: TensorFlow resamples, the network runs
on its own, the decoder reads, and the affine leads back in double precision. The artefact shares
none of this but the network and the decoder.
"""

import dataclasses
import pathlib
from collections.abc import Callable

import jax
import numpy as np

from heatmap import decoding, evaluate, geometry
from heatmap import run as run_lib
from heatmap.checkpoint import LATEST, Checkpoints
from heatmap.inference import predictor
from heatmap.inference.instances import Instances
from heatmap.inference.uncertainty import Calibration
from heatmap.keypoints import KeypointSet
from heatmap.pairs import distance
from heatmap.run import Run

_LARGEST = 1024  # pixels of its longer side: it travels with the artefact


@dataclasses.dataclass(frozen=True)
class Golden:
    """A picture with what is to be found on it.

    Attributes:
      inputs: `image` uint8 RGB [H, W, 3] and, for models of boxes, `box` [4] float32.
      outputs: of the artefact, as the program itself computes them, by name.
      covered: whether the network's input, and so a map, is the picture and no more.
    """

    inputs: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]
    covered: bool


def choose(
    folder: pathlib.Path, run: Run, boxed: bool, calibration: Calibration | None = None
) -> Golden:
    """Takes the first validation picture of a run's data.

    Args:
      folder: the workdir, to recognise the data.
      run: the run, with `data.root` where the data are now.
      boxed: whether the box of the instance belongs to the inputs.
      calibration: of the run, or None.

    Raises:
      UserError: if the data are not there or have changed.
    """
    import input_pipeline
    from input_pipeline import augment, pictures

    records, split = input_pipeline.load(run.config.data)
    evaluate.check_split(folder, Checkpoints(folder, LATEST).meta(), split.sha256)
    row = split.rows["val"][0]
    if records.pixels is not None:
        image = records.pixels[row]
    else:
        image = pictures.read(str(records.files[row]), records.orientations[row])
    image = pictures.in_channels(image, 3)
    factor = -(-max(image.shape[:2]) // _LARGEST)
    if factor > 1:
        image = augment.area_average(image, (factor, factor))
    inputs = {"image": np.round(image).astype(np.uint8)}
    if boxed:
        inputs["box"] = geometry.scale(records.boxes[row], 1 / factor).astype(np.float32)
    covered = not boxed and run.config.data.fit == "stretch"
    return Golden(inputs, evaluator(run, calibration)(*inputs.values()), covered)


def evaluator(
    run: Run, calibration: Calibration | None = None
) -> Callable[..., dict[str, np.ndarray]]:
    """Returns what predicts one picture as evaluation does, in float32: (image, box) -> outputs."""
    from input_pipeline import augment, pictures

    config = run.config

    @jax.jit
    def network(weights, pixels):
        inputs = run_lib.normalise_pixels(pixels, config)
        output = run.network.predict(weights, inputs, dtype=np.float32, fused=False)
        return output, decoding.decode(config, output)

    def predict(image, box=None):
        size = image.shape[:2]
        instance = geometry.image_box(size) if box is None else box
        source = augment.source_box(instance, size, config.data, alone=box is None)
        affine = geometry.crop_and_resize(source, config.data.image_size)
        read = pictures.in_channels(image, config.data.channels)
        pixels = augment.warp(read, *augment.warp_parameters(affine), config.data.image_size)
        pixels = np.round(pixels).astype(np.uint8)[None]
        # An accelerator would round matrix products to fewer digits.
        with jax.set_mesh(run.mesh), jax.default_matmul_precision("highest"):
            output, found = jax.device_get(network(run.weights, pixels))
        original = geometry.invert(affine)
        points = geometry.apply(original, found.keypoints[0].astype(np.float64))
        outputs = {"points": points.astype(np.float32)}
        outputs |= _further(calibration, run.points, found, affine)
        if decoding.decoder_name(config) == "coordinates":
            return outputs | {"coordinates": output[0]}
        return outputs | {"maps": output[0], "score": found.score[0], "entropy": found.entropy[0]}

    return predict


def _further(
    calibration: Calibration | None,
    points: KeypointSet,
    decoded: decoding.Decoded,
    affine: np.ndarray,
) -> dict[str, np.ndarray]:
    """Returns what `intervals.extra` adds, as heatmap.predict computes it."""
    places, covariance, unit = predictor.in_original_pixels(decoded, affine[None])
    found = Instances(
        source=np.array(["golden"]),
        frame=np.array([-1]),
        instance=np.array([0]),
        size=np.zeros((1, 2), np.int32),
        box=np.zeros((1, 4)),
        unit=unit,
        points=places,
        score=np.asarray(decoded.score, np.float64),
        covariance=covariance,
    )
    outputs: dict[str, np.ndarray] = {}
    if lines := points.measurements:
        ends = [(places[0, a], places[0, b]) for _, a, b in lines]
        outputs["lengths"] = np.array([distance(a, b) for a, b in ends])
    if calibration:
        outputs["radius"] = calibration.radii(found, points.names)[0]
        if calibration.confidence:
            outputs["confidence"] = calibration.confidence(found.score)[0]
        if calibration.visibility:
            outputs["visibility"] = calibration.visibility(found.score)[0]
        if lines:
            outputs["half_widths"] = calibration.half_widths(found, lines)[0]
    return {name: array.astype(np.float32) for name, array in outputs.items()}
