"""Input alone: pictures per second that the pipeline delivers, beside grain and PyTorch's loader.

    python -m benchmarks.input
    python -m benchmarks.input --size 1080 1920 --count 64
    python -m benchmarks.input --step

Draws photographs into JPEG files, and reads them again and again with the augmentation of
configs/beetles.py: from their files, decoded once and kept, and with the pixel work left to the
device. grain and a torch DataLoader, of the extra `bench`, do the same pixel work with Pillow and
NumPy. Each contestant is a process of its own, and they take turns.

With --step, the input feeds training steps of a frozen DINOv3 with a head, in turns with steps of
the same process on one batch that lies on the devices, ready: what is added is what input costs.
"""

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
PEERS = {"torch": "torch DataLoader", "grain": "grain"}
BATCH, WORKERS = 32, 2
_BUFFERED = 8  # batches that any of the libraries holds ready, and more
_CONFIG = (
    "--config=configs/beetles.py",
    "--config.data.name=simple_json",
    "--config.data.measurements=()",
    "--config.data.split.method=hash",
    "--config.data.verify=False",
    "--config.loss.interchangeable=False",
    "--config.eval.metrics=('error_px',)",
    "--config.train.best_metric=",
    "--config.model.backbone_init=random",
    f"--config.train.batch_size={BATCH}",
    f"--config.data.workers={WORKERS}",
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


def contestants(
    root: pathlib.Path, seconds: float, steps: bool, overrides: Sequence[str]
) -> list[Contestant]:
    """Lists who takes part.

    Args:
      root: folder of the photographs.
      seconds: of a turn.
      steps: whether they take steps on the pictures, or only deliver them.
      overrides: fields of the config for all.
    """

    def side(name: str, library: str, *flags: str) -> Contestant:
        command = [sys.executable, "-m", "benchmarks.input", f"--serve={library}"]
        fields = [*_CONFIG, f"--config.data.root={root}", f"--seconds={seconds}"]
        fields += [*flags, *overrides]
        environment = {"XDG_CACHE_HOME": str(root / "caches")}
        if steps:
            environment |= KEPT_MEMORY
        return Contestant(name, [*command, *fields], environment)

    kept, device = "--config.data.cache=memory", "--config.augment.where=device"
    if steps:
        small = "--config.train.batch_size=8"
        lying = "--config.data.cache=device"
        return [
            side(f"{OURS}, from the files", "steps", small),
            side(f"{OURS}, kept in memory, pixel work on the device", "steps", small, kept, device),
            side("on the device, pixel work too", "steps", small, lying, device),
        ]
    sides = [
        side(OURS, "tf"),
        side(f"{OURS}, kept in memory", "tf", kept),
        side(f"{OURS}, kept on disk", "tf", "--config.data.cache=disk"),
        side(f"{OURS}, kept in memory, pixel work on the device", "tf", kept, device),
    ]
    sides += [
        side(f"{name}, {WORKERS} workers", library)
        for library, name in PEERS.items()
        if importlib.util.find_spec(library)
    ]
    return sides


def batches_of_ours(config: Config) -> Iterator[Any]:
    """Yields training batches without end."""
    import input_pipeline
    from input_pipeline import batching

    records, split = input_pipeline.load(config.data)
    yield from batching.train_batches(records.take(split.rows["train"]), config, 0, 10**9)


class Files:
    """The pictures for the other libraries: decoded, moved and recoloured by Pillow and NumPy."""

    def __init__(self, config: Config, length: int):
        import input_pipeline
        from input_pipeline import augment

        self._config, self._length = config, length
        records, _ = input_pipeline.load(config.data)
        self._files = records.files.tolist()
        self._boxes = augment.source_boxes(records, config.data)

    def __len__(self) -> int:
        """As many examples as are asked for: epochs run on."""
        return self._length

    def __getitem__(self, index: int) -> np.ndarray:
        """Returns an augmented picture, uint8 [H, W, 3]."""
        from PIL import Image, ImageEnhance

        from heatmap import geometry
        from input_pipeline import augment

        epoch, row = divmod(int(index), len(self._files))
        rng = np.random.default_rng([0, 1, epoch, row])
        size = self._config.data.image_size
        drawn = augment.draw(self._boxes[row], self._config.augment, size, rng)
        (down, across), numbers = augment.warp_parameters(drawn.input_from_original)
        half = np.eye(3)
        half[:2, 2] = 0.5  # Pillow counts from the corner of the first pixel
        averaged_from_input = np.append(numbers, 1).reshape(3, 3)
        transform = (half @ averaged_from_input @ geometry.invert(half))[:2].ravel()
        with Image.open(self._files[row]) as image:
            moved = image.reduce((int(across), int(down))).transform(
                size[::-1], Image.Transform.AFFINE, tuple(transform), Image.Resampling.BILINEAR
            )
        for enhance, factor in zip(
            (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color),
            drawn.colour,
            strict=False,
        ):
            moved = enhance(moved).enhance(float(factor))
        hue, saturation, value = (np.asarray(part) for part in moved.convert("HSV").split())
        turned = np.stack([hue + np.uint8(round(drawn.colour[3] * 255) % 256), saturation, value])
        return np.array(Image.fromarray(turned.transpose(1, 2, 0), "HSV").convert("RGB"))


def batches_of_torch(config: Config) -> Iterator[Any]:
    """Yields the batches of a torch DataLoader without end."""
    from torch.utils import data

    files: Any = Files(config, 10**7)  # a torch Dataset by what it can do, not by its class
    order = data.RandomSampler(files, replacement=True)
    yield from data.DataLoader(files, BATCH, sampler=order, num_workers=WORKERS)


def batches_of_grain(config: Config) -> Iterator[Any]:
    """Yields the batches of grain without end."""
    import grain

    source = grain.MapDataset.source(Files(config, 10**7)).shuffle(seed=0)
    reading = grain.ReadOptions(num_threads=WORKERS, prefetch_buffer_size=4 * BATCH)
    yield from source.to_iter_dataset(reading).batch(BATCH)


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
    batches = LIBRARIES[library](config)

    def read(count: int) -> float:
        for _ in range(_BUFFERED):  # read ahead while others had their turn
            next(batches)
        began = time.perf_counter()
        for _ in range(count):
            next(batches)
        return (time.perf_counter() - began) / (count * BATCH)

    count = max(4, round(seconds / (BATCH * read(_BUFFERED))))
    contest.serve({"batches": count}, lambda: read(count))


def rows(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Lays out the results."""
    first = results[0]
    return [
        {
            "input": result.name,
            "images/s": 1 / result.median,
            f"times {first.name}": first.median / result.median,
        }
        for result in results
    ]


def step_rows(results: Sequence[Result]) -> list[dict[str, Any]]:
    """Lays out what the input adds to a step."""
    return [
        {
            "training on": result.name,
            "ms a step on a ready batch": result.facts["ms"],
            "input, % of a step": 100 * (result.median - 1),
            "least": 100 * (min(result.seconds) - 1),
            "most": 100 * (max(result.seconds) - 1),
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
    parser.add_argument("--size", nargs=2, type=int, default=(480, 640), help="height and width")
    parser.add_argument("--count", type=int, default=128, help="photographs")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each contestant")
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
        draw_photographs(root, options.count, tuple(options.size))
        fields = command_line.fields_in(words)
        sides = contestants(root, options.seconds, options.step, fields)
        results = contest.hold(sides, options.rounds)
    if options.step:
        added = step_rows(results)
        output.publish(options.out, "input_step", added, lambda axes: draw_steps(added, axes))
        return
    found = rows(results)
    output.publish(options.out, "input", found, lambda axes: draw(found, axes))


if __name__ == "__main__":
    guard(main)
