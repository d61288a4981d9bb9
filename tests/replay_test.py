"""A step that went bad, again: the operation and the line are found.

Oracles: the lines of this file that make a NaN and an infinity; the batches of a run that passes
that step.
"""

import dataclasses
import inspect
import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import data, training
from experiments.configs import digits_deblur
from experiments.lib import build, replay
from experiments.lib.config import resolve


def makes_nan(output, target):
    return jnp.log(-1 - jnp.square(output - target))  # here


def makes_infinity(output, target):
    return jnp.square(output - target) + jnp.full(output.shape, 1e38) * 1e38  # here


def scaled(params, xt, t, label):
    return params["scale"] * xt


def is_finite(output, target):
    return jnp.square(output - target)


@pytest.fixture(scope="module")
def built():
    config = digits_deblur.get_config()
    config.model.update(width=8, multipliers=(1,), precondition=False)
    config.train.batch_size = 4
    return build.build(resolve(config), "train")


def found(built, loss_fn):
    experiment, source = built
    objective = dataclasses.replace(experiment.objective, loss_fn=loss_fn, network_fn=scaled)
    experiment = dataclasses.replace(
        experiment, objective=objective, init_params=lambda key: {"scale": jnp.ones(())}
    )
    problem = build.problem(experiment, None)
    return replay.find(experiment, source, problem, experiment.initial_state(), 3)


@pytest.mark.parametrize(("loss_fn", "what"), [(makes_nan, "(nan)"), (makes_infinity, "(inf)")])
def test_the_operation_and_its_line(built, loss_fn, what):
    said = found(built, loss_fn)
    lines, first = inspect.getsourcelines(loss_fn)
    assert what in said
    assert f"{__file__}:{first + 1} ({lines[1].partition('#')[0].strip()}" in said


def test_a_step_that_is_finite_is_told_so(built):
    assert "all of it is finite" in found(built, is_finite)


def test_it_is_that_step(built, monkeypatch):
    seen = []
    monkeypatch.setattr(training, "train_step", lambda *args, **_: seen.append(args))
    found(built, is_finite)
    state, batch, _, _ = seen[0]
    assert state.step == 2  # done before
    experiment, source = built
    stream = data.batches(source, batch_size=4, seed=experiment.config.seed)
    (expected,) = itertools.islice(stream, 2, 3)
    for name in expected:
        np.testing.assert_array_equal(batch[name], expected[name])
