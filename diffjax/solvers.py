"""Solvers of the hot literature, as steps of `samplers.py`: Euler, Heun, DPM-Solver++(2M), ...

A solver is written there on x_t = alpha(t) x0 + sigma(t) omega. Put in terms of D, all of
them are the one update

    x_s = x_t - D(x0_hat, t, omega_hat) + D(x0_hat, s, omega_new)

with other estimates in it: the mean of two (Heun), an extrapolated one (DPM-Solver++), or
an update for each frequency (Blurring Diffusion). So they start where alpha = 0, and
without noise they apply to cold degradations as well. What they still need of alpha
and sigma is read off D, as D(1, t, 0) and D(0, t, 1).

Depends on: jax, chex.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

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


class MultistepState(NamedTuple):
    """The state of a step that extrapolates from the last one."""

    x0_hat: Array  # the last estimate of the clean image
    log_snr: Array  # log(alpha / sigma) where it was made, per pixel


def init_state(xT: Array) -> SamplerState:
    """The state before the first step: an estimate of zeros, never read by the steps."""
    return SamplerState(x0_hat=jnp.zeros_like(xT))


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


def _churned(degrade_fn, key, xt, t, omega, *, churn, s_min, s_max, s_noise):
    """Noise added to x_t until sigma / alpha has grown by 1 + gamma: (x_t_hat, t_hat).

    t_hat is found by bisection on D: it belongs to the schedule, which nobody hands us.
    """

    def ratio(t):
        alpha, sigma = _alpha_sigma(degrade_fn, xt, t, omega)
        return jnp.ravel(_quotient(sigma, alpha, otherwise=jnp.inf))[0]

    def halve(_, bounds):
        low, high = bounds
        middle = (low + high) / 2
        below = ratio(middle) < (1 + gamma) * now
        return jnp.where(below, middle, low), jnp.where(below, high, middle)

    now = ratio(t)
    gamma = jnp.where((s_min <= now) & (now <= s_max), min(churn, math.sqrt(2) - 1), 0.0)
    t_hat, _ = jax.lax.fori_loop(0, 32, halve, (t, jnp.ones_like(t)))
    (alpha, sigma), (alpha_hat, sigma_hat) = (
        _alpha_sigma(degrade_fn, xt, time, omega) for time in (t, t_hat)
    )
    shrink = _quotient(alpha_hat, alpha, otherwise=1)
    # Factored, because the square root would make 1e-5 of a difference that should be 0.
    added = (sigma_hat - shrink * sigma) * (sigma_hat + shrink * sigma)
    added = jnp.sqrt(jnp.maximum(added, 0))
    return shrink * xt + added * s_noise * jax.random.normal(key, xt.shape, xt.dtype), t_hat


@functools.cache
def _edm(churn, s_min, s_max, s_noise, second_order, /) -> Sampler:
    """`euler` and `heun`: the same object for the same settings."""
    if not (churn >= 0 and s_noise >= 0):
        raise ValueError(f"churn and s_noise must not be negative; got {churn} and {s_noise}")
    if not s_min <= s_max:
        raise ValueError(f"s_min must not exceed s_max; got {s_min} and {s_max}")
    settings = {"churn": churn, "s_min": s_min, "s_max": s_max, "s_noise": s_noise}

    def step(restore_fn, degrade_fn, infer_fn, key, state, xt, t, s, omega):
        del state
        if churn > 0:
            xt, t = _churned(degrade_fn, key, xt, t, omega, **settings)

        def move(x, time):
            x0_hat = restore_fn(x, time)
            omega_hat = infer_fn(x, time, x0_hat, omega)
            return _update(degrade_fn, xt, t, s, x0_hat, omega_hat, omega_hat), x0_hat

        xs, x0_hat = move(xt, t)
        if second_order:
            xs = jax.lax.cond(s > 0, lambda xs: (xs + move(xs, s)[0]) / 2, lambda xs: xs, xs)
        return xs, SamplerState(x0_hat)

    return Sampler(init_state, step)


def euler(
    churn: float = 0.0, *, s_min: float = 0.0, s_max: float = math.inf, s_noise: float = 1.0
) -> Sampler:
    """Euler's method for the probability flow, with EDM's churn; see `heun`.

    Without churn it is `ddim(eta=0.0)`: d(x / alpha) = omega_hat d(sigma / alpha).
    """
    return _edm(churn, s_min, s_max, s_noise, False)


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
      ValueError: naming the argument that cannot be.
    Note:
      D ends at t = 1: churn does not go beyond, where EDM's would pass sigma_max.
    """
    return _edm(churn, s_min, s_max, s_noise, True)


def init_multistep(xT: Array) -> MultistepState:
    """The state before the first step: an estimate made infinitely far away."""
    return MultistepState(x0_hat=jnp.zeros_like(xT), log_snr=jnp.full_like(xT, jnp.inf))


def dpm_solver_2m_step(restore_fn, degrade_fn, infer_fn, key, state, xt, t, s, omega):
    """`ddim(eta=0.0)` with x0_hat extrapolated half a step ahead of the last two estimates.

      x0_bar = x0_hat + h / (2 h_last) (x0_hat - x0_hat_last),   h = lambda(s) - lambda(t)

    with lambda = log(alpha / sigma); no extrapolation in the first step, nor in one to
    or from where lambda is infinite.

    See Algorithm 2 of "DPM-Solver++" by Lu et al. (https://arxiv.org/abs/2211.01095).
    """
    del key
    x0_hat = restore_fn(xt, t)
    log_t, log_s = (
        jnp.subtract(*map(jnp.log, _alpha_sigma(degrade_fn, xt, time, omega))) for time in (t, s)
    )
    weight = (log_s - log_t) / (2 * (log_t - state.log_snr))
    weight = jnp.where(jnp.isfinite(weight), weight, 0)
    x0_bar = x0_hat + weight * (x0_hat - state.x0_hat)
    omega_hat = infer_fn(xt, t, x0_bar, omega)
    xs = _update(degrade_fn, xt, t, s, x0_bar, omega_hat, omega_hat)
    return xs, MultistepState(x0_hat, log_t)


dpm_solver_2m = Sampler(init_multistep, dpm_solver_2m_step)


@functools.cache
def blurring(
    to_basis_fn: Callable, from_basis_fn: Callable, coefficients_fn: Callable, /
) -> Sampler:
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
      A sampler. Equal functions make the same object; with the identity for both bases
      it is `ddpm`.
    Note:
      Tables that coefficients_fn closes over become constants of the compiled walk, and
      arrays that are being traced do not belong there: the object outlives the trace.
    """

    def step(restore_fn, degrade_fn, infer_fn, key, state, xt, t, s, omega):
        del degrade_fn, infer_fn, state, omega
        x0_hat = restore_fn(xt, t)
        (alpha_t, sigma_t), (alpha_s, sigma_s) = coefficients_fn(t), coefficients_fn(s)
        shrink = alpha_t / alpha_s
        c = shrink * (sigma_s / sigma_t) ** 2
        std = sigma_s * jnp.sqrt(jnp.maximum(1 - c * shrink, 0))
        noise = jax.random.normal(key, xt.shape, xt.dtype)
        us = c * to_basis_fn(xt) + (alpha_s - c * alpha_t) * to_basis_fn(x0_hat) + std * noise
        return from_basis_fn(us), SamplerState(x0_hat)

    return Sampler(init_state, step)
