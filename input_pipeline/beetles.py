"""What the three beetle data sets share: two lines on each specimen, a scale bar, a species.

`hawaii`, `beetlepalooza` and `biorepo` parse their own files into `Specimen`s; the rules for what
is used of them stand here, once.

- A specimen is read from its individual picture, a crop of a group picture (a tray). Lines are in
  pixels of the individual picture. Of a scale bar only the length is used, one centimetre, so it
  may lie anywhere, as long as its picture has the scale of the individual one.
- Under `data.not_two_points='drop'` a specimen is left out if one of its lines, the pronotum's
  included, is not a line from point to point: wings that are spread give a width of four points
  (two segments), and some lines are empty. Under 'mask' it stays, and such a line has weight 0.
- A line that is missing, or has no length, has weight 0.
- A specimen without a usable scale bar is used for training and left out of scores in centimetres.

What has no usable line stays in the table as well, marked `left_out`: it still counts where groups
are divided, so that the split is the same under 'drop' and 'mask'.

Each data set is also a TFDS builder (`tfds.load(name, …)` with the pictures in the manual folder),
for work outside this program. Training does not go through it: pixels come straight from the
user's files, which stay as they are and are not stored a second time.
"""

import abc
import dataclasses
import math
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
import tensorflow_datasets as tfds

from heatmap.config import DataConfig
from heatmap.errors import UserError
from heatmap.keypoints import KeypointSet
from input_pipeline import labels, species
from input_pipeline.instances import Instance, assemble
from input_pipeline.records import Records

ANNOTATIONS = "annotations.json"
POINTS = KeypointSet(
    names=("width_p0", "width_p1", "length_p0", "length_p1"),
    skeleton=((0, 1), (2, 3)),
    interchangeable_pairs=((0, 1), (2, 3)),
    measurements=(("width", 0, 1), ("length", 2, 3)),
)
LINES = tuple(name for name, *_ in POINTS.measurements)

_LEAST_BAR = 2.0  # px: a centimetre shorter than this is a slip of the mouse

NotTwoPoints = Literal["drop", "mask"]


@dataclasses.dataclass(frozen=True)
class Specimen:
    """One record of an annotation file.

    Attributes:
      where: the file and record, for messages.
      id: the individual picture's name below its folder.
      file: the individual picture.
      group: its group picture, or what `data.split.group_by` names.
      position: its number in the group picture.
      species: the taxon's code or name, or ''.
      lines: polylines [n, 2] (x, y) in pixels of the individual picture, by name; those of `LINES`
        are learned.
      bar: polyline [n, 2] of the scale bar, at the individual picture's scale.
      split: the split that the data names, or ''.
    """

    where: str
    id: str
    file: pathlib.Path
    group: str
    position: int
    species: str
    lines: dict[str, np.ndarray]
    bar: np.ndarray
    split: str = ""


@dataclasses.dataclass(frozen=True)
class Usable:
    """What a specimen teaches.

    Attributes:
      keypoints: [4, 2] float64 (x, y), zeros where not labelled.
      labelled: [4] bool.
      px_per_cm: NaN if there is no usable scale bar.
      left_out: why nothing of it is used, or ''.
    """

    keypoints: np.ndarray
    labelled: np.ndarray
    px_per_cm: float
    left_out: str


def assess(specimens: Sequence[Specimen], not_two_points: NotTwoPoints) -> list[Usable]:
    """Applies the rules above.

    Args:
      specimens: N of them. A picture that is listed again is left out.
      not_two_points: what to do with a specimen that has a bent or an empty line.

    Returns:
      What each of the N teaches.
    """
    found, seen = [], set()
    for specimen in specimens:
        one = _assess(specimen, not_two_points)
        if specimen.id in seen:
            one = dataclasses.replace(one, left_out="picture listed before")
        seen.add(specimen.id)
        found.append(one)
    return found


def _assess(specimen: Specimen, not_two_points: NotTwoPoints) -> Usable:
    keypoints, labelled = np.zeros((POINTS.count, 2)), np.zeros(POINTS.count, bool)
    for name, a, b in POINTS.measurements:
        line = specimen.lines.get(name)
        if line is not None and len(line) == 2 and (line[0] != line[1]).any():
            keypoints[[a, b]], labelled[[a, b]] = line, True
    bent = [f"{n} of {len(line)} points" for n, line in specimen.lines.items() if len(line) != 2]
    left_out = "" if labelled.any() else "no line"
    if bent and not_two_points == "drop":
        left_out = bent[0]
    bar = specimen.bar
    length = math.dist(*bar) if len(bar) == 2 else 0.0
    return Usable(keypoints, labelled, length if length >= _LEAST_BAR else math.nan, left_out)


