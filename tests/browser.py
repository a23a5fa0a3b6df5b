"""A headless Chromium for tests of pages, where there is one."""

import contextlib
import os
import shutil
from collections.abc import Iterator

import pytest

# The browsers of Debian, Ubuntu, Fedora and Google, by the name of their command.
_COMMANDS = (
    "chromium-headless-shell",
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
)
# Where it is set, as in .ci/run, a missing browser fails the tests instead of skipping them.
REQUIRED = "HEATMAP_REQUIRE_BROWSER"
PATIENCE = 120_000  # ms; a machine that also trains is slow to draw


@contextlib.contextmanager
def launched() -> Iterator:
    """Yields a browser; without one the test is skipped, or fails where one is required."""
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError:
        _go_without("playwright is not installed: pip install -e '.[browser]'")
    with sync_playwright() as driver:
        found = next(filter(None, map(shutil.which, _COMMANDS)), None)
        try:
            browser = driver.chromium.launch(executable_path=found, timeout=PATIENCE)
        except Error as error:
            reason = str(error).strip().splitlines()[0]
            _go_without(f"no Chromium starts: apt-get install chromium ({reason})")
        yield browser
        browser.close()


def _go_without(reason: str) -> None:
    if os.environ.get(REQUIRED):
        pytest.fail(reason)
    pytest.skip(reason)
