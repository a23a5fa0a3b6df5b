"""Where compiled programs are kept."""

import warnings

import jax
import pytest

from heatmap import compilation


@pytest.fixture
def settings(monkeypatch):
    """A fresh environment; what is set in JAX is set back."""
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    names = (
        "jax_compilation_cache_dir",
        "jax_persistent_cache_min_compile_time_secs",
        "jax_persistent_cache_min_entry_size_bytes",
    )
    before = {name: getattr(jax.config, name) for name in names}
    with warnings.catch_warnings():
        yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_the_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert compilation.folder().parent == tmp_path / "heatmap"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert compilation.folder().parent == tmp_path / ".cache" / "heatmap"


def test_another_kind_of_cpu_has_another_folder(monkeypatch, tmp_path):
    cpuinfo = tmp_path / "cpuinfo"
    monkeypatch.setattr(compilation, "_CPUINFO", cpuinfo)
    folders = []
    for text in ("flags: avx2\nMHz: 2\n", "flags: avx512f\nMHz: 2\n", "flags: avx2\nMHz: 3\n"):
        cpuinfo.write_text(text)
        folders.append(compilation.folder())
    assert folders[0] != folders[1]
    assert folders[0] == folders[2]  # a speed of the moment is no kind


def test_programs_are_kept_in_the_folder(settings, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compilation.keep()
    assert jax.config.jax_compilation_cache_dir == str(compilation.folder())
    assert compilation.folder().is_dir()


def test_a_users_own_setting_stays(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "own"))
    before = jax.config.jax_compilation_cache_dir
    compilation.keep()
    assert jax.config.jax_compilation_cache_dir == before
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_done_without(settings, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    before = jax.config.jax_compilation_cache_dir
    compilation.keep()
    assert jax.config.jax_compilation_cache_dir == before
