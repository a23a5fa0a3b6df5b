"""The three beetle data sets: drawn in their layouts, read by their rules, divided by species."""

import dataclasses
import hashlib
import json
import pathlib
import shutil

import numpy as np
import pyarrow.parquet
import pytest
import tensorflow_datasets as tfds
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import input_pipeline
from heatmap.errors import UserError
from heatmap.train import train
from input_pipeline import beetlepalooza, beetles, biorepo, check, hawaii, species, trays
from input_pipeline.species import Quota
from tests import beetles as layouts
from tests.helpers import make_config, properties

CELL = 120
WRITERS = {
    "hawaii": lambda root: layouts.write_hawaii(root, trays=16, cell=CELL),
    "biorepo": lambda root: layouts.write_biorepo(root, trays=4, train_trays=3, cell=CELL),
    "beetlepalooza": lambda root: layouts.write_beetlepalooza(root, trays=4, cell=CELL),
}
NAMES = list(WRITERS)
MIX = "hawaii+beetlepalooza+biorepo"
WIDTH, LENGTH = [0, 1], [2, 3]  # the points of each line


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """All three layouts below one folder, and their traps: (root, {name: traps})."""
    root = tmp_path_factory.mktemp("beetles")
    traps = {}
    for name, write in WRITERS.items():
        (root / name).mkdir()
        traps[name] = write(root / name)
    return root, traps


def data_config(root, name, **fields):
    settings = {"name": name, "root": str(root), "split.method": "species_groups", **fields}
    return make_config(**{f"data.{key}": value for key, value in settings.items()}).data


def read(written, name, **fields):
    """Returns the records of one data set and {id: row}, of two with one id the first."""
    records = input_pipeline.read(data_config(written[0] / name, name, **fields))
    return records, {str(name): row for row, name in reversed(list(enumerate(records.ids)))}


def annotations(written, name):
    return json.loads((written[0] / name / "annotations.json").read_text())


def traps_of(name, *traps):
    return [pytest.param(name, trap, id=f"{name}-{trap}") for trap in traps]


# --- the drawings ---


def test_a_tray_is_a_function_of_its_seed():
    one, same, other = (trays.draw_tray([s], [5] * 6, 96, 150.0, {1}).pixels for s in (1, 1, 2))
    digests = [hashlib.sha256(pixels.tobytes()).hexdigest() for pixels in (one, same, other)]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("line", ["length", "width"])
def test_the_ends_of_the_lines_can_be_seen(line):
    """Walking from the middle of a closed specimen out over an end, the paper begins at the end."""
    errors = []
    for seed in range(8):
        tray = trays.draw_tray([seed], [seed] * 6, 160, 200.0, set())
        grey = tray.pixels.mean(axis=2)
        for beetle in tray.beetles:
            middle = beetle.at(trays.WIDEST, 0.0)
            ends = beetle.length_line[1:] if line == "length" else beetle.width_line
            for end in ends:
                way = np.linalg.norm(end - middle)
                steps = np.arange(way - 6, way + 6, 0.25)
                places = middle + steps[:, None] * (end - middle) / way
                x, y = np.floor(places).astype(int).T
                fx, fy = (places - np.floor(places)).T
                top, bottom = (
                    grey[row, x] * (1 - fx) + grey[row, x + 1] * fx for row in (y, y + 1)
                )
                walk = top * (1 - fy) + bottom * fy
                half = (walk[:6].mean() + walk[-6:].mean()) / 2
                errors.append(steps[np.argmax(walk > half)] - way)
    assert abs(np.median(errors)) < 0.3
    assert np.mean(np.abs(errors) < 0.75) > 0.8  # a leg or a label lies over some ends


def test_individual_pictures_are_crops_at_the_stated_origin(written):
    root, _ = written
    for name, group, file, x, y in (
        ("hawaii", "group_img_rel_path", "indiv_img_rel_path", "origin_x", "origin_y"),
        ("biorepo", "rel_group_img_path", "rel_individual_img_path", "offset_x", "offset_y"),
    ):
        folder = root / name / ("individual_specimens" if name == "hawaii" else "")
        for record in annotations(written, name)[::7]:
            tray = np.asarray(Image.open(root / name / record[group]))
            crop = np.asarray(Image.open(folder / record[file]))
            left, top = int(record[x]), int(record[y])
            height, width = crop.shape[:2]
            np.testing.assert_array_equal(tray[top : top + height, left : left + width], crop)


