"""Writes the pictures of the test trays of data.name=specimens, to try heatmap.predict on.

    python -m input_pipeline.specimen_files DIR [--enlarge=4]

DIR holds TRAY-NUMBER.png and scales.csv, which states the scale of each.
"""

import argparse
import csv
import pathlib

from PIL import Image

from heatmap.errors import UserError, guard
from input_pipeline import specimens


def write(folder: pathlib.Path, times: int) -> int:
    """Writes the files.

    Args:
      folder: a new one.
      times: each pixel becomes a square of so many; nothing is lost or added.

    Returns:
      The number of pictures.

    Raises:
      UserError: if the folder is there already or cannot be made.
    """
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be made ({error}); name a new folder.") from error
    scales = []
    for name, tray in specimens.draw_split("test").items():
        for i, pixels in enumerate(tray.pixels):
            file = f"{name.split('/')[1]}-{i + 1}.png"
            Image.fromarray(pixels.repeat(times, axis=0).repeat(times, axis=1)).save(folder / file)
            scales.append([file, f"{tray.px_per_cm * times:.1f}"])
    with (folder / "scales.csv").open("w", newline="") as table:
        csv.writer(table).writerows([["file", "px_per_cm"], *scales])
    return len(scales)


def main(arguments: list[str] | None = None) -> None:
    """Parses the command line and writes the files."""
    parser = argparse.ArgumentParser(
        prog="python -m input_pipeline.specimen_files",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=pathlib.Path, metavar="DIR", help="a new folder")
    parser.add_argument("--enlarge", type=int, default=1, metavar="TIMES", help="by a whole number")
    options = parser.parse_args(arguments)
    if not 1 <= options.enlarge <= 40:
        raise UserError("--enlarge is a whole number from 1 to 40.")
    count = write(options.folder, options.enlarge)
    print(f"wrote {count} pictures and their scales to {options.folder}")


if __name__ == "__main__":
    guard(main)
