"""What the network predicts, and how to read the clean image off it.

The degradation is x_t = alpha x0 + sigma omega, omega of unit variance. Every
prediction of the literature is a direction in the plane of x0 and omega,

    y = b x0 + e omega,

so a kind is two numbers, and each conversion is the solution of two equations:

    x0_hat    = (e x_t - sigma y) / det          det = alpha e - sigma b
    omega_hat = (alpha y - b x_t) / det

    kind      y                              (b, e)                  det
    x0        the clean image                (1, 0)                  -sigma
    noise     omega                          (0, 1)                  alpha
    v         alpha omega - sigma x0         (-sigma, alpha)         alpha^2 + sigma^2
    score     grad ln p(x_t | x0)            (0, -1 / sigma)         -alpha / sigma
    flow      omega - x0                     (-1, 1)                 alpha + sigma
    edm       EDM's F, which it trains       see `edm_direction`     -n / sigma_data
    previous  x_s, the state at s < t        (alpha_s, sigma_s)      alpha sigma_s - sigma alpha_s

An error in y is sigma / |det| times as large in x0_hat: see `x0_error_factor`.

Where a kind says nothing about x0 (noise and score at alpha = 0, previous at s = t)
or about omega (x0 at sigma = 0), dividing by zero is avoided by taking alpha and
sigma for no less than FLOOR. What the restorations of noise and score then return at
alpha = 0 is finite and means nothing: a schedule that reaches alpha = 0 wants v, flow,
edm or x0. Previous needs s < t, and divides by zero without it.

A degradation without such an (alpha, sigma), blur for instance, has x0 alone.

Depends on: jax, chex.
"""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

Array = jax.Array

FLOOR = 1e-9  # alpha and sigma below it count as this; its fourth power is still a float32


class Coefficients(NamedTuple):
    """Those of x_t = alpha x0 + sigma omega, and what one or another kind needs besides.

    Functions that take `alpha, sigma, **extras` take the other fields by name.
    """

    alpha: Array  # scalar
    sigma: Array  # scalar
    alpha_s: Array | None = None  # scalars of x_s; previous only
    sigma_s: Array | None = None
    sigma_data: float = 0.5  # std of the data; edm only


def x0_direction(c: Coefficients) -> tuple[Array | float, Array | float]:
    """The clean image itself: the one kind that every degradation has."""
    del c
    return 1.0, 0.0


def noise_direction(c: Coefficients) -> tuple[Array | float, Array | float]:
    """omega: Equation 14 of "Denoising Diffusion Probabilistic Models" by Ho et al.
    (https://arxiv.org/abs/2006.11239).
    """
    del c
    return 0.0, 1.0


def v_direction(c: Coefficients) -> tuple[Array | float, Array | float]:
    """alpha omega - sigma x0, from "Progressive Distillation for Fast Sampling of Diffusion
    Models" by Salimans and Ho (https://arxiv.org/abs/2202.00512); orthogonal to x_t where
    alpha^2 + sigma^2 = 1, which nothing here assumes.
    """
    return -c.sigma, c.alpha


def score_direction(c: Coefficients) -> tuple[Array | float, Array | float]:
    """-omega / sigma, the gradient of ln p(x_t | x0) in x_t: "Score-Based Generative Modeling
    through Stochastic Differential Equations" by Song et al. (https://arxiv.org/abs/2011.13456).
    """
    return 0.0, -1 / c.sigma


def flow_direction(c: Coefficients) -> tuple[Array | float, Array | float]:
    """omega - x0, which is dx_t/dt where alpha = 1 - t and sigma = t: "Flow Straight and Fast" by
    Liu et al. (https://arxiv.org/abs/2209.03003), with the opposite sign, for t runs from the data.
    """
    del c
    return -1.0, 1.0


def edm_direction(c: Coefficients) -> tuple[Array | float, Array | float]:
    """F of x0_hat = c_skip z + c_out F, with z = x_t / alpha and noise sigma / alpha:

        F = (sigma x0 - alpha sigma_data^2 omega) / (sigma_data n)
        n = sqrt(sigma^2 + alpha^2 sigma_data^2)

    of unit variance where the data have sigma_data's. See Equation 7 and Table 1 of
    "Elucidating the Design Space of Diffusion-Based Generative Models" by Karras et al.
    (https://arxiv.org/abs/2206.00364), where alpha = 1.
    """
    n = jnp.hypot(c.sigma, c.alpha * c.sigma_data)
    return c.sigma / (c.sigma_data * n), -c.alpha * c.sigma_data / n


