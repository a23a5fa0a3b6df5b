"""Writes a trained model as one artefact that runs without this program.

    python -m heatmap.export --workdir=runs/sigma2 --format=onnx [--out=DIR]

It takes a picture, uint8 RGB [H, W, 3] of any size, and gives points in its pixels: resampling,
network and decoder are inside. Before it takes its place it has to find the points that evaluation
finds on a picture of the validation split.
"""

import contextlib
import dataclasses
import importlib.metadata
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from heatmap import compilation, state, workdir
from heatmap import run as run_lib
from heatmap.command_line import parser
from heatmap.config import Config
from heatmap.errors import UserError, guard
from heatmap.export import artefact, golden, intervals, onnx_model, program, stablehlo
from heatmap.export.program import Program
from heatmap.inference import lengths, uncertainty
from heatmap.inference.predictor import Predictor
from heatmap.run import Run


def _saved_model(folder: pathlib.Path, exporting: Program) -> None:
    from jax.experimental import jax2tf

    from input_pipeline import saved_model

    core = jax2tf.convert(
        exporting.core, with_gradient=False, native_serialization_platforms=stablehlo.PLATFORMS
    )
    data = exporting.config.data
    saved_model.write(folder / "saved_model", core, data, exporting.boxed)


@dataclasses.dataclass(frozen=True)
class Format:
    """A kind of artefact.

    Attributes:
      write: (folder, program) -> None.
      check: finds that the libraries it needs are there; raises UserError.
      packages: whose versions are written down.
    """

    write: Callable[[pathlib.Path, Program], None]
    check: Callable[[], Any]
    packages: tuple[str, ...]


FORMATS = {
    "stablehlo": Format(stablehlo.write, lambda: None, ("jax", "jaxlib")),
    "savedmodel": Format(_saved_model, lambda: None, ("jax", "tensorflow")),
    "onnx": Format(onnx_model.write, onnx_model.libraries, ("jax", "onnx", "onnxruntime")),
}


def export(
    folder: pathlib.Path,
    kind: str,
    out: pathlib.Path,
    config: Config,
    boxes: bool,
    measure: Sequence[str] = (),
) -> str:
    """Writes an artefact of the best checkpoint of a workdir.

    Args:
      folder: the workdir of a finished run.
      kind: a key of FORMATS.
      out: the folder to make.
      config: the run's config, with `data.root` where the data are now.
      boxes: read the boxes of instances instead of whole pictures.
      measure: lengths besides those of the data set, as --measure of heatmap.predict.

    Returns:
      How well the artefact agrees with the program.

    Raises:
      UserError: if the run has not finished, its data are not there, the folder is, libraries are
        missing, or a length makes no sense.
    """
    chosen = FORMATS[kind]
    chosen.check()
    artefact.refuse_occupied(out)
    if not workdir.read_metrics(folder):
        raise UserError(f"{folder} has not finished training; give the same command again first.")
    if boxes and config.data.crop == "image":
        raise UserError(f"{folder} was trained on whole pictures (data.crop='image'): no --boxes.")
    run = run_lib.open_run(folder, config)
    points = lengths.with_measurements(run.points, measure)
    run = dataclasses.replace(run, points=points)
    boxed = boxes or config.data.crop == "box"
    calibration = uncertainty.load_for(folder, Predictor([run]).identity(), boxed)
    exporting = program.build(run, boxed, intervals.extra(calibration, points))
    chosen_golden = golden.choose(folder, run, boxed, calibration)
    facts = _facts(folder, run, kind)
    if calibration:
        facts |= {
            "levels": list(calibration.levels),
            "confidence_within": calibration.within,
        }
    with artefact.making(out) as temporary:
        chosen.write(temporary, exporting)
        artefact.write_around(temporary, chosen_golden, points, facts)
        told = artefact.check(temporary)
    return told if calibration else f"{told}\nno intervals: this run alone is not calibrated"


def _facts(folder: pathlib.Path, run: Run, kind: str) -> dict[str, Any]:
    """Says where an artefact is from."""
    packages = ("heatmap", *FORMATS[kind].packages)
    return {
        "format": kind,
        "run": folder.absolute().name,
        "model": run.config.model.name,
        "decoder": dataclasses.asdict(run.config.decoder),
        "measurements": [list(line) for line in run.points.measurements],
        "weights_sha256": state.tree_sha256(run.weights),
        "versions": {name: _version(name) for name in packages},
    }


def _version(package: str) -> str:
    """Returns the version that is installed, '' if the package was not installed by that name."""
    for name in (package, f"{package}-cpu"):  # TensorFlow for CPUs has a name of its own
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    return ""


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line and exports."""
    flags = parser("python -m heatmap.export", __doc__)
    flags.add_argument("--workdir", type=pathlib.Path, required=True, help="of a finished run")
    flags.add_argument("--format", choices=FORMATS, required=True)
    flags.add_argument("--out", type=pathlib.Path, help="default: WORKDIR/export/FORMAT")
    flags.add_argument("--root", default="", help="where the data are now, if they have moved")
    flags.add_argument("--boxes", action="store_true", help="read boxes of instances")
    lengths.add_flag(flags)
    options = flags.parse_args(arguments)
    config = workdir.read_config(options.workdir)
    data = dataclasses.replace(config.data, root=options.root or config.data.root)
    config = dataclasses.replace(config, data=data)
    out = options.out or options.workdir / "export" / options.format
    compilation.keep()
    told = export(options.workdir, options.format, out, config, options.boxes, options.measure)
    print(told)
    print(f"wrote {out}")


if __name__ == "__main__":
    guard(main)
