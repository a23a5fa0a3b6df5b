"""Damages files at random and reads them: nothing may come but an answer or a named error.

    python -m tests.fuzzing [--minutes=60] [--kinds coco png …]

Each kind is a folder of good files and a way to read them. A round changes one file, at the level
of its bytes or, if it is JSON, of its values, and reads it; whatever is raised other than
`UserError` is a find: the damaged file is kept under tests/corpus/KIND/, which
tests/test_fuzzing.py reads again each time the tests run. Prints the rounds and the finds.
"""

import argparse
import dataclasses
import hashlib
import json
import pathlib
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

import input_pipeline
from heatmap import run as run_lib
from heatmap.errors import UserError
from heatmap.inference import scales, uncertainty
from heatmap.inference.uncertainty import Calibration, Line, Steps
from input_pipeline import coco, sources
from tests import beetles
from tests.conftest import write_spots
from tests.helpers import make_config
from tests.label_files import data_config
from tests.projects import write_coco, write_deeplabcut

CORPUS = pathlib.Path(__file__).parent / "corpus"
_SECONDS = 120  # after which a read counts as hanging
_STRANGE: list[Any] = [
    *(None, True, -1, 0, 1e308, -1e308, float("nan"), 2**70, "", "a" * 300, "../../x", "\0", "1"),
    *([], {}, [[]], [None], {"a": 1}, [1, 2], [[1, 2], [3, 4]]),
]


@dataclasses.dataclass(frozen=True)
class Kind:
    """One sort of file.

    Attributes:
      build: writes a folder of good files.
      damaged: globs of those that are damaged.
      read: reads what is in the folder.
    """

    build: Callable[[pathlib.Path], object]
    damaged: tuple[str, ...]
    read: Callable[[pathlib.Path], object]


def _reader(name: str, folder: str = ".", method: str = "hash") -> Callable[[pathlib.Path], object]:
    def read(root: pathlib.Path):
        config = data_config(root / folder, name=name)
        split = dataclasses.replace(config.split, method=method)
        return input_pipeline.load(dataclasses.replace(config, split=split))

    return read


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


def _build_run(root: pathlib.Path) -> None:
    from heatmap.train import train

    with tempfile.TemporaryDirectory() as data:
        config = make_config(
            **{
                "data.name": "simple_json",
                "data.root": str(write_spots(pathlib.Path(data))),
                "data.image_size": (16, 16),
                "targets.heatmap_size": (4, 4),
                "train.steps": 1,
                "train.batch_size": 2,
                "eval.sheet_examples": 0,
                "log.tensorboard": False,
            }
        )
        train(config, root / "run")


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
    "hawaii": Kind(
        lambda root: beetles.write_hawaii(root, trays=4, cell=60),
        ("*.json", "*.csv"),
        _reader("hawaii"),
    ),
    "biorepo": Kind(
        lambda root: beetles.write_biorepo(root, cell=60), ("*.json", "*.csv"), _reader("biorepo")
    ),
    "scales": Kind(_build_scales, ("*.csv",), lambda root: scales.read(root / "scales.csv")),
    "calibration": Kind(
        lambda root: uncertainty.save(root, _CALIBRATION), ("calibration/*",), _read_calibration
    ),
    "checkpoint": Kind(
        _build_run,
        ("run/config.json", "run/checkpoints/**/*"),
        lambda root: run_lib.open_run(root / "run"),
    ),
}


def damage(data: bytes, rng: random.Random) -> bytes:
    """Changes a file's content: its JSON values, where it has some, or its bytes."""
    if rng.random() < 0.6:
        try:
            content = json.loads(data)
        except ValueError:
            pass
        else:
            return json.dumps(_with_strange(content, rng)).encode()
    body = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        place = rng.randrange(len(body) + 1)
        how = rng.random()
        if how < 0.4 and body:
            body[min(place, len(body) - 1)] = rng.randrange(256)
        elif how < 0.6:
            body[place : place + rng.randrange(1, 30)] = b""
        elif how < 0.8:
            body[place:place] = rng.choice((b"\0", b",", b"-", b"9" * 20, b"\xff\xfe", b"\n", b'"'))
        elif how < 0.9:
            body[place:place] = body[: rng.randrange(1, 60)]
        else:
            del body[place:]
    return bytes(body)


def _with_strange(content: Any, rng: random.Random) -> Any:
    """Replaces, removes or doubles one value somewhere in nested JSON."""
    if not isinstance(content, dict | list) or not content or rng.random() < 0.15:
        return rng.choice(_STRANGE)
    key = rng.choice(list(content) if isinstance(content, dict) else range(len(content)))
    how = rng.random()
    if how < 0.1:
        del content[key]
    elif how < 0.2 and isinstance(content, list):
        content.append(content[key])
    elif how < 0.25 and isinstance(content, dict):
        content[rng.choice(("", "x", key + key))] = content.pop(key)
    else:
        content[key] = _with_strange(content[key], rng)
    return content


def attempt(kind: Kind, root: pathlib.Path) -> str:
    """Reads a folder; returns what was raised that should not have been, or nothing."""

    def late(*_: Any) -> None:
        raise TimeoutError(f"still reading after {_SECONDS} s")

    signal.signal(signal.SIGALRM, late)
    signal.alarm(_SECONDS)
    try:
        kind.read(root)
    except UserError:
        return ""
    except Exception:
        return traceback.format_exc()
    finally:
        signal.alarm(0)
    return ""


def fuzz(name: str, root: pathlib.Path, seconds: float, rng: random.Random) -> Counter[str]:
    """Damages one kind of file for a while; returns counts of rounds and finds."""
    kind, counts, seen = KINDS[name], Counter[str](), set()
    good = root / "good"
    good.mkdir()
    kind.build(good)
    files = sorted(p for glob in kind.damaged for p in good.glob(glob) if p.is_file())
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        file = rng.choice(files)
        data = file.read_bytes()
        broken = damage(data, rng)
        file.write_bytes(broken)
        found = attempt(kind, good)
        file.write_bytes(data)
        counts["rounds"] += 1
        where = found.strip().splitlines()[-3:] if found else []
        if found and tuple(where[:1]) not in seen:
            seen.add(tuple(where[:1]))
            counts["finds"] += 1
            _keep(name, file.relative_to(good), broken)
            print(f"{name}: {file.relative_to(good)}\n{found}", file=sys.stderr, flush=True)
    shutil.rmtree(good)
    return counts


def _keep(name: str, file: pathlib.Path, data: bytes) -> None:
    """Adds a damaged file to the corpus, with what it takes the place of in its name."""
    folder = CORPUS / name
    folder.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(data).hexdigest()[:8]
    (folder / f"{digest}--{str(file).replace('/', '--')}").write_bytes(data)


def main() -> None:
    """Parses the command line and damages each kind in turn."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzzing", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0, help="of all kinds together")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    total: Counter[str] = Counter()
    for name in options.kinds:
        with tempfile.TemporaryDirectory() as root:
            share = 60 * options.minutes / len(options.kinds)
            counts = fuzz(name, pathlib.Path(root), share, random.Random(f"{options.seed}{name}"))
        print(f"{name:12} {counts['rounds']:8} rounds {counts['finds']:4} finds", flush=True)
        total += counts
    print(f"{'all':12} {total['rounds']:8} rounds {total['finds']:4} finds")


if __name__ == "__main__":
    main()
