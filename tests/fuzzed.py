"""The sorts of files that are read: how good ones are made, which are damaged, who reads them.

Two kinds are read in a process of their own, because a library that is not ours may die of what it
reads: HDF5 (PyTables) and videos (FFmpeg). TensorFlow, JAX and onnxruntime are never given a
damaged model: the check.py of an artefact refuses one whose hash is another, before they see it.
"""

import contextlib
import dataclasses
import functools
import io
import os
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any
from unittest import mock

import numpy as np
import pandas
from PIL import Image

import input_pipeline
from heatmap import evaluate, prediction_table, workdir
from heatmap import run as run_lib
from heatmap.config import Config
from heatmap.errors import UserError
from heatmap.export import artefact, check, golden, program
from heatmap.export.__main__ import FORMATS
from heatmap.inference import files, scales, uncertainty
from heatmap.inference.instances import Instances
from heatmap.inference.parts import Parts
from heatmap.inference.tables import Meaning
from heatmap.inference.uncertainty import Calibration, Line, Steps
from heatmap.keypoints import KeypointSet
from heatmap.predictions import Predictions
from heatmap.report import methods
from input_pipeline import coco, pictures, sources, video
from input_pipeline.sources import WHOLE, Source
from tests import beetles
from tests.conftest import write_spots
from tests.helpers import make_config
from tests.label_files import data_config
from tests.projects import write_coco, write_deeplabcut, write_film

_POINTS = KeypointSet(("bright", "dim"))


@dataclasses.dataclass(frozen=True)
class Kind:
    """One sort of file.

    Attributes:
      build: writes a folder of good files.
      damaged: globs of those that are damaged.
      read: reads what is in the folder.
      refusals: what it may raise.
      apart: whether it is read in a process of its own, which may die; all of it can be pickled.
    """

    build: Callable[[pathlib.Path], object]
    damaged: tuple[str, ...]
    read: Callable[[pathlib.Path], object]
    refusals: tuple[type[Exception], ...] = (UserError,)
    apart: bool = False


def _labels(root: pathlib.Path, name: str, folder: str = ".", **changes: Any) -> None:
    config = data_config(root / folder, name=name)
    split = dataclasses.replace(config.split, **changes)
    input_pipeline.load(dataclasses.replace(config, split=split))


def _reader(name: str, folder: str = ".", method: str = "hash") -> Callable[[pathlib.Path], object]:
    return functools.partial(_labels, name=name, folder=folder, method=method)


def _picture(suffix: str, **options: Any) -> Kind:
    def build(root: pathlib.Path) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
        image = Image.fromarray(pixels)
        (image.quantize(8) if suffix == "gif" else image).save(root / f"a.{suffix}", **options)

    return Kind(build, ("a.*",), lambda root: sources.read_picture(root / f"a.{suffix}", 1.0))