def test_traits_of_hawaii_are_those_of_the_tray_less_the_origin(written):
    rows = (written[0] / "hawaii" / "trait_annotations.csv").read_text().splitlines()
    assert len(rows) == 1 + 16 * 6
    last = annotations(written, "hawaii")[5]  # the last of the first tray
    origin = np.array([last["origin_x"], last["origin_y"]])
    (bar,) = (m for m in last["measurements"] if m["measurement_type"] == "scalebar")
    in_tray = np.array(bar["polyline_px"]).reshape(-1, 2) + origin
    assert json.dumps([in_tray.ravel().round(2).tolist()]) in rows[6]
    assert min(bar["polyline_px"]) < 0  # beside the crop


# --- what is read ---


def truth_of(written, name):
    """Reads the annotation file anew, by other code: {id: {width or length: points}}."""
    found = {}
    for record in annotations(written, name):
        lines = {}
        for m in record["measurements"]:
            points = next(m[key] for key in ("polyline_px", "polyline", "coords_px") if key in m)
            points = list(points.values()) if isinstance(points, dict) else points
            words = m["measurement_type"].split("_")
            part, kind = words[0], words[-1]
            if part == "elytra" and (kind not in lines or m["annotator"] == "IsaFluck"):
                lines[kind] = points
        file = record.get("indiv_img_rel_path") or record["rel_individual_img_path"]
        if name == "beetlepalooza":
            file = record["indiv_img_abs_path"].split("individual_specimens/")[1]
        found.setdefault(file.removeprefix("Output/"), lines)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_lines_are_those_of_the_files(written, name):
    records, row_of = read(written, name, not_two_points="mask")
    assert records.points == beetles.POINTS
    assert records.points.names == ("width_p0", "width_p1", "length_p0", "length_p1")
    assert records.points.interchangeable_pairs == ((0, 1), (2, 3))
    assert set(records.dataset) == {name}
    labelled = 0
    for id_, lines in truth_of(written, name).items():
        row = row_of[id_]
        for kind, points in (("width", WIDTH), ("length", LENGTH)):
            if records.labelled[row, points].any():
                assert records.labelled[row, points].all()
                expected = np.array(lines[kind], float).reshape(2, 2)
                np.testing.assert_array_equal(records.keypoints[row, points], expected)
                labelled += 1
            else:  # never a zero with a weight
                np.testing.assert_array_equal(records.keypoints[row, points], 0.0)
    assert labelled > 0.9 * len(records)


@pytest.mark.parametrize("name", NAMES)
def test_every_picture_is_found_and_holds_its_points(written, name):
    records, _ = read(written, name)
    assert all(pathlib.Path(file).is_file() for file in records.files)
    assert "/elsewhere" not in "".join(records.files)
    inside = (records.keypoints > -0.5) & (records.keypoints < records.sizes[:, None, ::-1] - 0.5)
    assert inside[records.labelled].all()


@pytest.mark.parametrize(
    ("name", "trap"),
    [
        *traps_of("hawaii", "width of 4 points", "length of 3 points", "width of 3 points"),
        *traps_of("hawaii", "pronotum of 3 points", "width of 0 points"),
        *traps_of("biorepo", "width of 4 points", "width of 3 points"),
        *traps_of("biorepo", "pronotum of 0 points", "pronotum of 1 points"),
    ],
)
def test_lines_that_are_not_two_points_drop_the_specimen_or_are_masked(written, name, trap):
    line, _, count = trap.split()[:3]
    ids = written[1][name][trap]
    assert ids
    dropped, row_of = read(written, name)
    assert {dropped.left_out[row_of[id_]] for id_ in ids} == {f"{line} of {count} points"}
    masked, row_of = read(written, name, not_two_points="mask")
    for id_ in ids:
        assert masked.left_out[row_of[id_]] == ""
        labelled = masked.labelled[row_of[id_]]
        assert labelled[WIDTH].all() == (line != "width")
        assert labelled[LENGTH].all() == (line != "length")


