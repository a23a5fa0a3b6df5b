"""Imports run one way only: the rooms of the house, and who may enter which.

    ground floor  <  parts  <  run  <  commands          and  input_pipeline, on the ground floor

A new module of `heatmap` belongs to PARTS or COMMANDS and is added there; everything else here is
read from the files. Imports inside functions count as well.
"""

import ast
import functools
import os
import pathlib
import subprocess
import sys

import pytest

import input_pipeline

ROOT = pathlib.Path(__file__).parents[1]
PACKAGES = ("heatmap", "input_pipeline", "configs", "launch", "benchmarks")

GROUND = {
    "caches",
    "errors",
    "fields",
    "config",
    "command_line",
    "keypoints",
    "geometry",
    "axes",
    "colour",
    "hardware",
    "targets",
}
PARTS = {  # what a run is put together from, and the tools that read its files
    "models",
    "losses",
    "objective",
    "diagnosis",
    "decoding",
    "metrics",
    "predictions",
    "prediction_table",
    "measures",
    "oks",
    "pairs",
    "optim",
    "state",
    "checkpoint",
    "conformal",
    "compilation",
    "progress",
    "processes",
    "startup",
    "workdir",
    "writers",
    "report",
    "checks",
}
COMMANDS = {
    "train",
    "step",
    "features",
    "evaluate",
    "predict",
    "inference",
    "calibration",
    "doctor",
    "rank",
    "export",
    "serve",
    "serving",
}
COMMANDS |= {"report.__main__", "report.examples"}  # the rest of `report` reads saved files only
COMMANDS |= {f"checks.{name}" for name in ("codec", "trips", "cost")}  # the rest needs no data
ROOMS = {
    **dict.fromkeys(GROUND, "ground"),
    **dict.fromkeys(PARTS, "parts"),
    "run": "run",
    **dict.fromkeys(COMMANDS, "commands"),
}
MAY_IMPORT = {  # of `heatmap`, by the room of the importing module
    "ground": {"ground"},
    "parts": {"ground", "parts"},
    "run": {"ground", "parts", "run"},
    "commands": {"ground", "parts", "run", "commands"},
}
STANDALONE = {"heatmap.export.check"}  # goes with every artefact, to places without this program
NO_DATA = {"ground", "parts"}  # rooms that must not reach for input_pipeline
FRAMEWORKS = {"jax", "flax", "optax", "orbax", "tensorflow", "tensorflow_datasets"}


def name_of(path):
    """The dotted name of a file, 'heatmap.models.unet'; a package's own is its folder's."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache
def files():
    found = {name_of(p): p for package in PACKAGES for p in (ROOT / package).rglob("*.py")}
    return {**found, "main": ROOT / "main.py"}


@functools.cache
def imports_of(name):
    """All modules that a file imports, dotted; of our own, the very module or package."""
    found = set()
    for node in ast.walk(ast.parse(files()[name].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively: write the whole name"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = names & set(files())  # `from heatmap import losses` means the module
            found |= modules | ({node.module} if names - modules else set())
    return found


def ours(name):
    """The imports of a file that are files of this project."""
    return imports_of(name) & set(files())


def room(name):
    """A module's own room if it has one, else that of its package."""
    inside = name.split(".")[1:]
    return ROOMS.get(".".join(inside)) or ROOMS.get(inside[0]) if inside else None


HEATMAP = sorted(n for n in files() if n.startswith("heatmap."))
PIPELINE = sorted(n for n in files() if n.split(".")[0] == "input_pipeline")


@pytest.mark.parametrize("name", HEATMAP)
def test_every_module_of_heatmap_has_a_room(name):
    assert room(name), f"say in tests/test_layering.py where {name} belongs"


@pytest.mark.parametrize("name", HEATMAP)
def test_modules_import_downwards_only(name):
    allowed = MAY_IMPORT[room(name)]
    wrong = [n for n in ours(name) if n in HEATMAP and room(n) not in allowed]
    assert not wrong, f"{name} ({room(name)}) must not import {wrong}"


@pytest.mark.parametrize("name", HEATMAP)
def test_only_run_and_commands_reach_for_the_data(name):
    if room(name) in NO_DATA:
        assert not ours(name) & set(PIPELINE)


@pytest.mark.parametrize("name", PIPELINE)
def test_the_input_pipeline_stands_on_the_ground_floor(name):
    upper = {n for n in ours(name) - set(PIPELINE) if room(n) != "ground"}
    assert not upper, f"{name} must import of heatmap only {sorted(GROUND)}, not {upper}"


@pytest.mark.parametrize("name", [n for n in HEATMAP if room(n) == "ground"])
def test_the_ground_floor_needs_numpy_only(name):
    """And the command line what parses flags."""
    parsers = {"absl", "ml_collections"} if name == "heatmap.command_line" else set()
    roots = {module.split(".")[0] for module in imports_of(name)}
    assert roots <= {*sys.stdlib_module_names, "numpy", "heatmap", *parsers}


