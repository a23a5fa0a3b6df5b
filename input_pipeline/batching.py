"""Batches: which examples, in what order, as arrays on the host and then on the devices.

The order of training is a pure function of (seed, step): one permutation per epoch, and batches
run on across the ends of epochs, so that nothing is dropped or padded. No iterator state needs to
be saved to resume.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np

from heatmap import geometry, hardware, targets
from heatmap.config import Config, DataConfig
from heatmap.errors import UserError
from heatmap.keypoints import ABSENT, LABELLED, UNKNOWN
from input_pipeline import augment, images, pictures, resident
from input_pipeline.host import tf
from input_pipeline.records import Records

Batch = dict[str, np.ndarray]
Features = Mapping[str, np.ndarray]

# What the step needs on the devices; the rest of a batch stays on the host.
_DEVICE_KEYS = (
    *("image", "keypoints", "visibility", "_mask", "heatmaps"),
    *("source", "source_size", "transform", "colour"),  # where the image is made there
    *("picture", "factors"),  # and all pictures are
    *("patches", "cls_token"),  # where the backbone has seen it already
)

_LABELS = ("keypoints", "visibility", "row", "input_from_original", "_mask")
_PIXEL_WORK = ("colour", "factors", "transform")
_BLOCK = 256  # examples whose numbers are made together, so that they share what calls cost


def epoch_order(seed: int, epoch: int, size: int) -> np.ndarray:
    """Returns the permutation [size] in which an epoch visits the examples."""
    return np.random.default_rng([seed, 0, epoch]).permutation(size)


def steps_per_run(config: Config, size: int) -> int:
    """Returns the number of steps that `train.epochs` or `train.steps` asks for."""
    return config.train.steps or last_step_of(config.train.epochs, size, config.train.batch_size)


def last_step_of(epochs: int, size: int, batch_size: int) -> int:
    """Returns the step with which so many epochs over `size` examples have been seen."""
    return -(-epochs * size // batch_size)


def train_batches(
    records: Records, config: Config, first: int, last: int, features: Features | None = None
) -> Iterator[Batch]:
    """Yields the batches of steps first … last - 1.

    Args:
      records: the training split.
      config: the run's config.
      first: the step to begin with, 0 for a fresh run.
      last: the step to stop before.
      features: [N, …] by name, to be sent in place of the pictures.

    Yields:
      This process' rows of each batch: image uint8 [b, H, W, C], keypoints float32 [b, K, 2] in
      input pixels, visibility int32 [b, K], row int64 [b], input_from_original float64 [b, 3, 3],
      _mask float32 [b], and heatmaps float32 [b, h, w, K] where the host renders them. Where the
      device augments, what `device.render` makes the image of.
    """
    size, batch_size = len(records), config.train.batch_size
    boxes, shrinks = augment.source_boxes(records, config.data), _shrinks(records)
    mine = _rows_of_process(batch_size)
    share = mine.stop - mine.start
    order = functools.lru_cache(1)(lambda epoch: epoch_order(config.seed, epoch, size))

    def block(steps: range) -> Batch:
        rows, uniforms = [], []
        for step in steps:
            start = step * batch_size + mine.start
            for epoch, *places in _places(start, start + share, size):
                rows.append(order(epoch)[slice(*places)])
                uniforms.append(augment.uniforms(config.seed, epoch, *places))
        row = np.concatenate(rows)
        drawn = augment.draw(
            boxes[row], np.concatenate(uniforms), config.augment, config.data.image_size
        )
        return _numbers(records, row, drawn, shrinks, config)

    together = -(-_BLOCK // share)

    @functools.lru_cache(1)
    def block_from(step: int) -> Batch:
        return block(range(step, min(step + together, last)))

    def numbers(i: int) -> Batch:
        which, within = divmod(i, together)
        made = block_from(first + which * together)
        return {name: array[within * share :][:share] for name, array in made.items()}

    count = last - first
    if features is not None:
        return iter(_WithoutPixels(numbers, count, _LABELS, config, features))
    if config.data.cache == pictures.DEVICE:
        places = {"picture": resident.places(records)}
        return iter(_WithoutPixels(numbers, count, _LABELS + _PIXEL_WORK, config, places))
    if config.augment.where == "device":
        padded = source_size(records)
        render = functools.partial(_send, size=padded, channels=config.data.channels)
    else:
        render = functools.partial(render_picture, config=config, recolour=True)
    return iter(_WithPixels(numbers, count, records, config, share, render))


def eval_batches(
    records: Records, config: Config, features: Features | None = None
) -> Iterable[Batch]:
    """Holds every example once, without augmentation, the last batch padded (`_mask` 0).

    Args:
      records: any split.
      config: the run's config.
      features: [N, …] by name, to be sent in place of the pictures.

    Returns:
      Batches as `train_batches` yields them, of `eval.batch_size` rounded up to the number of
      devices. They can be gone through again and again: to set up tf.data takes as long as to
      read hundreds of small pictures.
    """
    devices = jax.device_count()
    batch_size = -(-config.eval.batch_size // devices) * devices
    affines, shrinks = eval_affines(records, config), _shrinks(records)
    mine = _rows_of_process(batch_size)

    def numbers(i: int) -> Batch:
        place = i * batch_size + np.arange(mine.start, mine.stop)
        row = np.minimum(place, len(records) - 1)
        drawn = augment.Drawn(affines[row], np.tile(augment.NO_COLOUR, (len(row), 1)))
        return _numbers(records, row, drawn, shrinks, config, real=place < len(records))

    count, share = -(-len(records) // batch_size), mine.stop - mine.start
    if features is not None:
        return _WithoutPixels(numbers, count, _LABELS, config, features)
    # Even a colour change of nothing rounds pixels: scores must not depend on `augment`.
    render = functools.partial(render_picture, config=config, recolour=False)
    return _WithPixels(numbers, count, records, config, share, render)


def eval_affines(records: Records, config: Config) -> np.ndarray:
    """Returns `input_from_original` [N, 3, 3] float64 of every example, without augmentation."""
    boxes = augment.source_boxes(records, config.data)
    return geometry.crop_and_resize(boxes, config.data.image_size)


def to_devices(batch: Batch, sharding: jax.sharding.NamedSharding) -> dict[str, jax.Array]:
    """Makes global arrays of this process' rows, divided over the devices as the sharding says."""
    return {
        key: jax.make_array_from_process_local_data(sharding, batch[key])
        for key in _DEVICE_KEYS
        if key in batch
    }