def test_counts_after_the_filter(written):
    """Only what a trap spoils is left out, as 1,165 of 1,601 Hawaiian specimens remain."""
    for name in ("hawaii", "biorepo"):
        records, _ = read(written, name)
        traps = written[1][name]
        bent = [id_ for trap, ids in traps.items() if trap.endswith(" points") for id_ in ids]
        twice = [id_ for trap in ("listed twice", "in both files") for id_ in traps.get(trap, [])]
        assert np.sum(records.left_out != "") == len(bent) + len(twice)
        assert len(records) == len(set(records.ids)) + len(twice)


@pytest.mark.parametrize(
    ("name", "trap", "points"),
    [
        ("hawaii", "no width", WIDTH),
        ("hawaii", "width of no length", WIDTH),
        ("biorepo", "no length", LENGTH),
    ],
)
def test_a_missing_trait_has_no_weight_and_the_other_line_stays(written, name, trap, points):
    records, row_of = read(written, name)
    (id_,) = written[1][name][trap]
    assert records.left_out[row_of[id_]] == ""
    assert not records.labelled[row_of[id_], points].any()
    assert records.labelled[row_of[id_]].sum() == 2


@pytest.mark.parametrize(
    ("name", "traps"),
    [
        ("hawaii", ["no bar", "degenerate bar"]),
        ("biorepo", ["empty bar"]),
        ("beetlepalooza", ["no bar", "degenerate bar"]),
    ],
)
def test_a_specimen_without_a_scale_bar_is_kept_and_has_no_scale(written, name, traps):
    records, row_of = read(written, name)
    ids = [id_ for trap in traps for id_ in written[1][name][trap]]
    rows = [row_of[id_] for id_ in ids]
    assert np.isnan(records.px_per_cm[rows]).all()
    assert (records.left_out[rows] == "").all()
    assert records.labelled[rows].any(axis=1).all()
    assert np.isfinite(records.px_per_cm).sum() == len(records) - len(ids)


def test_scale_of_hawaii_is_the_length_of_a_bar_beside_the_crop(written):
    records, row_of = read(written, "hawaii")
    known = records.px_per_cm[np.isfinite(records.px_per_cm)]
    doubled = [row_of[id_] for id_ in written[1]["hawaii"]["double bar"]]
    np.testing.assert_allclose(records.px_per_cm[doubled], 4.0 * CELL)
    assert np.sum(np.isclose(known, 2.0 * CELL)) == len(known) - len(doubled)


def test_scale_of_biorepo_is_the_length_of_a_bar_in_the_tray(written):
    records, row_of = read(written, "biorepo")
    for record in annotations(written, "biorepo"):
        (bar,) = (m for m in record["measurements"] if m["measurement_type"] == "scalebar")
        row = row_of[record["rel_individual_img_path"].removeprefix("Output/")]
        if bar["polyline"]:
            assert records.px_per_cm[row] == pytest.approx(np.ptp(bar["polyline"], axis=0)[0])


def test_scale_of_beetlepalooza_is_that_of_the_crop(written):
    """The length in pixels over the scale is the annotator's length in centimetres."""
    records, row_of = read(written, "beetlepalooza")
    seen = 0
    for record in annotations(written, "beetlepalooza"):
        row = row_of[record["indiv_img_abs_path"].split("individual_specimens/")[1]]
        lengths = [m for m in record["measurements"] if m["measurement_type"] == "elytra_length"]
        if lengths and np.isfinite(records.px_per_cm[row]):
            between = np.linalg.norm(np.diff(records.keypoints[row, LENGTH], axis=0))
            assert between / records.px_per_cm[row] == pytest.approx(lengths[-1]["dist_cm"], 0.01)
            seen += 1
    assert seen > 15


def test_beetlepalooza_takes_the_trusted_annotator_and_no_width(written):
    records, row_of = read(written, "beetlepalooza")
    assert not records.labelled[:, WIDTH].any()
    assert set(records.splits) == {"train"}
    by_id = {
        r["indiv_img_abs_path"].split("individual_specimens/")[1]: r
        for r in annotations(written, "beetlepalooza")
    }
    for trap, place in (("trusted comes second", 1), ("nobody trusted", 0)):
        for id_ in written[1]["beetlepalooza"][trap]:
            lengths = [m for m in by_id[id_]["measurements"] if "length" in m["measurement_type"]]
            assert len(lengths) == 1 + place
            assert (lengths[place]["annotator"] == "IsaFluck") == (place == 1)
            expected = np.array(list(lengths[place]["coords_px"].values())).reshape(2, 2)
            np.testing.assert_array_equal(records.keypoints[row_of[id_], LENGTH], expected)
    for trap in ("no line at all", "no length"):
        (id_,) = written[1]["beetlepalooza"][trap]
        assert records.left_out[row_of[id_]] == "no line"


