"""Oracles: the same step on one device with the whole batch; numpy on single examples.

Runs on the two CPU devices of conftest.py.
"""

import functools
import os
import pathlib
import re
import subprocess
import sys
import warnings

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from diffjax import losses, parallel, restorers, time_sampling, training
from diffjax.degradations.base import Degradation, draw_noise
from diffjax.models import initialize, unet

COUNT = jax.local_device_count()


def noising(params, x0, t, omega):
    return x0 + params * t * omega


def network(params, xt, t, label):
    del label
    x = jnp.tanh(params["inner"] @ jnp.append(xt.ravel(), t))
    return (params["outer"] @ x).reshape(xt.shape)


def test_two_devices_train_as_one_does():
    assert COUNT == 2
    optimizer = training.create_optimizer(1e-2, clip_norm=0.5, accumulate=2)
    step_fn = functools.partial(
        training.train_step,
        objective=restorers.Objective(
            network, loss_fn=losses.l2, spacing_fn=time_sampling.stratified
        ),
        optimizer=optimizer,
        ema_decay=0.9,
    )
    rng = np.random.default_rng(0)
    params = {
        "inner": jnp.asarray(rng.normal(size=(8, 13)) / 4, jnp.float32),
        "outer": jnp.asarray(rng.normal(size=(12, 8)) / 4, jnp.float32),
    }
    degradation = Degradation(jnp.float32(2), draw_fn=draw_noise, apply_fn=noising)
    problem = restorers.Problem(degradation)
    key = jax.random.key(3)
    batches = [
        {
            "image": rng.uniform(-1, 1, (6, 2, 2, 3)).astype(np.float32),
            "position": np.arange(6, dtype=np.int32),
        }
        for _ in range(6)
    ]

    one = training.create_state(params, optimizer)
    two = parallel.replicate(one)
    step_one, step_two = jax.jit(step_fn), parallel.pmap_step(step_fn)
    replicated = parallel.replicate(problem)
    for batch in batches:
        one, metrics_one = step_one(one, batch, key, problem)
        two, metrics_two = step_two(two, parallel.shard(batch), key, replicated)
        # The mean of six is the mean of two means of three: float32 rounding, which Adam may
        # enlarge where a gradient is nearly 0.
        chex.assert_trees_all_close(metrics_two, metrics_one, rtol=1e-5)
    chex.assert_trees_all_close(parallel.unreplicate(two), one, rtol=1e-4, atol=1e-5)
    moved = jax.tree.map(lambda new, old: jnp.max(abs(new - old)), one.params, params)
    assert min(jax.tree.leaves(moved)) > 1e-3
    # Both devices hold the very same numbers, not only the first one.
    for leaf in jax.tree.leaves(two):
        np.testing.assert_array_equal(leaf[0], leaf[1])


def small_problem(optimizer):
    """(step, state, problem, batches)."""
    rng = np.random.default_rng(0)
    params = {
        "inner": rng.normal(size=(8, 13)).astype(np.float32) / 4,
        "outer": rng.normal(size=(12, 8)).astype(np.float32) / 4,
    }
    step_fn = functools.partial(
        training.train_step,
        objective=restorers.Objective(network, loss_fn=losses.l2),
        optimizer=optimizer,
        ema_decay=0.9,
    )
    problem = restorers.Problem(Degradation(jnp.float32(2), draw_fn=draw_noise, apply_fn=noising))
    images = rng.uniform(-1, 1, (20, 8, 2, 2, 3)).astype(np.float32)
    batches = [{"image": one, "position": np.arange(8, dtype=np.int32)} for one in images]
    return step_fn, training.create_state(params, optimizer), problem, batches


ALL_MODES = parallel.MODES | {"jit, sharded": parallel.SHARDED}


@pytest.mark.parametrize("name", list(ALL_MODES))
def test_every_mode_has_the_gradients_and_the_parameters_of_one_device(name):
    mode, key = ALL_MODES[name], jax.random.key(3)
    rate = 0.5
    # Plain SGD hides no factor, as Adam would.
    step_fn, start, problem, batches = small_problem(optax.sgd(rate))
    plain = jax.jit(step_fn)
    step, replicated = mode.step(step_fn), mode.replicate(problem)
    state, one = mode.replicate(start), start
    for n, batch in enumerate(batches):
        state, metrics = step(state, mode.shard(batch), key, replicated)
        one, metrics_one = plain(one, batch, key, problem)
        chex.assert_trees_all_close(metrics, metrics_one, rtol=1e-5)
        if n == 0:
            change, change_one = (
                jax.tree.map(lambda new, old: (old - new) / rate, now.params, start.params)
                for now in (mode.unreplicate(state), one)
            )
            chex.assert_trees_all_close(change, change_one, rtol=1e-5, atol=1e-6)
    end = mode.unreplicate(state)
    assert all(isinstance(leaf, np.ndarray | np.generic) for leaf in jax.tree.leaves(end))
    chex.assert_trees_all_close(end, one, rtol=1e-5, atol=1e-6)
    assert max(float(abs(start.params[k] - one.params[k]).max()) for k in start.params) > 0.1


