"""Losses: unreduced, elementwise, with no factor 1/2 anywhere.

The caller takes the mean, so that per-example and per-severity values are never
lost. Predictions and targets must agree in shape and dtype: a mismatch raises,
because a silent broadcast of [B] against [B, 1] is a loss that falls and means
nothing.

The undecorated bodies (`l1`, `l2`) are for those who fork or compose; the
jitted entry points (`l1_loss`, `l2_loss`) stand at the bottom of the file.

Depends on: jax, chex.
"""

import chex
import jax
import jax.numpy as jnp

Array = chex.Array


def l2(predictions: Array, targets: Array) -> Array:
    """Squared error (prediction - target)^2, elementwise and without the factor 1/2.

    >>> noise = jnp.array([1.5, -0.8, 0.7, -0.2])
    >>> print(f"{jnp.mean(l2(noise + 0.5, noise)):.6f}")
    0.250000

    Args:
      predictions: any shape, float.
      targets: shape and dtype of predictions.
    Returns:
      Elementwise loss, shape and dtype of predictions.
    Raises:
      AssertionError: at trace time, if shapes or dtypes differ.
    """
    chex.assert_equal_shape([predictions, targets])
    chex.assert_trees_all_equal_dtypes(predictions, targets)
    return jnp.square(predictions - targets)


def l1(predictions: Array, targets: Array) -> Array:
    """Absolute error |prediction - target|, elementwise; Cold Diffusion's loss.

    >>> noise = jnp.array([1.5, -0.8, 0.7, -0.2])
    >>> print(f"{jnp.mean(l1(noise + 0.5, noise)):.6f}")
    0.500000

    See section 3.1 of "Cold Diffusion" by Bansal et al. (https://arxiv.org/abs/2208.09392).

    Args:
      predictions: any shape, float.
      targets: shape and dtype of predictions.
    Returns:
      Elementwise loss, shape and dtype of predictions.
    Raises:
      AssertionError: at trace time, if shapes or dtypes differ.
    """
    chex.assert_equal_shape([predictions, targets])
    chex.assert_trees_all_equal_dtypes(predictions, targets)
    return jnp.abs(predictions - targets)


l1_loss = jax.jit(l1)
l2_loss = jax.jit(l2)
