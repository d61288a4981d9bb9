"""Walking back from severity t = 1 to t = 0: the steps, the one loop, the grids.

Every step is an instance of

    x_s = x_t - D(x0_hat, t, omega_hat) + D(x0_hat, s, omega_new),   x0_hat = R(x_t, t),

also those of the hot literature, which is written on x_t = alpha(t) x0 + sigma(t) omega: they
put other estimates in it, the mean of two (Heun), an extrapolated one (DPM-Solver++), or an
update for each frequency (Blurring Diffusion). So they start where alpha = 0, and without
noise they apply to cold degradations as well.

A sampler is a pair of pure functions, as in optax:

    init(xT) -> state
    step(process, key, state, xt, t, s, omega) -> (xs, state)

A `Process` holds what they call: R, D, and how to infer omega. All of them see ONE example
and a scalar t; `jax.vmap` over `sample` makes a batch.

A step that needs alpha(t) and sigma(t) reads them off D, as D(1, t, 0) and D(0, t, 1):
no other protocol for the hot ones, and no schedule that could disagree with D. A
sampler with settings, `ddim(eta=0.5)`, is the same object for the same settings, so
that no step is compiled twice.

Depends on: jax, numpy, chex.
"""

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

Array = jax.Array

RestoreFn = Callable[[Array, Array], Array]  # (xt, t) -> x0_hat
DegradeFn = Callable[[Array, Array, Any], Array]  # (x0, t, omega) -> xt
InferFn = Callable[[Array, Array, Array, Any], Any]  # (xt, t, x0_hat, omega) -> omega_hat
NoiseFn = Callable[[Array, Array, Array, Any], Any]  # (key, t, s, like) -> standard normal


def keep(xt: Array, t: Array, x0_hat: Array, omega: Any) -> Any:
    """The realization as it is given; "fixed noise"."""
    del xt, t, x0_hat
    return omega


def draw_normal(key: Array, t: Array, s: Array, like: Any) -> Any:
    """Standard normal numbers of the shapes and dtype of a pytree; None where it is None."""
    del t, s
    flat, unravel = ravel_pytree(like)
    return unravel(jax.random.normal(key, flat.shape, flat.dtype))


class Process(NamedTuple):
    """What a walk needs to know; functions of one example and a scalar severity.

    Attributes:
      restore_fn: R(xt, t) -> x0_hat, any network.
      degrade_fn: D(x0, t, omega) -> xt.
      infer_fn: (xt, t, x0_hat, omega) -> omega_hat; by default omega is kept.
      noise_fn: the fresh noise of a step from t to s, (key, t, s, like) -> a tree like `like`.
        One that looks it up in a table lets a walk be compared with another library's.
    """

    restore_fn: RestoreFn
    degrade_fn: DegradeFn
    infer_fn: InferFn = keep
    noise_fn: NoiseFn = draw_normal


class Sampler(NamedTuple):
    init: Callable[[Array], Any]
    step: Callable[..., tuple[Array, Any]]


class SamplerState(NamedTuple):
    """What the next step may want to know of the last one."""

    x0_hat: Array  # the last estimate of the clean image


class MultistepState(NamedTuple):
    """The state of a step that extrapolates from the last one."""

    x0_hat: Array  # the last estimate of the clean image
    log_snr: Array  # log(alpha / sigma) where it was made, per pixel


class Trajectory(NamedTuple):
    """The states of one walk, every one or every k-th; the leading axis is the step."""

    xt: Array  # [ceil(S / k) + 1, ...], from xT to the sample
    x0_hat: Array  # [ceil(S / k), ...]: x0_hat[j] = R(xt[j], ts[j k]), or R after the churn


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


def _update(process, xt, t, s, x0_hat, omega_hat, omega_new):
    """x_s = x_t - D(x0_hat, t, omega_hat) + D(x0_hat, s, omega_new)."""
    degrade_fn = process.degrade_fn
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


def _bisect(below_fn: Callable[[Array], Array], low: Array, high: Array, halvings: int) -> Array:
    """Where below_fn(t) turns from True to False between low and high, from both sides."""

    def halve(_, bounds):
        low, high = bounds
        middle = (low + high) / 2
        below = below_fn(middle)
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    return jax.lax.fori_loop(0, halvings, halve, (low, high))


def _infer(process: Process, sampler: str, *args: Any) -> Any:
    if process.infer_fn is None:
        raise ValueError(f"{sampler} infers omega: process.infer_fn must be a function, not None")
    return process.infer_fn(*args)


