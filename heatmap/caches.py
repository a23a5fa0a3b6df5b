"""Where files are kept that can be made again at any time."""

import os
import pathlib


def folder() -> pathlib.Path:
    """Returns ~/.cache/heatmap, or its like under XDG_CACHE_HOME; may be deleted at any time."""
    caches = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
    return caches / "heatmap"
