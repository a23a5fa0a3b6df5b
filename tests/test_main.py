"""The command line as a user meets it: other processes, exit codes and sentences."""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from heatmap.errors import guard
from heatmap.train import train
from launch import hyper
from tests.conftest import write_spots
from tests.helpers import TINY
from tests.test_train import tiny

ROOT = pathlib.Path(__file__).parents[1]
SMALL = hyper.flags(
    {
        **TINY,
        "train.steps": 16,
        "train.save_every_steps": 2,
        "train.eval_every_steps": 8,
        "log.every_steps": 1,
    }
)


def command(*arguments: str, config: str = "configs/sigma2.py") -> list[str]:
    return [sys.executable, "main.py", f"--config={config}", *arguments]


def run(*arguments: str, config: str = "configs/sigma2.py", **options):
    return subprocess.run(
        command(*arguments, config=config),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        **options,
    )


def assert_refused(result, *words: str) -> None:
    """One sentence on stderr, no traceback, exit code 2."""
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr
    assert result.stderr.count("\n") <= 2


def sha_of(output: str) -> str:
    return re.search(r"state_sha256=([0-9a-f]{64})", output).group(1)


@pytest.fixture(scope="module")
def uninterrupted(tiny_root, tmp_path_factory):
    """The output and folder of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    result = run(*SMALL, f"--config.data.root={tiny_root}", f"--workdir={folder}")
    assert result.returncode == 0, result.stderr
    return result.stdout, folder


def start_and_wait_for(line: str, root, folder) -> subprocess.Popen:
    """Starts a run and returns once it has printed a line."""
    arguments = command(*SMALL, f"--config.data.root={root}", f"--workdir={folder}")
    child = subprocess.Popen(
        arguments, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    for printed in child.stdout:
        if printed.startswith(line):
            return child
    raise AssertionError(f"the run ended without printing {line!r}")


@pytest.mark.slow
def test_kill_9_and_resume_ends_bit_identical(uninterrupted, tiny_root, tmp_path):
    child = start_and_wait_for("step 6/", tiny_root, tmp_path / "run")
    time.sleep(0.2)  # into the next step or save
    child.kill()
    child.wait()
    result = run(*SMALL, f"--config.data.root={tiny_root}", f"--workdir={tmp_path / 'run'}")
    resumed = int(re.search(r"resumed at step (\d+)", result.stdout).group(1))
    assert 4 <= resumed < 16
    output, folder = uninterrupted
    assert sha_of(result.stdout) == sha_of(output)
    logs = [json.loads((f / "training_log.json").read_text()) for f in (folder, tmp_path / "run")]
    assert logs[0] == logs[1]


@pytest.mark.slow
def test_sigterm_saves_and_exits_cleanly(uninterrupted, tiny_root, tmp_path):
    child = start_and_wait_for("step 5/", tiny_root, tmp_path / "run")
    child.send_signal(signal.SIGTERM)
    rest = child.stdout.read()
    assert child.wait() == 0
    stopped = int(re.search(r"stopped at step (\d+)", rest).group(1))
    result = run(*SMALL, f"--config.data.root={tiny_root}", f"--workdir={tmp_path / 'run'}")
    assert f"resumed at step {stopped}" in result.stdout
    assert sha_of(result.stdout) == sha_of(uninterrupted[0])


def test_the_resolved_config_is_printed_and_saved(uninterrupted):
    output, folder = uninterrupted
    saved = (folder / "config.json").read_text()
    assert output.startswith(saved)
    assert json.loads(saved)["train"]["steps"] == 16
    assert json.loads(saved)["train"]["epochs"] == 0


def test_a_finished_run_is_told_again_without_tensorflow(uninterrupted, tiny_root):
    output, folder = uninterrupted
    python, *rest = command(*SMALL, f"--config.data.root={tiny_root}", f"--workdir={folder}")
    told = subprocess.run(
        [python, "-X", "importtime", *rest], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert told.returncode == 0
    assert sha_of(told.stdout) == sha_of(output)
    loaded = {line.split("|")[-1].strip() for line in told.stderr.splitlines() if "|" in line}
    assert "heatmap.train" in loaded
    assert "tensorflow" not in loaded


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--config.train.epoch=1"], ["train.epoch", "'train.epochs'"]),
        (["--config.trian.epochs=1"], ["trian", "train"]),
        (["--config.train.epochs=many"], ["train.epochs", "many"]),
        (["--config.train.epochs=1", "--config.train.steps=1"], ["exactly one"]),
        (["--config.data.image_size=(1,'a')"], ["data.image_size[1]", "int"]),
        (["--config.data.missing=perhaps"], ["data.missing", "unknown, absent"]),
        (["--config.model.name=unett"], ["model.name", "'unet'"]),
        (["--wrkdir=x"], ["wrkdir"]),
        (["stray"], ["stray"]),
    ],
)
def test_a_mistyped_command_is_one_sentence(arguments, words, tiny_root, tmp_path):
    small = [a for a in SMALL[:3] if a.split("=")[0] not in {b.split("=")[0] for b in arguments}]
    root = f"--config.data.root={tiny_root}"
    assert_refused(run(*small, root, *arguments, f"--workdir={tmp_path / 'run'}"), *words)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"data.image_size": (100, 100)}, ["divisible by 16"]),
        ({"targets.heatmap_size": (60, 60)}, ["targets.heatmap_size", "16×16"]),
        ({"loss.name": "coordinate_mse"}, ["unet", "coordinate_mse"]),
        ({"decoder.name": "soft_argmax"}, ["soft_argmax", "dark"]),
        ({"optim.name": "adma"}, ["optim.name", "'adam'"]),
        ({"data.name": "simple_jsn"}, ["data.name", "'simple_json'"]),
    ],
)
def test_settings_that_do_not_fit_are_one_sentence(settings, words, tiny_root, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        guard(lambda: train(tiny(tiny_root, **settings), tmp_path / "run"))
    assert stop.value.code == 2
    sentence = capsys.readouterr().err
    assert all(word in sentence for word in words), sentence
    assert sentence.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_missing_config_file_is_one_sentence():
    assert_refused(run(config="configs/sigma9.py"), "sigma9.py", "sigma2")


def test_no_config_is_one_sentence():
    result = subprocess.run(
        [sys.executable, "main.py"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert_refused(result, "--config=configs/sigma2.py")


def test_help_exits_0():
    result = run("--help")
    assert result.returncode == 0
    assert "--workdir" in result.stdout


def break_labels(change):
    """Returns a way to spoil a data set: change one record of the training labels."""

    def spoil(root: pathlib.Path) -> None:
        path = root / "train_annotations.json"
        labels = json.loads(path.read_text())
        change(labels)
        path.write_text(json.dumps(labels))

    return spoil


def truncate(root: pathlib.Path) -> None:
    path = root / "train" / "003.png"
    path.write_bytes(path.read_bytes()[:-60])


def hundred_megapixels(root: pathlib.Path) -> None:
    Image.new("1", (10_000, 10_000)).save(root / "train" / "003.png")


def set_keypoints(value):
    return break_labels(lambda labels: labels["images"][3].update(keypoints=value))


SPOILED = {
    "missing picture": (lambda root: (root / "train" / "003.png").unlink(), "003.png"),
    "unreadable picture": (lambda root: (root / "train/003.png").write_text("no"), "003.png"),
    "truncated PNG": (truncate, "003.png"),
    "100 megapixels": (hundred_megapixels, "megapixels"),
    "JSON does not parse": (
        lambda root: (root / "train_annotations.json").write_text('{"images": [,'),
        "train_annotations.json",
    ),
    "wrong number of points": (set_keypoints([[1, 2]]), "keypoints"),
    "NaN": (set_keypoints([[1, float("nan")], [1, 2]]), "finite"),
    "infinity": (set_keypoints([[1, float("inf")], [1, 2]]), "finite"),
    "duplicate id": (break_labels(lambda d: d["images"][3].update(id=2)), "id"),
    "leaves the folder": (
        break_labels(lambda d: d["images"][3].update(file_name="../val/000.png")),
        "../val/000.png",
    ),
    "empty split": (
        lambda root: (root / "val_annotations.json").write_text(
            json.dumps({"images": [], "keypoint_names": ["bright", "dim"], "num_keypoints": 2})
        ),
        "val",
    ),
    "no data": (lambda root: shutil.rmtree(root), "train_annotations.json"),
}


@pytest.mark.parametrize("name", SPOILED)
def test_bad_data_is_one_sentence(name, tmp_path, capsys):
    spoil, word = SPOILED[name]
    root = write_spots(tmp_path / "data")
    spoil(root)
    with pytest.raises(SystemExit) as stop:
        guard(lambda: train(tiny(root), tmp_path / "run"))
    assert stop.value.code == 2
    sentence = capsys.readouterr().err
    assert word in sentence
    assert sentence.count("\n") == 1


def test_bad_data_ends_the_program_with_exit_code_2(tmp_path):
    root = write_spots(tmp_path / "data")
    truncate(root)
    result = run(*SMALL, f"--config.data.root={root}", f"--workdir={tmp_path / 'run'}")
    assert_refused(result, "003.png")


def test_unreadable_pictures_can_be_skipped_and_are_listed(tmp_path, capsys):
    root = write_spots(tmp_path / "data")
    truncate(root)
    train(tiny(root, **{"data.on_error": "skip", "train.steps": 2}), tmp_path / "run")
    output = capsys.readouterr().out
    assert "003.png" in output
    assert "19 train" in output


def test_a_workdir_of_another_config_is_one_sentence(uninterrupted, tiny_root):
    _, folder = uninterrupted
    root = f"--config.data.root={tiny_root}"
    result = run(*SMALL, root, "--config.seed=3", f"--workdir={folder}")
    assert_refused(result, "seed: 0 -> 3")


def without_shared_cache(caches):
    """A user's environment, whose compiled programs go to a folder of their own."""
    there = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_COMP", "JAX_PERS"))}
    return {**there, "XDG_CACHE_HOME": str(caches)}


