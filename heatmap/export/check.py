"""Loads the exported model that lies beside this file, and refuses one that does not agree.

    python check.py                      # says how far it is from the golden points
    python check.py --image=pixels.npy   # uint8 RGB [H, W, 3]: prints the points

    from check import load
    predict = load()                     # raises if the golden picture gives other points
    found = predict(image)               # {"points": [K, 2], …}, pixels of the image, NumPy

This file stands alone: it needs NumPy and the runtime of the format (JAX, TensorFlow or
onnxruntime), not the program that wrote it. Runtimes may die of a damaged file without a word, so
that they are given a model only if it has the hash that metadata.json tells.
"""

import argparse
import contextlib
import hashlib
import json
import pathlib
import sys

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
MAPS = 1e-4  # most that a raw map or a coordinate may differ by
PIXELS = 1e-3  # most that a point may be off by
OTHERS = 1e-3  # relative, of scores and whatever else is given


class Refused(RuntimeError):
    """Why a model is not loaded: a file is damaged, or the golden picture gives other points."""


def load(folder=HERE, check=True, providers=None):
    """Opens the model.

    Args:
      folder: of the artefact.
      check: run the golden picture and compare.
      providers: of onnxruntime, for other devices than the CPU; in 32 bits, or the check fails:
        [("CUDAExecutionProvider", {"use_tf32": 0})].

    Returns:
      A function from an image, uint8 RGB [H, W, 3], to the outputs by name; of a model that reads
      boxes, from an image and a box (x0, y0, x1, y1), edges in pixels.

    Raises:
      Refused: a RuntimeError, if the golden picture gives other points or a file is damaged.
    """
    folder = pathlib.Path(folder)
    told = metadata(folder)
    _check_files(folder, told["sha256"])
    file, runtime = _RUNTIMES[told["format"]]
    with _naming(folder / file):
        predict = runtime(folder, *([providers] if providers else []))
    if check:
        wrong = examine(folder, predict)["wrong"]
        if wrong:
            raise Refused(f"{folder} fails its golden check: {'; '.join(wrong)}.")
    return predict


@contextlib.contextmanager
def _naming(what):
    """Turns whatever a library raises for a damaged file into a sentence that names it."""
    try:
        yield
    except (Refused, ImportError):
        raise
    except Exception as error:  # each library has a dozen kinds
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise Refused(
            f"{what} cannot be read ({reason:.200}): it is damaged, or the runtime is too old; "
            "copy or export the model again."
        ) from error


def metadata(folder):
    """Returns what metadata.json tells: `format`, `points` and `sha256` of the model's files."""
    path = pathlib.Path(folder) / "metadata.json"
    with _naming(path):
        told = json.loads(path.read_text(encoding="utf-8"))
        if told["format"] not in _RUNTIMES:
            raise ValueError(f"the format {told['format']!r} is not known")
        points = told["points"]
        if not isinstance(points, list) or not all(isinstance(name, str) for name in points):
            raise ValueError("points must be a list of names")
        hashes = told["sha256"]
        if not isinstance(hashes, dict) or _RUNTIMES[told["format"]][0] not in hashes:
            raise ValueError("the model has no sha256")
    return told


def _check_files(folder, hashes):
    for name, expected in hashes.items():
        with _naming(folder / name):
            digest = hashlib.sha256()
            with (folder / name).open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        if digest.hexdigest() != expected:
            raise Refused(f"{folder / name} is not as it was exported; copy or export it again.")


def golden(folder):
    """Returns the inputs of the golden picture, and the outputs by name that it should give."""
    path = pathlib.Path(folder) / "golden.npz"
    with _naming(path):
        with np.load(path) as stored:
            arrays = dict(stored)
        image, box = arrays.pop("image"), arrays.pop("box", None)
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise ValueError("it holds no picture")
        if not {"maps", "coordinates"} & set(arrays):
            raise ValueError("it holds nothing that the network gives")
    return ([image] if box is None else [image, box]), arrays


def examine(folder, predict):
    """Lets a model read the golden picture, and returns what `compare` says."""
    names = metadata(folder)["points"]
    inputs, expected = golden(folder)
    with _naming(f"{pathlib.Path(folder) / 'golden.npz'}, or the model beside it,"):
        found = predict(*inputs)
        if found["points"].shape != (len(names), 2):
            raise ValueError(f"metadata.json names {len(names)} points of {len(found['points'])}")
        for name, value in expected.items():
            if name not in found or found[name].shape != value.shape:
                raise ValueError(f"{name} is nothing that the model gives, or of another shape")
        return compare(found, expected, names)


