"""What a full or closed disk is called."""

import errno

import pytest

from heatmap.errors import disk_trouble


@pytest.mark.parametrize(
    "error",
    [
        PermissionError(errno.EACCES, "Permission denied", "photos/a.png"),  # an input
        OSError(errno.EROFS, "Read-only file system", "out/points.csv"),  # --out
        ValueError("open of runs/a failed: Permission denied"),  # by Orbax
    ],
)
def test_no_access_names_the_place_and_no_flag(error):
    told = disk_trouble(error)
    assert str(getattr(error, "filename", None) or "runs/a") in told
    assert "--workdir" not in told
    assert "may be read or written" in told


def test_a_full_disk_is_found_wherever_it_shows():
    full, other = OSError(errno.ENOSPC, "No space left on device", "x"), RuntimeError("not saved")
    assert disk_trouble(other) is None
    other.__cause__ = full
    assert "The disk is full" in disk_trouble(other)
