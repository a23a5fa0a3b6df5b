"""What a run says while it trains."""

import re

import pytest

from heatmap import hardware, progress, train
from heatmap.progress import Progress
from tests.helpers import make_config
from tests.test_train import tiny


class Clock:
    """Time that passes when it is told to."""

    def __init__(self):
        self.now = 100.0

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    return clock


def begin(peak=0.0, counts=False, **overrides):
    config = make_config(**{"train.batch_size": 8, "log.every_steps": 10, **overrides})
    return Progress(0, 100, config, peak, counts)


def test_rate_and_waits_are_of_the_time_since_the_last_report(clock, capsys):
    shown = begin()
    for step in (10, 30):
        for _ in range(10):
            with shown.waits("input"):
                clock.now += 0.1
            with shown.waits("devices"):
                clock.now += 0.3
            clock.now += 0.1
        numbers = shown.show(step, 0.25)
    assert numbers == pytest.approx(
        {
            "speed/images_per_s": 20 * 8 / 5,
            "speed/waits_for_input": 0.2,
            "speed/waits_for_devices": 0.6,
        }
    )
    assert shown.show(30, 0.25) == {}  # of no further step
    first, _, last = capsys.readouterr().out.splitlines()
    waits = "waits for input 20%  waits for devices 60%"
    assert re.fullmatch(rf"step 10/100  loss 0.25  16 images/s  {waits}  00:4[45] left", first)
    assert re.fullmatch(r"step 30/100  loss 0.25  \d\d:\d\d left", last)


def test_a_pause_is_no_training(clock):
    shown = begin()
    clock.now += 1000
    shown.goes_on(5)
    clock.now += 1
    assert shown.show(10, 0.25)["speed/images_per_s"] == pytest.approx(40)


def test_a_bar_tells_rate_share_and_what_is_waited_for_most(clock, monkeypatch):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    shown = begin(peak=1e12)
    shown.work = 1e11
    with shown.waits("input"):
        clock.now += 1
    with shown.waits("devices"):
        clock.now += 3
    shown.show(10, 0.25)
    told = shown._bar.postfix
    shown.close()
    assert told == "loss=0.25, images/s=20, of the bf16 peak=25%, waits for=devices 75%"


def test_every_batch_is_passed_on_and_waited_for(clock):
    def slow():
        for number in range(3):
            clock.now += 2
            yield number

    shown = begin()
    assert list(shown.each(slow())) == [0, 1, 2]
    clock.now += 6
    assert shown.show(3, 0.0)["speed/waits_for_input"] == pytest.approx(0.5)


def test_work_is_compared_with_a_known_peak(clock, capsys):
    assert not begin().wants_work
    shown = begin(peak=4e12)
    assert shown.wants_work
    shown.work = 0.0
    assert not shown.wants_work
    shown.work = 1e12
    clock.now += 5
    numbers = shown.show(10, 0.25)
    assert numbers["speed/flop_per_s"] == pytest.approx(2e12)
    assert numbers["speed/share_of_peak"] == pytest.approx(0.5)
    assert "2 TFLOP/s, 50% of the bf16 peak, in float32  " in capsys.readouterr().out
    shown = begin(peak=4e12, **{"model.dtype": "bfloat16"})
    shown.work = 1e12
    clock.now += 5
    shown.show(10, 0.25)
    assert "2 TFLOP/s, 50% of the bf16 peak  " in capsys.readouterr().out


def test_work_is_told_where_the_peak_is_unknown(clock, capsys):
    shown = begin(counts=True)
    assert shown.wants_work
    shown.work = 1e12
    clock.now += 5
    numbers = shown.show(10, 0.25)
    assert numbers["speed/flop_per_s"] == pytest.approx(2e12)
    assert "speed/share_of_peak" not in numbers
    assert "  2 TFLOP/s  " in capsys.readouterr().out


class Device:
    def __init__(self, kind):
        self.device_kind = kind


@pytest.mark.parametrize(
    ("kind", "each"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA GH200 480GB", 989e12),
        ("NVIDIA GB200", 2500e12),
        ("NVIDIA B200", 2250e12),
        ("NVIDIA A30", 165e12),
        ("AMD Instinct MI300X", 1307e12),
        ("TPU7x", 1153.5e12),
        ("NVIDIA A100-SXM4-40GB", 312e12),
        ("NVIDIA A10G", 70e12),
        ("NVIDIA A10", 125e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("Tesla T4", 65e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5p", 459e12),
        ("TPU v6 lite", 918e12),
        ("cpu", 0),
        ("NVIDIA L40", 0),
        ("NVIDIA RTX A1000", 0),
        ("NVIDIA T400", 0),
        ("NVIDIA Unheard-of", 0),
    ],
)
def test_peaks_go_by_the_name_of_the_device(kind, each):
    assert hardware.peak([Device(kind)] * 4) == 4 * each


@pytest.mark.slow
def test_a_run_on_a_device_with_a_known_peak_says_how_much_of_it_it_reaches(
    tiny_root, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(hardware, "peak", lambda devices: 1e12)
    train.train(tiny(tiny_root, **{"train.steps": 3, "log.every_steps": 1}), tmp_path / "run")
    line = re.search(r"step 3/3 .* (\S+) TFLOP/s, \S+% of the bf16 peak", capsys.readouterr().out)
    assert float(line[1]) > 0


@pytest.mark.slow
@pytest.mark.parametrize("dispatch", [1, 2])
def test_transfer_is_no_waiting_for_input(tiny_root, tmp_path, capsys, dispatch):
    lengths = {"train.steps": 4, "log.every_steps": 2, "train.steps_per_dispatch": dispatch}
    train.train(tiny(tiny_root, **lengths), tmp_path / "run")
    assert re.search(r"step 4/4 .* waits for transfer \d+%", capsys.readouterr().out)