def check_batch_size(batch_size: int) -> None:
    """Refuses a batch that cannot be divided evenly over the devices.

    Raises:
      UserError: naming the two numbers.
    """
    devices = jax.device_count()
    if batch_size % devices:
        raise UserError(
            f"train.batch_size={batch_size} cannot be divided over {devices} devices; choose a "
            f"multiple of {devices}."
        )


def _rows_of_process(batch_size: int) -> slice:
    share = batch_size // jax.process_count()
    return slice(jax.process_index() * share, (jax.process_index() + 1) * share)


def _places(start: int, stop: int, size: int) -> Iterator[tuple[int, int, int]]:
    """Cuts positions of a run at the ends of its epochs: (epoch, first place, last place + 1)."""
    while start < stop:
        epoch, place = divmod(start, size)
        count = min(stop - start, size - place)
        yield epoch, place, place + count
        start += count


def _shrinks(records: Records) -> np.ndarray:
    """Returns [N], by how much the picture of each record is smaller than its affine says."""
    if records.kept is None:
        return np.ones(len(records))
    return np.array([float(records.kept.factors[file]) for file in records.files.tolist()])


def _numbers(
    records: Records,
    row: np.ndarray,
    drawn: augment.Drawn,
    shrinks: np.ndarray,
    config: Config,
    real: np.ndarray | bool = True,
) -> Batch:
    """Collects the numbers of the examples of rows [b]; their pixels follow."""
    affine = drawn.input_from_original
    keypoints = geometry.apply(affine, records.keypoints[row])
    missing = ABSENT if config.data.missing == "absent" else UNKNOWN
    visibility = np.where(records.labelled[row], LABELLED, missing)
    # In a mirror left and right change names.
    names = np.where(
        augment.mirrored(affine)[:, None],
        records.points.flip_permutation(),
        np.arange(records.points.count),
    )
    shrink = shrinks[row]
    factors, transform = augment.warp_parameters(affine @ geometry.scaling(shrink, shrink))
    return {
        "keypoints": np.take_along_axis(keypoints, names[..., None], axis=1).astype(np.float32),
        "visibility": np.take_along_axis(visibility, names, axis=1).astype(np.int32),
        "row": row.astype(np.int64),
        "input_from_original": affine,
        "_mask": np.full(len(row), real, np.float32),
        "colour": drawn.colour,
        "factors": factors,
        "transform": transform,
    }


