"""Input alone: pictures per second that the pipeline delivers, beside grain and PyTorch's loader.

    python -m benchmarks.input
    python -m benchmarks.input --size 1080 1920 --count 64
    python -m benchmarks.input --step
    python -m benchmarks.input --step --config=configs/sigma2.py

Reads the training pictures of a config again and again with its augmentation: from their files,
decoded once and kept, with the pixel work left to the device, and with the pictures there as well,
so that only numbers of augmentation and labels are delivered. They are the config's own if it
draws them itself or --config.data.root is given; otherwise photographs that are drawn into JPEG
files. grain and a torch DataLoader, of the extra `bench`, do the same pixel work with Pillow and
NumPy. Each contestant is a process of its own, and they take turns.

With --step, the input feeds training steps of the config's network, in turns with steps of the same
process on one batch that lies on the devices, ready: what is added is what input costs.
"""

import argparse
import importlib.util
import json
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks import contest, output
from benchmarks.contest import KEPT_MEMORY, Contestant, Result
from heatmap import command_line
from heatmap.config import Config
from heatmap.errors import guard

OURS = "tf.data"
NUMBERS = "numbers alone, pictures on the device"
WORKERS = 2
PEERS = {  # with what they call workers
    "torch": f"torch DataLoader, {WORKERS} processes",
    "grain": f"grain, {WORKERS} threads",
}
DRAWN = ("stick_figures", "specimens")  # data sets that draw themselves, into memory
_BUFFERED = 8  # batches that any of the libraries holds ready, and more
_PHOTOGRAPHS = (
    "--config.data.name=simple_json",
    "--config.data.measurements=()",
    "--config.data.split.method=hash",
    "--config.data.verify=False",
    "--config.loss.interchangeable=False",
    "--config.eval.metrics=('error_px',)",
    "--config.train.best_metric=",
    "--config.model.backbone_init=random",
    "--config.train.batch_size=32",
)


def draw_photographs(folder: pathlib.Path, count: int, size: tuple[int, int]) -> None:
    """Writes JPEG files with as much detail as photographs have, and their labels."""
    from PIL import Image

    rng = np.random.default_rng(0)
    pictures = folder / "train"
    pictures.mkdir(parents=True)
    points = [[round(size[1] * x), round(size[0] * 0.5)] for x in (0.2, 0.4, 0.6, 0.8)]
    images = []
    for i in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize(size[::-1], Image.Resampling.BICUBIC), np.float32)
        grain = rng.normal(0, 8, (*size, 1))
        picture = np.clip(smooth + grain, 0, 255).astype(np.uint8)
        Image.fromarray(picture).save(pictures / f"{i}.jpg", quality=90)
        images.append({"file_name": f"{i}.jpg", "keypoints": points})
    labels = {"keypoint_names": list("abcd"), "images": images}
    (folder / "train_annotations.json").write_text(json.dumps(labels))


def flags_for(options: argparse.Namespace, config: Config, root: pathlib.Path) -> list[str]:
    """Returns the flags of a config whose pictures are there, drawn into a folder if need be.

    Args:
      options: of the command line.
      config: that it describes.
      root: an empty folder.
    """
    flags = [f"--config={options.config}", f"--config.data.workers={WORKERS}"]
    if config.data.root:
        return flags
    if config.data.name not in DRAWN:
        draw_photographs(root, options.count, tuple(options.size))
        flags += [*_PHOTOGRAPHS, *(["--config.train.batch_size=8"] if options.step else [])]
    return [*flags, f"--config.data.root={root}"]


def contestants(
    flags: Sequence[str], root: pathlib.Path, seconds: float, steps: bool, in_memory: bool
) -> list[Contestant]:
    """Lists who takes part.

    Args:
      flags: of the config, for all.
      root: a folder for caches.
      seconds: of a turn.
      steps: whether they take steps on the pictures, or only deliver them.
      in_memory: whether the pictures are there from the start, and not in files.
    """

    def side(name: str, library: str, *more: str) -> Contestant:
        command = [sys.executable, "-m", "benchmarks.input", f"--serve={library}"]
        fields = [*more, *flags, f"--seconds={seconds}"]
        environment = {"XDG_CACHE_HOME": str(root / "caches")}
        if steps:
            environment |= KEPT_MEMORY
        return Contestant(name, [*command, *fields], environment)

    kept, device = "--config.data.cache=memory", "--config.augment.where=device"
    resident = "--config.data.cache=device", device
    first = f"{OURS}, from memory" if in_memory else f"{OURS}, from the files"
    on_device = f"{OURS}, kept in memory, pixel work on the device"
    if steps:
        return [
            side(first, "steps"),
            side(on_device, "steps", kept, device),
            side("on the device, pixel work too", "steps", *resident),
        ]
    sides = [side(first, "tf")]
    if not in_memory:
        sides += [
            side(f"{OURS}, kept in memory", "tf", kept),
            side(f"{OURS}, kept on disk", "tf", "--config.data.cache=disk"),
        ]
    sides += [side(on_device, "tf", kept, device), side(NUMBERS, "tf", *resident)]
    sides += [
        side(name, library) for library, name in PEERS.items() if importlib.util.find_spec(library)
    ]
    return sides


