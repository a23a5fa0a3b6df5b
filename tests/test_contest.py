"""Contests between processes, and what a benchmark leaves."""

import json
import math
import os
import sys

import numpy as np
import pytest

from benchmarks import contest, output, predict, startup, train_step
from benchmarks import input as input_benchmark
from benchmarks.contest import Contestant, Result
from heatmap.errors import UserError
from heatmap.startup import Startup

# Answers with the turns it has had so far, and writes down when it took each.
WORKER = """
import os, sys
from benchmarks import contest

turns = []

def turn():
    turns.append(1)
    with open(os.environ["DIARY"], "a") as diary:
        diary.write(sys.argv[1] + "\\n")
    print("talking on stdout")
    return float(len(turns)) * float(sys.argv[2])

contest.serve({"pid": os.getpid(), "given": os.environ.get("GIVEN", "")}, turn)
"""


def worker(name, unit, **environment):
    return Contestant(name, [sys.executable, "-c", WORKER, name, str(unit)], environment)


@pytest.fixture
def diary(tmp_path, monkeypatch):
    monkeypatch.setenv("DIARY", str(tmp_path / "diary"))
    monkeypatch.setenv("PYTHONPATH", os.getcwd())
    return tmp_path / "diary"


def test_contestants_take_turns_in_processes_of_their_own(diary, capfd):
    slow, fast = contest.hold([worker("slow", 2, GIVEN="this"), worker("fast", 1)], rounds=5)
    assert (slow.name, fast.name) == ("slow", "fast")
    assert slow.seconds == [2, 4, 6, 8, 10]
    assert fast.seconds == [1, 2, 3, 4, 5]
    assert (slow.median, fast.median) == (6, 3)
    assert 1e6 < slow.memory < 1e10
    assert slow.facts["pid"] != fast.facts["pid"]
    assert (slow.facts["given"], fast.facts["given"]) == ("this", "")
    order = diary.read_text().split()
    rounds = [order[i : i + 2] for i in range(0, 10, 2)]
    assert all(sorted(two) == ["fast", "slow"] for two in rounds)
    assert len({tuple(two) for two in rounds}) == 2  # nobody always goes first
    for pid in (slow.facts["pid"], fast.facts["pid"]):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert capfd.readouterr().out == ""  # that is for tables


def test_who_cannot_start_drops_out(diary, capfd):
    broken = Contestant("broken", [sys.executable, "-c", "raise SystemExit('no such library')"])
    (result,) = contest.hold([broken, worker("able", 1)], rounds=1)
    assert result.name == "able"
    assert "no such library" in capfd.readouterr().err
    with pytest.raises(UserError, match="No contestant could start"):
        contest.hold([broken], rounds=1)


def test_who_ends_in_the_middle_is_named(diary):
    code = WORKER.replace("turns.append(1)", "raise SystemExit('out of memory')")
    ends = Contestant("ends", [sys.executable, "-c", code, "ends", "1"])
    with pytest.raises(UserError, match="ends ended before its turn was over"):
        contest.hold([ends, worker("able", 1)], rounds=1)


def test_who_ends_between_turns_is_named(diary):
    code = "import json, os\n"
    code += f"os.fdopen(int(os.environ[{contest._CHANNEL!r}]), 'w').write('{{}}\\n')"
    ends = Contestant("ends", [sys.executable, "-c", code])
    with pytest.raises(UserError, match="ends ended before"):
        contest.hold([ends, worker("able", 1)], rounds=3)


def test_an_unknown_contestant_is_named(tmp_path):
    arguments = ["--models", "unet", "--only", "heatmop", f"--out={tmp_path}"]
    with pytest.raises(UserError, match="--only='heatmop' is not known: did you mean 'heatmap'"):
        train_step.main(arguments)


