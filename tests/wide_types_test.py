"""64 bits and strict promotion, as some projects set them: what is drawn and trained stays float32.

Oracle: the same call in 32 bits, whose random bits are those of 64 where the type is given.
"""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import restorers, time_sampling, training, wiener
from diffjax.degradations.base import degrade, draw
from diffjax.degradations.blur import gaussian_blur
from diffjax.degradations.mask import fade, mask
from diffjax.restorers import Objective, Problem

X0 = np.random.default_rng(0).uniform(-1, 1, (8, 4, 4, 1)).astype(np.float32)


@contextlib.contextmanager
def setting(name, value):
    before = getattr(jax.config, name)
    jax.config.update(name, value)
    try:
        yield
    finally:
        jax.config.update(name, before)


MASKS = {
    "fade": lambda: fade((4, 4, 1), stds=(1.0, 2.0), place="random"),
    "box": lambda: mask((4, 4, 1), size=2),
    "soft box": lambda: mask((4, 4, 1), size=(2, 3), soft=True),
}


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize(
    ("option", "value"), [("jax_enable_x64", True), ("jax_numpy_dtype_promotion", "strict")]
)
def test_masks(name, option, value):
    def degraded():
        D = MASKS[name]()
        x0, t = jnp.asarray(X0[0]), jnp.asarray(0.5, jnp.float32)
        return degrade(D, x0, t, draw(D, jax.random.key(0), x0))

    expected = degraded()
    with setting(option, value):
        found = degraded()
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, expected)


def test_preconditioned_training_in_64_bits():
    def train():
        D = gaussian_blur((4, 4, 1), stds=(0.8,) * 4, kernel_size=3, boundary="reflect")
        restorer = wiener.fit(restorers.linear_fn(D), wiener.measure(X0), levels=4)

        def network(params, xt, t, label):
            return params["a"] * xt[..., :1] + params["b"] * t

        optimizer = training.create_optimizer(1e-3, clip_norm=1.0)
        state = training.create_state({"a": jnp.float32(1), "b": jnp.float32(0)}, optimizer)
        batch = {"image": X0, "position": np.arange(8, dtype=np.int32)}
        step = functools.partial(
            training.train_step,
            objective=Objective(network, spacing_fn=time_sampling.stratified),
            optimizer=optimizer,
            ema_decay=0.9,
        )
        return jax.jit(step)(state, batch, jax.random.key(0), Problem(D, restorer))

    (state, metrics) = train()
    with setting("jax_enable_x64", True):
        wide_state, wide_metrics = train()
    assert wide_state.params["a"].dtype == jnp.float32
    # The sums of the Wiener restorer are taken in another order and width.
    np.testing.assert_allclose(wide_metrics["loss"], metrics["loss"], rtol=1e-4)
    np.testing.assert_allclose(wide_state.params["a"], state.params["a"], rtol=1e-5)