def batches_of_ours(config: Config) -> Iterator[Any]:
    """Yields training batches without end."""
    import input_pipeline
    from input_pipeline import batching

    records, split = input_pipeline.load(config.data)
    yield from batching.train_batches(records.take(split.rows["train"]), config, 0, 10**9)


class Pictures:
    """The pictures for the other libraries: decoded, moved and recoloured by Pillow and NumPy."""

    def __init__(self, config: Config, length: int):
        import input_pipeline
        from input_pipeline import augment

        self._config, self._length = config, length
        records, split = input_pipeline.load(config.data)
        self._records = records.take(split.rows["train"])
        self._boxes = augment.source_boxes(self._records, config.data)
        changes = config.augment
        self._recolours = any(
            (changes.brightness, changes.contrast, changes.saturation, changes.hue)
        )

    def __len__(self) -> int:
        """As many examples as are asked for: epochs run on."""
        return self._length

    def __getitem__(self, index: int) -> np.ndarray:
        """Returns an augmented picture, uint8 [H, W, C]."""
        from PIL import Image

        from heatmap import geometry
        from input_pipeline import augment

        epoch, row = divmod(int(index), len(self._records))
        size = self._config.data.image_size
        uniforms = augment.uniforms(0, epoch, row, row + 1)
        drawn = augment.draw(self._boxes[row : row + 1], uniforms, self._config.augment, size)
        (down, across), numbers = augment.warp_parameters(drawn.input_from_original[0])
        half = np.eye(3)
        half[:2, 2] = 0.5  # Pillow counts from the corner of the first pixel
        averaged_from_input = np.append(numbers, 1).reshape(3, 3)
        transform = (half @ averaged_from_input @ geometry.invert(half))[:2].ravel()
        with self._open(row) as image:
            moved = image.reduce((int(across), int(down))).transform(
                size[::-1], Image.Transform.AFFINE, tuple(transform), Image.Resampling.BILINEAR
            )
        if self._recolours:
            moved = _recoloured(moved, drawn.colour[0])
        return np.array(moved).reshape(*size, -1)

    def _open(self, row: int) -> Any:
        """Opens a picture of Pillow, grey or in colours as the network sees it."""
        from PIL import Image

        mode = "L" if self._config.data.channels == 1 else "RGB"
        if self._records.pixels is None:
            return Image.open(self._records.files[row]).convert(mode)
        pixels = self._records.pixels[row]
        return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).convert(mode)


def _recoloured(picture: Any, colour: np.ndarray) -> Any:
    """Changes brightness, contrast, saturation and hue of a picture of Pillow."""
    from PIL import Image, ImageEnhance

    kinds = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for enhance, factor in zip(kinds, colour, strict=False):
        picture = enhance(picture).enhance(float(factor))
    if picture.mode == "L":
        return picture
    hue, saturation, value = (np.asarray(part) for part in picture.convert("HSV").split())
    turned = np.stack([hue + np.uint8(round(colour[3] * 255) % 256), saturation, value])
    return Image.fromarray(turned.transpose(1, 2, 0), "HSV").convert("RGB")


def batches_of_torch(config: Config) -> Iterator[Any]:
    """Yields the batches of a torch DataLoader without end."""
    from torch.utils import data

    pictures: Any = Pictures(config, 10**7)  # a torch Dataset by what it can do, not by its class
    order = data.RandomSampler(pictures, replacement=True)
    size = config.train.batch_size
    yield from data.DataLoader(pictures, size, sampler=order, num_workers=WORKERS)


def batches_of_grain(config: Config) -> Iterator[Any]:
    """Yields the batches of grain without end."""
    import grain

    size = config.train.batch_size
    source = grain.MapDataset.source(Pictures(config, 10**7)).shuffle(seed=0)
    reading = grain.ReadOptions(num_threads=WORKERS, prefetch_buffer_size=4 * size)
    yield from source.to_iter_dataset(reading).batch(size)


LIBRARIES: dict[str, Callable[[Config], Iterator[Any]]] = {
    "tf": batches_of_ours,
    "torch": batches_of_torch,
    "grain": batches_of_grain,
}