def naive_step(process, key, state, xt, t, s, omega):
    """x_s = D(R(x_t, t), s, omega): restore, then degrade again, forgetting x_t.

    See Algorithm 1 of "Cold Diffusion" by Bansal et al. (https://arxiv.org/abs/2208.09392).
    """
    del key, state
    x0_hat = process.restore_fn(xt, t)
    return process.degrade_fn(x0_hat, s, omega), SamplerState(x0_hat)


def improved_step(process, key, state, xt, t, s, omega):
    """x_s = x_t - D(x0_hat, t, omega) + D(x0_hat, s, omega), the realization kept.

    Exact for D = x0 + t e whatever R answers: the errors of the two
    degradations cancel to first order.

    See Algorithm 2 of "Cold Diffusion" by Bansal et al. (https://arxiv.org/abs/2208.09392).
    """
    del key, state
    x0_hat = process.restore_fn(xt, t)
    return _update(process, xt, t, s, x0_hat, omega, omega), SamplerState(x0_hat)


naive = Sampler(init_state, naive_step)
improved = Sampler(init_state, improved_step)


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
      A sampler for any D whose realization can be inferred. With eta > 0, D must be
      alpha(t) x0 + sigma(t) omega per pixel, omega standard normal. A D that keeps its
      realization makes eta = 0 Algorithm 2. For the flow x_t = (1 - t) x0 + t omega, eta = 0 is
      Euler's method of "Flow Matching" by Lipman et al. (https://arxiv.org/abs/2210.02747).
    Raises:
      ValueError: if eta is outside [0, 1].
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must lie in [0, 1]; got {eta}")

    def step(process, key, state, xt, t, s, omega):
        del state
        x0_hat = process.restore_fn(xt, t)
        omega_hat = _infer(process, "ddim", xt, t, x0_hat, omega)
        omega_new = omega_hat
        if eta > 0:
            alpha_t, sigma_t = _alpha_sigma(process.degrade_fn, xt, t, omega_hat)
            alpha_s, sigma_s = _alpha_sigma(process.degrade_fn, xt, s, omega_hat)
            kept = _quotient(alpha_t * sigma_s, alpha_s * sigma_t, otherwise=1)
            rho = eta * jnp.sqrt(jnp.maximum((1 - kept) * (1 + kept), 0))
            omega_new = jax.tree.map(
                lambda old, new: jnp.sqrt(1 - rho**2) * old + rho * new,
                omega_hat,
                process.noise_fn(key, t, s, omega_hat),
            )
        xs = _update(process, xt, t, s, x0_hat, omega_hat, omega_new)
        return xs, SamplerState(x0_hat)

    return Sampler(init_state, step)


# The posterior q(x_s | x_t, x0_hat) of "Denoising Diffusion Probabilistic Models" by Ho et al.
# (https://arxiv.org/abs/2006.11239), Equations 6 and 7, for any alpha(t) and sigma(t).
ddpm = ddim(eta=1.0)


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

    def step(process, key, state, xt, t, s, omega):
        del state
        x0_hat = process.restore_fn(xt, t)
        mean = process.degrade_fn(x0_hat, s, jax.tree.map(jnp.zeros_like, omega))
        noise = process.noise_fn(key, t, s, xt)
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

    def step(process, key, state, xt, t, s, omega):
        del state, omega
        x0_hat = process.restore_fn(xt, t)
        xs = xt + (t - s) / t * (x0_hat - xt)
        if epsilon > 0:
            noise = process.noise_fn(key, t, s, xt)
            xs = xs + epsilon * jnp.sqrt(s * (t - s) / t) * noise
        return xs, SamplerState(x0_hat)

    return Sampler(init_state, step)