@dataclasses.dataclass(frozen=True)
class _WithoutPixels:
    """Batches with the rows of tables in place of pictures.

    The next batch is made in a thread while one is used.

    Attributes:
      numbers: of batch i.
      count: of batches.
      names: of the numbers that are sent.
      config: of the run.
      tables: arrays [N, …] by name.
    """

    numbers: Callable[[int], Batch]
    count: int
    names: tuple[str, ...]
    config: Config
    tables: Mapping[str, np.ndarray]

    def __iter__(self) -> Iterator[Batch]:
        with ThreadPoolExecutor(1) as pool:
            coming = pool.submit(self._made, 0)
            for i in range(self.count):
                batch = coming.result()
                if i + 1 < self.count:
                    coming = pool.submit(self._made, i + 1)
                yield batch

    def _made(self, i: int) -> Batch:
        found = self.numbers(i)
        batch = {name: found[name] for name in self.names}
        if self.config.targets.render == "host":
            maps = targets.render(np, batch["keypoints"], self.config)
            visible = batch["visibility"] == LABELLED
            batch["heatmaps"] = (maps * visible[:, None, None, :]).astype(np.float32)
        return batch | {name: table[batch["row"]] for name, table in self.tables.items()}


@dataclasses.dataclass(frozen=True)
class _WithPixels:
    """Batches of which tf.data does the pixel work, as NumPy arrays.

    Attributes:
      numbers: of batch i.
      count: of batches.
      records: of the split.
      config: of the run.
      batch_size: of this process.
      render: does the pixel work of one example.
    """

    numbers: Callable[[int], Batch]
    count: int
    records: Records
    config: Config
    batch_size: int
    render: Callable[[dict], dict]

    def __iter__(self) -> Iterator[Batch]:
        try:
            yield from self._dataset.as_numpy_iterator()
        except tf.errors.OpError as error:
            bad = _bad_picture(self.records.files)
            if bad is None:
                raise
            raise bad from error

    @functools.cached_property
    def _dataset(self):
        records, config = self.records, self.config
        points = records.points.count
        shapes = {
            "keypoints": ((points, 2), tf.float32),
            "visibility": ((points,), tf.int32),
            "row": ((), tf.int64),
            "input_from_original": ((3, 3), tf.float64),
            "_mask": ((), tf.float32),
            "colour": ((4,), tf.float32),
            "factors": ((2,), tf.int32),
            "transform": ((8,), tf.float32),
            "orientation": ((), tf.int32),
            "source": ((), tf.string),
        }
        if records.pixels is not None:
            shapes["source"] = (records.pixels.shape[1:], tf.uint8)
        sources = records.files if records.pixels is None else records.pixels

        def arrays_of(i) -> list[np.ndarray]:
            batch = self.numbers(int(i))
            rows = batch["row"]
            batch["orientation"] = records.orientations[rows].astype(np.int32)
            batch["source"] = sources[rows]
            return [batch[name] for name in shapes]

        def unrendered(i):
            found = tf.numpy_function(arrays_of, [i], [dtype for _, dtype in shapes.values()])
            return {
                name: tf.ensure_shape(array, (self.batch_size, *shape))
                for array, (name, (shape, _)) in zip(found, shapes.items(), strict=True)
            }

        def rendered(example):
            if records.kept:
                found = records.kept.pictures
                picture = tf.numpy_function(
                    lambda file: found[file.decode()], [example["source"]], tf.uint8
                )
                example["source"] = tf.ensure_shape(picture, (None, None, 3))
            return self.render(example)

        # To have the functions below rewritten ('autograph') takes a second of a start; they say by
        # themselves where TensorFlow decides.
        plain = tf.autograph.experimental.do_not_convert
        # By batches: a call from TensorFlow into Python costs as much as all numbers of an example.
        # Not `from_generator`, which has glibc give all large blocks back from then on (it calls
        # mallopt), those of the training step too: a tenth of the step on a CPU.
        dataset = tf.data.Dataset.range(self.count).map(plain(unrendered)).unbatch()
        dataset = dataset.map(
            plain(rendered),
            num_parallel_calls=config.data.workers or hardware.cpus(),
            deterministic=True,
        )
        dataset = dataset.batch(self.batch_size, drop_remainder=True)
        if config.targets.render == "host":
            dataset = dataset.map(
                plain(lambda batch: {**batch, "heatmaps": _host_maps(batch, config)})
            )
        options = tf.data.Options()
        # TensorFlow's own tuner sleeps for ever longer, and an iterator waits for it to end: half a
        # minute at the end of a run.
        options.autotune.enabled = False
        if config.data.workers:
            options.threading.private_threadpool_size = config.data.workers
        return dataset.with_options(options).prefetch(2)


