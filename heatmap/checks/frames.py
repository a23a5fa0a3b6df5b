"""Whether labels belong to their picture: inside it, of its size, and of something."""

from collections import Counter
from typing import Any

import numpy as np

from heatmap import geometry
from heatmap.checks import shapes
from heatmap.checks.finding import FAIL, OK, WARN, Finding, named, some

_FAR_OUT = 0.1  # of the picture's longer side, beyond its edge
_LOST = 0.15  # of the labels: more is more than augmentation should take
_LEAST = 10  # instances, to say what is usual
_UNUSUAL = 25.0  # squared standard deviations of place and size together, three numbers
_USUAL = 6.0
_FACTORS = 2.0 ** (np.arange(-24, 25) / 8)  # of a picture that labels may have been made on
_LEAST_FACTOR = 1.3  # one nearer to 1 is no other picture
_SMALLEST = 0.02  # standard deviation of a share of the picture: fixed cameras, fixed animals


def labels(records, names: np.ndarray, pixel_center: float) -> Finding:
    """Checks that there is something to learn of every point, and that zeros are no labels.

    Args:
      records: `input_pipeline.Records`, those that train and are scored.
      names: [N] str, the split of each.
      pixel_center: where label files count from.
    """
    points, labelled = records.points.names, records.labelled
    counts: dict[str, dict[str, int]] = {
        split: dict(zip(points, labelled[names == split].sum(0).tolist(), strict=True))
        for split in dict.fromkeys(names.tolist())
    }
    zero = labelled & (records.keypoints == -pixel_center).all(axis=-1)
    empty = np.flatnonzero(~labelled.any(axis=1))
    data: dict[str, Any] = {
        "labelled": counts,
        "at_zero": named(records, np.flatnonzero(zero.any(axis=1))),
        "without_labels": named(records, empty),
    }
    never = [point for point, count in counts["train"].items() if not count]
    if never:
        message = (
            f"{some(never)} is labelled in no training example, so that nothing is learnt of it: "
            "label some, or leave the point out"
        )
        return Finding(FAIL, "labels", message, data=data)
    if zero.any():
        message = (
            f"{zero.sum()} points are labelled at exactly (0, 0), as missing ones often are "
            f"written; if they are, blank them: {some(data['at_zero'])}"
        )
        return Finding(WARN, "labels", message, data=data)
    unscored = [
        f"{point} in {split}"
        for split, count_of in counts.items()
        for point, count in count_of.items()
        if not count
    ]
    share = labelled.mean(axis=0)
    rarest = int(np.argmin(share))
    message = "every point is labelled everywhere"
    if not labelled.all():
        message = (
            f"{labelled.mean():.0%} of the points are labelled, {points[rarest]} the most rarely: "
            f"{share[rarest]:.0%}"
        )
    if unscored:
        return Finding(WARN, "labels", f"{message}; there is no {some(unscored)}", data=data)
    without = f"; {len(empty)} instances have none" if len(empty) else ""
    return Finding(OK, "labels", message + without, data=data)


def inside(records, input_from_original: np.ndarray, input_size: geometry.Size) -> Finding:
    """Looks for labels beyond their picture, and beyond what the network is shown of it.

    Args:
      records: `input_pipeline.Records`, those that train and are scored.
      input_from_original: [N, 3, 3], without augmentation.
      input_size: (height, width) of the network's input.
    """
    labelled, sizes = records.labelled, records.sizes
    beyond = np.where(labelled, _beyond(records.keypoints, sizes), 0.0)
    shown = geometry.inside(geometry.apply(input_from_original, records.keypoints), input_size)
    cut = labelled & (beyond == 0) & ~shown
    far = np.flatnonzero((beyond > _FAR_OUT * sizes.max(axis=1)[:, None]).any(axis=1))
    out = np.flatnonzero((beyond > 0).any(axis=1))
    data: dict[str, Any] = {
        "points_out_of_the_picture": int((beyond > 0).sum()),
        "furthest_px": float(beyond.max(initial=0.0)),
        "records": named(records, out),
        "far_out": named(records, far),
        "points_out_of_the_crop": int(cut.sum()),
    }
    if len(far):
        worst = int(np.argmax(beyond.max(axis=1)))
        height, width = sizes[worst]
        message = (
            f"{len(far)} of {len(records)} instances have labels far out of their picture, as if "
            f"made on another one or another size of it: {some(data['far_out'])}; the furthest, in "
            f"{named(records, [worst])[0]}, lies {data['furthest_px']:.0f} px beyond its "
            f"{width}x{height}{_other_size(records, worst)}"
        )
        return Finding(FAIL, "frame", message, data=data)
    if len(out):
        message = (
            f"{data['points_out_of_the_picture']} labelled points lie out of their picture, by up "
            f"to {data['furthest_px']:.1f} px: {some(data['records'])}"
        )
        return Finding(WARN, "frame", message, data=data)
    if cut.any():
        rows = np.flatnonzero(cut.any(axis=1))
        message = (
            f"{cut.sum()} labelled points lie out of their instance's crop, where the network does "
            f"not see them; raise data.box_padding: {some(named(records, rows))}"
        )
        return Finding(WARN, "frame", message, data=data)
    return Finding(OK, "frame", "every label lies in its picture, and in its crop", data=data)