@pytest.mark.parametrize("name", sorted(STANDALONE))
def test_what_travels_alone_imports_nothing_of_ours(name):
    assert not {m.split(".")[0] for m in imports_of(name)} & {*PACKAGES, "main", "tests"}


@pytest.mark.parametrize("name", sorted({*HEATMAP} - STANDALONE))
def test_heatmap_leaves_tensorflow_to_the_input_pipeline(name):
    assert not {m.split(".")[0] for m in imports_of(name)} & {"tensorflow", "tensorflow_datasets"}


def test_jax_is_known_to_the_input_pipeline_for_processes_and_devices_only():
    users = {n for n in PIPELINE if {m.split(".")[0] for m in imports_of(n)} & {"jax", "flax"}}
    allowed = {"batching", "device", "resident"}
    assert users <= {f"input_pipeline.{name}" for name in allowed}


def test_nothing_but_main_imports_train():
    importers = {n for n in files() if "heatmap.train" in imports_of(n)}
    assert {n for n in importers if n in HEATMAP or n in PIPELINE} == set()
    assert "main" in importers


@pytest.mark.parametrize("name", HEATMAP + PIPELINE)
def test_libraries_import_no_configs_launchers_or_main(name):
    assert not {m.split(".")[0] for m in imports_of(name)} & {
        "main",
        "configs",
        "launch",
        "benchmarks",
        "tests",
    }


def test_no_circles():
    """Packages count by what their `__init__` imports; a submodule stands for itself."""
    done, path = set(), []

    def visit(name):
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name in done:
            return
        path.append(name)
        for imported in sorted(ours(name)):
            visit(imported)
        path.pop()
        done.add(name)

    for name in files():
        visit(name)


def test_no_drawer_for_everything():
    names = {path.stem for path in files().values()}
    assert not names & {"utils", "util", "helpers", "common_utils", "misc"}


def test_package_of_heatmap_is_empty():
    assert (ROOT / "heatmap" / "__init__.py").read_text() == ""


def loaded_by(*modules):
    """The top-level packages in memory after a fresh Python has imported some modules."""
    code = f"import sys, {', '.join(modules)}; print(*{{m.split('.')[0] for m in sys.modules}})"
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return set(process.stdout.split())


@pytest.mark.parametrize("name", PIPELINE)
def test_the_input_pipeline_loads_tensorflow_in_one_place(name):
    """Which keeps it off the accelerators: it would take their memory."""
    users = {"input_pipeline.host"}
    assert ("tensorflow" in {m.split(".")[0] for m in imports_of(name)}) == (name in users)


def test_data_are_not_needed_to_evaluate_what_is_evaluated():
    modules = [n for n in HEATMAP if room(n) in ("parts", "run")]
    loaded = loaded_by(*[n for n in modules if n != "heatmap.writers"], "heatmap.evaluate")
    assert "jax" in loaded
    assert not loaded & {"tensorflow", "tensorflow_datasets", "input_pipeline"}


def test_tensorflow_is_loaded_only_when_pictures_are_needed():
    """It costs seconds; a step, the labels of a data set and a finished run do without."""
    readers = {place.split(":")[0] for place in input_pipeline.DATASETS.values()}
    commands = ("heatmap.train", "heatmap.step", "benchmarks.step_jax", "input_pipeline.check")
    loaded = loaded_by(*commands, "input_pipeline.specimen_files", *sorted(readers))
    assert "input_pipeline" in loaded
    assert "tensorflow" not in loaded


def test_tensorflow_never_sees_an_accelerator():
    code = (
        "import os, sys, unittest.mock\n"
        "sys.modules['tensorflow'] = unittest.mock.Mock()\n"
        "import input_pipeline.batching\n"
        "assert os.environ['TF_CPP_MIN_LOG_LEVEL'] == '3'\n"
        "assert os.environ['TF_ENABLE_ONEDNN_OPTS'] == '0'\n"
        "input_pipeline.augment.tf.constant\n"
        "sys.modules['tensorflow'].config.set_visible_devices.assert_called_once_with([], 'GPU')\n"
    )
    bare = {name: value for name, value in os.environ.items() if not name.startswith("TF_")}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env=bare)


def test_the_ground_floor_loads_no_framework():
    loaded = loaded_by(*(f"heatmap.{name}" for name in sorted(GROUND)))
    assert "numpy" in loaded
    assert not loaded & FRAMEWORKS


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", sorted(n for n, p in files().items() if "__main__" in p.read_text() and n != "main")
)
def test_commands_explain_themselves(name):
    process = subprocess.run(
        [sys.executable, "-m", name, "--help"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        timeout=60,
    )
    assert process.returncode == 0, process.stderr[-2000:]
    assert "usage: python " in process.stdout