def records(
    name: str, specimens: Sequence[Specimen], config: DataConfig, notes: Sequence[str] = ()
) -> Records:
    """Fills the table that every reader fills.

    Args:
      name: of the data set.
      specimens: N of them, in the order of the files.
      config: `not_two_points` and the fields that `instances.assemble` reads.
      notes: sentences for the log.

    Returns:
      N records.

    Raises:
      UserError: for a bad picture, or labels that do not fit one.
    """
    if config.missing == "absent":
        raise UserError(
            "data.missing='absent' does not suit beetles: where a line is not labelled the animal "
            "still has one; set data.missing=unknown."
        )
    instances = [
        Instance(
            where=specimen.where,
            id=specimen.id,
            file=specimen.file,
            group=specimen.group,
            order=specimen.position,
            keypoints=found.keypoints,
            labelled=found.labelled,
            split=specimen.split,
            px_per_cm=found.px_per_cm,
            species=specimen.species,
            dataset=name,
            left_out=found.left_out,
        )
        for specimen, found in zip(specimens, assess(specimens, config.not_two_points), strict=True)
    ]
    nameless = sum(not specimen.species for specimen in specimens)
    if nameless:
        sentence = f"{name}: {nameless} of {len(specimens)} specimens name no species."
        notes = [*notes, sentence]
    return dataclasses.replace(assemble(POINTS, instances, config, config.root), notes=tuple(notes))


def entries(path: pathlib.Path) -> list[tuple[dict[str, Any], str]]:
    """Reads an annotation file: (record, where it stands) for each specimen.

    Raises:
      UserError: if it is no JSON list of objects, or empty.
    """
    listed = labels.load_json(path, list)
    if not listed:
        raise UserError(f"{path} lists no specimens; write the annotations again.")
    found = []
    for i, record in enumerate(listed):
        where = f"{path}, record {i}"
        labels.field(record, "measurements", list, where, default=[])  # that it is an object
        found.append((record, where))
    return found


def text(record: dict[str, Any], *names: str, where: str) -> str:
    """Returns the first of several text fields that is there and not empty, or ''."""
    values = (labels.field(record, name, str, where, default="").strip() for name in names)
    return next((value for value in values if value), "")


def polylines(
    record: dict[str, Any], names: dict[str, str], field: str, parse, where: str
) -> dict[str, np.ndarray]:
    """Reads the measurements of a record, the first of each type.

    Args:
      record: with `measurements`, a list of {measurement_type, <field>}.
      names: our names of the types; others keep their own.
      field: that holds the points.
      parse: maps (its value, where) to a polyline [n, 2].
      where: for messages.

    Returns:
      Polylines by name. A type whose points are null is left out.

    Raises:
      UserError: for a measurement of another shape.
    """
    found: dict[str, np.ndarray] = {}
    for measurement in labels.field(record, "measurements", list, where, default=[]):
        kind = labels.field(measurement, "measurement_type", str, where)
        if measurement.get(field) is not None:
            found.setdefault(names.get(kind, kind), parse(measurement[field], f"{where}, {kind}"))
    return found


def ends(value: Any, where: str) -> np.ndarray:
    """Reads a line [2, 2] written as {x1, y1, x2, y2}.

    Raises:
      UserError: if one of the four is missing or no number.
    """
    if not isinstance(value, dict):
        raise UserError(f"{where}: the line must be {{x1, y1, x2, y2}}, not {value!r:.60}.")
    numbers = [labels.number(value.get(key), key, where) for key in ("x1", "y1", "x2", "y2")]
    return np.array(numbers).reshape(2, 2)


class Builder(  # type: ignore[call-arg]
    tfds.core.GeneratorBasedBuilder, skip_registration=True
):
    """A TFDS builder of specimens; the pictures lie in TFDS' manual folder and are never fetched.

    A data set's own builder says how its folder is read.
    """

    VERSION = tfds.core.Version("1.0.0")
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Download the data set and put its annotations.json into the same folder (the module's "
        "text shows the layout); give that folder as manual_dir."
    )
    BUILDER_CONFIGS = [  # noqa: RUF012 - TFDS reads a list
        tfds.core.BuilderConfig(name=rule, description=f"data.not_two_points={rule!r}")
        for rule in ("drop", "mask")
    ]

    @staticmethod
    @abc.abstractmethod
    def specimens(root: pathlib.Path) -> list[Specimen]:
        """Reads the annotations below a folder."""

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 3), dtype=np.uint8),
                    "keypoints": tfds.features.Tensor(shape=(4, 2), dtype=np.float32),
                    "labelled": tfds.features.Tensor(shape=(4,), dtype=np.bool_),
                    "px_per_cm": np.float32,
                    "species": tfds.features.Text(),
                    "group": tfds.features.Text(),
                    "id": tfds.features.Text(),
                }
            ),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        """Divides specimens as `data.split.method=species_groups` does, into what is not empty."""
        found = self.specimens(pathlib.Path(os.fspath(dl_manager.manual_dir)))
        groups, kinds, named = (
            np.array([getattr(one, field) for one in found])
            for field in ("group", "species", "split")
        )
        names = species.divide(groups, kinds, named, species.quota_of(self.name), seed=0)
        good = [one.left_out == "" for one in assess(found, self.builder_config.name)]
        parts = {
            split: [one for one, take in zip(found, good & (names == name), strict=True) if take]
            for split, name in (("train", "train"), ("validation", "val"))
        }
        return {split: self._generate_examples(part) for split, part in parts.items() if part}

    def _generate_examples(
        self, specimens: Sequence[Specimen]
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        rule = self.builder_config.name
        for specimen, found in zip(specimens, assess(specimens, rule), strict=True):
            yield (
                specimen.id,
                {
                    "image": os.fspath(specimen.file),
                    "keypoints": found.keypoints.astype(np.float32),
                    "labelled": found.labelled,
                    "px_per_cm": found.px_per_cm,
                    "species": specimen.species,
                    "group": specimen.group,
                    "id": specimen.id,
                },
            )