def serve_steps(config: Config, seconds: float) -> None:
    """Says, when it is told to, how many times as long a step takes that the input has to feed."""
    import input_pipeline
    from benchmarks.step_jax import Stepper
    from heatmap import compilation, state
    from input_pipeline import batching

    compilation.keep()
    state.divide_cpu(config.train.batch_size)
    records, split = input_pipeline.load(config.data)
    records = records.take(split.rows["train"])
    stepper = Stepper(config, points=records.points)
    batches = batching.train_batches(records, config, 0, 10**9)
    stepper.fed(batches, records, 1)  # compiles
    stepper.steps(1)
    count = max(2, round(seconds / stepper.steps(2)))

    def turn() -> float:
        ready = stepper.steps(count)
        stepper.fed(batches, records, _BUFFERED)  # what was read ahead meanwhile
        return stepper.fed(batches, records, count) / ready

    contest.serve({"ms": 1e3 * stepper.steps(count)}, turn)


def serve(library: str, config: Config, seconds: float) -> None:
    """Reads batches when it is told to."""
    batches, size = LIBRARIES[library](config), config.train.batch_size

    def read(count: int) -> float:
        for _ in range(_BUFFERED):  # read ahead while others had their turn
            next(batches)
        began = time.perf_counter()
        for _ in range(count):
            next(batches)
        return (time.perf_counter() - began) / (count * size)

    count = max(4, round(seconds / (size * read(_BUFFERED))))
    contest.serve({"batches": count}, lambda: read(count))


def rows(config: str, results: Sequence[Result]) -> list[dict[str, Any]]:
    """Lays out the results of a config."""
    first = results[0]
    return [
        {
            "config": config,
            "input": result.name,
            "images/s": 1 / result.median,
            "quartiles": contest.between(1 / second for second in result.seconds),
            f"times {first.name}": first.median / result.median,
            "seconds": result.seconds,
        }
        for result in results
    ]


def step_rows(config: str, results: Sequence[Result]) -> list[dict[str, Any]]:
    """Lays out what the input adds to a step of a config's network."""
    return [
        {
            "config": config,
            "training on": result.name,
            "ms a step on a ready batch": result.facts["ms"],
            "input, % of a step": 100 * (result.median - 1),
            "least": 100 * (min(result.seconds) - 1),
            "most": 100 * (max(result.seconds) - 1),
            "times a ready batch": result.seconds,
        }
        for result in results
    ]


def draw_steps(found: Sequence[Mapping[str, Any]], axes: Any) -> None:
    """Draws what is added to a step as bars."""
    axes.barh([row["training on"] for row in found], [row["input, % of a step"] for row in found])
    axes.invert_yaxis()
    axes.set_xlabel("input, % of a step")


def draw(found: Sequence[Mapping[str, Any]], axes: Any) -> None:
    """Draws pictures per second as bars."""
    colours = ["#0b6e8f" if row["input"].startswith(OURS) else "#b0b0b0" for row in found]
    axes.barh([row["input"] for row in found], [row["images/s"] for row in found], color=colours)
    axes.invert_yaxis()
    axes.set_xlabel("images/s, input alone")


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line, holds the contest and publishes it."""
    parser = output.parser("input", __doc__)
    parser.add_argument(
        "--size", nargs=2, type=output.count, default=(480, 640), help="of photographs"
    )
    parser.add_argument("--count", type=output.count, default=128, help="of photographs")
    parser.add_argument("--rounds", type=output.count, default=7, help="turns of each contestant")
    parser.add_argument("--seconds", type=float, default=2.0, help="of a turn")
    parser.add_argument("--step", action="store_true", help="what the input adds to a step")
    parser.add_argument("--serve", choices=[*LIBRARIES, "steps"], help="as a contestant")
    words = sys.argv[1:] if arguments is None else arguments
    options, config = command_line.read(parser, words, default="configs/beetles.py")
    if options.serve in LIBRARIES:
        serve(options.serve, config, options.seconds)
        return
    if options.serve:
        serve_steps(config, options.seconds)
        return
    with tempfile.TemporaryDirectory() as name:
        root = pathlib.Path(name)
        flags = [*flags_for(options, config, root), *command_line.fields_in(words)]
        in_memory = config.data.name in DRAWN
        sides = contestants(flags, root, options.seconds, options.step, in_memory)
        results = contest.hold(sides, options.rounds)
    told = contest.told(options.config, results)
    if options.step:
        added = step_rows(options.config, results)
        output.publish(
            options.out,
            "input_step",
            added,
            lambda axes: draw_steps(added, axes),
            benchmark="input",
            contestants=told,
        )
        return
    found = rows(options.config, results)
    output.publish(options.out, "input", found, lambda axes: draw(found, axes), contestants=told)


if __name__ == "__main__":
    guard(main)
