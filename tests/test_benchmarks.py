"""Benchmarks run to their tables; what they time is nobody's business here."""

import re

import pytest

from benchmarks import targets
from heatmap.errors import UserError

BRIEF = [
    "--config.data.name=simple_json",
    "--config.data.image_size=(32,32)",
    "--config.targets.heatmap_size=(16,16)",
    "--config.train.batch_size=4",
]


@pytest.mark.slow
def test_targets_of_host_and_device_train_the_same_network(tiny_root, capsys):
    targets.main([*BRIEF, f"--config.data.root={tiny_root}", "--config.train.steps=30"])
    shown = capsys.readouterr().out
    assert re.search(r"\| training \| \d+\.\d \| \d+\.\d \| \d\.\d+ \|", shown)
    assert float(re.search(r"loss: (\S+) of it", shown)[1]) < 1e-3
    host, device = re.search(r"`error_px/median` \| (\S+) \| (\S+) \|", shown).groups()
    assert float(host) == pytest.approx(float(device), rel=1e-2)


def test_too_few_steps_are_refused(tiny_root):
    with pytest.raises(UserError, match=r"give --config\.train\.steps=30 or more"):
        targets.main([*BRIEF, f"--config.data.root={tiny_root}", "--config.train.steps=9"])
