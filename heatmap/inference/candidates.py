"""Pictures that may be labelled next: read once, of each a few numbers kept, and shown again."""

import dataclasses
import sys
from collections.abc import Iterator, Sequence

import numpy as np
from tqdm import tqdm

from heatmap import geometry
from heatmap.errors import UserError
from heatmap.inference import batches, ranking
from heatmap.inference.predictor import Examined, Predictor
from heatmap.report.findings import Example

_NAME = 26  # letters of a picture's name over it


@dataclasses.dataclass(frozen=True)
class Candidates:
    """N pictures, each with its most uncertain instance.

    Attributes:
      source: [N] its place in the list of sources.
      frame: [N] of a video, or -1.
      instance: [N] number of the instance.
      uncertainty: [N], by `ranking.uncertainties`.
      features: [N, F].
      points: [N, K, 2] as predicted, pixels of the picture.
    """

    source: np.ndarray
    frame: np.ndarray
    instance: np.ndarray
    uncertainty: np.ndarray
    features: np.ndarray
    points: np.ndarray

    def __len__(self) -> int:
        """The number of pictures, N."""
        return len(self.source)

    def take(self, rows) -> "Candidates":
        """Returns these rows (indices or a mask)."""
        names = [field.name for field in dataclasses.fields(self)]
        return Candidates(**{name: getattr(self, name)[rows] for name in names})


def look(model: Predictor, sources: Sequence, boxes, every: int) -> tuple[Candidates, list]:
    """Predicts all pictures.

    Args:
      model: that answers.
      sources: `input_pipeline.sources.Source`.
      boxes: of `input_pipeline.coco.read_boxes`, or None.
      every: of a video only the frames 0, every, 2 · every, ….

    Returns:
      (what can be ranked, in the order of the sources; `input_pipeline.sources.Problem`s).

    Raises:
      UserError: if nothing could be read.
    """
    from input_pipeline import sources as sources_lib
    from input_pipeline import video

    places = {source.name: place for place, source in enumerate(sources)}
    counts = [-(-video.count(s.path) // every) if s.is_video else 1 for s in sources]
    events = sources_lib.read(sources, model.config, boxes, lambda _: 0, every)
    problems: list = []
    with tqdm(total=sum(counts), unit="picture", desc="looking", file=sys.stderr) as bar:
        answers = batches.each(model, model.examine, _pictures(events, problems, bar))
        parts = [_candidates(model, places, *batch) for batch in answers]
    for problem in problems:
        print(problem.reason, file=sys.stderr)
    if not parts:
        raise UserError("Nothing was ranked: no picture could be read, or none has an instance.")
    names = [field.name for field in dataclasses.fields(Candidates)]
    return _one_each(
        Candidates(**{n: np.concatenate([getattr(part, n) for part in parts]) for n in names})
    ), problems


def _pictures(events: Iterator, problems: list, bar: tqdm) -> Iterator:
    """Yields what could be read."""
    from input_pipeline.sources import End, Problem

    for event in events:
        if isinstance(event, End):
            continue
        if isinstance(event, Problem):
            problems.append(event)
        else:
            yield event
        bar.update()


def _candidates(
    model: Predictor, places: dict[str, int], rows: batches.Rows, examined: Examined
) -> Candidates:
    """Keeps of a batch what is needed later."""
    found = batches.instances_of(rows, examined.decoded)
    return Candidates(
        source=np.array([places[name] for name in found.source.tolist()], np.int32),
        frame=found.frame,
        instance=found.instance,
        uncertainty=ranking.uncertainties(found, model.config).astype(np.float32),
        features=np.asarray(examined.features, np.float32),
        points=found.points.astype(np.float32),
    )


def _one_each(found: Candidates) -> Candidates:
    """Keeps the most uncertain instance of each picture."""
    order = np.lexsort((-found.uncertainty, found.frame, found.source))
    pictures = np.stack([found.source[order], found.frame[order]])
    return found.take(order[np.unique(pictures, axis=1, return_index=True)[1]])


def examples(model: Predictor, sources: Sequence, boxes, found: Candidates) -> list[Example]:
    """Reads a few pictures again, to show them with their points.

    Args:
      model: that has predicted them.
      sources: of all candidates.
      boxes: as in `look`.
      found: those to show, by rank.

    Raises:
      UserError: if one can be read no longer.
    """
    from input_pipeline import sources as sources_lib

    shown: dict[int, Example] = {}
    for place in np.unique(found.source).tolist():
        source, mine = sources[place], np.flatnonzero(found.source == place)
        rows = dict(zip(found.frame[mine].tolist(), mine.tolist(), strict=True))
        limit = model.config.data.max_megapixels
        for frame, pixels in sources_lib.pixels_of(source, rows, limit):
            row = rows[frame]
            picture = sources_lib.boxed(source, frame, pixels, model.config, boxes)
            if isinstance(picture, sources_lib.Problem):
                raise UserError(picture.reason)
            item = picture.items[found.instance[row]]
            name = sources_lib.picture_name(source.name, frame)[-_NAME:]
            shown[row] = example(
                f"{row + 1}. {name}: {found.uncertainty[row]:.2g}",
                item.image,
                geometry.apply(item.input_from_original, found.points[row]),
            )
    return [shown[row] for row in sorted(shown)]


def example(
    title: str, picture: np.ndarray, predicted: np.ndarray, truth: np.ndarray | None = None
) -> Example:
    """Describes a picture of a contact sheet; points [K, 2] are in its pixels."""
    return Example(
        row=0,
        id=title,
        instance=0,
        picture=picture,
        truth=np.full_like(predicted, np.nan) if truth is None else truth,
        predicted=predicted[None],
        maps=(None,),
        boxes=geometry.image_box(picture.shape[:2])[None],
    )