def test_parts_of_beetlepalooza(written):
    records, _ = read(written, "beetlepalooza")
    assert {name.split("/")[0] for name in records.ids} == {"part_000", "part_001"}


def test_species_groups_and_positions(written):
    records, row_of = read(written, "hawaii")
    row = row_of["IMG_0093_specimen_4_MECKON_NEON.BET.D20.000003.png"]
    assert (records.groups[row], records.species[row], records.order[row]) == (
        "img_0093",
        "MECKON",
        4,
    )
    records, row_of = read(written, "biorepo")
    (id_,) = written[1]["biorepo"]["no taxon"]
    assert records.species[row_of[id_]] == ""
    assert set(records.species) == {"", "TAXON0", "TAXON1", "TAXON2", "TAXON3"}
    assert not any("individual_id" in record for record in annotations(written, "biorepo"))
    records, _ = read(written, "beetlepalooza")
    assert set(records.species) == {f"Carabus {c}" for c in "abcd"}
    with_site, _ = read(written, "hawaii", **{"split.group_by": "taxon_id"})
    assert set(with_site.groups) == {"MECKON", "TREOBT", "MECDIS", "MECBRU", "BLAEST"}


def test_repeated_individual_ids_do_not_matter_and_a_picture_is_used_once(written):
    records, row_of = read(written, "hawaii")
    first, second = written[1]["hawaii"]["repeated individual_id"]
    assert first != second
    assert records.left_out[[row_of[first], row_of[second]]].tolist() == ["", ""]
    (twice,) = written[1]["hawaii"]["listed twice"]
    rows = np.flatnonzero(records.ids == twice)
    assert records.left_out[rows].tolist() == ["", "picture listed before"]


@pytest.mark.parametrize("center", [0.0, 0.5])
def test_the_pixel_origin_is_subtracted_once_and_lengths_do_not_mind(written, center):
    plain, _ = read(written, "hawaii")
    moved, _ = read(written, "hawaii", pixel_center=center)
    shift = np.where(plain.labelled[..., None], plain.keypoints - moved.keypoints, center)
    np.testing.assert_allclose(shift, center, atol=1e-12)
    np.testing.assert_array_equal(plain.px_per_cm, moved.px_per_cm)


def test_absent_is_refused_because_a_masked_line_is_there(written):
    with pytest.raises(UserError, match=r"data\.missing='absent' does not suit beetles"):
        read(written, "hawaii", missing="absent")


# --- files that are wrong ---

ERRORS = {
    "hawaii": [
        ("0.indiv_img_rel_path", KeyError, r"record 0 lacks 'indiv_img_rel_path'"),
        ("0.indiv_img_rel_path", "../x.png", "leaves the folder"),
        ("0.indiv_img_rel_path", "x.png", r"x\.png does not exist"),
        ("0.group_img_basename", None, "lacks 'group_img_basename'"),
        ("0.beetle_position", "1", "'beetle_position' must be a whole number"),
        ("0.taxon_id", 5, "'taxon_id' must be text"),
        (
            "1.measurements.1.polyline_px",
            [1, 2, 3],
            "elytra_max_length: .* must be a flat list",
        ),
        ("0.measurements.1.polyline_px", [[1, 2], [3, 4]], "a coordinate must be a finite number"),
        ("0.measurements.1.polyline_px.0", float("nan"), "a coordinate must be a finite number"),
        ("1.measurements.1.polyline_px.0", 9e4, r"'length_p0' at .* lies far outside"),
        ("0.measurements.1.measurement_type", KeyError, "lacks 'measurement_type'"),
        ("0.measurements", {}, "'measurements' must be a list"),
        ("0", 7, "record 0 must be an object"),
    ],
    "biorepo": [
        ("0.rel_individual_img_path", KeyError, "lacks 'rel_individual_img_path'"),
        (
            "0.measurements.0.polyline",
            [1, 2, 3, 4],
            r"elytra_length: .* must be \[\[x, y\]",
        ),
        (
            "0.measurements.0.polyline.0",
            [1, 2, 3],
            r"elytra_length: .* must be \[\[x, y\]",
        ),
        ("0.measurements.0.polyline.0.0", "1", "a coordinate must be a finite number"),
    ],
    "beetlepalooza": [
        ("1.measurements.0.coords_px", [1, 2, 3, 4], r"must be \{x1, y1, x2, y2\}"),
        ("1.measurements.1.coords_px.x2", None, "x2 must be a finite number"),
        ("1.scalebar_px.y1", "a", "scalebar_px: y1 must be a finite number"),
        ("1.indiv_img_abs_path", KeyError, "lacks 'indiv_img_abs_path'"),
        ("1.measurements.1.annotator", 3, "'annotator' must be text"),
    ],
}