def _bad_picture(files: np.ndarray) -> UserError | None:
    """Finds the file that has gone since the data were checked: TensorFlow does not name it."""
    for path in (pathlib.Path(file) for file in np.unique(files) if file):
        try:
            images.inspect(path)
            images.decode(path)
        except UserError as error:
            return error
    return None


def resident_pictures(records: Records, config: DataConfig, sharding) -> dict[str, jax.Array]:
    """Places pictures on the devices if `data.cache` says that they lie there.

    Args:
      records: the training split.
      config: of the data.
      sharding: of an array that every device holds whole.

    Returns:
      What `resident.place` does, or nothing.

    Raises:
      UserError: if a device has too little memory for them.
    """
    if config.cache != pictures.DEVICE:
        return {}
    return resident.place(records, source_size(records), config.channels, sharding)


def source_size(records: Records) -> geometry.Size:
    """Returns (height, width) that hold any of the pictures, which are in memory or kept.

    Raises:
      UserError: if they are not, so that a device cannot be sent what it is to augment.
    """
    if records.pixels is not None:
        return records.pixels.shape[1:3]
    if records.kept is None:
        raise UserError(
            "augment.where='device' needs decoded pictures: set data.cache to 'memory', 'disk' or "
            "'device', or leave augmentation to the 'host'."
        )
    sizes = [picture.shape[:2] for picture in records.kept.pictures.values()]
    height, width = np.max(sizes, axis=0)
    return int(height), int(width)


def _send(example, size: geometry.Size, channels: int):
    """Averages one picture where it shrinks a lot, for a device to do the rest."""
    image, factors = pictures.in_channels(example.pop("source"), channels), example.pop("factors")
    del example["orientation"]  # in memory pictures are upright

    def averaged():
        return tf.cast(tf.round(augment.area_average(image, factors)), tf.uint8)

    image = tf.cond(tf.reduce_max(factors) > 1, averaged, lambda: image)
    filled = tf.shape(image)[:2]
    image = tf.pad(image, [[0, size[0] - filled[0]], [0, size[1] - filled[1]], [0, 0]])
    return {**example, "source": tf.ensure_shape(image, (*size, channels)), "source_size": filled}


def render_picture(example, config: Config, recolour: bool):
    """Reads, resamples and recolours one picture: the only way to a network's input on the host.

    Args:
      example: with `source` (an uint8 [H, W, C] tensor, or the path of a file), `orientation`, and
        `factors` and `transform` of `augment.warp_parameters`; with `colour`, if need be.
      config: of the run.
      recolour: whether to change colours as `augment` says.

    Returns:
      What else is in the example, with `image` uint8 [h, w, C].
    """
    image, orientation = example.pop("source"), example.pop("orientation")
    if image.dtype == tf.string:
        image = pictures.upright(pictures.decode(image), orientation)
    image = pictures.in_channels(image, config.data.channels)
    factors, transform = example.pop("factors"), example.pop("transform")
    image = augment.warp(image, factors, transform, config.data.image_size)
    colour = example.pop("colour", None)
    if recolour:
        image = augment.jitter(image, colour, config.augment)
    image = tf.ensure_shape(image, (*config.data.image_size, config.data.channels))
    return {**example, "image": tf.cast(tf.round(image), tf.uint8)}


def _host_maps(batch, config: Config):
    maps = targets.render(tf.experimental.numpy, batch["keypoints"], config)
    return maps * tf.cast(batch["visibility"] == LABELLED, maps.dtype)[:, None, None, :]
