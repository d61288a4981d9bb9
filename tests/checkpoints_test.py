"""Oracles: the state that was saved, bit for bit; which steps stay follows from their losses."""

import contextlib
import os
import pathlib
import shutil
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import multihost_utils

from diffjax import checkpoints, parallel, training

ROOT = pathlib.Path(__file__).parents[1]
OPTIMIZER = optax.adam(0.1)


def a_state(step):
    rng = np.random.default_rng(step)
    params = {"w": rng.normal(size=(3, 2)), "deep": {"b": rng.normal(size=2)}}
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)
    state = training.create_state(params, OPTIMIZER)
    _, opt_state = OPTIMIZER.update(params, state.opt_state, params)
    return state._replace(step=jnp.int32(step), opt_state=opt_state)


def opened(directory, keep=None):
    return contextlib.closing(checkpoints.open_manager(directory, keep=keep))


def on_host(state):
    return jax.tree.map(np.asarray, state)


def test_round_trip_of_a_state(tmp_path):
    state = a_state(5)
    with opened(tmp_path) as manager:
        checkpoints.save(manager, 5, on_host(state))
    with opened(tmp_path) as manager:
        restored = checkpoints.load(manager, jax.eval_shape(lambda: state))
    chex.assert_trees_all_equal(restored, state)
    chex.assert_trees_all_equal_shapes_and_dtypes(restored, state)
    assert isinstance(restored, training.TrainState)


def test_keeps_the_newest(tmp_path):
    with opened(tmp_path, keep=2) as manager:
        for step in (1, 2, 3, 4):
            checkpoints.save(manager, step, on_host(a_state(step)))
    assert {path.name for path in tmp_path.iterdir()} == {"3", "4"}
    with opened(tmp_path, keep=2) as manager:
        latest = checkpoints.load(manager, a_state(0))
        older = checkpoints.load(manager, a_state(0), step=3)
    chex.assert_trees_all_equal(latest, a_state(4))
    chex.assert_trees_all_equal(older, a_state(3))


def kept(directory, keep, losses):
    """(steps that lie there, the best) after saving at each step with its loss."""
    with opened(directory, keep=keep) as manager:
        for step, loss in losses.items():
            checkpoints.save(manager, step, on_host(a_state(step)), loss)
    with opened(directory, keep=keep) as manager:
        return sorted(int(path.name) for path in directory.iterdir()), manager.best_step()


def test_keeps_the_newest_and_the_best(tmp_path):
    losses = {1: 3.0, 2: 1.0, 3: 2.0, 4: None, 5: float("nan"), 6: 1.5, 7: -float("inf")}
    assert kept(tmp_path, 2, losses) == ([2, 6, 7], 2)
    with opened(tmp_path) as manager:
        chex.assert_trees_all_equal(checkpoints.load(manager, a_state(0), step=2), a_state(2))
        chex.assert_trees_all_equal(checkpoints.load(manager, a_state(0)), a_state(7))
    # Over a stop, and where the best one is among the newest; of equal ones the newest.
    assert kept(tmp_path, 2, {8: 1.2}) == ([2, 7, 8], 2)
    assert kept(tmp_path, 2, {9: 0.5, 10: 0.6}) == ([9, 10], 9)
    assert kept(tmp_path, 1, {11: 0.5, 12: None}) == ([11, 12], 11)
    assert kept(tmp_path / "none", 1, {1: None, 2: None}) == ([2], None)


@pytest.mark.parametrize("text", ["", '{"loss": 0.', "\0" * 15, "{}", "[]", '{"loss": NaN}', None])
def test_a_loss_that_is_damaged_is_never_the_best(tmp_path, text):
    kept(tmp_path, 3, {1: 2.0, 2: 1.0})
    path = tmp_path / "2" / "metrics" / "metrics"
    assert path.exists()
    path.unlink()
    if text is not None:
        path.write_text(text)
    assert kept(tmp_path, 1, {3: 3.0}) == ([1, 3], 1)


def test_a_save_does_not_ask_whether_to_stop(tmp_path, monkeypatch):
    # JAX has one number a process, which is the training's.
    asked = []
    monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", asked.append)
    kept(tmp_path, 2, {1: 1.0, 2: None})
    assert not asked


def test_a_step_is_saved_once(tmp_path):
    with opened(tmp_path) as manager:
        checkpoints.save(manager, 1, on_host(a_state(1)))
        checkpoints.save(manager, 1, on_host(a_state(2)))
    with opened(tmp_path) as manager:
        chex.assert_trees_all_equal(checkpoints.load(manager, a_state(0)), a_state(1))