@pytest.mark.parametrize(
    ("name", "path", "value", "sentence"),
    [(name, *error) for name, errors in ERRORS.items() for error in errors],
)
def test_wrong_annotations_are_refused_in_a_sentence(
    written, tmp_path, name, path, value, sentence
):
    content = annotations(written, name)[:8]
    *steps, last = (int(step) if step.isdigit() else step for step in path.split("."))
    target = content
    for step in steps:
        target = target[step]
    if value is KeyError:
        del target[last]
    else:
        target[last] = value
    for folder in ("individual_specimens", "Output"):
        if (written[0] / name / folder).exists():
            (tmp_path / folder).symlink_to(written[0] / name / folder)
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=sentence) as caught:
        input_pipeline.read(data_config(tmp_path, name))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("text", "sentence"),
    [("{}", "must hold a JSON list"), ("[]", "lists no specimens"), ("[", "not valid JSON")],
)
def test_a_file_that_is_no_list_is_refused(tmp_path, name, text, sentence):
    (tmp_path / "annotations.json").write_text(text)
    with pytest.raises(UserError, match=sentence):
        input_pipeline.read(data_config(tmp_path, name))


@pytest.mark.parametrize("name", NAMES)
def test_an_empty_or_missing_root_is_refused(tmp_path, name):
    with pytest.raises(UserError, match=r"There is no file .*annotations\.json"):
        input_pipeline.read(data_config(tmp_path, name))
    with pytest.raises(UserError, match=r"data\.root is empty"):
        input_pipeline.read(data_config("", name))


# --- splits ---


def split_names(records, split):
    """Returns {id: name of its split}, without what is left out."""
    return {str(i): name for name, rows in split.rows.items() for i in records.ids[rows]}


@pytest.mark.parametrize("name", ["hawaii", "biorepo"])
def test_group_pictures_are_never_divided(written, name):
    config = data_config(written[0] / name, name)
    records, split = input_pipeline.load(config)
    held = {part: set(records.groups[rows]) for part, rows in split.rows.items()}
    assert set(held) == {"train", "val"}  # there is no test split
    assert not held["train"] & held["val"]


def test_every_hawaiian_species_has_its_share_in_val(written):
    """By a count of its own over all specimens, those that are left out too."""
    records, split = input_pipeline.load(data_config(written[0] / "hawaii", "hawaii"))
    val = np.isin(records.groups, records.groups[split.rows["val"]])
    for taxon in np.unique(records.species):
        own = records.species == taxon
        groups, held = set(records.groups[own]), set(records.groups[own & val])
        if len(groups) <= 2:
            assert held == groups, taxon
        else:
            enough = len(held) >= 2 and np.sum(own & val) >= 20
            assert enough or held == groups, taxon
    assert set(records.groups[~val]) == set(records.groups[split.rows["train"]])
    assert np.sum(~val) >= 18


def test_a_species_that_shares_a_picture_takes_it_along(written):
    records, split = input_pipeline.load(data_config(written[0] / "hawaii", "hawaii"))
    shared = records.groups == "img_0093"  # the only picture of one species, also of another
    assert set(records.species[shared]) == {"BLAEST", "MECKON"}
    assert set(np.flatnonzero(shared & (records.left_out == ""))) <= set(split.rows["val"])


