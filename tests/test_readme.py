"""Every command of the README runs, on small data and for two steps."""

import importlib.util
import os
import pathlib
import re
import shlex
import shutil
import socket
import subprocess
import sys

import numpy as np
import pytest
import safetensors.numpy

from heatmap.models.vit import ARCHITECTURES
from tests import published
from tests.conftest import QUICKLY_COMPILED, write_spots
from tests.projects import write_coco, write_deeplabcut, write_film

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
# What makes a command quick without changing what it shows.
BRIEF = [
    "--config.train.steps=2",
    "--config.train.epochs=0",
    "--config.train.batch_size=4",
    "--config.data.image_size=(32,32)",
    "--config.targets.heatmap_size=(16,16)",
    "--config.eval.sheet_examples=1",
    "--config.train.eval_every_steps=2",
]


# What commands that run one after another say at their end, in the order in which they build on
# each other.
SHOWS = {
    "python -m heatmap.models.convert": "weights/dinov2_vits14",
    "python main.py": "error_px/median",
    "python -m heatmap.evaluate": "error_px/median",
    "python -m heatmap.report": "wrote runs/report",
    "python -m heatmap.predict": "wrote the points of",
    "python -m heatmap.calibration": "wrote runs/cal/calibration/",
    "python -m heatmap.export": "wrote runs/cal/export/stablehlo",
    "python -m heatmap.rank": "wrote",
}
# Those that have a test of their own here, or in test_study.py.
BY_THEMSELVES = (
    *("python3 -m venv", "python -m input_pipeline.check", "python -m heatmap.doctor"),
    *("python -m heatmap.serve", "python launch/local.py", "python launch/slurm.py"),
    *("xmanager launch launch/xm.py", "launch/tpu_vm.sh", "python launch/heatmap_vs_regression.py"),
)


def commands(kind: str) -> list[str]:
    blocks = re.findall(r"^```sh\n(.*?)^```", README, re.M | re.S)
    lines = [line for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.startswith(kind)]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> pathlib.Path:
    """A folder with the program, and the data and weights that the README speaks of."""
    place = tmp_path_factory.mktemp("readme")
    for name in ("main.py", "configs", "heatmap", "input_pipeline", "launch"):
        (place / name).symlink_to(ROOT / name)
    write_deeplabcut(place / "PROJECT", videos=4, frames=6)
    write_coco(place / "ROOT", images=12)
    write_spots(place / "JSON")
    shutil.copytree(place / "JSON" / "test", place / "photos")
    write_film(place / "film.mp4", [np.zeros((32, 32, 3), np.uint8)] * 5)
    config = ARCHITECTURES["dinov2_vits14"]
    arrays = published.hugging_face_dinov2(published.random_parameters(config), config)
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    safetensors.numpy.save_file(contiguous, place / "model.safetensors")
    return place


def briefly(line: str, tfds) -> list[str]:
    """Returns a command that trains or reads, on less."""
    arguments = [sys.executable, *shlex.split(line)[1:]]
    if "main.py" in arguments:
        given = {a.split("=")[0] for a in arguments}
        arguments += [a for a in BRIEF if a.split("=")[0] not in given]
        arguments = [a for a in arguments if not a.startswith("--config.train.epochs=1")]
        if "--config=configs/folder.py" not in arguments:
            arguments.append(f"--config.data.root={tfds}")
    return arguments