def test_a_benchmark_leaves_a_table_numbers_and_a_figure(tmp_path, capsys):
    rows = [{"what": "a", "speed": 1234.5678}, {"what": "b", "speed": float("nan")}]
    output.publish(tmp_path / "out", "name", rows, lambda axes: axes.plot([1, 2]))
    printed = capsys.readouterr().out.splitlines()
    assert printed == ["| what | speed |", "|---|---|", "| a | 1,235 |", "| b | – |"]
    kept = json.loads((tmp_path / "out" / "name.json").read_text())
    assert kept["command"].startswith("python -m benchmarks.name")
    assert kept["rows"][0] == rows[0]
    assert {"Python", "Devices", "Code"} <= set(kept["environment"])
    assert (tmp_path / "out" / "name.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("benchmark", [predict, startup, train_step])
@pytest.mark.parametrize("rounds", ["0", "-1", "2.5", "many"])
def test_no_rounds_are_refused(benchmark, rounds, capsys):
    with pytest.raises(SystemExit, match="2"):
        benchmark.main([f"--rounds={rounds}"])
    assert f"--rounds: '{rounds}' is not a whole number from 1" in capsys.readouterr().err


def test_what_contestants_say_of_themselves_is_kept(tmp_path):
    told = contest.told("unet", [Result("a", {"devices": "2 × cpu"}, [1.0])])
    output.publish(tmp_path, "name", [{"n": 1}], lambda axes: None, contestants=told)
    kept = json.loads((tmp_path / "name.json").read_text())
    assert kept["contestants"] == [{"of": "unet", "contestant": "a", "devices": "2 × cpu"}]
    assert {"torch", "grain"} <= set(kept["environment"])


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.012345, "0.0123"), (9.876, "9.88"), (99.96, "100.0"), (7, "7"), ("x", "x")],
)
def test_numbers_keep_three_digits(value, text):
    assert output.table([{"n": value}])[2] == f"| {text} |"


def test_what_each_turn_took_is_kept_and_not_shown(tmp_path, capsys):
    rows = [{"name": "a", "s": 2.0, "seconds": [1.0, 2.0, 3.0]}]
    output.publish(tmp_path, "name", rows, lambda axes: None)
    assert capsys.readouterr().out.splitlines()[0] == "| name | s |"
    assert json.loads((tmp_path / "name.json").read_text())["rows"] == rows
    assert contest.between([1, 2, 3, 4, 5]) == "2.00 – 4.00"


def test_turns_of_predictions_and_of_input_are_kept():
    result = Result("x", {"ms": 3.0}, [0.1, 0.3])
    assert predict.rows("unet", 8, [result])[0]["seconds"] == [0.1, 0.3]
    (row,) = input_benchmark.rows("configs/a.py", [result])
    assert (row["config"], row["seconds"], row["quartiles"]) == (
        "configs/a.py",
        [0.1, 0.3],
        "5.00 – 8.33",
    )
    (row,) = input_benchmark.step_rows("configs/a.py", [result])
    assert (row["config"], row["times a ready batch"]) == ("configs/a.py", [0.1, 0.3])


def test_steps_are_compared_with_the_reference_and_the_peak():
    ours = Result(train_step.OURS, {"work": 4e9, "peak": 1e11}, [0.5, 0.1, 0.2])
    theirs = Result(train_step.REFERENCE, {}, [0.4])
    first, second = train_step.rows("unet", 32, [ours, theirs])
    assert first["images/s"] == pytest.approx(160)
    assert first[f"times {train_step.REFERENCE}"] == pytest.approx(2)
    assert first["GFLOP/s"] == pytest.approx(20)
    assert first["of the matmul peak"] == pytest.approx(0.2)
    assert second["of the matmul peak"] == pytest.approx(0.1)
    (alone,) = train_step.rows("unet", 32, [theirs])
    assert math.isnan(alone["GFLOP/s"])


