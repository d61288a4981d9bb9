"""Walking back from severity t = 1 to t = 0: the steps, and the one loop.

Every step is an instance of

    x_s = x_t - D(x0_hat, t, omega_hat) + D(x0_hat, s, omega_new),   x0_hat = R(x_t, t).

A sampler is a pair of pure functions, as in optax:

    init(xT) -> state
    step(restore_fn, degrade_fn, infer_fn, key, state, xt, t, s, omega) -> (xs, state)

with restore_fn(xt, t) -> x0_hat, degrade_fn(x0, t, omega) -> xt and
infer_fn(xt, t, x0_hat, omega) -> omega_hat. All of them see ONE example and a
scalar t; `jax.vmap` over `sample` makes a batch.

A step that needs alpha(t) and sigma(t) reads them off D, as D(1, t, 0) and D(0, t, 1):
no other protocol for the hot ones, and no schedule that could disagree with D. A
sampler with settings, `ddim(eta=0.5)`, is the same object for the same settings, so
that no step is compiled twice. The higher-order solvers are in `solvers.py`.

Depends on: jax, chex.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

Array = chex.Array


class Sampler(NamedTuple):
    init: Callable
    step: Callable


class SamplerState(NamedTuple):
    """What the next step may want to know of the last one."""

    x0_hat: Array  # the last estimate of the clean image


class Trajectory(NamedTuple):
    """The states of one walk, every one or every k-th; the leading axis is the step."""

    xt: Array  # [ceil(S / k) + 1, ...], from xT to the sample
    x0_hat: Array  # [ceil(S / k), ...]: x0_hat[j] = R(xt[j], ts[j k])


def init_state(xT: Array) -> SamplerState:
    """The state before the first step: an estimate of zeros, never read by the steps below."""
    return SamplerState(x0_hat=jnp.zeros_like(xT))


def _one_object_a_setting(factory: Callable[..., Sampler]) -> Callable[..., Sampler]:
    """functools.cache that sees no difference between f(), f(0.0) and f(eta=0.0)."""
    signature = inspect.signature(factory)
    cached = functools.cache(factory)

    @functools.wraps(factory)
    def wrapped(*args, **kwargs):
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return cached(**bound.arguments)  # by name: f(0) and f(0.0) differ by position

    return wrapped


def _update(degrade_fn, xt, t, s, x0_hat, omega_hat, omega_new):
    """x_s = x_t - D(x0_hat, t, omega_hat) + D(x0_hat, s, omega_new)."""
    return xt - degrade_fn(x0_hat, t, omega_hat) + degrade_fn(x0_hat, s, omega_new)


def _alpha_sigma(degrade_fn, x, t, omega):
    """alpha(t) and sigma(t), per pixel, of a D that is alpha x0 + sigma omega, read off D."""
    zeros, ones = (
        jax.tree.map(functools.partial(jnp.full_like, fill_value=value), omega) for value in (0, 1)
    )
    return degrade_fn(jnp.ones_like(x), t, zeros), degrade_fn(jnp.zeros_like(x), t, ones)


def _quotient(numerator: Array, denominator: Array, otherwise: float) -> Array:
    """numerator / denominator, and `otherwise` where the denominator is 0."""
    zero = denominator == 0
    return jnp.where(zero, otherwise, numerator / jnp.where(zero, 1, denominator))


def _fresh_like(key: Array, omega: Any) -> Any:
    """Standard normal numbers of omega's shape, a pytree; None where omega is None."""
    flat, unravel = ravel_pytree(omega)
    return unravel(jax.random.normal(key, flat.shape, flat.dtype))


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
    return _update(degrade_fn, xt, t, s, x0_hat, omega, omega), SamplerState(x0_hat)


naive = Sampler(init_state, naive_step)
cold = Sampler(init_state, cold_step)


