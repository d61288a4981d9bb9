"""A training step in bfloat16: only the network computes in it, and it learns what float32 does.

Oracles: the step in float32; bfloat16's rounding, 2^-9.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import gaussian_blur, restorers, training
from diffjax.models import dit, initialize, unet

NETWORKS = {
    "unet": unet.UNet(channels=1, width=8, multipliers=(1,), blocks=1, attention=(0,)),
    "dit": dit.DiT(channels=1, patch=2, width=16, depth=1, heads=2),
}
SHAPE = (8, 8, 1)
OPTIMIZER = training.create_optimizer(1e-3, clip_norm=1.0)


def equations(jaxpr):
    """All of a program, with those of the programs that it calls."""
    for equation in jaxpr.eqns:
        yield equation
        for parameter in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def operands(jaxpr, name):
    return {
        operand.aval.dtype.name
        for equation in equations(jaxpr)
        if equation.primitive.name == name
        for operand in equation.invars
    }


def setting(name, dtype):
    """(the model, a step's arguments, its objective)."""
    model = NETWORKS[name].clone(dtype=dtype)
    params = initialize.init(model, jax.random.key(0), SHAPE)
    # Layers that start at zero would hide what lies before them.
    params = jax.tree.map(lambda leaf: leaf + 0.1, params)
    images = np.random.default_rng(0).uniform(-1, 1, (4, *SHAPE)).astype(np.float32)
    batch = {"image": images, "position": np.arange(4, dtype=np.int32)}
    blur = gaussian_blur(SHAPE, stds=[1.0] * 4, kernel_size=5)
    state = training.create_state(params, OPTIMIZER)
    arguments = state, batch, jax.random.key(1), restorers.Problem(blur)
    return model, arguments, restorers.Objective(model.apply)


@pytest.mark.parametrize("name", list(NETWORKS))
def test_all_but_the_network_stays_in_float32(name):
    model, arguments, objective = setting(name, jnp.bfloat16)
    step = functools.partial(
        training.train_step, objective=objective, optimizer=OPTIMIZER, ema_decay=0.9, axis_name="b"
    )
    program, (after, metrics) = jax.make_jaxpr(step, axis_env=[("b", 2)], return_shape=True)(
        *arguments
    )
    kept = after.params, after.ema_params, after.opt_state, metrics
    assert {leaf.dtype.name for leaf in jax.tree.leaves(kept)} == {"float32", "int32", "bool"}
    assert operands(program.jaxpr, "psum") == {"float32", "int32"}
    assert "bfloat16" in operands(program.jaxpr, "dot_general")
    answer = jax.make_jaxpr(model.apply)(arguments[0].params, arguments[1]["image"][0], 0.5)
    assert operands(answer.jaxpr, "reduce_sum") == {"float32"}  # norms, softmax


@pytest.mark.parametrize("name", ["dit", pytest.param("unet", marks=pytest.mark.soak)])
def test_the_loss_and_the_gradients_are_those_of_float32(name):
    found = []
    for dtype in (jnp.float32, jnp.bfloat16):
        _, arguments, objective = setting(name, dtype)
        gradients = jax.jit(functools.partial(training.gradients, objective=objective))
        grads, _, metrics = gradients(*arguments)
        flat = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(grads)])
        found.append((float(metrics["loss"]), flat))
    (loss, grads), (low_loss, low_grads) = found
    # Fewer than 30 roundings follow one another, and as many on the way back.
    assert 0 < abs(low_loss - loss) < 30 * 2.0**-9 * loss
    assert 0 < np.linalg.norm(low_grads - grads) < 60 * 2.0**-9 * np.linalg.norm(grads)
