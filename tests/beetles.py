"""Writes drawn beetles in the layouts of the three real data sets, hundreds in seconds.

    python -m tests.beetles DIR

The photographs are not ours to ship. Each writer plants the oddities of its real files (see the
module of its reader) and returns where they are: {trap: [ids]}.
"""

import argparse
import csv
import json
import math
import pathlib

import numpy as np
from PIL import Image

from heatmap.errors import UserError, guard
from input_pipeline.trays import Tray, draw_tray

Traps = dict[str, list[str]]


def _flat(points: np.ndarray) -> list[float]:
    return [round(float(v), 2) for v in np.asarray(points).ravel()]


def _nested(points: np.ndarray) -> list[list[float]]:
    return [_flat(point) for point in points]


def _ends(points: np.ndarray) -> dict[str, float]:
    return dict(zip(("x1", "y1", "x2", "y2"), _flat(points), strict=True))


def _any_order(line: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """People begin a line at either end."""
    return line[::-1] if rng.random() < 0.5 else line


def _bent(line: np.ndarray) -> np.ndarray:
    """Three points instead of two."""
    return np.stack([line[0], line.mean(axis=0) + 0.5, line[1]])


def _save(path: pathlib.Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, compress_level=1)


def _write_json(path: pathlib.Path, value) -> None:
    path.write_text(json.dumps(value, indent=1))


# --- Hawaii ---

# The species of each tray, over and over; the trays before are the rare ones.
HAWAII = ["MECKON"] * 4 + ["TREOBT"] * 3 + ["MECDIS"] * 3
RARE = [["BLAEST"] * 3 + ["MECKON"] * 3, ["MECBRU"] * 6, ["MECBRU"] * 2 + ["TREOBT"] * 4]


def write_hawaii(root: pathlib.Path, trays: int = 20, cell: int = 160, seed: int = 0) -> Traps:
    """Writes the layout of imageomics/Hawaii-beetles with 6 specimens on each tray."""
    rng = np.random.default_rng([seed, 1])
    records: list[dict] = []
    rows: list[list] = []
    traps: Traps = {"width of 4 points": [], "double bar": []}
    for t in range(trays):
        rest = HAWAII[(t - len(RARE)) % len(HAWAII)]
        taxa = RARE[t] if t < len(RARE) else [rest] * 6
        looks = [sum(map(ord, taxon)) for taxon in taxa]
        spread = set(np.flatnonzero(rng.random(6) < 0.27))
        tray = draw_tray([seed, 2, t], looks, cell, 2.0 * cell, spread)
        name = f"IMG_{93 + t:04d}"
        _save(root / "group_images" / f"{name}.png", tray.pixels)
        for i, taxon in enumerate(taxa):
            doubled = t == len(RARE)  # as the bars of one group of the real file are
            lines = _hawaii_lines(tray, i, doubled, rng)
            record = _hawaii_record(tray, i, name, taxon, f"NEON.BET.D20.{100 * t + i:06d}", lines)
            file = record["indiv_img_rel_path"]
            _save(root / "individual_specimens" / file, tray.crop(i))
            traps["width of 4 points"] += [file] if tray.beetles[i].spread else []
            traps["double bar"] += [file] if doubled else []
            where = [record["group_img_rel_path"], i + 1, record["individual_id"]]
            rows.append(where + [json.dumps([_flat(line)]) for line in lines.values()])
            records.append(record)
    _spoil_hawaii(records, traps)
    _write_json(root / "annotations.json", records)
    header = ["groupImageFilePath", "BeetlePosition", "individualID"]
    with (root / "trait_annotations.csv").open("w", newline="") as table:
        csv.writer(table).writerows([header + [f"coords_{kind}" for kind in lines], *rows])
    return traps


def _hawaii_lines(tray: Tray, i: int, doubled: bool, rng) -> dict[str, np.ndarray]:
    """Returns the polylines of a specimen in pixels of the tray."""
    beetle = tray.beetles[i]
    return {
        "scalebar": tray.bar * (2 if doubled else 1),
        "elytra_max_length": _any_order(beetle.length_line, rng),
        "basal_pronotum_width": _any_order(beetle.pronotum_line, rng),
        "elytra_max_width": _any_order(beetle.width_line, rng),
    }


def _hawaii_record(tray: Tray, i: int, name: str, taxon: str, person: str, lines) -> dict:
    file = f"{name}_specimen_{i + 1}_{taxon}_{person}.png"
    left, top = tray.crops[i][:2]
    return {
        "group_img_basename": name.lower(),
        "beetle_position": i + 1,
        "group_img_rel_path": f"group_images/{name}.png",
        "indiv_img_rel_path": file,
        "indiv_img_abs_path": f"/elsewhere/hawaii/individual_specimens/{file}",
        "individual_id": person,
        "origin_x": left,
        "origin_y": top,
        "ncc": 1.0000000000000004,
        "taxon_id": taxon,
        "scientific_name": f"Genus {taxon.lower()}",
        "measurements": [
            {"measurement_type": kind, "polyline_px": _flat(tray.inside(i, line))}
            for kind, line in lines.items()
        ],
    }


def _spoil_hawaii(records: list[dict], traps: Traps) -> None:
    """Plants what is wrong with single specimens, one each: on closed ones of the last trays, which
    train, and for scale bars of the first ones, which validate.
    """
    closed = [r for r in records[::-1] if len(_measured(r, "elytra_max_width")["polyline_px"]) == 4]

    def hit(trap: str, place: int = 0) -> dict:
        record = closed.pop(place)
        traps[trap] = [record["indiv_img_rel_path"]]
        return record

    for trap, kind in (
        ("length of 3 points", "elytra_max_length"),
        ("pronotum of 3 points", "basal_pronotum_width"),
        ("width of 3 points", "elytra_max_width"),
    ):
        line = _measured(hit(trap), kind)
        line["polyline_px"] = _flat(_bent(np.array(line["polyline_px"]).reshape(2, 2)))
    _measured(hit("width of 0 points"), "elytra_max_width")["polyline_px"] = []
    _measured(hit("width of no length"), "elytra_max_width")["polyline_px"] = [0.0] * 4
    record = hit("no width")
    record["measurements"].remove(_measured(record, "elytra_max_width"))
    record = hit("no bar", place=-1)
    record["measurements"].remove(_measured(record, "scalebar"))
    _measured(hit("degenerate bar", place=-1), "scalebar")["polyline_px"] = [5.0, 5.0, 5.0, 5.0]
    twin, record = hit("repeated individual_id"), closed[0]
    record["individual_id"] = twin["individual_id"]
    traps["repeated individual_id"].append(record["indiv_img_rel_path"])
    closed.pop(0)
    records.append(json.loads(json.dumps(hit("listed twice"))))


def _measured(record: dict, kind: str) -> dict:
    return next(m for m in record["measurements"] if m["measurement_type"] == kind)


# --- BioRepo ---


def write_biorepo(
    root: pathlib.Path, trays: int = 6, train_trays: int = 0, cell: int = 160, seed: int = 0
) -> Traps:
    """Writes the layout used for imageomics/sentinel-beetles, one species to a tray.

    With `train_trays`, further trays of the same species go into train_annotations.json, together
    with a specimen that annotations.json lists too, and one of a group that is in annotations.json.
    """
    rng = np.random.default_rng([seed, 3])
    traps: Traps = {}
    listed = [_biorepo_tray(root, t, t, cell, seed, rng, traps) for t in range(trays)]
    published = [record for records in listed for record in records]
    kept_back = published.pop(3)  # of a group that validates, in the training file alone
    _spoil_biorepo(published, traps)
    _write_json(root / "annotations.json", published)
    if train_trays:
        extra = [
            _biorepo_tray(root, trays + t, t % trays, cell, seed, rng, traps)
            for t in range(train_trays)
        ]
        traps["in both files"] = [_id(published[0])]
        traps["train, of a group that validates"] = [_id(kept_back)]
        everything = [record for records in extra for record in records]
        _write_json(root / "train_annotations.json", [*everything, published[0], kept_back])
    return traps


def _id(record: dict) -> str:
    return record["rel_individual_img_path"].removeprefix("Output/")


def _biorepo_tray(root, number, species, cell, seed, rng, traps: Traps) -> list[dict]:
    """Draws a tray and returns its records."""
    spread = set(np.flatnonzero(rng.random(6) < 0.12))
    px_per_cm = cell * rng.uniform(0.6, 0.9)
    tray = draw_tray([seed, 4, number], [1000 + species] * 6, cell, px_per_cm, spread)
    group = f"Genus_{'abcdefghijklmnop'[species]}-Y2018-NEON.BET.D09.{number:06d}"
    _save(root / "Images" / f"{group}.png", tray.pixels)
    records = []
    for i, beetle in enumerate(tray.beetles):
        relative = f"Output/{group}/{group}_{i + 1}.png"
        _save(root / relative, tray.crop(i))
        lines = {
            "elytra_length": _any_order(beetle.length_line, rng),
            "elytra_width": _any_order(beetle.width_line, rng),
            "pronotum_width": _any_order(beetle.pronotum_line, rng),
        }
        polylines = {kind: _nested(tray.inside(i, line)) for kind, line in lines.items()}
        polylines["scalebar"] = _nested(tray.bar)  # of the tray, not of the crop
        left, top = tray.crops[i][:2]
        records.append(
            {
                "beetle_position": i + 1,
                "group_img": f"{group}.png",
                "rel_group_img_path": f"Images/{group}.png",
                "abs_group_img_path": f"/elsewhere/Images/{group}.png",
                "rel_individual_img_path": relative,
                "abs_individual_img_path": f"/elsewhere/{relative}",
                "offset_x": float(left),
                "offset_y": float(top),
                "taxon_id": f"TAXON{species}",
                "scientific_name": f"Genus {'abcdefghijklmnop'[species]}",
                "measurements": [
                    {"measurement_type": kind, "polyline": line} for kind, line in polylines.items()
                ],
            }
        )
        if beetle.spread:
            traps.setdefault("width of 4 points", []).append(_id(records[-1]))
    return records


def _spoil_biorepo(records: list[dict], traps: Traps) -> None:
    closed = [r for r in records[::-1] if len(_measured(r, "elytra_width")["polyline"]) == 2]

    def hit(trap: str) -> dict:
        record = closed.pop(0)
        traps[trap] = [_id(record)]
        return record

    _measured(hit("pronotum of 0 points"), "pronotum_width")["polyline"] = []
    del _measured(hit("pronotum of 1 points"), "pronotum_width")["polyline"][1]
    line = _measured(hit("width of 3 points"), "elytra_width")
    line["polyline"] = _nested(_bent(np.array(line["polyline"])))
    record = hit("no length")
    record["measurements"].remove(_measured(record, "elytra_length"))
    _measured(hit("empty bar"), "scalebar")["polyline"] = []
    record = hit("no taxon")
    record["taxon_id"] = record["scientific_name"] = None


# --- BeetlePalooza ---

RESIZED = 0.35  # of a group picture


def write_beetlepalooza(
    root: pathlib.Path, trays: int = 8, cell: int = 160, seed: int = 0
) -> Traps:
    """Writes the layout of imageomics/2018-NEON-beetles.

    Individual pictures are cut from the resized group picture. Two specimens of six have a second
    annotator, listed first, whose length is off; widths are off by everyone.
    """
    rng = np.random.default_rng([seed, 5])
    traps: Traps = {"trusted comes second": [], "nobody trusted": []}
    records = []
    for t in range(trays):
        px_per_cm = cell * rng.uniform(0.4, 0.8)
        tray = draw_tray([seed, 6, t], [2000 + t % 4] * 6, cell, px_per_cm, set())
        group = f"A{t:011d}.jpg"
        resized = Image.fromarray(tray.pixels)
        full = resized.resize([round(side / RESIZED) for side in resized.size])
        for folder, picture in (("group_images_resized", resized), ("group_images", full)):
            (root / folder).mkdir(parents=True, exist_ok=True)
            picture.save(root / folder / group, quality=80)
        for i in range(6):
            name = f"part_{t % 2:03d}/{group.removesuffix('.jpg')}_specimen_{i + 1}.png"
            _save(root / "individual_specimens" / name, tray.crop(i))
            people = ["ishachinniah"] if i == 5 else ["IsaFluck"]
            if i in (1, 3):
                people.insert(0, "rileywolcheski")
                traps["trusted comes second"].append(name)
            traps["nobody trusted"] += [name] if i == 5 else []
            measurements = _palooza_measurements(tray, i, people, px_per_cm, rng)
            records.append(_palooza_record(tray, i, group, name, f"Carabus {'abcd'[t % 4]}"))
            records[-1]["measurements"] = measurements
    _spoil_beetlepalooza(records, traps)
    _write_json(root / "annotations.json", records)
    return traps


def _palooza_measurements(tray: Tray, i: int, people: list[str], px_per_cm, rng) -> list[dict]:
    """Clicks on whole pixels; the length by the first of two people is far off."""
    beetle = tray.beetles[i]
    length = np.rint(tray.inside(i, _any_order(beetle.length_line, rng)))
    width = np.rint(tray.inside(i, _any_order(beetle.width_line, rng))) + 6.0
    return [
        {
            "measurement_type": kind,
            "coords_px": _ends(line + (9.0 if person == "rileywolcheski" else 0.0)),
            "dist_cm": math.dist(*line) / px_per_cm,
            "annotator": person,
        }
        for person in people
        for kind, line in (("elytra_width", width), ("elytra_length", length))
    ]


def _palooza_record(tray: Tray, i: int, group: str, name: str, species: str) -> dict:
    left, top = tray.crops[i][:2]
    return {
        "group_img_basename": group,
        "beetle_position": i + 1,
        "group_img_rel_path": f"group_images/{group}",
        "indiv_img_rel_path": name.split("/")[1],
        "indiv_img_abs_path": f"/elsewhere/individual_specimens/{name}",
        "individual_id": f"{group.removesuffix('.jpg')}_{i + 1}",
        "origin_x": left,
        "origin_y": top,
        "ncc": 0.99,
        "neon_sample_id": "HARV_001.20180605.CARGOR.01",
        "scientific_name": species,
        "scalebar_px": _ends(tray.bar),
    }


def _spoil_beetlepalooza(records: list[dict], traps: Traps) -> None:
    def hit(i: int, trap: str) -> dict:
        path = records[i]["indiv_img_abs_path"]
        traps[trap] = [path.removeprefix("/elsewhere/individual_specimens/")]
        return records[i]

    # Lines outside the crop were deleted from the real file.
    hit(0, "no line at all")["measurements"] = []
    record = hit(2, "no length")
    record["measurements"] = [
        m for m in record["measurements"] if m["measurement_type"] != "elytra_length"
    ]
    hit(4, "no bar")["scalebar_px"] = None
    hit(6, "degenerate bar")["scalebar_px"] = _ends(np.ones((2, 2)))


# --- all three ---


def main(arguments: list[str] | None = None) -> None:
    """Writes DIR/hawaii, DIR/beetlepalooza and DIR/biorepo."""
    parser = argparse.ArgumentParser(prog="python -m tests.beetles", description=__doc__)
    parser.add_argument("folder", type=pathlib.Path, help="where to write, a new folder")
    parser.add_argument("--hawaii", type=int, default=60, help="trays of six specimens")
    parser.add_argument("--beetlepalooza", type=int, default=20)
    parser.add_argument("--biorepo", type=int, default=6)
    parser.add_argument("--biorepo_train", type=int, default=15, help="trays in its second file")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if options.folder.exists():
        raise UserError(f"{options.folder} exists already: name a new folder.")
    for name, write, trays in (
        ("hawaii", write_hawaii, {"trays": options.hawaii}),
        ("beetlepalooza", write_beetlepalooza, {"trays": options.beetlepalooza}),
        (
            "biorepo",
            write_biorepo,
            {"trays": options.biorepo, "train_trays": options.biorepo_train},
        ),
    ):
        (options.folder / name).mkdir(parents=True)
        write(options.folder / name, **trays, seed=options.seed)


if __name__ == "__main__":
    guard(main)
