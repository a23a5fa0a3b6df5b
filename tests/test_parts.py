"""What has been predicted so far: found by name and stamp, whatever the number of parts."""

import pathlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heatmap.inference import instances, parts
from heatmap.inference.parts import Parts
from input_pipeline.sources import WHOLE, Source
from tests.helpers import properties


def source(name, stamp, is_video):
    return Source(name, pathlib.Path(name), is_video, stamp)


SOURCES = [source(n, s, n == "v") for n in ("a", "b", "v") for s in ("old", "new")]


def rows():
    """What a part may say of a source: [name, stamp, first frame, last frame, frames or None]."""
    picture = st.sampled_from([s for s in SOURCES if not s.is_video]).map(
        lambda s: [s.name, s.stamp, WHOLE, WHOLE, None]
    )
    video = st.tuples(
        st.sampled_from([s for s in SOURCES if s.is_video]),
        st.integers(0, 6),
        st.integers(0, 4),
        st.sampled_from([None, None, 4, 6]),
    ).map(lambda v: [v[0].name, v[0].stamp, v[1], v[1] + v[2] - 1, v[3]])
    return st.lists(st.one_of(picture, video), max_size=4)


def scanned(contents, one):
    """The former definition: every row of every part, for each source."""
    now = (one.name, one.stamp)
    return [(n, row) for n, told in enumerate(contents) for row in told if (row[0], row[1]) == now]


def opened(monkeypatch, folder, contents):
    """Parts of a folder that holds these; no Parquet is written."""
    stored = {folder / "parts" / f"{n:06d}.parquet": told for n, told in enumerate(contents)}
    monkeypatch.setattr(instances, "pictures_in", stored.__getitem__)
    monkeypatch.setattr(Parts, "_paths", lambda _: sorted(stored))
    monkeypatch.setattr(instances, "save", lambda path, found, told: stored.update({path: told}))
    return Parts(folder, {})


@given(st.lists(rows(), max_size=5), st.lists(rows(), max_size=3))
@properties
def test_lookups_find_what_a_scan_finds(tmp_path_factory, before, after):
    with pytest.MonkeyPatch.context() as monkeypatch:
        known = opened(monkeypatch, tmp_path_factory.mktemp("out"), before)
        for n, told in enumerate(after):
            known._index(pathlib.Path(f"{n}"), told)
        for one in SOURCES:
            assert known._rows(one) == scanned([*before, *after], one)


def test_work_does_not_grow_with_the_square_of_the_pictures(tmp_path, monkeypatch):
    """Each row is read once when the folder is opened, and once for its own source."""
    reads = [0]

    class Row(list):
        def __getitem__(self, index):
            reads[0] += 1
            return super().__getitem__(index)

    pictures = [source(f"{n}.png", "now", False) for n in range(20_000)]
    told = [Row([one.name, one.stamp, WHOLE, WHOLE, None]) for one in pictures]
    contents = [told[n : n + 250] for n in range(0, len(told), 250)]
    known = opened(monkeypatch, tmp_path, contents)
    assert known.missing(pictures) == []
    assert reads[0] < 20 * len(pictures)
    new = source("new.png", "now", False)
    assert known.missing([new]) == [new]
    known.add(None, {new: (WHOLE, WHOLE)}, {})
    assert known.missing([new]) == []


def test_a_part_that_is_added_is_streamed(tmp_path, monkeypatch):
    known = opened(monkeypatch, tmp_path, [[["a", "old", WHOLE, WHOLE, None]]])
    one = source("b", "new", False)
    known.add(None, {one: (WHOLE, WHOLE)}, {})
    read = []
    monkeypatch.setattr(
        parts.instances,
        "load",
        lambda path: (read.append(path.name), Empty(source=np.array([])))[1],
    )
    assert list(known.stream([one, source("a", "old", False)])) == []
    assert read == ["000001.parquet", "000000.parquet"]


class Empty:
    def __init__(self, source):
        self.source = source

    def __len__(self):
        return 0