@pytest.mark.parametrize("name", ["pmap", "jit", "jit, sharded"])
def test_a_step_reduces_its_gradients_once_and_the_metrics_with_them(name):
    mode, key = ALL_MODES[name], jax.random.key(3)
    step_fn, start, problem, batches = small_problem(optax.sgd(0.5))
    step = mode.step(step_fn)
    program = jax.jit(lambda state, batch, problem: step(state, batch, key, problem))
    operands = mode.replicate(start), mode.shard(batches[0]), mode.replicate(problem)
    text = program.lower(*operands).compile().as_text()
    reduced = re.findall(r"= (.*) all-reduce(?:-start)?\(", text)
    # Counts of examples are integers, and few.
    (floats,) = [types for types in reduced if "f32" in types]
    for part in ("f32[8,13]", "f32[12,8]", "f32[]", "f32[10]"):
        assert part in floats


def memory(tree):
    """(bytes on the first device, bytes in all)."""
    leaves = jax.tree.leaves(tree)
    return (
        sum(leaf.addressable_shards[0].data.nbytes for leaf in leaves),
        sum(leaf.nbytes for leaf in leaves),
    )


def sharded_on_four():
    """Adam in pieces: the numbers of one device, a quarter of the memory; run with 4 devices."""
    assert jax.device_count() == 4
    mode, key = parallel.SHARDED, jax.random.key(3)
    optimizer = training.create_optimizer(1e-2, clip_norm=0.5)
    step_fn, start, problem, batches = small_problem(optimizer)
    one, state = start, mode.replicate(start)
    step, plain, replicated = mode.step(step_fn), jax.jit(step_fn), mode.replicate(problem)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a donated argument that could not be used
        for batch in batches:
            state, metrics = step(state, mode.shard(batch), key, replicated)
            one, metrics_one = plain(one, batch, key, problem)
            chex.assert_trees_all_close(metrics, metrics_one, rtol=1e-4)
    chex.assert_trees_all_close(mode.unreplicate(state), one, rtol=1e-4, atol=1e-5)
    for piece in (state.opt_state, state.ema_params):
        mine, total = memory(piece)
        assert mine <= 0.27 * total
    assert memory(state.params)[0] == memory(state.params)[1]

    # The same of a U-Net, before its first step.
    model = unet.UNet(channels=3, width=32)
    init_fn, _ = initialize.as_functions(model, (16, 16, 3))
    state = mode.replicate(training.create_state(init_fn(key), optimizer))
    mine, total = memory((state.opt_state, state.ema_params))
    assert mine <= 0.27 * total
    print(f"{mine / total:.4f} of {total:,} bytes")


def test_a_sharded_optimizer_takes_a_quarter_on_four_devices():
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    code = "import sys; sys.path.insert(0, 'tests'); import parallel_test as t; t.sharded_on_four()"
    root = pathlib.Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=root,
        env=os.environ | flags,
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    print(done.stdout)


def test_one_device_alone_is_no_mode_for_several_hosts(monkeypatch):
    parallel.check_mode("none")
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    parallel.check_mode("jit")
    with pytest.raises(ValueError, match="parallel 'none' is for one host, not 2"):
        parallel.check_mode("none")


def test_replicate_and_back():
    tree = {"w": jnp.arange(6.0).reshape(2, 3), "step": np.int32(4), "none": None}
    replicated = parallel.replicate(tree)
    chex.assert_shape(replicated["w"], (COUNT, 2, 3))
    assert len(replicated["w"].sharding.device_set) == COUNT
    back = parallel.unreplicate(replicated)
    assert all(isinstance(leaf, np.ndarray | np.generic) for leaf in jax.tree.leaves(back))
    assert back["step"].dtype == np.int32
    chex.assert_trees_all_equal(back, tree)


def test_shard_gives_each_device_the_next_examples():
    batch = {"image": np.arange(8).reshape(4, 2), "position": np.arange(4)}
    sharded = parallel.shard(batch)
    np.testing.assert_array_equal(sharded["image"], [[[0, 1], [2, 3]], [[4, 5], [6, 7]]])
    np.testing.assert_array_equal(sharded["position"], [[0, 1], [2, 3]])


@pytest.mark.parametrize("batch_size", [0, -2, 1, 7])
def test_batch_that_the_devices_do_not_divide_raises(batch_size):
    with pytest.raises(ValueError, match=rf"batch_size {batch_size} does not divide among 2"):
        parallel.check_batch_size(batch_size)


def test_batch_that_the_devices_divide_passes():
    parallel.check_batch_size(2)
    parallel.check_batch_size(64)


def test_shard_of_an_odd_batch_raises():
    with pytest.raises(ValueError, match="reshape"):
        parallel.shard(np.zeros((3, 2)))


def test_map_examples_of_any_length():
    def one(operand, x, key):
        return {"product": operand @ x, "noise": jax.random.normal(key), "x": (x, None)}

    mapped = parallel.map_examples(one)
    rng = np.random.default_rng(1)
    operand = rng.normal(size=(4, 3)).astype(np.float32)
    for count in (1, 2, 5):
        x = rng.normal(size=(count, 3)).astype(np.float32)
        keys = jax.random.split(jax.random.key(0), count)
        outputs = mapped(operand, x, keys)
        np.testing.assert_allclose(outputs["product"], x @ operand.T, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(outputs["x"][0], x)
        noise = [jax.random.normal(key).item() for key in keys]
        np.testing.assert_allclose(outputs["noise"], noise, rtol=1e-6)