def previous_direction(c: Coefficients) -> tuple[Array | float, Array | float]:
    """x_s = alpha_s x0 + sigma_s omega with x_t's omega, s < t: one step of DDIM. IHDM's target
    is its counterpart for heat: "Generative Modelling With Inverse Heat Dissipation" by
    Rissanen et al. (https://arxiv.org/abs/2206.13397).
    """
    if c.alpha_s is None or c.sigma_s is None:
        raise ValueError("previous needs alpha_s and sigma_s, the coefficients of x_s")
    return c.alpha_s, c.sigma_s


DIRECTIONS = {
    "x0": x0_direction,
    "noise": noise_direction,
    "v": v_direction,
    "score": score_direction,
    "flow": flow_direction,
    "edm": edm_direction,
    "previous": previous_direction,
}


def _resolve(kind: str, alpha: Array, sigma: Array, extras) -> tuple[Any, ...]:
    """(alpha, sigma, b, e) of a kind, alpha and sigma no less than FLOOR."""
    if kind not in DIRECTIONS:
        raise ValueError(f"kind must be one of {', '.join(DIRECTIONS)}; got {kind!r}")
    chex.assert_rank([alpha, sigma], 0)
    alpha, sigma = jnp.maximum(alpha, FLOOR), jnp.maximum(sigma, FLOOR)
    return alpha, sigma, *DIRECTIONS[kind](Coefficients(alpha, sigma, **extras))


def target(kind: str, x0: Array, omega: Array, alpha: Array, sigma: Array, **extras) -> Array:
    """What the network should answer: y = b x0 + e omega.

    Args:
      kind: what it predicts, a key of DIRECTIONS.
      x0: clean image, [H, W, C].
      omega: the realization in x_t = alpha x0 + sigma omega, like x0.
      alpha, sigma: scalars, not negative.
      **extras: the other fields of `Coefficients`.
    Returns:
      [H, W, C].
    Raises:
      ValueError: if there is no such kind, or it lacks its extras.
      AssertionError: at trace time, if shapes or dtypes differ.
    """
    chex.assert_trees_all_equal_shapes_and_dtypes(x0, omega)
    _, _, b, e = _resolve(kind, alpha, sigma, extras)
    return b * x0 + e * omega


def solve(
    kind: str, output: Array, xt: Array, alpha: Array, sigma: Array, **extras
) -> tuple[Array, Array]:
    """(x0_hat, omega_hat) with alpha x0_hat + sigma omega_hat = x_t and `target` = output.

    Args:
      kind: what the network predicts, a key of DIRECTIONS.
      output: what it answered, [H, W, C].
      xt: degraded image, like output.
      alpha, sigma: scalars, not negative.
      **extras: the other fields of `Coefficients`.
    Returns:
      Two [H, W, C].
    Raises:
      ValueError: if there is no such kind, or it lacks its extras.
      AssertionError: at trace time, if shapes or dtypes differ.
    """
    chex.assert_trees_all_equal_shapes_and_dtypes(output, xt)
    alpha, sigma, b, e = _resolve(kind, alpha, sigma, extras)
    det = alpha * e - sigma * b
    x0_hat = (e / det) * xt - (sigma / det) * output
    omega_hat = (alpha / det) * output - (b / det) * xt
    return x0_hat, omega_hat


def to_x0(kind: str, output: Array, xt: Array, alpha: Array, sigma: Array, **extras) -> Array:
    """x0_hat read off the network's output; arguments as in `solve`."""
    return solve(kind, output, xt, alpha, sigma, **extras)[0]


def convert(
    output: Array, xt: Array, source: str, destination: str, alpha: Array, sigma: Array, **extras
) -> Array:
    """An output of one kind as another kind, through (x0_hat, omega_hat); see `solve`."""
    x0_hat, omega_hat = solve(source, output, xt, alpha, sigma, **extras)
    return target(destination, x0_hat, omega_hat, alpha, sigma, **extras)


def x0_error_factor(kind: str, alpha: Array, sigma: Array, **extras) -> Array:
    """f with |output - target|^2 = f |x0_hat - x0|^2: (det / sigma)^2.

    In SNR = (alpha / sigma)^2 it is 1 for x0, SNR for noise, SNR + 1 for v where
    alpha^2 + sigma^2 = 1, SNR / sigma^2 for score, 1 / t^2 for flow where alpha = 1 - t,
    sigma = t, and SNR + 1 / sigma_data^2 = 1 / c_out^2 for edm where alpha = 1.

    A weighting given on the error of x0_hat is divided by it, to weigh the error of the
    output. It diverges at sigma = 0, except for x0 and previous.

    Args:
      kind: what the network predicts, a key of DIRECTIONS.
      alpha, sigma: scalars, not negative.
      **extras: the other fields of `Coefficients`.
    Returns:
      Scalar.
    Raises:
      ValueError: if there is no such kind, or it lacks its extras.
    """
    alpha, sigma, b, e = _resolve(kind, alpha, sigma, extras)
    return jnp.square((alpha * e - sigma * b) / sigma)