@_one_object_a_setting
def ddim(eta: float = 0.0) -> Sampler:
    """x_s = x_t - D(x0_hat, t, omega_hat) + D(x0_hat, s, sqrt(1 - rho^2) omega_hat + rho fresh).

      rho^2 = eta^2 (1 - SNR(t) / SNR(s)),   SNR = (alpha / sigma)^2

    See Equations 12 and 16 of "Denoising Diffusion Implicit Models" by Song et al.
    (https://arxiv.org/abs/2010.02502).

    Args:
      eta: share of the posterior's noise, in [0, 1]: 0 is deterministic, and Euler's
        method for the probability flow in x / alpha; 1 is DDPM's posterior.
    Returns:
      A sampler for any D whose realisation can be inferred. With eta > 0, D must be
      alpha(t) x0 + sigma(t) omega per pixel, omega standard normal. A D that keeps its
      realisation makes eta = 0 Algorithm 2.
    Raises:
      ValueError: if eta is outside [0, 1].
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must lie in [0, 1]; got {eta}")

    def step(restore_fn, degrade_fn, infer_fn, key, state, xt, t, s, omega):
        del state
        x0_hat = restore_fn(xt, t)
        omega_hat = infer_fn(xt, t, x0_hat, omega)
        omega_new = omega_hat
        if eta > 0:
            alpha_t, sigma_t = _alpha_sigma(degrade_fn, xt, t, omega_hat)
            alpha_s, sigma_s = _alpha_sigma(degrade_fn, xt, s, omega_hat)
            kept = _quotient(alpha_t * sigma_s, alpha_s * sigma_t, otherwise=1)
            rho = eta * jnp.sqrt(jnp.maximum((1 - kept) * (1 + kept), 0))
            omega_new = jax.tree.map(
                lambda old, new: jnp.sqrt(1 - rho**2) * old + rho * new,
                omega_hat,
                _fresh_like(key, omega_hat),
            )
        xs = _update(degrade_fn, xt, t, s, x0_hat, omega_hat, omega_new)
        return xs, SamplerState(x0_hat)

    return Sampler(init_state, step)


# The posterior q(x_s | x_t, x0_hat) of "Denoising Diffusion Probabilistic Models" by Ho et al.
# (https://arxiv.org/abs/2006.11239), Equations 6 and 7, for any alpha(t) and sigma(t).
ddpm = ddim(eta=1.0)

# x_s = x_t + (s - t) (omega_hat - x0_hat), Euler's method for the flow x_t = (1 - t) x0 + t omega
# of "Flow Matching" by Lipman et al. (https://arxiv.org/abs/2210.02747). For that D it is DDIM,
# and for another (alpha, sigma) it would solve the wrong equation: one function, two names.
flow_euler = ddim(eta=0.0)


@_one_object_a_setting
def ihdm(delta: float) -> Sampler:
    """x_s = D(x0_hat, s, 0) + delta fresh: the mean, and noise that R is to remove next.

    See the sampling algorithm of "Generative Modelling with Inverse Heat Dissipation" by
    Rissanen et al. (https://arxiv.org/abs/2206.13397).

    Args:
      delta: std of the noise, in units of images in [-1, 1]: twice the authors' number.
    Returns:
      A sampler. The last step, to s = 0, adds no noise; where omega is noise of D's
      own (the sigma of the heat's training), the mean has none of it.
    Raises:
      ValueError: if delta is negative.
    """
    if not delta >= 0:
        raise ValueError(f"delta must not be negative; got {delta}")

    def step(restore_fn, degrade_fn, infer_fn, key, state, xt, t, s, omega):
        del infer_fn, state
        x0_hat = restore_fn(xt, t)
        mean = degrade_fn(x0_hat, s, jax.tree.map(jnp.zeros_like, omega))
        noise = jax.random.normal(key, xt.shape, xt.dtype)
        return jnp.where(s > 0, mean + delta * noise, mean), SamplerState(x0_hat)

    return Sampler(init_state, step)


@_one_object_a_setting
def indi(epsilon: float = 0.0) -> Sampler:
    """x_s = x_t + (t - s) / t (x0_hat - x_t) + epsilon sqrt(s (t - s) / t) fresh.

    For pairs x_t = (1 - t) x0 + t y. The noise is that of epsilon_t = epsilon / sqrt(t),
    a Brownian bridge; for a constant epsilon_t the step has none.

    See "Inversion by Direct Iteration" by Delbracio & Milanfar
    (https://arxiv.org/abs/2303.11435).

    Args:
      epsilon: std of the bridge's noise.
    Raises:
      ValueError: if epsilon is negative.
    Note:
      Without noise it is `ddim(eta=0.0)` on that D: y inferred from x_t.
    """
    if not epsilon >= 0:
        raise ValueError(f"epsilon must not be negative; got {epsilon}")

    def step(restore_fn, degrade_fn, infer_fn, key, state, xt, t, s, omega):
        del degrade_fn, infer_fn, state, omega
        x0_hat = restore_fn(xt, t)
        xs = xt + (t - s) / t * (x0_hat - xt)
        if epsilon > 0:
            noise = jax.random.normal(key, xt.shape, xt.dtype)
            xs = xs + epsilon * jnp.sqrt(s * (t - s) / t) * noise
        return xs, SamplerState(x0_hat)

    return Sampler(init_state, step)


def clip(restore_fn: Callable) -> Callable:
    """R with its estimate clipped to the range of images, [-1, 1]."""

    def clipped(xt, t):
        return jnp.clip(restore_fn(xt, t), -1, 1)

    return clipped


def dynamic_threshold(restore_fn: Callable, quantile: float) -> Callable:
    """R with its estimate clipped to [-c, c] and divided by c, c = max(1, quantile of |x0_hat|).

    See section 2.3 of "Imagen" by Saharia et al. (https://arxiv.org/abs/2205.11487).

    Args:
      restore_fn: R.
      quantile: share of the image's numbers that keeps its size, in (0, 1].
    Raises:
      ValueError: if the quantile is outside (0, 1].
    """
    if not 0 < quantile <= 1:
        raise ValueError(f"quantile must lie in (0, 1]; got {quantile}")

    def thresholded(xt, t):
        x0_hat = restore_fn(xt, t)
        bound = jnp.maximum(jnp.quantile(jnp.abs(x0_hat), quantile), 1)
        return jnp.clip(x0_hat, -bound, bound) / bound

    return thresholded


def guide(
    restore_conditional_fn: Callable,
    restore_unconditional_fn: Callable,
    scale: float,
    interval: tuple[float, float] = (0.0, 1.0),
) -> Callable:
    """R_u + scale (R_c - R_u) while t lies in the interval, R_c elsewhere.

    See "Classifier-Free Diffusion Guidance" by Ho & Salimans
    (https://arxiv.org/abs/2207.12598), and "Applying Guidance in a Limited Interval
    Improves Sample and Distribution Quality in Diffusion Models" by Kynkaanniemi et al.
    (https://arxiv.org/abs/2404.07724).

    Args:
      restore_conditional_fn: R_c, told the class.
      restore_unconditional_fn: R_u, not told; not run outside the interval.
      scale: 0 is R_u, 1 is R_c, more exaggerates the difference.
      interval: lowest and highest severity at which to guide, both included.
    Raises:
      ValueError: if the interval is not one of severities.
    Note:
      Guiding x0_hat or the noise is the same thing: they are affine in each other.
    """
    low, high = interval
    if not 0 <= low <= high <= 1:
        raise ValueError(f"interval must be 0 <= low <= high <= 1; got {interval}")

    def guided(xt, t):
        conditional = restore_conditional_fn(xt, t)

        def exaggerate():
            unconditional = restore_unconditional_fn(xt, t)
            return unconditional + scale * (conditional - unconditional)

        return jax.lax.cond((low <= t) & (t <= high), exaggerate, lambda: conditional)

    return guided


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
    trajectory: int = False,
):
    """Walks one example from xT at severity ts[0] to severity ts[-1].

    Args:
      sampler: an (init, step) pair, such as `naive` or `ddim(eta=0.5)`.
      restore_fn: R(xt, t) -> x0_hat.
      degrade_fn: D(x0, t, omega) -> xt.
      infer_fn: (xt, t, x0_hat, omega) -> omega_hat; unused by naive and cold.
      key: typed PRNG key; step i gets fold_in(key, i).
      xT: the state to start from, [H, W, C].
      ts: strictly decreasing severities, [S + 1], usually 1 -> 0: any grid, of any
        length, whatever R was trained with.
      omega: the realisation of D, a pytree (None where D has none). Those who infer it
        read its shape alone: zeros will do.
      trajectory: k > 0 also returns every k-th state (True: every one) and, whatever k,
        the last; memory grows with S / k.
    Returns:
      The sample, [H, W, C]; with trajectory, (sample, Trajectory).
    Raises:
      AssertionError: at trace time, if ts is not a vector of at least two severities.
      ValueError: if trajectory is negative.
    """
    chex.assert_rank(ts, 1)
    chex.assert_axis_dimension_gteq(ts, 0, 2)
    if trajectory < 0:
        raise ValueError(f"trajectory must not be negative; got {trajectory}")
    steps, every = ts.shape[0] - 1, int(trajectory)
    kept = -(-steps // every) if every else 0

    def body(carry, step):
        xt, state, kept_xt, kept_x0_hat = carry
        i, t, s = step
        xs, state = sampler.step(
            restore_fn, degrade_fn, infer_fn, jax.random.fold_in(key, i), state, xt, t, s, omega
        )
        if every:
            # Each place is overwritten until its own state comes; the last stays.
            kept_xt = kept_xt.at[i // every + 1].set(xs)
            first = jnp.where(i % every == 0, state.x0_hat, kept_x0_hat[i // every])
            kept_x0_hat = kept_x0_hat.at[i // every].set(first)
        return (xs, state, kept_xt, kept_x0_hat), None

    places = jnp.zeros((kept + bool(every), *xT.shape), xT.dtype)
    carry = (xT, sampler.init(xT), places.at[:1].set(xT[None]), places[:kept])
    (x, _, *states), _ = jax.lax.scan(body, carry, (jnp.arange(steps), ts[:-1], ts[1:]))
    return (x, Trajectory(*states)) if every else x