def _churned(process, key, xt, t, s, omega, *, churn, s_min, s_max, s_noise):
    """Noise added to x_t until sigma / alpha has grown by 1 + gamma: (x_t_hat, t_hat).

    t_hat is found by bisection on D: it belongs to the schedule, which nobody hands us.
    """

    def ratio(t):
        alpha, sigma = _alpha_sigma(process.degrade_fn, xt, t, omega)
        return jnp.ravel(_quotient(sigma, alpha, otherwise=jnp.inf))[0]

    now = ratio(t)
    gamma = jnp.where((s_min <= now) & (now <= s_max), min(churn, math.sqrt(2) - 1), 0.0)
    t_hat, _ = _bisect(lambda time: ratio(time) < (1 + gamma) * now, t, jnp.ones_like(t), 32)
    (alpha, sigma), (alpha_hat, sigma_hat) = (
        _alpha_sigma(process.degrade_fn, xt, time, omega) for time in (t, t_hat)
    )
    shrink = _quotient(alpha_hat, alpha, otherwise=1)
    # Factored, because the square root would make 1e-5 of a difference that should be 0.
    added = (sigma_hat - shrink * sigma) * (sigma_hat + shrink * sigma)
    added = jnp.sqrt(jnp.maximum(added, 0))
    return shrink * xt + added * s_noise * process.noise_fn(key, t, s, xt), t_hat


def _edm(churn, s_min, s_max, s_noise, second_order, /) -> Sampler:
    """`euler` and `heun`."""
    if not (churn >= 0 and s_noise >= 0):
        raise ValueError(f"churn and s_noise must not be negative; got {churn} and {s_noise}")
    if not s_min <= s_max:
        raise ValueError(f"s_min must not exceed s_max; got {s_min} and {s_max}")
    name = "heun" if second_order else "euler"
    settings = {"churn": churn, "s_min": s_min, "s_max": s_max, "s_noise": s_noise}

    def step(process, key, state, xt, t, s, omega):
        del state
        if churn > 0:
            xt, t = _churned(process, key, xt, t, s, omega, **settings)

        def move(x, time):
            x0_hat = process.restore_fn(x, time)
            omega_hat = _infer(process, name, x, time, x0_hat, omega)
            return _update(process, xt, t, s, x0_hat, omega_hat, omega_hat), x0_hat

        xs, x0_hat = move(xt, t)
        if second_order:
            xs = jax.lax.cond(s > 0, lambda xs: (xs + move(xs, s)[0]) / 2, lambda xs: xs, xs)
        return xs, SamplerState(x0_hat)

    return Sampler(init_state, step)


@_one_object_a_setting
def euler(
    churn: float = 0.0, *, s_min: float = 0.0, s_max: float = math.inf, s_noise: float = 1.0
) -> Sampler:
    """Euler's method for the probability flow, with EDM's churn; see `heun`.

    Without churn it is `ddim(eta=0.0)`: d(x / alpha) = omega_hat d(sigma / alpha).
    """
    return _edm(churn, s_min, s_max, s_noise, False)


@_one_object_a_setting
def heun(
    churn: float = 0.0, *, s_min: float = 0.0, s_max: float = math.inf, s_noise: float = 1.0
) -> Sampler:
    """The mean of two updates of x_t: with R's estimates at x_t, and at where they lead.

      x' = x_t - D(x0_hat, t, omega_hat) + D(x0_hat, s, omega_hat)         with R(x_t, t)
      x_s = (x' + x_t - D(x0_hat', t, omega_hat') + D(x0_hat', s, omega_hat')) / 2, R(x', s)

    The trapezoid rule for dx = x0_hat d alpha + omega_hat d sigma. For alpha = 1 this is
    EDM's sampler, for the flow schedule Heun's method on the flow; nothing is divided by
    alpha, so it starts where alpha = 0, and it applies to cold degradations as well.

    See Algorithm 2 of "Elucidating the Design Space of Diffusion-Based Generative
    Models" by Karras et al. (https://arxiv.org/abs/2206.00364).

    Args:
      churn: S_churn / S, with S the number of steps: before a step, noise raises
        sigma / alpha by 1 + min(churn, sqrt(2) - 1). Needs D = alpha x0 + sigma omega.
      s_min, s_max: the range of sigma / alpha in which this happens.
      s_noise: std of that noise, relative to what the schedule asks for.
    Returns:
      A sampler with two restorations a step, and one in a step to s = 0.
    Raises:
      ValueError: if an argument is invalid; the message names it.
    Note:
      D ends at t = 1: churn does not go beyond, where EDM's would pass sigma_max.
    """
    return _edm(churn, s_min, s_max, s_noise, True)


def init_multistep(xT: Array) -> MultistepState:
    """The state before the first step: an estimate made infinitely far away."""
    return MultistepState(x0_hat=jnp.zeros_like(xT), log_snr=jnp.full_like(xT, jnp.inf))


