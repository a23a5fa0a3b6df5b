"""Loads the exported model that lies beside this file, and refuses one that does not agree.

    python check.py                      # says how far it is from the golden points
    python check.py --image=pixels.npy   # uint8 RGB [H, W, 3]: prints the points

    from check import load
    predict = load()                     # raises if the golden picture gives other points
    found = predict(image)               # {"points": [K, 2], …}, pixels of the image, NumPy

This file stands alone: it needs NumPy and the runtime of the format (JAX, TensorFlow or
onnxruntime), not the program that wrote it.
"""

import argparse
import json
import pathlib
import sys

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
MAPS = 1e-4  # most that a raw map or a coordinate may differ by
PIXELS = 1e-3  # most that a point may be off by
OTHERS = 1e-3  # relative, of scores and whatever else is given


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
      RuntimeError: if the golden picture gives other points.
    """
    folder = pathlib.Path(folder)
    metadata = json.loads((folder / "metadata.json").read_text())
    predict = _RUNTIMES[metadata["format"]](folder, *([providers] if providers else []))
    if check:
        inputs, expected = golden(folder)
        wrong = compare(predict(*inputs), expected, metadata["points"])["wrong"]
        if wrong:
            raise RuntimeError(f"{folder} fails its golden check: {'; '.join(wrong)}.")
    return predict


def golden(folder):
    """Returns the inputs of the golden picture, and the outputs by name that it should give."""
    with np.load(pathlib.Path(folder) / "golden.npz") as stored:
        arrays = dict(stored)
    return [arrays.pop(name) for name in ("image", "box") if name in arrays], arrays


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


_RUNTIMES = {
    "stablehlo": _with_jax,
    "savedmodel": _with_tensorflow,
    "onnx": _with_onnxruntime,
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
    metadata = json.loads((HERE / "metadata.json").read_text())
    names = metadata["points"]
    predict = load(check=False)
    inputs, expected = golden(HERE)
    told = compare(predict(*inputs), expected, names)
    print(f"golden picture: maps within {told['maps']:.2g}", end=", ")
    print(f"points within {told['pixels'].max():.2g} px")
    if told["swapped"]:
        print(f"took the other of two equal peaks: {', '.join(told['swapped'])}")
    if told["wrong"]:
        sys.exit(f"The model fails its golden check: {'; '.join(told['wrong'])}.")
    if options.image:
        box = [options.box] if options.box else []
        found = predict(np.load(options.image), *box)
        for name, (x, y) in zip(names, found["points"], strict=True):
            print(f"{name}\t{x:.2f}\t{y:.2f}")


if __name__ == "__main__":
    main()
