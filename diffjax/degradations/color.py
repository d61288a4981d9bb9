"""Lost color: x_t = x_0 C_t^T, a C x C matrix on the channels of every pixel.

    C_t = w_t I + (1 - w_t) J / C,     J all ones,

mixes every channel with their mean. Mixing twice multiplies the weights, so that
k steps of weights e_1 .. e_k are one step of w = e_1 ... e_k.

Depends on: jax, numpy, chex, base.
"""

from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp
import numpy as np

from .base import Degradation, LinearMap, at_step, require, require_shape, step_index

Array = jax.Array


def decolor_table(weights: np.ndarray, channels: int) -> np.ndarray:
    """C_k = w_k I + (1 - w_k) J / C for every weight; float64 [T, C, C]."""
    weights = np.asarray(weights, np.float64)[:, None, None]
    return weights * np.eye(channels) + (1 - weights) / channels


def mix_channels(x: Array, matrix: Array) -> Array:
    """x matrix^T at every pixel.

    Args:
      x: image, [H, W, C].
      matrix: [C, C].
    Returns:
      [H, W, C], dtype of x.
    Note:
      Every channel of the result adds the same channels in the same order, so that
      a matrix of equal rows gives channels that are equal bit for bit.
    """
    chex.assert_rank(x, 3)
    chex.assert_shape(matrix, (x.shape[-1], x.shape[-1]))
    products = (x[..., j, None] * matrix[None, None, :, j] for j in range(x.shape[-1]))
    return sum(products, start=jnp.zeros_like(x)).astype(x.dtype)


def gather(table: Array, t: Array) -> Array:
    """C_k of k = round(t T), the identity at k = 0; [C, C]."""
    steps, channels, _ = table.shape
    return at_step(table, step_index(t, steps), jnp.eye(channels))


def degrade_color(table: Array, x0: Array, t: Array) -> Array:
    """x_t = x_0 C_k^T with k = round(t T).

    Args:
      table: the steps' matrices, [T, C, C].
      x0: clean image, [H, W, C].
      t: severity, scalar in [0, 1]; 0 is the identity.
    Returns:
      degraded image, [H, W, C], dtype of x0.
    Raises:
      AssertionError: at trace time, if x0 has not the table's number of channels.
    """
    chex.assert_rank(t, 0)
    return mix_channels(x0, gather(table, t))


def _apply_decolor(params, x0, t, omega):
    del omega
    return degrade_color(params, x0, t)


def _linear_decolor(params, t):
    return LinearMap(colors=gather(params, t))


def decolor(
    image_shape: Sequence[int],
    *,
    steps: int,
    schedule: str = "linear",
    factor: float = 0.9,
    gray_at_end: bool = False,
) -> Degradation:
    """Lost color: x_t = w_k x0 + (1 - w_k) mean_c(x0) with k = round(t T).

    See "Cold Diffusion" by Bansal et al. (https://arxiv.org/abs/2208.09392).

    Args:
      image_shape: (H, W, C) of the images; any number of channels.
      steps: T.
      schedule: "linear", w_k = 1 - k / T, or "constant", w_k = factor^k.
      factor: of the constant schedule, in [0, 1).
      gray_at_end: for the constant schedule, w_T = 0 (the authors' "total_remove").
    Returns:
      A linear degradation with no realization.
    Raises:
      ValueError: if an argument is invalid; the message names it.
    Note:
      Where w_k = 0 the channels are equal bit for bit. Gray is the plain mean, not luma.
    """
    _, _, channels = require_shape(image_shape)
    require(steps > 0, f"steps must be positive; got {steps}")
    require(
        schedule in ("linear", "constant"), f"schedule must be linear or constant; got {schedule!r}"
    )
    require(0 <= factor < 1, f"factor must lie in [0, 1); got {factor}")
    k = np.arange(1, steps + 1)
    weights = 1 - k / steps if schedule == "linear" else float(factor) ** k
    if gray_at_end:
        weights[-1] = 0
    table = jnp.asarray(decolor_table(weights, channels), jnp.float32)
    return Degradation(table, apply_fn=_apply_decolor, linear_fn=_linear_decolor, steps=steps)
