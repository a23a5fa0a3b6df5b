"""What once was read as a crash: see tests/fuzzing.py."""

import os
import pathlib
import random

import pytest

from heatmap.errors import UserError
from tests import fuzzing

CASES = sorted(path for path in fuzzing.CORPUS.glob("*/*") if path.is_file())


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """Folders of good files, each built when it is first needed."""
    built = {}

    def folder(name):
        if name not in built:
            built[name] = tmp_path_factory.mktemp(name)
            fuzzing.KINDS[name].build(built[name])
        return built[name]

    return folder


@pytest.mark.parametrize("case", CASES, ids=lambda path: f"{path.parent.name}-{path.name[:8]}")
def test_what_once_crashed_is_a_sentence_now(case, good):
    root = good(case.parent.name)
    file = root / case.name.split("--", 1)[1].replace("--", "/")
    data = file.read_bytes()
    file.write_bytes(case.read_bytes())
    found = fuzzing.attempt(fuzzing.KINDS[case.parent.name], root)
    file.write_bytes(data)
    assert not found


@pytest.mark.parametrize("name", [name for name in fuzzing.KINDS if name != "checkpoint"])
def test_good_files_are_read(name, good):
    fuzzing.KINDS[name].read(good(name))


def _read(root):
    if root.name == "deadly":
        os.abort()
    raise {"refused": UserError, "wrong": ValueError}[root.name](root.name)


@pytest.mark.slow
def test_a_death_is_survived():
    apart = fuzzing.Apart(fuzzing.Kind(_read, ("*",), _read))
    found = [apart.attempt(pathlib.Path(name)) for name in ("refused", "deadly", "wrong")]
    apart.end()
    assert found[:2] == ["", None]
    assert "ValueError: wrong" in found[2]


def test_a_crash_is_found():
    kind = fuzzing.Kind(lambda root: None, ("*",), lambda root: 1 / 0)
    assert "ZeroDivisionError" in fuzzing.attempt(kind, fuzzing.CORPUS)
    rng = random.Random(0)
    kind = fuzzing.Kind(lambda root: None, ("*",), lambda root: 1 / 0, (ArithmeticError,))
    assert fuzzing.attempt(kind, fuzzing.CORPUS) == ""
    assert len({fuzzing.damage(b'{"a": [1, 2]}', rng) for _ in range(50)}) > 30