def test_the_phases_of_a_start_are_read_as_they_are_printed(capsys):
    clock = Startup()
    clock.seconds |= {"imports": 5.25, "data": 0.84, "compiling": 3.0, "first step": 1.5}
    clock.programs, clock.read = 12, 3
    printed = f"workdir: x\n{clock.close()}\nstep 1/1  loss 0.1\n"
    found = {"imports": 5.2, "data": 0.8, "compiling": 3.0, "first step": 1.5}
    assert startup.phases(printed) == found


def test_predictions_are_compared_by_batch():
    ours, theirs = Result(predict.OURS, {}, [0.5, 0.1, 0.2]), Result(predict.REFERENCE, {}, [0.4])
    first, second = predict.rows("unet", 8, [ours, theirs])
    assert (first["images/s"], second["images/s"]) == pytest.approx((40, 20))
    assert first[f"times {predict.REFERENCE}"] == pytest.approx(2)


@pytest.mark.slow
def test_a_prediction_of_ours_takes_part(tmp_path):
    turns = ["--models", "unet", "--batches", "2", "--rounds", "1", "--seconds", "0.01"]
    predict.main([*turns, f"--out={tmp_path}"])
    rows = json.loads((tmp_path / "predict.json").read_text())["rows"]
    assert {row["contestant"] for row in rows} >= {predict.OURS}
    for row in rows:
        batch = int(row["model"].split()[1])
        assert row["images/s"] * row["ms"] == pytest.approx(1e3 * batch)


@pytest.mark.slow
def test_the_input_is_read_by_everyone(tmp_path, monkeypatch):
    """Ours and whatever else is installed."""
    sizes = ["--size", "60", "80", "--count", "24"]
    turns = ["--rounds", "1", "--seconds", "0.01", f"--out={tmp_path}"]
    input_benchmark.main([*sizes, *turns])
    rows = json.loads((tmp_path / "input.json").read_text())["rows"]
    assert len(rows) >= 4
    assert all(row["images/s"] > 0 for row in rows)


@pytest.mark.slow
def test_the_input_feeds_steps(tmp_path):
    small = ["--config.model.backbone=tiny16", "--config.data.image_size=(32,32)"]
    small += ["--config.targets.heatmap_size=(8,8)", "--size", "60", "80", "--count", "24"]
    input_benchmark.main([*small, "--step", "--rounds=1", "--seconds=0.01", f"--out={tmp_path}"])
    fed = json.loads((tmp_path / "input_step.json").read_text())["rows"]
    assert len(fed) == 3
    assert all(row["ms a step on a ready batch"] > 0 for row in fed)
    assert all(-100 < row["input, % of a step"] < np.inf for row in fed)


@pytest.mark.slow
@pytest.mark.parametrize(("step", "count"), [([], 2), (["--step"], 3)])
def test_pictures_that_a_config_draws_itself_are_read(tmp_path, step, count):
    config = ["--config=configs/sigma2.py", "--config.train.batch_size=2"]
    turns = ["--rounds", "1", "--seconds", "0.01", f"--out={tmp_path}"]
    input_benchmark.main([*config, *turns, *step])
    (path,) = tmp_path.glob("*.json")
    rows = json.loads(path.read_text())["rows"]
    assert len(rows) >= count
    assert {row["config"] for row in rows} == {"configs/sigma2.py"}


@pytest.mark.slow
def test_a_step_of_ours_takes_part(tmp_path, capsys):
    """The whole way with this project alone: processes, turns, table and files."""
    out = f"--out={tmp_path}"
    arguments = ["--models", "unet", "--only", train_step.OURS, "--rounds", "2", "--batch", "2"]
    train_step.main([*arguments, "--seconds", "0.01", out])
    (row,) = json.loads((tmp_path / "train_step.json").read_text())["rows"]
    # 2.4 GFLOP a picture forward and back, by a count on paper of the convolutions alone.
    assert row["GFLOP/s"] / row["images/s"] == pytest.approx(2.39, rel=0.1)
    assert 0 < row["of the matmul peak"] < 1
    assert f"| unet | {train_step.OURS} |" in capsys.readouterr().out