def compare(found, expected, names):
    """Compares the outputs for one picture with those that are expected.

    Args:
      found: outputs by name.
      expected: likewise.
      names: of the K points.

    Returns:
      {'maps': largest difference of raw maps or coordinates, 'pixels': [K] distances of points,
      'swapped': names of points whose map has two peaks that are equal within twice the tolerance
      of maps, of which the other one was taken, 'wrong': sentences about what is not in order}.
    """
    raw = "maps" if "maps" in expected else "coordinates"
    difference = float(np.abs(found[raw] - expected[raw]).max())
    distance = np.hypot(*np.moveaxis(found["points"] - expected["points"], -1, 0))
    other_peak = np.zeros(len(names), bool)
    if raw == "maps":
        flat = expected["maps"].reshape(-1, len(names))
        chosen = found["maps"].reshape(-1, len(names)).argmax(0)
        lower = flat.max(0) - flat[chosen, np.arange(len(names))]
        other_peak = (chosen != flat.argmax(0)) & (lower <= 2 * MAPS)
    far = ~(distance <= PIXELS)
    wrong = [] if difference <= MAPS else [f"{raw} differ by {difference:.3g}"]
    for k in np.flatnonzero(far & ~other_peak):
        wrong.append(f"{names[k]} is off by {distance[k]:.3g} px")
    for name in sorted(set(expected) - {raw, "points"}):
        same = np.isclose(found[name], expected[name], OTHERS, MAPS, equal_nan=True)
        if not np.all(same | ((far & other_peak) if same.shape == far.shape else False)):
            wrong.append(f"{name} differs")
    swapped = [names[k] for k in np.flatnonzero(far & other_peak)]
    return {"maps": difference, "pixels": distance, "swapped": swapped, "wrong": wrong}


def _with_jax(folder):
    import jax
    from jax import export

    exported = export.deserialize(bytearray((folder / "model.stablehlo").read_bytes()))
    call = jax.jit(exported.call)

    def predict(image, *box):
        found = call(np.asarray(image, np.uint8), *(np.asarray(b, np.float32) for b in box))
        return {name: np.asarray(value) for name, value in found.items()}

    return predict


def _with_tensorflow(folder):
    import tensorflow as tf

    model = tf.saved_model.load(str(folder / "saved_model"))
    call = model.signatures["serving_default"]

    def predict(image, *box):
        inputs = {"image": tf.constant(image, tf.uint8)}
        if box:
            inputs["box"] = tf.constant(box[0], tf.float32)
        return {name: value.numpy() for name, value in call(**inputs).items()}

    return predict


def _with_onnxruntime(folder, providers=("CPUExecutionProvider",)):
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=list(providers))
    names = [output.name for output in session.get_outputs()]

    def predict(image, *box):
        inputs = {"image": np.asarray(image, np.uint8)}
        if box:
            inputs["box"] = np.asarray(box[0], np.float32)
        return dict(zip(names, session.run(names, inputs), strict=True))

    return predict


_RUNTIMES = {  # by format, the file that must be there and what opens it
    "stablehlo": ("model.stablehlo", _with_jax),
    "savedmodel": ("saved_model/saved_model.pb", _with_tensorflow),
    "onnx": ("model.onnx", _with_onnxruntime),
}


def main():
    """Parses the command line, checks the model and reads an image if one is given."""
    parser = argparse.ArgumentParser(
        prog="python check.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--image", help="a .npy file of uint8 RGB [H, W, 3]")
    parser.add_argument("--box", nargs=4, type=float, help="x0 y0 x1 y1, for models of boxes")
    options = parser.parse_args()
    try:
        _report(options.image, options.box)
    except Refused as error:
        print(error, file=sys.stderr)
        sys.exit(2)


def _report(image, box):
    predict = load(check=False)
    told = examine(HERE, predict)
    print(f"golden picture: maps within {told['maps']:.2g}", end=", ")
    print(f"points within {told['pixels'].max():.2g} px")
    if told["swapped"]:
        print(f"took the other of two equal peaks: {', '.join(told['swapped'])}")
    if told["wrong"]:
        sys.exit(f"The model fails its golden check: {'; '.join(told['wrong'])}.")
    if image:
        with _naming(image):
            found = predict(np.load(image), *([box] if box else []))
        for name, (x, y) in zip(metadata(HERE)["points"], found["points"], strict=True):
            print(f"{name}\t{x:.2f}\t{y:.2f}")


if __name__ == "__main__":
    main()
