"""Degradations that are diagonal in the orthonormal DCT-II basis, heat above all.

    x_t = C^T (gain * (C x_0 C'^T)) C' + sigma omega

C [H, H] and C' [W, W] are the bases of rows and columns, one cosine a row. Frequency
(n, m) is an eigenvector of the heat equation with reflecting ends, of eigenvalue

    lambda_nm = (pi n / H)^2 + (pi m / W)^2.

White noise is white in every orthonormal basis, so omega stays among the pixels.

Depends on: jax, chex.
"""

import chex
import jax.numpy as jnp

Array = chex.Array


def eigenvalues(size: int) -> Array:
    """(pi n / size)^2 for n = 0..size-1; float32 [size]."""
    return jnp.square(jnp.pi * jnp.arange(size, dtype=jnp.float32) / size)


def frequencies(height: int, width: int) -> Array:
    """lambda_nm of every frequency, for every channel alike; float32 [height, width, 1]."""
    return eigenvalues(height)[:, None, None] + eigenvalues(width)[None, :, None]


def to_basis(x: Array, rows: Array, cols: Array) -> Array:
    """u = rows x cols^T for every channel: the DCT of an image.

    Args:
      x: image, [H, W, C].
      rows, cols: orthonormal bases, [H, H] and [W, W].
    Returns:
      [H, W, C], at full float32 precision.
    """
    chex.assert_rank([x, rows, cols], [3, 2, 2])
    return jnp.einsum("nh,hwc,mw->nmc", rows, x, cols, precision="highest")


def from_basis(u: Array, rows: Array, cols: Array) -> Array:
    """x = rows^T u cols for every channel, the inverse of `to_basis`; arguments alike."""
    return to_basis(u, rows.T, cols.T)


def attenuation(frequency: Array, std: Array) -> Array:
    """exp(-lambda std^2 / 2): what a Gaussian blur of `std` pixels leaves of each frequency.

    It is heat dissipated for a time std^2 / 2, so that blurs compose as std_1^2 + std_2^2.

    See "Generative Modelling With Inverse Heat Dissipation" by Rissanen et al.
    (https://arxiv.org/abs/2206.13397).

    Args:
      frequency: eigenvalues lambda, any shape.
      std: scalar, in pixels.
    """
    chex.assert_rank(std, 0)
    return jnp.exp(-frequency * jnp.square(std) / 2)


def blurring_gain(frequency: Array, std: Array, floor: Array) -> Array:
    """(1 - floor) exp(-lambda std^2 / 2) + floor: no frequency is lost altogether.

    See "Blurring Diffusion Models" by Hoogeboom and Salimans
    (https://arxiv.org/abs/2209.05557), where floor is d_min.
    """
    return (1 - floor) * attenuation(frequency, std) + floor


def degrade_spectral(x0: Array, rows: Array, cols: Array, gain: Array) -> Array:
    """C^T (gain * (C x_0 C'^T)) C'.

    Args:
      x0: clean image, [H, W, C].
      rows, cols: orthonormal bases, [H, H] and [W, W].
      gain: of every frequency, [H, W, 1].
    Returns:
      degraded image, shape and dtype of x0.
    Raises:
      AssertionError: at trace time, if the sizes differ.
    Note: a gain of 1 is the identity within float32 rounding, not bit for bit.
    """
    chex.assert_shape(x0, (rows.shape[0], cols.shape[0], None))
    chex.assert_shape(gain, (*x0.shape[:2], 1))
    return from_basis(gain * to_basis(x0, rows, cols), rows, cols).astype(x0.dtype)


def heat_matrix(basis: Array, std: Array) -> Array:
    """A = C^T diag(exp(-lambda std^2 / 2)) C: heat along one axis; [N, N].

    Heat is separable: x_t = A x_0 A'^T, A of the rows and A' of the columns.
    """
    chex.assert_shape(basis, (basis.shape[0], basis.shape[0]))
    gain = attenuation(eigenvalues(basis.shape[0]), std)
    return jnp.einsum("nh,n,nj->hj", basis, gain, basis, precision="highest")