@pytest.mark.slow
def test_the_second_start_compiles_nothing(tiny_root, tmp_path):
    brief = [argument for argument in SMALL if "steps=" not in argument]

    def start(name):
        arguments = command(
            *brief,
            "--config.train.steps=2",
            f"--config.data.root={tiny_root}",
            f"--workdir={tmp_path / name}",
        )
        environment = without_shared_cache(tmp_path)
        result = subprocess.run(
            arguments, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stderr
        kept = {path.name for path in (tmp_path / "heatmap").glob("compiled-*/*-cache")}
        (line,) = [line for line in result.stdout.splitlines() if line.startswith("first step ")]
        assert [name in line for name in ("imports", "data", "weights", "compiling")] == [True] * 4
        read, programs = map(int, re.findall(r"(\d+) of (\d+) programs kept", line)[0])
        return sha_of(result.stdout), kept, read, programs

    sha, kept, read, programs = start("first")
    assert any("train_step" in name for name in kept)
    assert (read, programs > 0) == (0, True)
    assert start("second") == (sha, kept, programs, programs)


@pytest.mark.slow
def test_a_full_disk_is_one_sentence(tiny_root, tmp_path):
    small = [a for a in SMALL if "train.steps" not in a]
    brief = [*small, "--config.train.steps=2", f"--config.data.root={tiny_root}"]
    arguments = command(*brief, f"--workdir={tmp_path / 'run'}")
    # No file may grow beyond 100 KB: config.json fits, a checkpoint does not.
    limited = ["bash", "-c", 'ulimit -f 100; exec "$@"', "bash", *arguments]
    environment = without_shared_cache(tmp_path)
    result = subprocess.run(
        limited, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert_refused(result, "disk is full", "checkpoints")
    # With room again the same command goes on.
    assert subprocess.run(arguments, cwd=ROOT, capture_output=True, check=False).returncode == 0


def test_a_folder_that_cannot_be_written_is_one_sentence(tiny_root):
    arguments = [*SMALL, f"--config.data.root={tiny_root}"]
    result = run(*arguments, "--workdir=/sys/heatmap-run")
    assert_refused(result, "/sys/heatmap-run")


@pytest.mark.slow
def test_twenty_kills_at_random_moments_change_nothing(tiny_root, tmp_path):
    seed = int(time.time())
    print(f"seed {seed}")
    rng = np.random.default_rng(seed)

    def arguments(name):
        long = [*SMALL, "--config.train.steps=200"]
        return command(*long, f"--config.data.root={tiny_root}", f"--workdir={tmp_path / name}")

    def start(output):
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        return subprocess.Popen(
            arguments("run"), cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, env=environment
        )

    whole = subprocess.run(
        arguments("whole"), cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    log = tmp_path / "log.txt"
    last_seen = 0  # the last step that any start has reported
    for kill in range(20):
        with log.open("w") as output:
            child = start(output)
            if rng.random() < 0.75:  # while it trains, the others while it starts
                while not re.search(r"^step ", log.read_text(), re.M):
                    assert child.poll() is None, log.read_text()
                    time.sleep(0.02)
                time.sleep(rng.uniform(0, 2))  # some steps, saves and evaluations
            else:
                time.sleep(rng.uniform(0, 8))
            assert child.poll() is None, "the run ended before it could be killed: lengthen it"
            child.kill()
            child.wait()
        text = log.read_text()
        resumed = re.search(r"resumed at step (\d+)", text)
        steps = [int(s) for s in re.findall(r"^step (\d+)/", text, re.M)]
        if steps and last_seen > 2:
            assert resumed, text
            assert int(resumed.group(1)) >= last_seen - 2, (text, last_seen)  # one save interval
        last_seen = max([last_seen, *steps])
        print(f"kill {kill + 1}: seen up to step {last_seen}")
    with log.open("w") as output:
        assert start(output).wait() == 0
    assert sha_of(log.read_text()) == sha_of(whole)
    logs = [(tmp_path / name / "training_log.json").read_text() for name in ("whole", "run")]
    assert logs[0] == logs[1]
