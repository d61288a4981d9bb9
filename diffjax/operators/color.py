"""Lost colour: x_t = x_0 C_t^T, a C x C matrix on the channels of every pixel.

    C_t = w_t I + (1 - w_t) J / C,     J all ones,

mixes every channel with their mean. Mixing twice multiplies the weights, so that
k steps of weights e_1 .. e_k are one step of w = e_1 ... e_k.

Depends on: jax, numpy, chex.
"""

import chex
import jax.numpy as jnp
import numpy as np

Array = chex.Array


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
    mixed = sum(x[..., j, None] * matrix[None, None, :, j] for j in range(x.shape[-1]))
    return mixed.astype(x.dtype)


def gather(table: Array, t: Array) -> Array:
    """C_k of k = round(t T), the identity at k = 0; [C, C]."""
    steps, channels, _ = table.shape
    k = jnp.clip(jnp.round(t * steps), 0, steps).astype(jnp.int32)
    return jnp.where(k == 0, jnp.eye(channels), table[jnp.maximum(k - 1, 0)])


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
