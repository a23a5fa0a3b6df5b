"""Several processes that train one model, on this machine over loopback."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Sequence

import jax
import numpy as np
import pyarrow.parquet
import pytest

from heatmap import processes
from heatmap.errors import UserError
from tests.helpers import loss_of_each_step
from tests.test_main import ROOT, SMALL, command


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("", 2, 0), "--coordinator=HOST:PORT"),
        (("auto", 1, 1), "--coordinator=HOST:PORT"),
        (("somewhere", 2, 0), "--coordinator=somewhere: say HOST:PORT"),
        (("host:1234", 2, 2), "--process=2 is none of 2"),
        (("host:1234", 2, -1), "--process=-1 is none of 2"),
        (("none", 1, 1), "--coordinator=HOST:PORT"),
    ],
)
def test_mistakes_are_one_sentence(arguments, words):
    with pytest.raises(UserError, match=re.escape(words)):
        processes.join(*arguments)


class Asked(Exception):
    pass


@pytest.fixture
def bare(monkeypatch):
    """An environment that no launcher has made."""
    launchers = ("SLURM_", "OMPI_", "TPU_", "MEGASCALE_", "KUBERNETES_", "JOB_COMPLETION_")
    for name in list(os.environ):
        if name.startswith(launchers):
            monkeypatch.delenv(name)


@pytest.fixture
def asked(monkeypatch, bare):
    """What JAX is asked for, in place of meeting anybody."""

    def initialize(**settings):
        raise Asked(settings)

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    return lambda *arguments: processes.join(*(arguments or ("", 1)))


def test_one_process_meets_nobody(asked, monkeypatch):
    asked()
    asked("host:1234", 1, 0)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    monkeypatch.setenv("SLURM_NTASKS", "4")  # of the job, which no `srun` has started
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "localhost")
    asked()
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    asked("none", 1, 0)  # four runs beside one another


@pytest.mark.parametrize(
    "environment",
    [
        {"SLURM_STEP_NUM_TASKS": "2"},
        {"OMPI_COMM_WORLD_SIZE": "4"},
        {"TPU_WORKER_HOSTNAMES": "a.svc,b.svc"},
        {"TPU_PROCESS_ADDRESSES": "a.svc:8476,b.svc:8476", "TPU_WORKER_HOSTNAMES": "localhost"},
        {"TPU_WORKER_HOSTNAMES": "localhost", "MEGASCALE_NUM_SLICES": "2"},
    ],
)
def test_launchers_are_believed(asked, monkeypatch, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(Asked) as found:
        asked()
    assert "coordinator_address" not in found.value.args[0]
    assert found.value.args[0]["local_device_ids"] is None


def test_the_one_task_of_a_slurm_node_has_all_its_gpus(asked, monkeypatch):
    step = {"STEP_NUM_TASKS": "2", "STEP_NUM_NODES": "2", "GPUS_ON_NODE": "4"}
    for name, value in step.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    for arguments in ((), ("host:1234", 2, 0)):
        with pytest.raises(Asked) as found:
            asked(*arguments)
        assert found.value.args[0]["local_device_ids"] == [0, 1, 2, 3]
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "8")  # a task for each GPU: JAX's own rule
    with pytest.raises(Asked) as found:
        asked()
    assert found.value.args[0]["local_device_ids"] is None


def test_a_launcher_says_how_many_there_are(bare, monkeypatch):
    assert processes.announced() == 1
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "4")
    assert processes.announced() == 4
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "a,b,c,d,e")
    assert processes.announced() == 5
    monkeypatch.setenv("MEGASCALE_NUM_SLICES", "3")
    assert processes.announced() == 15


def test_a_tpu_vm_is_asked_for_the_others_of_its_slice(asked, monkeypatch):
    """Its environment is silent; the metadata server of the cloud knows."""
    told = {
        "agent-worker-number": "1",
        "worker-network-endpoints": "a,b,c,d",
        "tpu-env": "ZONE: 'x'",
    }
    cloud = processes.cloud_tpu_cluster
    monkeypatch.setattr(cloud, "running_in_cloud_tpu_vm", True)
    monkeypatch.setattr(cloud, "get_metadata", lambda key: (told[key], 200))
    processes._of_tpu_vms.cache_clear()
    assert processes.announced() == 4
    with pytest.raises(Asked):
        asked()
    processes._of_tpu_vms.cache_clear()

    def unreachable(key):
        raise OSError("no such server")

    monkeypatch.setattr(cloud, "get_metadata", unreachable)
    assert processes.announced() == 1
    processes._of_tpu_vms.cache_clear()


def test_a_pod_of_an_indexed_job_knows_its_number(asked, monkeypatch):
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "2")
    with pytest.raises(Asked) as found:
        asked("host:1234", 3)  # a name that means nothing outside Kubernetes
    assert found.value.args[0]["process_id"] == 0
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    with pytest.raises(Asked) as found:
        asked("host:1234", 3)
    assert found.value.args[0]["process_id"] == 2
    with pytest.raises(Asked) as found:
        asked("host:1234", 3, 0)  # what is said counts
    assert found.value.args[0]["process_id"] == 0
    asked()  # the pods of a sweep have numbers too
    with pytest.raises(UserError, match="--process=2 is none of 2"):
        asked("host:1234", 2)


def test_kubernetes_is_asked_by_a_package(bare, monkeypatch):
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setitem(sys.modules, "kubernetes", None)  # not installed
    with (
        warnings.catch_warnings(action="error"),
        pytest.raises(UserError, match=r"--process=I or, for --coordinator=auto, install the pack"),
    ):
        processes.join("auto", 1)


def test_what_the_others_say_is_compared(monkeypatch):
    """Two processes of which the second has other data, by what the exchange would return."""

    def gathered(mine):
        theirs = mine.copy()
        theirs[1] += 1
        return np.stack([mine, theirs])

    processes.agree({"the config": "a", "the data": "b"})  # one alone
    monkeypatch.setattr(processes, "are_several", lambda: True)
    monkeypatch.setattr(processes.multihost_utils, "process_allgather", gathered)
    with pytest.raises(UserError, match="same run: the data differs between them"):
        processes.agree({"the config": "a", "the data": "b"})


def test_a_file_that_is_not_there_is_named(tmp_path):
    (tmp_path / "there").touch()
    processes.all_see(tmp_path / "there")
    with pytest.raises(UserError, match="Not all processes see"):
        processes.all_see(tmp_path / "missing")


def test_an_address_is_passed_on(asked):
    with pytest.raises(Asked) as found:
        asked("host:1234", 3, 2)
    settings = found.value.args[0]
    assert settings["coordinator_address"] == "host:1234"
    assert (settings["num_processes"], settings["process_id"]) == (3, 2)


@pytest.mark.parametrize(
    ("others", "message"), [(False, "anything"), (True, "RESOURCE_EXHAUSTED: too large")]
)
def test_a_failure_of_one_process_alone_is_its_own(monkeypatch, others, message):
    monkeypatch.setattr(processes, "are_several", lambda: others)
    with pytest.raises(jax.errors.JaxRuntimeError, match=message), processes.together():
        raise jax.errors.JaxRuntimeError(message)


# Plain gradient descent, whose steps are as large as the gradients are and move the loss by a
# fifth, while rounding grows little: Adam would take the same steps along gradients half as large.
STEPS = [
    *(a for a in SMALL if not re.search("every|steps|tensorboard|sigma|rate|eval.batch", a)),
    "--config.train.steps=24",
    "--config.optim.name=sgd",
    "--config.optim.learning_rate=3e-3",
    "--config.train.eval_every_steps=12",
    "--config.log.every_steps=1",
    "--config.data.verify=False",
]


@pytest.fixture
def started():
    """The processes of a test, none of which outlives it."""
    processes: list[subprocess.Popen] = []
    yield processes
    for process in processes:
        process.kill()
        process.wait()


def wait_for(line: str, folder, process) -> None:
    deadline = time.monotonic() + 200
    while line not in said(folder):
        assert process.poll() is None, said(folder)
        assert time.monotonic() < deadline, said(folder)
        time.sleep(0.05)


def start(
    root, folder, count: int, devices: int, *last: str, each: Sequence[str] = ()
) -> list[subprocess.Popen]:
    """Starts the processes of one run; what each prints goes to FOLDER.I.log.

    `last` are flags of the last one alone, and `each` of all.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    flags = [*STEPS, f"--config.data.root={root}", f"--workdir={folder}", *each]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    run = []
    for index in range(count):
        others = [f"--coordinator={address}", f"--processes={count}", f"--process={index}"]
        with open(f"{folder}.{index}.log", "a") as log:
            run.append(
                subprocess.Popen(
                    command(
                        *flags,
                        *(others if count > 1 else []),
                        *(last if index == count - 1 else []),
                    ),
                    cwd=ROOT,
                    env=environment,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            )
    return run


def said(folder, index: int = 0) -> str:
    with open(f"{folder}.{index}.log") as log:
        return log.read()


def finish(run, folder) -> None:
    try:
        for index, process in enumerate(run):
            assert process.wait(timeout=300) == 0, said(folder, index)
    finally:
        for process in run:
            process.kill()


def losses(folder) -> np.ndarray:
    """Returns [lines, 2], the training and validation losses of the log."""
    (log,) = json.loads((folder / "training_log.json").read_text()).values()
    return np.array([(line["train_loss"], line["val_loss"]) for line in log])


@pytest.fixture(scope="module")
def alone(tiny_root, tmp_path_factory):
    """The folder of the same run in one process on one device."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    finish(start(tiny_root, folder, 1, 1), folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flag", "sentence"),
    [
        ("--config.optim.learning_rate=2e-3", "the config differs between them"),
        ("--config.data.split.method=hash", "the config differs between them"),
    ],
)
def test_processes_that_were_not_started_alike_are_refused(
    tiny_root, tmp_path, started, flag, sentence
):
    folder = tmp_path / "run"
    started += start(tiny_root, folder, 2, 1, flag)
    assert [process.wait(timeout=300) for process in started] == [2, 2]
    for index in (0, 1):
        assert sentence in said(folder, index)
        assert "Traceback" not in said(folder, index)
    assert not folder.exists()


@pytest.mark.slow
def test_a_folder_that_is_not_shared_is_refused(tiny_root, tmp_path, started):
    folder, other = tmp_path / "run", tmp_path / "other"
    started += start(tiny_root, folder, 2, 1, f"--workdir={other}")
    wait_for("devices: 2", folder, started[0])
    assert [process.wait(timeout=300) for process in started] == [2, 2]
    assert "Not all processes see" in said(folder, 1)


@pytest.mark.slow
def test_two_processes_of_four_devices_train_as_one_of_one(tiny_root, tmp_path, alone):
    folder = tmp_path / "run"
    finish(start(tiny_root, folder, 2, 4), folder)
    mine, expected = loss_of_each_step(folder), loss_of_each_step(alone)
    assert mine.shape == (24,)
    assert expected[-1] < 0.85 * expected[0]  # or a wrong gradient could go unseen
    np.testing.assert_allclose(mine, expected, rtol=1e-5)
    np.testing.assert_allclose(losses(folder), losses(alone), rtol=1e-5)
    scores, expected = (
        json.loads((place / "metrics.json").read_text()) for place in (folder, alone)
    )
    assert scores.keys() == expected.keys()
    assert scores["test/loss"] == pytest.approx(expected["test/loss"], rel=1e-5)
    for split in ("val", "test"):
        tables = [
            pyarrow.parquet.read_table(place / "predictions" / f"{split}.parquet")
            for place in (folder, alone)
        ]
        assert tables[0]["id"] == tables[1]["id"]  # everyone once, in the same order
        for column in ("x", "y", "x_true", "weight"):
            np.testing.assert_allclose(*(table[column] for table in tables), atol=1e-3)
    # The second reads and computes, and leaves printing and writing to the first.
    assert "state_sha256=" in said(folder, 0)
    assert "state_sha256=" not in said(folder, 1)
    assert "Traceback" not in said(folder, 1)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_lost_process_ends_the_job_and_another_number_goes_on(
    tiny_root, tmp_path, alone, started, victim
):
    folder = tmp_path / "run"
    started += start(tiny_root, folder, 2, 4)
    wait_for("step 14/", folder, started[0])
    started[victim].kill()
    started[victim].wait()
    # A failed exchange tells at once; who waits for the other to save is told by JAX, once there
    # has been no sign of life for long enough.
    assert started[1 - victim].wait(timeout=240) != 0
    told = said(folder, 1 - victim)
    assert "because another is lost" in told or "another task died" in told
    assert "Traceback" not in told

    finish(start(tiny_root, folder, 1, 2), folder)
    assert "resumed at step 12" in said(folder)
    np.testing.assert_allclose(losses(folder), losses(alone), rtol=1e-5)


@pytest.mark.slow
def test_told_to_stop_one_process_stops_all(tiny_root, tmp_path, alone, started):
    folder = tmp_path / "run"
    # Long enough for the processes to meet before its end, every few seconds.
    started += start(tiny_root, folder, 2, 4, each=["--config.train.steps=100000"])
    wait_for("step 5/", folder, started[0])
    started[1].send_signal(signal.SIGTERM)
    finish(started, folder)
    stopped = int(re.search(r"stopped at step (\d+)", said(folder))[1])
    assert stopped < 100000

    last = f"--config.train.steps={max(stopped, 24) + 2}"
    finish(start(tiny_root, folder, 2, 4, each=[last]), folder)
    assert f"resumed at step {stopped}" in said(folder)
    expected = losses(alone)
    np.testing.assert_allclose(losses(folder)[: len(expected)], expected, rtol=1e-5)


@pytest.mark.slow
def test_parameters_divided_over_two_processes_go_on_whole_and_the_other_way_round(
    tiny_root, tmp_path, alone
):
    """One process takes up what eight devices of two held in parts, and two what one has saved."""
    folder, half = tmp_path / "run", ("--config.train.steps=12",)
    divided = "--config.model.shards=8"
    finish(start(tiny_root, folder, 2, 4, each=(divided, *half)), folder)
    finish(start(tiny_root, folder, 1, 1, each=("--config.train.steps=18",)), folder)
    assert "resumed at step 12" in said(folder)
    finish(start(tiny_root, folder, 2, 4, each=(divided,)), folder)
    assert "resumed at step 18" in said(folder)
    mine, expected = losses(folder), losses(alone)  # of steps 12, 18 and 24; of 12 and 24
    np.testing.assert_allclose(mine[0], expected[0], rtol=1e-5)
    between = [mine[1:, 0].mean(), mine[2, 1]]
    np.testing.assert_allclose(between, expected[1], rtol=1e-5)
