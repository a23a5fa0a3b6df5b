"""The forms of an operator that `benchmarks.operators` compares compute the same."""

import jax
import numpy as np
import pytest

from benchmarks import operators
from heatmap import state


@pytest.mark.parametrize("operator", operators.forms())
def test_forms_agree(operator, monkeypatch):
    monkeypatch.setattr(operators, "BATCH", 4)
    *given, work = operators.arguments_of(operator, (6, 3, 5), np.random.default_rng(0))
    first, *others = operators.forms()[operator].values()
    with jax.set_mesh(state.create_mesh()):
        expected = first(*given)
        for form in others:
            np.testing.assert_allclose(form(*given), expected, rtol=1e-4, atol=1e-4)
    per_pixel = {
        "transposed, input gradient": 16,
        "first stage, there and back": 2 * 9,
        "attention": 2,
    }
    assert work == 2 * 4 * 6 * 6 * 3 * 5 * per_pixel.get(operator, 9)
    assert others