@pytest.mark.parametrize("name", ["hawaii", "biorepo", MIX])
def test_the_split_does_not_depend_on_what_is_dropped_or_on_the_order(written, name):
    root = written[0] if "+" in name else written[0] / name
    config = data_config(root, name)
    records, split = input_pipeline.load(config)
    names = split_names(records, split)
    more, masked = input_pipeline.load(dataclasses.replace(config, not_two_points="mask"))
    assert names.items() <= split_names(more, masked).items()
    order = np.random.default_rng(0).permutation(len(records))
    again = input_pipeline.make_split(records.take(order), config.split)
    assert split_names(records.take(order), again) == names
    salted = input_pipeline.make_split(records, dataclasses.replace(config.split, salt=1))
    assert name == "biorepo" or split_names(records, salted) != names


def test_biorepo_alone_validates_and_its_second_file_trains(written, tmp_path):
    root, traps = written
    records, split = input_pipeline.load(data_config(root / "biorepo", "biorepo"))
    names = split_names(records, split)
    published = {r["rel_individual_img_path"][7:] for r in annotations(written, "biorepo")}
    assert {id_ for id_, name in names.items() if name == "val"} <= published
    assert not {id_ for id_, name in names.items() if name == "train"} & published
    for trap in ("in both files", "train, of a group that validates"):
        (id_,) = traps["biorepo"][trap]
        assert names.get(id_) != "train"
    assert "2 records that the data marks for training are left out" in " ".join(split.notes)

    shutil.copytree(root / "biorepo", tmp_path / "biorepo")
    (tmp_path / "biorepo" / "train_annotations.json").unlink()
    config = data_config(tmp_path / "biorepo", "biorepo")
    records = input_pipeline.read(config)
    assert "there is no" in records.notes[0]
    assert "train_annotations.json" in records.notes[0]
    with pytest.raises(UserError, match=r"train split is empty .*here all do; mix in another"):
        input_pipeline.make_split(records, config.split)


def test_beetlepalooza_alone_has_nothing_to_validate(written):
    with pytest.raises(UserError, match=r"val split is empty .*marks every record for training"):
        input_pipeline.load(data_config(written[0] / "beetlepalooza", "beetlepalooza"))


def test_specimens_without_a_species_are_counted_and_cannot_be_all(written, tmp_path):
    records, _ = read(written, "biorepo")
    assert f"biorepo: 1 of {len(records)} specimens name no species." in records.notes
    shutil.copytree(written[0] / "hawaii", tmp_path / "hawaii")
    path = tmp_path / "hawaii" / "annotations.json"
    nameless = [
        {**r, "taxon_id": None, "scientific_name": None} for r in json.loads(path.read_text())
    ]
    path.write_text(json.dumps(nameless))
    with pytest.raises(
        UserError, match=r"species_groups needs to know the species, .*such as hash"
    ):
        input_pipeline.load(data_config(tmp_path / "hawaii", "hawaii"))


def test_species_groups_is_suggested_where_species_are_known(written):
    with pytest.raises(UserError, match=r"method=species_groups to let groups decide"):
        input_pipeline.load(
            data_config(written[0] / "hawaii", "hawaii", **{"split.method": "given"})
        )


@st.composite
def collections(draw):
    """Groups and species of up to 60 specimens; a group may hold several species."""
    count = draw(st.integers(1, 60))
    groups = draw(st.lists(st.integers(0, 11), min_size=count, max_size=count))
    kinds = draw(st.lists(st.sampled_from(["", "a", "b", "c"]), min_size=count, max_size=count))
    return np.array([f"g{group}" for group in groups]), np.array(kinds)


@properties
@given(
    collection=collections(),
    quota=st.sampled_from([Quota(2, 20), Quota(1, 0), Quota(2, 5)]),
    seed=st.integers(0, 3),
)
def test_the_rule_of_species_groups(collection, quota, seed):
    groups, kinds = collection
    val = species.validates(groups, kinds, quota, seed)
    whole = {g: set(val[groups == g]) for g in set(groups)}
    assert all(len(values) == 1 for values in whole.values())
    wanted = set()  # every group that validates does so for the sake of a species
    for kind in set(kinds):
        own = kinds == kind
        held = set(groups[own & val])
        if len(set(groups[own])) <= quota.groups:
            assert held == set(groups[own])
            wanted |= held
        else:
            enough = len(held) >= quota.groups and np.sum(own & val) >= quota.specimens
            assert enough or held == set(groups[own])
            for group in held:  # none can be spared
                less = own & val & (groups != group)
                if len(set(groups[less])) < quota.groups or np.sum(less) < quota.specimens:
                    wanted.add(group)
    order = np.random.default_rng(seed).permutation(len(groups))
    np.testing.assert_array_equal(
        species.validates(groups[order], kinds[order], quota, seed), val[order]
    )


