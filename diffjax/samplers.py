"""Walking back from severity t = 1 to t = 0: the steps, and the one loop.

Every step is an instance of

    x_s = x_t - D(x0_hat, t, omega_hat) + D(x0_hat, s, omega_new),   x0_hat = R(x_t, t).

A sampler is a pair of pure functions, as in optax:

    init(xT) -> state
    step(restore_fn, degrade_fn, infer_fn, key, state, xt, t, s, omega) -> (xs, state)

with restore_fn(xt, t) -> x0_hat, degrade_fn(x0, t, omega) -> xt and
infer_fn(xt, t, x0_hat, omega) -> omega_hat. All of them see ONE example and a
scalar t; `jax.vmap` over `sample` makes a batch.

Depends on: jax, chex.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

Array = chex.Array


class Sampler(NamedTuple):
    init: Callable
    step: Callable


class SamplerState(NamedTuple):
    """What the next step may want to know of the last one."""

    x0_hat: Array  # the last estimate of the clean image


class Trajectory(NamedTuple):
    """Every state of one walk; the leading axis is the step."""

    xt: Array  # [S + 1, ...], from xT to the sample
    x0_hat: Array  # [S, ...]: x0_hat[i] = R(xt[i], ts[i])


def init_state(xT: Array) -> SamplerState:
    """The state before the first step: an estimate of zeros, never read by the steps below."""
    return SamplerState(x0_hat=jnp.zeros_like(xT))


def naive_step(restore_fn, degrade_fn, infer_fn, key, state, xt, t, s, omega):
    """x_s = D(R(x_t, t), s, omega): restore, then degrade again, forgetting x_t.

    See Algorithm 1 of "Cold Diffusion" by Bansal et al. (https://arxiv.org/abs/2208.09392).
    """
    del infer_fn, key, state
    x0_hat = restore_fn(xt, t)
    return degrade_fn(x0_hat, s, omega), SamplerState(x0_hat)


def cold_step(restore_fn, degrade_fn, infer_fn, key, state, xt, t, s, omega):
    """x_s = x_t - D(x0_hat, t, omega) + D(x0_hat, s, omega), the realisation kept.

    Exact for D = x0 + t e whatever R answers: the errors of the two
    degradations cancel to first order.

    See Algorithm 2 of "Cold Diffusion" by Bansal et al. (https://arxiv.org/abs/2208.09392).
    """
    del infer_fn, key, state
    x0_hat = restore_fn(xt, t)
    xs = xt - degrade_fn(x0_hat, t, omega) + degrade_fn(x0_hat, s, omega)
    return xs, SamplerState(x0_hat)


naive = Sampler(init_state, naive_step)
cold = Sampler(init_state, cold_step)


def uniform_grid(steps: int) -> Array:
    """ts = 1, 1 - 1/S, ..., 0; float32 [S + 1].

    >>> uniform_grid(4).tolist()
    [1.0, 0.75, 0.5, 0.25, 0.0]
    """
    return jnp.arange(steps, -1, -1, dtype=jnp.float32) / steps


def sample(
    sampler: Sampler,
    restore_fn: Callable[[Array, Array], Array],
    degrade_fn: Callable[[Array, Array, Any], Array],
    infer_fn: Callable[[Array, Array, Array, Any], Any],
    key: Array,
    xT: Array,
    ts: Array,
    omega: Any,
    *,
    trajectory: bool = False,
):
    """Walks one example from xT at severity ts[0] to severity ts[-1].

    Args:
      sampler: an (init, step) pair, such as `naive` or `cold`.
      restore_fn: R(xt, t) -> x0_hat.
      degrade_fn: D(x0, t, omega) -> xt.
      infer_fn: (xt, t, x0_hat, omega) -> omega_hat; unused by naive and cold.
      key: typed PRNG key; step i gets fold_in(key, i).
      xT: the state to start from, [H, W, C].
      ts: strictly decreasing severities, [S + 1], usually 1 -> 0.
      omega: the realisation of D, a pytree (None where D has none).
      trajectory: also return every state; memory grows with S.
    Returns:
      The sample, [H, W, C]; with trajectory, (sample, Trajectory).
    Raises:
      AssertionError: at trace time, if ts is not a vector of at least two severities.
    """
    chex.assert_rank(ts, 1)
    chex.assert_axis_dimension_gteq(ts, 0, 2)

    def body(carry, step):
        xt, state = carry
        i, t, s = step
        xs, state = sampler.step(
            restore_fn, degrade_fn, infer_fn, jax.random.fold_in(key, i), state, xt, t, s, omega
        )
        return (xs, state), (xs, state.x0_hat) if trajectory else None

    steps = (jnp.arange(ts.shape[0] - 1), ts[:-1], ts[1:])
    (x, _), states = jax.lax.scan(body, (xT, sampler.init(xT)), steps)
    if not trajectory:
        return x
    xs, x0_hats = states
    return x, Trajectory(xt=jnp.concatenate([xT[None], xs]), x0_hat=x0_hats)