@pytest.mark.slow
def test_readme_commands_run(place, tmp_path_factory):
    tfds = tmp_path_factory.mktemp("tfds")
    seen = 0
    for kind, line in [(start, line) for start in SHOWS for line in commands(start)]:
        if "--coordinator" in line:
            continue  # not by itself
        result = subprocess.run(
            briefly(line, tfds),
            cwd=place,
            env={**os.environ, "XDG_CACHE_HOME": str(tfds), "XLA_FLAGS": QUICKLY_COMPILED},
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert result.returncode == 0, (line, result.stderr)
        assert SHOWS[kind] in result.stdout, line
        seen += 1
    assert seen >= 17
    (line,) = commands("python -m heatmap.serve")
    line = line.replace("--port=8000", "--port=0")
    server = subprocess.Popen(briefly(line, tfds), cwd=place, stdout=subprocess.PIPE, text=True)
    assert "serving on http" in server.stdout.readline()
    server.terminate()
    server.wait(timeout=60)
    shutil.rmtree(place / "runs")


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.mark.slow
def test_readme_processes_train_together(place, tmp_path_factory):
    tfds = tmp_path_factory.mktemp("tfds")
    lines = [line for line in commands("python main.py") if "--coordinator" in line]
    assert len(lines) == 2
    address = f"127.0.0.1:{free_port()}"
    run = [
        subprocess.Popen(
            briefly(line.replace("HOST:1234", address), tfds),
            cwd=place,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for line in lines
    ]
    told = [process.communicate(timeout=300)[0] for process in run]
    assert [process.returncode for process in run] == [0, 0], told
    assert "error_px/median" in told[0]
    assert "error_px/median" not in told[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("start", "extra", "added"),
    [
        ("python launch/local.py", None, []),
        ("python launch/slurm.py", "submitit", ["--cluster=local"]),
        ("xmanager launch launch/xm.py --", "xmanager", []),
    ],
)
def test_readme_sweeps_run(place, tmp_path_factory, start, extra, added):
    if extra and importlib.util.find_spec(extra) is None:
        pytest.skip(f"{start} needs {extra}: pip install -e '.[launch]'")
    folder = tmp_path_factory.mktemp("home")
    lines = commands(start)
    assert lines
    for line in lines:
        program, *arguments = shlex.split(line)
        bin_folder = pathlib.Path(sys.executable).parent
        given = {a.split("=")[0] for a in arguments}
        brief = [a for a in BRIEF if a.split("=")[0] not in given]
        arguments = [a for a in arguments if not a.startswith("--config.train.epochs")]
        result = subprocess.run(
            [bin_folder / program, *arguments, *added, *brief, f"--config.data.root={folder}"],
            cwd=place,
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "HOME": str(folder),
                "XLA_FLAGS": QUICKLY_COMPILED,
            },
            capture_output=True,
            text=True,
            check=False,
            timeout=1200,
        )
        assert result.returncode == 0, (line, result.stdout, result.stderr)
        assert "3 of 3 runs finished" in result.stdout


def test_readme_sweeps_can_be_tried_first(tmp_path):
    pytest.importorskip("submitit", reason="needs pip install -e '.[launch]'")
    (line,) = commands("python launch/slurm.py")
    arguments = [a for a in shlex.split(line)[2:] if not a.startswith("--out")]
    result = subprocess.run(
        [sys.executable, "-m", "launch.slurm", *arguments, f"--out={tmp_path}", "--dry_run"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "#SBATCH --array=0-2%3" in result.stdout, result.stderr


def test_readme_command_for_a_tpu_is_understood():
    (line,) = commands("launch/tpu_vm.sh")
    result = subprocess.run(
        [*shlex.split(line), "--dry_run"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "main.py --config=configs/sigma2.py" in result.stdout.replace("\\", "")


@pytest.mark.slow
def test_readme_commands_that_check_the_data_run(place):
    lines = commands("python -m input_pipeline.check")
    assert lines
    for line in lines:
        arguments = [sys.executable, *shlex.split(line)[1:]]
        result = subprocess.run(
            arguments, cwd=place, capture_output=True, text=True, check=False, timeout=300
        )
        assert result.returncode == 0, (line, result.stderr)
        assert "left out" in result.stdout, line


@pytest.mark.slow
def test_readme_doctor_looks_at_the_data(place, tmp_path):
    (line,) = commands("python -m heatmap.doctor")
    result = subprocess.run(
        [sys.executable, *shlex.split(line)[1:], *BRIEF, f"--out={tmp_path / 'doctor'}"],
        cwd=place,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert result.returncode in (0, 1), result.stderr  # 1: points of noise are no animal
    assert "codec" in result.stdout
    assert (tmp_path / "doctor" / "contact_sheet.png").is_file()


def test_no_command_is_without_a_test():
    kinds = (*SHOWS, *BY_THEMSELVES)
    assert all(commands(kind) for kind in kinds)
    assert [line for line in commands("") if not line.startswith(kinds)] == []


def test_the_two_commands_need_nothing_but_python_and_pip():
    for command in commands("python3 -m venv"):
        assert command.startswith("python3 -m venv .venv && .venv/bin/pip install")
    assert len(commands("python3 -m venv")) == 2


@pytest.mark.parametrize(
    "feature", ["predict", "measure", "uncertainty", "doctor", "rank", "export", "serve"]
)
def test_what_a_run_is_used_for_has_a_page_of_one_screen_with_a_picture(feature):
    page = (ROOT / "docs" / f"{feature}.md").read_text()
    assert len(page.splitlines()) <= 45
    assert re.search(r"!\[[^\]]+\]\(images/", page)
    assert f"(docs/{feature}.md)" in README


def anchors(text: str) -> set[str]:
    """The names that a heading can be linked by: its words in lower case, joined by dashes."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
)
def test_what_a_page_links_to_exists(page):
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", page.read_text()):
        there = page.parent / target if target else page
        assert there.exists(), target
        if anchor:
            assert anchor in anchors(there.read_text()), f"{target}#{anchor}"
