"""What once was read as a crash: see tests/fuzzing.py."""

import random

import pytest

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


def test_a_crash_is_found():
    kind = fuzzing.Kind(lambda root: None, ("*",), lambda root: 1 / 0)
    assert "ZeroDivisionError" in fuzzing.attempt(kind, fuzzing.CORPUS)
    rng = random.Random(0)
    assert len({fuzzing.damage(b'{"a": [1, 2]}', rng) for _ in range(50)}) > 30