def test_nothing_saved_is_none(tmp_path):
    with opened(tmp_path / "new") as manager:
        assert checkpoints.load(manager, a_state(0)) is None


def test_a_save_that_was_cut_short_is_not_seen(tmp_path):
    with opened(tmp_path) as manager:
        checkpoints.save(manager, 1, on_host(a_state(1)))
    # What orbax leaves when the process dies before it renames the folder to "2".
    (tmp_path / "2.orbax-checkpoint-tmp").mkdir()
    with opened(tmp_path) as manager:
        chex.assert_trees_all_equal(checkpoints.load(manager, a_state(0)), a_state(1))


RESTORE_ON_ONE = """
import sys
import jax
import numpy as np
sys.path.insert(0, "tests")
import checkpoints_test
from diffjax import checkpoints
assert jax.device_count() == 1, jax.devices()
with checkpoints_test.opened(sys.argv[1]) as manager:
    state = checkpoints.load(manager, checkpoints_test.a_state(0))
np.savez(sys.argv[2], *jax.tree.leaves(state))
"""


def test_a_state_of_two_devices_restores_where_there_is_one(tmp_path):
    replicated = parallel.replicate(a_state(7))
    chex.assert_tree_shape_prefix(replicated, (2,))
    with opened(tmp_path / "checkpoints") as manager:
        checkpoints.save(manager, 7, parallel.unreplicate(replicated))
    env = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    arguments = [str(tmp_path / "checkpoints"), str(tmp_path / "leaves.npz")]
    subprocess.run(
        [sys.executable, "-c", RESTORE_ON_ONE, *arguments], cwd=ROOT, env=env, check=True
    )
    with np.load(tmp_path / "leaves.npz") as leaves:
        for restored, saved in zip(leaves.values(), jax.tree.leaves(a_state(7)), strict=True):
            np.testing.assert_array_equal(restored, saved)


# Damage


def _files(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def _cut(folder):
    for path in _files(folder):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _zero(folder):
    for path in _files(folder):
        path.write_bytes(bytes(path.stat().st_size))


def _zero_numbers(folder):
    for path in _files(folder):
        if path.parent.name == "d":
            path.write_bytes(bytes(path.stat().st_size))


def _without_metadata(folder):
    for path in _files(folder):
        if "METADATA" in path.name:
            path.unlink()


def _without_arrays(folder):
    for path in list((folder / "default").iterdir()):
        if path.is_dir():
            shutil.rmtree(path)
        elif "METADATA" not in path.name:
            path.unlink()


def _empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


@pytest.fixture(scope="module")
def two_saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    with opened(folder) as manager:
        for step in (1, 2):
            checkpoints.save(manager, step, on_host(a_state(step)), 1 / step)
    return folder


# Orbax leaves reads behind that end after the one that failed.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    "damage", [_cut, _zero, _zero_numbers, _without_metadata, _without_arrays, _empty]
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_taken(two_saved, tmp_path, damage):
    folder = shutil.copytree(two_saved, tmp_path / "held")
    damage(folder / "2")
    before = sorted(path.name for path in folder.iterdir())
    with opened(folder) as manager, pytest.warns(UserWarning, match="held/2 cannot be read, and"):
        chex.assert_trees_all_equal(checkpoints.load(manager, a_state(0)), a_state(1))
    assert sorted(path.name for path in folder.iterdir()) == before
    # Who writes there sets it aside, and can save that step again.
    with opened(folder) as manager:
        with pytest.warns(UserWarning, match=r"held/2 cannot be read, is now 2\.damaged"):
            state = checkpoints.load(manager, a_state(0), set_aside=True)
        chex.assert_trees_all_equal(state, a_state(1))
        checkpoints.save(manager, 2, on_host(a_state(2)))
    assert (folder / "2.damaged").is_dir()
    with opened(folder) as manager:
        chex.assert_trees_all_equal(checkpoints.load(manager, a_state(0)), a_state(2))


def test_another_shape_is_no_damage(two_saved):
    wide = jax.tree.map(lambda leaf: np.zeros((2,) * np.ndim(leaf), leaf.dtype), a_state(0))
    with opened(two_saved) as manager:
        with pytest.raises(ValueError, match=r"two0/2 holds .*\.params\['deep'\]|params\['w'\] is"):
            checkpoints.load(manager, wide)
        with pytest.raises(ValueError, match="another structure"):
            checkpoints.load(manager, {"a": np.zeros(3, np.float32)})
