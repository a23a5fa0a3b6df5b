"""Benchmarks run to their tables; what they time is nobody's business here."""

import pathlib
import re

import pytest

from benchmarks import decoders, targets
from heatmap.errors import UserError
from tests.test_train import tiny

METHOD = (pathlib.Path(__file__).parents[1] / "docs" / "method.md").read_text()


@pytest.mark.slow
def test_targets_of_host_and_device_train_the_same_network(tiny_root):
    # At a rate at which steps do not amplify what rounding makes of the two.
    settings = {"train.steps": 30, "optim.learning_rate": 1e-5}
    shown = "\n".join(targets.compare(tiny(tiny_root, **settings)))
    assert re.search(r"\| training \| \d+\.\d \| \d+\.\d \| \d\.\d+ \|", shown)
    assert float(re.search(r"loss: (\S+) of it", shown)[1]) < 1e-5
    host, device = re.search(r"`error_px/median` \| (\S+) \| (\S+) \|", shown).groups()
    assert float(host) == pytest.approx(float(device), rel=1e-4)


def test_too_few_steps_are_refused(tiny_root):
    with pytest.raises(UserError, match=r"give --config\.train\.steps=30 or more"):
        targets.compare(tiny(tiny_root, **{"train.steps": 9}))


def cells(line: str) -> tuple[list[str], list[float]]:
    """Divides a line of a table into its words and its numbers."""
    parts = [part.strip() for part in line.strip("|").split("|")]
    numbers = [float(n) for part in parts[1:] for n in re.findall(r"[-+]?\d+\.\d+", part)]
    return [part for part in parts if not re.search(r"\d\.\d", part)], numbers


@pytest.mark.parametrize(
    ("lines", "count"),
    [
        (lambda: decoders.interior_table(decoders.offsets(96.0, 16)), len(decoders.CASES)),
        (lambda: decoders.border_table(2.0), 2),
    ],
)
def test_decoders_err_as_much_as_the_documentation_says(lines, count):
    """Largest error and RMSE of every decoder and σ are those of docs/method.md."""
    _, _, *rows = lines()
    assert len(rows) == count
    written = [cells(line) for line in METHOD.splitlines() if line.startswith("| ")]
    for row in rows:
        label, numbers = cells(row)
        (expected,) = [found for words, found in written if words == label and found]
        assert numbers == pytest.approx(expected, abs=0.011), label