def dpm_solver_2m_step(process, key, state, xt, t, s, omega):
    """`ddim(eta=0.0)` with x0_hat extrapolated half a step ahead of the last two estimates.

      x0_bar = x0_hat + h / (2 h_last) (x0_hat - x0_hat_last),   h = lambda(s) - lambda(t)

    with lambda = log(alpha / sigma); no extrapolation in the first step, nor in one to
    or from where lambda is infinite.

    See Algorithm 2 of "DPM-Solver++" by Lu et al. (https://arxiv.org/abs/2211.01095).
    """
    del key
    x0_hat = process.restore_fn(xt, t)
    log_t, log_s = (
        jnp.subtract(*map(jnp.log, _alpha_sigma(process.degrade_fn, xt, time, omega)))
        for time in (t, s)
    )
    weight = (log_s - log_t) / (2 * (log_t - state.log_snr))
    weight = jnp.where(jnp.isfinite(weight), weight, 0)
    x0_bar = x0_hat + weight * (x0_hat - state.x0_hat)
    omega_hat = _infer(process, "dpm_solver_2m", xt, t, x0_bar, omega)
    xs = _update(process, xt, t, s, x0_bar, omega_hat, omega_hat)
    return xs, MultistepState(x0_hat, log_t)


dpm_solver_2m = Sampler(init_multistep, dpm_solver_2m_step)


@_one_object_a_setting
def blurring(to_basis_fn: Callable, from_basis_fn: Callable, coefficients_fn: Callable) -> Sampler:
    """DDPM's posterior for each frequency u = to_basis(x), which has its own alpha.

      u_s = c u_t + (alpha_s - c alpha_t) u_0 + sigma_s sqrt(1 - c alpha_t / alpha_s) fresh
      c = alpha_t sigma_s^2 / (alpha_s sigma_t^2)

    See the denoising posterior of "Blurring Diffusion Models" by Hoogeboom & Salimans
    (https://arxiv.org/abs/2209.05557).

    Args:
      to_basis_fn: x -> u, an orthonormal change of basis, such as the DCT.
      from_basis_fn: its inverse.
      coefficients_fn: t -> (alpha, of u's shape or scalar; sigma, scalar).
    Returns:
      A sampler. The same three functions make the same object; with the identity for both
      bases it is `ddpm`.
    Note:
      Tables that coefficients_fn closes over become constants of the compiled walk, and
      arrays that are being traced do not belong there: the object outlives the trace.
    """

    def step(process, key, state, xt, t, s, omega):
        del state, omega
        x0_hat = process.restore_fn(xt, t)
        (alpha_t, sigma_t), (alpha_s, sigma_s) = coefficients_fn(t), coefficients_fn(s)
        shrink = _quotient(alpha_t, alpha_s, otherwise=1)
        c = shrink * jnp.square(_quotient(sigma_s, sigma_t, otherwise=0))
        std = sigma_s * jnp.sqrt(jnp.maximum(1 - c * shrink, 0))
        noise = process.noise_fn(key, t, s, xt)
        us = c * to_basis_fn(xt) + (alpha_s - c * alpha_t) * to_basis_fn(x0_hat) + std * noise
        return from_basis_fn(us), SamplerState(x0_hat)

    return Sampler(init_state, step)


SAMPLERS: dict[str, Sampler | Callable[..., Sampler]] = {
    "naive": naive,
    "improved": improved,
    "ddim": ddim,
    "ddpm": ddpm,
    "euler": euler,
    "heun": heun,
    "dpm_solver_2m": dpm_solver_2m,
    "ihdm": ihdm,
    "indi": indi,
    "blurring": blurring,
}


def settings(name: str) -> tuple[str, ...]:
    """The settings that the sampler of that name takes.

    Raises:
      ValueError: if there is no such sampler.
    """
    if name not in SAMPLERS:
        raise ValueError(f"sampler must be one of {', '.join(SAMPLERS)}; got {name!r}")
    sampler = SAMPLERS[name]
    if isinstance(sampler, Sampler):
        return ()
    return tuple(p for p in inspect.signature(sampler).parameters if not p.endswith("_fn"))


def create(name: str, *functions: Callable, **given: Any) -> Sampler:
    """The sampler of that name, with its settings: create("ddim", eta=0.5).

    Args:
      name: a key of SAMPLERS.
      *functions: those that `blurring` takes.
      **given: settings.
    Raises:
      ValueError: if there is no such sampler, it does not take these settings, or needs others.
    """
    known = settings(name)
    unknown = [setting for setting in given if setting not in known]
    if unknown:
        takes = ", ".join(known) or "no settings"
        raise ValueError(f"sampler {name!r} takes {takes}; got {', '.join(unknown)}")
    sampler = SAMPLERS[name]
    if isinstance(sampler, Sampler):
        return sampler
    try:
        return sampler(*functions, **given)
    except TypeError as error:  # one without a default is missing
        raise ValueError(f"sampler {name!r}: {error}") from error


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


