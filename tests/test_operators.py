"""The forms of an operator that `benchmarks.operators` compares compute the same."""

import json

import jax
import numpy as np
import pytest

from benchmarks import operators
from heatmap import state


@pytest.mark.parametrize("operator", operators.forms())
def test_forms_agree(operator, monkeypatch):
    monkeypatch.setattr(operators, "BATCH", 4)
    *given, work = operators.arguments_of(operator, (6, 3, 5), np.random.default_rng(0))
    named = operators.forms()[operator]
    with jax.set_mesh(state.create_mesh()):
        found = {name: jax.jit(form)(*given) for name, form in named.items()}
    tolerance = 0.02 if operator.endswith("bfloat16") else 1e-4
    first, *others = (array.astype(np.float32) for array in found.values())
    for other in others:
        np.testing.assert_allclose(other, first, rtol=tolerance, atol=tolerance)
    per_pixel = {
        "transposed, input gradient": 16,
        "first stage, there and back": 2 * 9,
        "attention": 2,
    }
    assert work == 2 * 4 * 6 * 6 * 3 * 5 * per_pixel.get(operator, 9)
    assert len(named) > 1


def test_the_command_times_each_form_in_turn(monkeypatch, tmp_path, capsys):
    tiny = dict.fromkeys(operators.forms(), ()) | {"convolution": ((6, 3, 5),)}
    monkeypatch.setattr(operators, "SHAPES", tiny)
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")  # as it is: this process has begun
    operators.main(["--rounds=1", f"--out={tmp_path}"])
    forms = list(operators.forms()["convolution"])
    kept = json.loads((tmp_path / "operators.json").read_text())
    assert [row["form"] for row in kept["rows"]] == forms
    work = 2 * operators.BATCH * 6 * 6 * 3 * 5 * 9
    for row in kept["rows"]:
        assert row["GFLOP/s"] == pytest.approx(work / row["ms"] / 1e6)
    assert (tmp_path / "operators.png").stat().st_size > 1000
    assert "| convolution | 6×6, 3→5 | Winograd |" in capsys.readouterr().out