# --- several at once ---


def test_a_mixture_holds_every_record_once(written):
    records, split = input_pipeline.load(data_config(written[0], MIX))
    alone = {name: read(written, name)[0] for name in NAMES}
    assert len(records) == sum(map(len, alone.values()))
    used = np.concatenate(list(split.rows.values()))
    assert len(set(records.ids[used])) == len(used)
    for name, part in alone.items():
        here = records.dataset == name
        assert records.ids[here].tolist() == [f"{name}/{id_}" for id_ in part.ids]
        assert records.groups[here].tolist() == [f"{name}/{group}" for group in part.groups]
        np.testing.assert_array_equal(records.keypoints[here], part.keypoints)
    assert set(records.dataset[split.rows["val"]]) == {"hawaii", "biorepo"}
    assert set(records.dataset[split.rows["train"]]) == set(NAMES)
    names = split_names(records, split)
    for name in ("hawaii", "biorepo"):
        by_itself = split_names(*input_pipeline.load(data_config(written[0] / name, name)))
        assert {f"{name}/{i}": s for i, s in by_itself.items()}.items() <= names.items()


def test_the_log_says_what_each_data_set_gives(written):
    _, split = input_pipeline.load(data_config(written[0], MIX))
    (line,) = (note for note in split.notes if note.startswith("hawaii: "))
    assert "width of 4 points" in line
    (line,) = (note for note in split.notes if note.startswith("beetlepalooza: "))
    assert " val" not in line


@pytest.mark.parametrize(
    ("name", "root", "sentence"),
    [
        ("hawaii+hawaii", "x", "names a data set twice"),
        ("hawaii+biorpo", "x", "did you mean 'biorepo'"),
        ("hawaii+biorepo", "", r"data\.root is empty; .* holds hawaii/, biorepo/"),
        ("hawaii+biorepo", "nowhere", "is not a folder"),
    ],
)
def test_a_mixture_that_cannot_be_read_is_refused(name, root, sentence):
    with pytest.raises(UserError, match=sentence):
        input_pipeline.read(data_config(root, name))


def test_points_of_another_meaning_do_not_mix(written):
    beetle, _ = read(written, "hawaii")
    other = dataclasses.replace(
        beetle, points=dataclasses.replace(beetle.points, interchangeable_pairs=())
    )
    with pytest.raises(UserError, match="mixes hawaii and mine, whose points do not mean the same"):
        input_pipeline.records.mix({"hawaii": beetle, "mine": other})


@pytest.mark.slow
def test_training_on_a_mixture_is_scored_in_centimetres_by_data_set(written, tmp_path, capsys):
    config = make_config(
        **{
            "data.name": MIX,
            "data.root": str(written[0]),
            "data.split.method": "species_groups",
            "data.image_size": (32, 32),
            "data.channels": 3,
            "model.name": "regression",  # compiles the fastest
            "loss.name": "coordinate_mse",
            "loss.interchangeable": True,
            "loss.oob_policy": "mask_any_oob",
            "augment.crop_scale": (0.5, 1.0),
            "augment.rotation": 180.0,
            "train.steps": 2,
            "train.batch_size": 4,
            "train.best_metric": "val/hawaii/length_line_err_cm",
            "log.every_steps": 1,
            "eval.sheet_examples": 0,
        }
    )
    scores = train(config, tmp_path)
    for name in ("hawaii", "biorepo"):
        for line in ("length", "width"):
            for key in (f"{line}_line_err_cm", f"{line}_line_err_pct/median"):
                assert np.isfinite(scores[f"val/{name}/{key}"]), key
        assert np.isfinite(scores[f"val/{name}/point_err_cm"])
    assert scores["val/hawaii/line_err_cm/excluded"] == 4.0  # two lines of two specimens
    assert scores["val/oob_points_frac"] == 0.0
    assert np.isfinite(scores["val/hawaii/species/MECKON/length_line_err_cm"])
    assert not any("beetlepalooza" in key for key in scores)  # all of it trains
    shown = capsys.readouterr().out
    assert "hawaii/length_line_err_cm" in shown
    assert "beetlepalooza: " in shown
    events = b"".join(p.read_bytes() for p in (tmp_path / "tensorboard").rglob("*tfevents*"))
    assert b"train/oob_points_frac" in events
    columns = pyarrow.parquet.read_schema(tmp_path / "predictions" / "val.parquet").names
    assert "px_per_cm" not in columns


