"""Added noise, and how to read it back: x_t = alpha x_0 + sigma omega.

omega is anything like an image: white noise makes a hot diffusion, another image
animorphosis, the degraded end point InDI's bridge.

Depends on: jax, chex.
"""

from typing import Any

import chex
import jax
import jax.numpy as jnp

Array = chex.Array


def draw_noise(params: Any, key: Array, x0: Array) -> Array:
    """omega ~ N(0, I), shape and dtype of x0; the params of a degradation are not read."""
    del params
    return jax.random.normal(key, x0.shape, x0.dtype)


def add_noise(x0: Array, alpha: Array, sigma: Array, omega: Array) -> Array:
    """x_t = alpha x_0 + sigma omega.

    See Equation 4 of "Denoising Diffusion Probabilistic Models" by Ho et al.
    (https://arxiv.org/abs/2006.11239).

    Args:
      x0: clean image, [H, W, C].
      alpha, sigma: scalars; (1, 0) is the identity, bit for bit.
      omega: the realisation, like x0.
    Returns:
      degraded image, shape and dtype of x0.
    Raises:
      AssertionError: at trace time, if omega is not like x0, or a coefficient not a scalar.
    """
    chex.assert_equal_shape([x0, omega])
    chex.assert_rank([alpha, sigma], 0)
    return (alpha * x0 + sigma * omega).astype(x0.dtype)


def infer_noise(xt: Array, alpha: Array, sigma: Array, x0_hat: Array, omega: Array) -> Array:
    """omega_hat = (x_t - alpha x0_hat) / sigma, "estimated noise"; omega, kept, at sigma = 0.

    See Equation 12 of "Denoising Diffusion Implicit Models" by Song et al.
    (https://arxiv.org/abs/2010.02502), whose predicted noise this is.

    Args:
      xt: degraded image, [H, W, C].
      alpha, sigma: scalars.
      x0_hat: estimate of the clean image, like xt.
      omega: what to answer where x_t holds no noise, like xt.
    Returns:
      [H, W, C], dtype of xt; finite, as are its gradients.
    Raises:
      AssertionError: at trace time, if the arrays differ in shape.
    """
    chex.assert_equal_shape([xt, x0_hat, omega])
    chex.assert_rank([alpha, sigma], 0)
    noiseless = sigma == 0
    # Never divided by 0, not even where `where` discards it: its gradient would be nan.
    divisor = jnp.where(noiseless, 1.0, sigma)
    return jnp.where(noiseless, omega, (xt - alpha * x0_hat) / divisor).astype(xt.dtype)