def _turned() -> bytes:
    """EXIF that says that the picture lies on its side."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif.tobytes()


def _build_scales(root: pathlib.Path) -> None:
    (root / "scales.csv").write_text(
        "file,px_per_cm,px_per_cm_sd,x0,y0,x1,y1,cm\na.png,20,0.5,,,,,\nb.png,,,1,2,30,40,2\n"
    )


_CALIBRATION = Calibration(
    "0" * 16,
    (0.9,),
    9,
    9,
    {"a": (1.0,)},
    {"b": Line(0, 0, (np.nan,))},
    0.05,
    Steps((0.1, 0.5), (0.2, 0.8)),
)


def _read_calibration(root: pathlib.Path) -> None:
    uncertainty.load(root, _CALIBRATION.identity)


def _tiny(root: str = "") -> Config:
    return make_config(
        **{
            "data.name": "simple_json",
            "data.root": root,
            "data.image_size": (16, 16),
            "targets.heatmap_size": (4, 4),
            "train.steps": 1,
            "train.batch_size": 2,
            "eval.sheet_examples": 0,
            "log.tensorboard": False,
        }
    )


def _build_run(root: pathlib.Path) -> None:
    from heatmap.train import train

    with tempfile.TemporaryDirectory() as data:
        train(_tiny(str(write_spots(pathlib.Path(data)))), root / "run")


def _build_h5(root: pathlib.Path) -> None:
    """Writes the tables as DeepLabCut does, with pandas."""
    write_deeplabcut(root / "project", 3, 3)
    for table in root.glob("project/labeled-data/*/*.csv"):
        frame = pandas.read_csv(table, header=[0, 1, 2], index_col=0)
        frame.columns.names = ["scorer", "bodyparts", "coords"]
        frame.to_hdf(table.with_suffix(".h5"), key="df_with_missing", mode="w")
        table.unlink()


def _build_film(root: pathlib.Path) -> None:
    rng = np.random.default_rng(0)
    write_film(root / "a.mp4", list(rng.integers(0, 256, (6, 32, 48, 3), dtype=np.uint8)))


def _read_film(root: pathlib.Path) -> None:
    video.count(root / "a.mp4")
    for _ in video.frames(root / "a.mp4"):
        pass


_SETTINGS = {"predictor": "0" * 64, "boxes": ""}
_SOURCES = [
    Source("a/one.png", pathlib.Path("a/one.png"), False, "1-2"),
    Source("a/two.png", pathlib.Path("a/two.png"), False, "3-4"),
    Source("film.mp4", pathlib.Path("film.mp4"), True, "5-6"),
]


def _build_parts(root: pathlib.Path) -> None:
    parts = Parts(root / "out", _SETTINGS)
    one, two, film = _SOURCES
    parts.add(_found([one, two, film], [WHOLE, WHOLE, 0]), {one: (-1, -1), film: (0, 0)}, {})
    parts.add(_found([film, film], [1, 2]), {two: (-1, -1), film: (1, 2)}, {film: 3})


def _found(of: list[Source], frames: list[int]) -> Instances:
    rng, n = np.random.default_rng(0), len(of)
    return Instances(
        source=np.array([source.name for source in of]),
        frame=np.array(frames, np.int64),
        instance=np.zeros(n, np.int32),
        size=np.full((n, 2), 40, np.int32),
        box=np.tile([-0.5, -0.5, 39.5, 39.5], (n, 1)),
        unit=np.ones((n, 2)),
        points=rng.uniform(0, 40, (n, 2, 2)),
        score=rng.uniform(size=(n, 2)),
        covariance=np.tile(np.eye(2), (n, 2, 1, 1)),
    )


def _read_parts(root: pathlib.Path) -> None:
    """Does with the parts all that heatmap.predict does."""
    parts = Parts(root / "out", _SETTINGS)
    for source in parts.missing(_SOURCES):
        parts.next_frame(source)
    meaning = Meaning(_POINTS, _tiny(), None, scales.Scales())
    formats = ("parquet", "csv", "coco", "deeplabcut")
    with tempfile.TemporaryDirectory() as out:
        files.write(formats, pathlib.Path(out), lambda: parts.stream(_SOURCES), meaning)


def _build_scores(root: pathlib.Path) -> None:
    scores = {f"{split}/{name}": 0.5 for split in ("val", "test") for name in ("loss", "pck@0.1")}
    evaluate.save_metrics(root / workdir.METRICS, {**scores, "val/error_px": None})
    line = {"epoch": 1, "step": 2, "train_loss": 0.5, "val_loss": None}
    workdir.write_json(root / workdir.TRAINING_LOG, {"unet": [line, line]})
    table = _found(_SOURCES, [0, 1, 2])
    predictions = Predictions(
        ids=table.source,
        instances=table.instance,
        groups=table.source,
        predicted=table.points,
        score=table.score,
        entropy=table.score,
        height=table.score,
        truth=table.points,
        weight=np.ones((3, 2)),
        boxes=table.box,
        areas=np.ones(3),
        sizes=table.size,
        px_per_cm=np.ones(3),
        species=table.source,
        dataset=table.source,
    )
    prediction_table.save(root / "val.parquet", predictions, _POINTS.names, csv=False)


def _read_scores(root: pathlib.Path) -> None:
    evaluate.table(workdir.read_metrics(root))
    log = methods.read_log(root, _tiny())
    predictions = prediction_table.load(root / "val.parquet", _POINTS.names)
    methods.describe("a", root, _tiny(), _POINTS, workdir.read_metrics(root), log, predictions)


def _cached(root: pathlib.Path, build: bool = False) -> None:
    """Keeps decoded pictures on disk, or takes them from there."""
    if build:
        write_spots(root)
    config = dataclasses.replace(_tiny(str(root)).data, cache=pictures.DISK)
    quiet = contextlib.redirect_stderr(io.StringIO())  # no bar of progress
    with quiet, mock.patch.dict(os.environ, XDG_CACHE_HOME=str(root / "caches")):
        records, _ = input_pipeline.load(config)
        for _ in pictures.each(pictures.keep(records, config), config):
            pass


def _artefact(name: str) -> Kind:
    """An exported model; its hash tells whether it is the one that was exported."""
    files = {"savedmodel": "saved_model/**/*"}.get(name, f"model.{name}")

    def build(root: pathlib.Path) -> None:
        run = run_lib.build(_tiny(), _POINTS)
        FORMATS[name].write(root, program.build(run, boxed=False))
        image = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        picture = golden.Golden({"image": image}, golden.evaluator(run)(image), True)
        artefact.write_around(root, picture, run.points, {"format": name})

    return Kind(build, (files, "metadata.json", "golden.npz"), check.load, (check.Refused,))


KINDS = {
    "png": _picture("png"),
    "jpeg": _picture("jpg", exif=_turned()),
    "gif": _picture("gif"),
    "bmp": _picture("bmp"),
    "simple_json": Kind(write_spots, ("*.json",), _reader("simple_json", method="given")),
    "coco": Kind(lambda root: write_coco(root, 12), ("annotations.json",), _reader("coco")),
    "boxes": Kind(
        lambda root: write_coco(root, 3),
        ("annotations.json",),
        lambda root: coco.read_boxes(root / "annotations.json"),
    ),
    "deeplabcut": Kind(
        lambda root: write_deeplabcut(root / "project", 4, 3),
        ("project/config.yaml", "project/labeled-data/*/*.csv"),
        _reader("deeplabcut", "project"),
    ),
    "deeplabcut_h5": Kind(
        _build_h5,
        ("project/labeled-data/*/*.h5",),
        _reader("deeplabcut", "project"),
        apart=True,
    ),
    "hawaii": Kind(
        lambda root: beetles.write_hawaii(root, trays=4, cell=60),
        ("*.json", "*.csv"),
        _reader("hawaii"),
    ),
    "biorepo": Kind(
        lambda root: beetles.write_biorepo(root, cell=60), ("*.json", "*.csv"), _reader("biorepo")
    ),
    "beetlepalooza": Kind(
        lambda root: beetles.write_beetlepalooza(root, trays=4, cell=60),
        ("*.json",),
        _reader("beetlepalooza"),
    ),
    "video": Kind(_build_film, ("a.mp4",), _read_film, apart=True),
    "scales": Kind(_build_scales, ("*.csv",), lambda root: scales.read(root / "scales.csv")),
    "calibration": Kind(
        lambda root: uncertainty.save(root, _CALIBRATION), ("calibration/*",), _read_calibration
    ),
    "parts": Kind(_build_parts, ("out/predict.json", "out/parts/*"), _read_parts),
    "scores": Kind(_build_scores, ("*.json", "*.parquet"), _read_scores),
    "cache": Kind(functools.partial(_cached, build=True), ("caches/**/*",), _cached),
    "stablehlo": _artefact("stablehlo"),
    "onnx": _artefact("onnx"),
    "savedmodel": _artefact("savedmodel"),
    "checkpoint": Kind(
        _build_run,
        ("run/config.json", "run/checkpoints/**/*"),
        lambda root: run_lib.open_run(root / "run"),
    ),
}
