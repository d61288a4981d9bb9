"""What is compiled is kept for the next run, in a bounded folder, and not where it is not wanted.

Oracle: the folder, and what JAX is told.
"""

import importlib.util
import os

import jax
import pytest

from experiments.lib import commands


@pytest.fixture
def settings():
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def test_the_oldest_programs_go(tmp_path):
    for age, name in enumerate("abcd"):
        (tmp_path / name).write_bytes(bytes(10))
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    commands._bound(tmp_path, 25)
    assert {path.name for path in tmp_path.iterdir()} == {"a", "b"}
    commands._bound(tmp_path / "absent", 25)


def test_the_folder_is_ours_unless_jax_was_told_another(tmp_path, monkeypatch, settings):
    monkeypatch.setenv("DIFFJAX_CACHE", "")
    commands._keep_compiled()
    assert jax.config.jax_compilation_cache_dir is None
    monkeypatch.setenv("DIFFJAX_CACHE", str(tmp_path))
    commands._keep_compiled()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "compiled")
    jax.config.update("jax_compilation_cache_dir", "elsewhere")
    commands._keep_compiled()
    assert jax.config.jax_compilation_cache_dir == "elsewhere"


NO_YNNPACK = "--xla_cpu_experimental_ynn_fusion_type="
LEVEL = "--xla_backend_optimization_level=1"


@pytest.mark.parametrize(
    ("version", "given", "expected"),
    [
        ((0, 10, 2), "", f"{NO_YNNPACK} {LEVEL}"),
        ((0, 10, 2), "--a=1", f"--a=1 {NO_YNNPACK} {LEVEL}"),
        ((0, 10, 2), f"{NO_YNNPACK}all", f"{NO_YNNPACK}all {LEVEL}"),  # the user's word
        ((0, 10, 2), f"{LEVEL}0", f"{LEVEL}0 {NO_YNNPACK}"),
        ((0, 9, 1), "--a=1", "--a=1"),
        ((99, 0, 0), "--a=1", "--a=1"),
    ],
)
def test_xla_is_told_only_flags_that_it_knows(version, given, expected, monkeypatch):
    monkeypatch.setattr(jax.version, "__version_info__", version)
    monkeypatch.setattr(commands, "_has_only_a_cpu", lambda: True)
    monkeypatch.setenv("XLA_FLAGS", given)
    commands._set_xla_flags()
    assert os.environ["XLA_FLAGS"] == expected


@pytest.mark.parametrize(
    ("platforms", "installed", "alone"),
    [
        ("cpu", ["libtpu"], True),
        ("cuda,cpu", [], False),
        (None, [], True),
        (None, ["libtpu"], False),
    ],
)
def test_the_level_of_optimization_is_lowered_on_a_cpu_alone(
    platforms, installed, alone, monkeypatch
):
    before = jax.config.jax_platforms
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: name in installed or find_spec(name)
    )
    monkeypatch.setenv("XLA_FLAGS", "")
    jax.config.update("jax_platforms", platforms)
    try:
        commands._set_xla_flags()
    finally:
        jax.config.update("jax_platforms", before)
    assert (LEVEL in os.environ["XLA_FLAGS"]) == alone
