"""Writes small labelled projects in the layouts that the readers know."""

import csv
import json
import pathlib
from collections.abc import Sequence

import numpy as np
from PIL import Image

from input_pipeline.video import library


def _picture(rng: np.random.Generator, points: np.ndarray, size: tuple[int, int]) -> Image.Image:
    rows, columns = np.mgrid[: size[0], : size[1]]
    pixels = rng.normal(60, 8, (*size, 3))
    for (x, y), colour in zip(points, np.eye(3), strict=False):
        spot = np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 18)
        pixels += 150 * spot[..., None] * colour
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def write_deeplabcut(root: pathlib.Path, videos: int, frames: int, size=(60, 80)) -> None:
    """Writes a DeepLabCut project of two points, each video a folder of frames."""
    rng = np.random.default_rng(1)
    root.mkdir(parents=True)
    (root / "config.yaml").write_text(
        "Task: spots\nscorer: Ann\nmultianimalproject: false\nbodyparts:\n- nose\n- tail\n"
        "skeleton:\n- - nose\n  - tail\n"
    )
    for video in range(videos):
        folder = root / "labeled-data" / f"video{video}"
        folder.mkdir(parents=True)
        rows = [
            ["scorer", "Ann", "Ann", "Ann", "Ann"],
            ["bodyparts", "nose", "nose", "tail", "tail"],
            ["coords", "x", "y", "x", "y"],
        ]
        for frame in range(frames):
            points = rng.uniform((8, 8), (size[1] - 8, size[0] - 8), (2, 2))
            name = f"img{frame:03d}.png"
            _picture(rng, points, size).save(folder / name)
            cells = [f"{v:.3f}" for v in points.ravel()]
            rows.append([f"labeled-data/video{video}/{name}", *cells])
        with (folder / "CollectedData_Ann.csv").open("w", newline="") as file:
            csv.writer(file).writerows(rows)


def write_coco(root: pathlib.Path, images: int, size=(60, 80)) -> None:
    """Writes COCO keypoints: points head and tail, two instances in every third picture."""
    rng = np.random.default_rng(2)
    (root / "images").mkdir(parents=True)
    pictures, annotations = [], []
    for image in range(images):
        count = 2 if image % 3 == 0 else 1
        points = rng.uniform((8, 8), (size[1] - 8, size[0] - 8), (count, 2, 2))
        name = f"{image:03d}.png"
        _picture(rng, points.reshape(-1, 2), size).save(root / "images" / name)
        pictures.append({"id": image, "file_name": name, "width": size[1], "height": size[0]})
        for instance in points:
            low, extent = instance.min(0) - 4, np.ptp(instance, axis=0) + 8
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": image,
                    "category_id": 1,
                    "keypoints": [v for x, y in instance for v in (float(x), float(y), 2)],
                    "num_keypoints": 2,
                    "bbox": [*map(float, low), *map(float, extent)],
                    "area": float(extent.prod()),
                    "iscrowd": 0,
                }
            )
    category = {"id": 1, "name": "tube", "keypoints": ["head", "tail"], "skeleton": [[1, 2]]}
    labels = {"images": pictures, "annotations": annotations, "categories": [category]}
    (root / "annotations.json").write_text(json.dumps(labels))


def write_film(path: pathlib.Path, frames: Sequence[np.ndarray]) -> None:
    """Writes a video of frames, uint8 [H, W, 3], 25 a second."""
    av = library()
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], "yuv420p"
        stream.bit_rate = 4_000_000
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
