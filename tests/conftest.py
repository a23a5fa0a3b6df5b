"""Fixtures shared by the tests: a tiny labelled data set, and the real one where it is present."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

import json
import pathlib
import tempfile
import time

import numpy as np
import pytest
from PIL import Image

# Many tests train the same small network; each program is compiled once for all of them, those in
# child processes included.
_cache = tempfile.TemporaryDirectory(prefix="heatmap-compiled-")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", _cache.name)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

# Programs of a few steps each: it takes longer to compile them well than to run them as they are.
QUICKLY_COMPILED = (
    "--xla_backend_optimization_level=1 --xla_llvm_disable_expensive_passes=true"
    " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
)
SHARED = pathlib.Path(__file__).parents[2] / "shared" / "data"
# The files that take minutes. pytest-xdist hands out whole files, so that one of these, started
# last, would leave the other cores with nothing to do.
LONG = (
    "test_train.py",
    "test_main.py",
    "test_readme.py",
    "test_processes.py",
    "test_state.py",
    "test_export.py",
    "test_report.py",
    "test_study.py",
    "test_beetles_sweep.py",
    "test_experiment_004.py",
    "test_export_agreement.py",
    "test_rank.py",
    "test_models.py",
    "test_checks.py",
)


def pytest_configure(config):
    if config.option.markexpr == "not slow":
        os.environ.setdefault("XLA_FLAGS", QUICKLY_COMPILED)  # the slow tests as a user does


def pytest_collection_modifyitems(items):
    place = {name: i for i, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path.name, len(LONG)))


def pytest_runtest_setup(item):
    """Begins no slow test after the time that the machine was given for them, if it was."""
    until = float(os.environ.get("HEATMAP_SLOW_TESTS_UNTIL", "inf"))  # seconds since the epoch
    if item.get_closest_marker("slow") and time.time() > until:
        pytest.skip(f"no time is left on this machine for {item.nodeid}")


@pytest.fixture(scope="session")
def shared_data() -> pathlib.Path:
    """The folder of real photographs, which a user's machine does not have."""
    if not SHARED.is_dir():
        pytest.skip("the real photographs are not on this machine")
    return SHARED


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory) -> pathlib.Path:
    """A simple_json data set: a bright and a dim spot on 32×32 pixels, 20 train, 6 val, 6 test."""
    return write_spots(tmp_path_factory.mktemp("spots"))


@pytest.fixture(scope="session")
def other_root(tmp_path_factory) -> pathlib.Path:
    """The same with other pictures, which no run on `tiny_root` has labels of."""
    return write_spots(tmp_path_factory.mktemp("others"), seed=1)


def write_spots(root: pathlib.Path, seed: int = 0) -> pathlib.Path:
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:32, :32]
    for split, count in (("train", 20), ("val", 6), ("test", 6)):
        (root / split).mkdir(parents=True)
        images = []
        for i in range(count):
            points = rng.uniform(4, 27, (2, 2))
            picture = rng.normal(40, 5, (32, 32))
            for (x, y), height in zip(points, (200, 100), strict=True):
                picture += height * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 8)
            pixels = picture.clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / split / f"{i:03d}.png")
            images.append({"id": i, "file_name": f"{i:03d}.png", "keypoints": points.tolist()})
        labels = {"images": images, "keypoint_names": ["bright", "dim"], "num_keypoints": 2}
        (root / f"{split}_annotations.json").write_text(json.dumps(labels))
    return root