def _spaced(steps: int, levels: int, k: np.ndarray) -> Array:
    if not 0 < steps <= levels:
        raise ValueError(f"steps must lie in 1..levels = {levels}; got {steps}")
    return jnp.asarray(np.append(k / levels, 0.0), jnp.float32)


def trailing_grid(steps: int, *, levels: int = 1000) -> Array:
    """ts = round(T - j T/S) / T for j = 0..S-1, then 0, T the levels; float32 [S + 1].

    The spacing "trailing" of Table 2 of "Common Diffusion Noise Schedules and Sample Steps are
    Flawed" by Lin et al. (https://arxiv.org/abs/2305.08891). Their step i is t = (i + 1) / T.

    >>> trailing_grid(3, levels=10).tolist()
    [1.0, 0.699999988079071, 0.30000001192092896, 0.0]

    Raises:
      ValueError: unless 0 < steps <= levels.
    """
    return _spaced(steps, levels, np.round(levels - levels / max(steps, 1) * np.arange(steps)))


def leading_grid(steps: int, *, levels: int = 1000) -> Array:
    """ts = (j floor(T/S) + 1) / T for j = S-1..0, then 0, T the levels; float32 [S + 1].

    The spacing "leading" of the same table, DDIM's own: it does not start at t = 1.

    >>> leading_grid(2, levels=10).tolist()
    [0.6000000238418579, 0.10000000149011612, 0.0]

    Raises:
      ValueError: unless 0 < steps <= levels.
    """
    return _spaced(steps, levels, np.arange(steps)[::-1] * (levels // max(steps, 1)) + 1)


def linspace_grid(steps: int, *, levels: int = 1000) -> Array:
    """ts = (round(j (T-1)/(S-1)) + 1) / T for j = S-1..0, then 0; float32 [S + 1].

    The spacing "linspace" of the same table: both the first and the last step are visited if S > 1.

    >>> linspace_grid(2, levels=10).tolist()
    [1.0, 0.10000000149011612, 0.0]

    Raises:
      ValueError: unless 0 < steps <= levels.
    """
    return _spaced(steps, levels, np.round(np.linspace(0, levels - 1, max(steps, 1)))[::-1] + 1)


def shifted_grid(steps: int, *, shift: float = 3.0) -> Array:
    """ts = a u / (1 + (a - 1) u) of the uniform u, a the shift; float32 [S + 1].

    More steps at the severe end, for larger images. See section 5.3.2 of "Scaling Rectified
    Flow Transformers for High-Resolution Image Synthesis" by Esser et al.
    (https://arxiv.org/abs/2403.03206), where a = sqrt(m / n) for m pixels against n.

    >>> shifted_grid(2, shift=3.0).tolist()
    [1.0, 0.75, 0.0]

    Raises:
      ValueError: unless shift is positive.
    """
    if not shift > 0:
        raise ValueError(f"shift must be positive; got {shift}")
    u = uniform_grid(steps)
    return shift * u / (1 + (shift - 1) * u)


def karras_grid(
    schedule_fn: Callable[[Array], tuple[Array, Array]],
    steps: int,
    *,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
) -> Array:
    """The severities at which sigma / alpha takes EDM's levels, then 0.

        sigma_i = (sigma_max^(1/rho) + i/(S-1) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho

    See Equation 5 of "Elucidating the Design Space of Diffusion-Based Generative Models" by
    Karras et al. (https://arxiv.org/abs/2206.00364).

    Args:
      schedule_fn: t -> (alpha, sigma), its numbers bound; sigma / alpha must not fall.
      steps: S.
      sigma_min, sigma_max: the levels' ends, of sigma / alpha; where the schedule ends below
        sigma_max, its own end takes the place.
      rho: how the levels crowd near 0.
    Returns:
      ts, float32 [S + 1]; ts[0] = 1 even where the schedule ends above sigma_max.
    Raises:
      ValueError: if two levels fall on one severity, as those below the schedule's least do.
    """
    alpha, sigma = schedule_fn(jnp.ones(()))
    sigma_max = min(sigma_max, float(sigma) / float(alpha) if alpha > 0 else np.inf)
    i = np.arange(1, steps)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    levels = jnp.asarray((high + i / max(steps - 1, 1) * (low - high)) ** rho, jnp.float32)

    def below(t):
        alpha, sigma = jax.vmap(schedule_fn)(t)
        return sigma < levels * alpha

    _, ts = _bisect(below, jnp.zeros_like(levels), jnp.ones_like(levels), 40)
    ts = jnp.concatenate([jnp.ones(1), ts, jnp.zeros(1)])
    if not bool(jnp.all(ts[1:] < ts[:-1])):
        raise ValueError(
            f"sigma_min = {sigma_min}, sigma_max = {sigma_max} and steps = {steps} put two levels "
            f"on one severity of this schedule"
        )
    return ts


GRIDS: dict[str, Callable[..., Array]] = {
    "uniform": uniform_grid,
    "trailing": trailing_grid,
    "leading": leading_grid,
    "linspace": linspace_grid,
    "karras": karras_grid,
    "shifted": shifted_grid,
}


def snap_grid(ts: Array, levels: int) -> Array:
    """The grid moved to the severities k / levels of a tabulated D, each once.

    R was trained at these, and D(x0, t) is that of the nearest: a step between two of them would
    ask R at a severity it never saw, or change nothing.

    >>> snap_grid(uniform_grid(4), 2).tolist()
    [1.0, 0.5, 0.0]

    Args:
      ts: decreasing severities, [S + 1].
      levels: T.
    Returns:
      float32 [S' + 1], S' <= min(S, T).
    """
    k = np.unique(np.round(np.asarray(ts, np.float64) * levels))[::-1]
    return jnp.asarray(k, jnp.float32) / levels  # as `uniform_grid` divides, to the last bit


def _check_walk(sampler: Any, process: Process, xT: Array, ts: Array) -> None:
    """ValueError for what can be known to be wrong while tracing."""
    if not isinstance(sampler, Sampler):
        name = getattr(sampler, "__name__", repr(sampler))
        raise ValueError(f"sampler must be a Sampler; got {name}: call it, as in {name}()")
    if not jnp.issubdtype(xT.dtype, jnp.floating):
        raise ValueError(f"xT must be floating point in [-1, 1]; got {xT.dtype}: divide it first")
    chex.assert_rank(ts, 1)
    chex.assert_axis_dimension_gteq(ts, 0, 2)
    if not isinstance(ts, jax.core.Tracer) and not np.all(np.diff(np.asarray(ts)) < 0):
        raise ValueError("ts must decrease strictly, from 1 to 0: turn it round, drop repetitions")


def sample(
    sampler: Sampler,
    process: Process,
    key: Array,
    xT: Array,
    ts: Array,
    omega: Any = None,
    *,
    keep_every: int = 0,
) -> Any:
    """Walks one example from xT at severity ts[0] to severity ts[-1].

    Args:
      sampler: an (init, step) pair, such as `naive` or `ddim(eta=0.5)`.
      process: R, D and how omega is inferred.
      key: typed PRNG key; step i gets fold_in(key, i).
      xT: the state to start from, [H, W, C], floating point.
      ts: strictly decreasing severities, [S + 1], usually 1 -> 0: any grid, of any
        length, whatever R was trained with; see `snap_grid` for a tabulated D.
      omega: the realization of D, a pytree (None where D has none). Those who infer it
        read its shape alone: zeros will do.
      keep_every: k > 0 also returns every k-th state and, whatever k, the last; memory grows
        with S / k.
    Returns:
      The sample, [H, W, C]; with keep_every, (sample, Trajectory).
    Raises:
      AssertionError: at trace time, if ts is not a vector of at least two severities.
      ValueError: at trace time, naming the argument: a sampler's factory that was not called, xT
        that is not floating point, ts that does not decrease (where its values are known while
        tracing), a negative keep_every, a process without the infer_fn that the sampler needs.
    """
    _check_walk(sampler, process, xT, ts)
    if keep_every < 0:
        raise ValueError(f"keep_every must not be negative; got {keep_every}")
    steps, every = ts.shape[0] - 1, int(keep_every)
    kept = -(-steps // every) if every else 0

    def body(carry, step):
        xt, state, kept_xt, kept_x0_hat = carry
        i, t, s = step
        xs, state = sampler.step(process, jax.random.fold_in(key, i), state, xt, t, s, omega)
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