# --- TFDS ---


@pytest.mark.parametrize("module", [hawaii, biorepo, beetlepalooza])
def test_tfds_builds_what_is_read(written, tmp_path, module, capfd):
    name = module.__name__.split(".")[1]
    rule = "drop" if name == "hawaii" else "mask"
    builder = getattr(module, name.capitalize())(config=rule, data_dir=tmp_path)
    manual = tfds.download.DownloadConfig(
        manual_dir=written[0] / name, try_download_gcs=False, verify_ssl=False
    )
    builder.download_and_prepare(download_config=manual)
    capfd.readouterr()
    assert builder.info.full_name == f"{name}/{rule}/1.0.0"
    records, row_of = read(written, name, not_two_points=rule)
    config = data_config("", name).split
    divided = name != "beetlepalooza"
    names = (
        split_names(records, input_pipeline.make_split(records, config))
        if divided
        else dict.fromkeys(records.ids[records.left_out == ""], "train")
    )
    found = {}
    for split in builder.info.splits:
        for example in tfds.as_numpy(builder.as_dataset(split=split)):
            id_ = example["id"].decode()
            found[id_] = {"train": "train", "validation": "val"}[split]
            row = row_of[id_]
            np.testing.assert_allclose(example["keypoints"], records.keypoints[row], rtol=1e-6)
            np.testing.assert_array_equal(example["labelled"], records.labelled[row])
            np.testing.assert_allclose(example["px_per_cm"], records.px_per_cm[row], rtol=1e-6)
            assert example["species"].decode() == records.species[row]
            assert example["image"].shape[:2] == tuple(records.sizes[row])
    assert found == names
    np.testing.assert_array_equal(example["image"], np.asarray(Image.open(records.files[row])))


# --- the check ---


def test_check_counts_what_was_read_dropped_and_why(written, capsys):
    check.main(["--config=configs/beetles.py", f"--config.data.root={written[0]}"])
    shown = capsys.readouterr().out
    records, _ = read(written, "hawaii")
    left_out = int(np.sum(records.left_out != ""))
    head = next(line.split() for line in shown.splitlines() if line.startswith("hawaii "))
    assert head == ["hawaii", str(len(records)), str(len(records) - left_out), str(left_out)]
    spread = len(written[1]["hawaii"]["width of 4 points"])
    assert f"{spread}  - width of 4 points" in shown
    assert "1  - picture listed before" in shown
    kept = records.take(records.left_out == "")
    assert f"{int(kept.labelled[:, 0].sum())}  + with width" in shown
    assert f"{int(np.isfinite(kept.px_per_cm).sum())}  + with a scale" in shown
    for name in NAMES:
        assert f"\n{name}: " in shown
    assert "by species_groups: " in shown


def test_check_masks_and_shows_the_table_before_it_refuses(written, capsys):
    with pytest.raises(UserError, match="species_groups to let groups decide"):
        check.main(
            [
                f"--config.data.root={written[0] / 'hawaii'}",
                "--config.data.name=hawaii",
                "--config.data.not_two_points=mask",
            ]
        )
    shown = capsys.readouterr().out
    assert "  - width" not in shown
    assert "with length" in shown


def test_check_reads_any_source_and_any_config(tiny_root, tmp_path, capsys):
    config = tmp_path / "mine.py"
    config.write_text(
        "from configs import common\n"
        "def get_config(name):\n"
        "    config = common.get_config()\n"
        "    config.data.name = name\n"
        "    return config\n"
    )
    check.main([f"--config={config}:simple_json", f"--config.data.root={tiny_root}"])
    shown = capsys.readouterr().out
    assert "simple_json       32       32         0" in shown
    assert "32  + with bright" in shown
    assert "20 train, 6 val, 6 test" in shown


@pytest.mark.parametrize("text", ["1/0", "x = 1", "def get_config():\n    return 3"])
def test_check_refuses_a_config_that_does_not_load(tmp_path, text):
    path = tmp_path / "bad.py"
    path.write_text(text)
    with pytest.raises(UserError, match=r"config cannot be loaded: .*configs/ are .*common"):
        check.main([f"--config={path}"])