def _beyond(keypoints: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Returns how many pixels points [N, K, 2] lie beyond their pictures' edges, 0 inside."""
    high = sizes[:, None, ::-1] - 0.5  # (x, y) of the lower right corner
    return np.maximum(np.maximum(-0.5 - keypoints, keypoints - high), 0.0).max(axis=-1)


def _other_size(records, row: int) -> str:
    """Names the commonest size of another picture that holds all labels of an instance."""
    points = records.keypoints[row][records.labelled[row]]
    sizes = Counter(map(tuple, records.sizes.tolist()))
    for (height, width), _ in sizes.most_common():
        if geometry.inside(points, (height, width)).all():
            return f", and all of its labels fit the {width}x{height} that other pictures have"
    return ""


def augmented(keypoints: np.ndarray, labelled: np.ndarray, input_size: geometry.Size) -> Finding:
    """Counts the labels that augmentation moves out of the network's input.

    Args:
      keypoints: [N, K, 2] in input pixels, of augmented examples.
      labelled: [N, K] bool.
      input_size: (height, width) of the network's input.
    """
    lost = labelled & ~geometry.inside(keypoints, input_size)
    share = float(lost.sum() / max(1, labelled.sum()))
    data = {"examples": len(keypoints), "share_of_labels_lost": share}
    message = f"augmentation moves {share:.1%} of the labels out of the input"
    if share > _LOST:
        message += (
            ", where they teach little: raise augment.crop_scale's smallest area, or lower "
            "augment.rotation or augment.scale"
        )
        return Finding(WARN, "augment", message, data=data)
    return Finding(OK, "augment", message, data=data)


def scale(records) -> Finding:
    """Looks for labels that were made on a larger or smaller version of their picture.

    Labels of a picture twice the size lie twice as far from the upper left corner, and twice as
    far apart. An instance is suspected whose place and size in the picture are unusual, if one
    factor makes both usual.

    Args:
      records: `input_pipeline.Records`, those that train and are scored.
    """
    z, known = shapes.complex_of(records.keypoints), records.labelled
    rows = np.flatnonzero(np.isfinite(shapes.size(z, known)))
    if len(rows) < _LEAST:
        return Finding(OK, "scale", f"needs {_LEAST} instances with two points: not looked for")
    z, known, sizes = z[rows], known[rows], records.sizes[rows]
    described = np.stack([_place_and_size(z, known, sizes, f) for f in (1.0, *_FACTORS)])
    usual = np.median(described[0], axis=0)
    scatter = np.array([max(shapes.spread(c), _SMALLEST) for c in described[0].T])
    distance = np.sum(((described - usual) / scatter) ** 2, axis=-1)  # [1 + F, n]
    best = distance[1:].argmin(axis=0)
    factor = 1 / _FACTORS[best]
    elsewhere = np.maximum(factor, 1 / factor) >= _LEAST_FACTOR
    explained = distance[1:].min(axis=0) < _USUAL
    found = np.flatnonzero((distance[0] > _UNUSUAL) & explained & elsewhere)
    names = named(records, rows[found])
    data = {
        "suspected": [
            {"record": name, "factor": round(float(factor[i]), 2)}
            for name, i in zip(names, found, strict=True)
        ]
    }
    if not len(found):
        return Finding(OK, "scale", "place and size of all instances fit their pictures", data=data)
    typical = float(np.median(factor[found]))
    message = (
        f"{len(found)} of {len(records)} instances are labelled as if on a picture {typical:.2g} "
        f"times the size: compare the labels of {some(names)} with their pictures"
    )
    return Finding(FAIL, "scale", message, data=data)


def _place_and_size(z, known, sizes, factor: float) -> np.ndarray:
    """Returns [n, 3] x and y of the middle and the logarithm of the size, as shares of pictures."""
    scaled = geometry.scale(z.real, factor) + 1j * geometry.scale(z.imag, factor)
    count = known.sum(axis=1)
    middle = np.sum(np.where(known, scaled, 0), axis=1) / count
    height, width = sizes[:, 0], sizes[:, 1]
    length = np.log(shapes.size(scaled, known) / np.sqrt(height * width))
    return np.stack([(middle.real + 0.5) / width, (middle.imag + 0.5) / height, length], axis=-1)
