"""Heat, and heat with noise: degradations that are diagonal in the orthonormal DCT-II.

    x_t = C^T (gain * (C x_0 C'^T)) C' + sigma omega

C [H, H] and C' [W, W] are the bases of rows and columns, one cosine a row. Frequency
(n, m) is an eigenvector of the heat equation with reflecting ends, of eigenvalue

    lambda_nm = (pi n / H)^2 + (pi m / W)^2.

White noise is white in every orthonormal basis, so omega stays among the pixels.

Depends on: jax, numpy, chex, base, schedules.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from .. import schedules
from .base import (
    Degradation,
    LinearMap,
    add_noise,
    draw_noise,
    infer_noise,
    require,
    require_shape,
    scalar,
    step_index,
    transform,
)

Array = jax.Array


def dct_matrix(size: int) -> np.ndarray:
    """The orthonormal DCT-II: C_nj = c_n cos(pi n (2 j + 1) / (2 size)); float64 [size, size].

    Its rows are the eigenvectors of the heat equation with reflecting ends, with
    eigenvalues -(pi n / size)^2; C^T is the inverse.
    """
    frequency, pixel = np.arange(size)[:, None], np.arange(size)[None]
    matrix = np.cos(np.pi * frequency * (2 * pixel + 1) / (2 * size)) * np.sqrt(2 / size)
    matrix[0] /= np.sqrt(2)
    return matrix


def eigenvalues(size: int) -> Array:
    """(pi n / size)^2 for n = 0..size-1; float32 [size]."""
    return jnp.square(jnp.pi * jnp.arange(size, dtype=jnp.float32) / size)


def frequencies(height: int, width: int) -> Array:
    """lambda_nm of every frequency, for every channel alike; float32 [height, width, 1]."""
    return eigenvalues(height)[:, None, None] + eigenvalues(width)[None, :, None]


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
    u = gain * transform(x0, rows, cols)
    return transform(u, rows.T, cols.T).astype(x0.dtype)


def heat_matrix(basis: Array, std: Array) -> Array:
    """A = C^T diag(exp(-lambda std^2 / 2)) C: heat along one axis; [N, N].

    Heat is separable: x_t = A x_0 A'^T, A of the rows and A' of the columns.
    """
    chex.assert_shape(basis, (basis.shape[0], basis.shape[0]))
    gain = attenuation(eigenvalues(basis.shape[0]), std)
    return jnp.einsum("nh,n,nj->hj", basis, gain, basis, precision="highest")


class Heat(NamedTuple):
    rows: Array  # [H, H]: the DCT-II
    cols: Array | None  # [W, W]; None: the same as rows
    sigma_min: Array  # scalars
    sigma_max: Array
    stds: Array | None  # [K + 1], the blur of k = 0..K; None: continuous
    noise: Array


def _heat_std(params, t):
    if params.stds is None:
        return schedules.log_spaced(t, sigma_min=params.sigma_min, sigma_max=params.sigma_max)
    return params.stds[step_index(t, len(params.stds) - 1)]


def _linear_heat(params, t):
    std = _heat_std(params, t)
    rows, cols = (
        heat_matrix(basis, std)
        for basis in (params.rows, params.rows if params.cols is None else params.cols)
    )
    return LinearMap(sigma=jnp.where(std == 0, 0.0, params.noise), rows=rows, cols=cols)


def _heat_mean(params, x0, t):
    at_t = _linear_heat(params, t)
    chex.assert_shape(x0, (at_t.rows.shape[0], at_t.cols.shape[0], None))
    blurred = transform(x0, at_t.rows, at_t.cols).astype(x0.dtype)
    return jnp.where(_heat_std(params, t) == 0, x0, blurred), at_t.sigma


def _apply_heat(params, x0, t, omega):
    mean, sigma = _heat_mean(params, x0, t)
    return mean if omega is None else add_noise(mean, jnp.ones_like(t), sigma, omega)


def _infer_heat(params, xt, t, x0_hat, omega):
    if omega is None:
        return None
    mean, sigma = _heat_mean(params, x0_hat, t)
    return infer_noise(xt, jnp.ones_like(t), sigma, mean, omega)


def heat(
    image_shape: Sequence[int],
    *,
    sigma_max: float,
    sigma_min: float = 0.5,
    levels: int | None = None,
    noise: float = 0.0,
) -> Degradation:
    """Inverse heat dissipation: in the DCT-II, u_t = exp(-lambda std^2 / 2) u_0, plus noise.

      lambda = (pi n / H)^2 + (pi m / W)^2,   std = sigma_min (sigma_max / sigma_min)^t

    See "Generative Modelling With Inverse Heat Dissipation" by Rissanen et al.
    (https://arxiv.org/abs/2206.13397).

    Args:
      image_shape: (H, W, C) of the images.
      sigma_max: std of the blur at t = 1, in pixels; the authors take 20 for MNIST, 24 for
        CIFAR-10.
      sigma_min: std of the blur at the first level; at t = 0 there is none.
      levels: K; then std = sigma_k with k = round(t K), log-spaced from sigma_1 = sigma_min to
        sigma_K = sigma_max, as the authors have it. None: continuous in t, sigma_min being
        the limit as t falls to 0.
      noise: std of the white noise on x_t, the same at every t > 0.
    Returns:
      A linear degradation; its realization is that noise, or None if noise is 0.
    Raises:
      ValueError: if an argument is invalid; the message names it.
    Note:
      The authors' noise of 0.01 is on images in [0, 1]: here it is 0.02.
    """
    height, width, _ = require_shape(image_shape)
    require(sigma_min > 0, f"sigma_min must be positive; got {sigma_min}")
    require(
        sigma_min <= sigma_max < np.inf,
        f"sigma_max must be finite and at least sigma_min = {sigma_min}; got {sigma_max}",
    )
    require(levels is None or levels > 1, f"levels must be None or at least 2; got {levels}")
    require(0 <= noise < np.inf, f"noise must be finite and not negative; got {noise}")
    stds = None
    if levels is not None:
        stds = np.append(0, schedules.heat_stds(levels, sigma_min=sigma_min, sigma_max=sigma_max))
    params = Heat(
        rows=jnp.asarray(dct_matrix(height), jnp.float32),
        cols=None if width == height else jnp.asarray(dct_matrix(width), jnp.float32),
        sigma_min=jnp.asarray(sigma_min, jnp.float32),
        sigma_max=jnp.asarray(sigma_max, jnp.float32),
        stds=None if stds is None else jnp.asarray(stds, jnp.float32),
        noise=jnp.asarray(noise, jnp.float32),
    )
    drawn = {} if noise == 0 else {"draw_fn": draw_noise}
    return Degradation(
        params,
        apply_fn=_apply_heat,
        infer_fn=_infer_heat,
        linear_fn=_linear_heat,
        steps=levels,
        **drawn,
    )


class Blurring(NamedTuple):
    """Heat and noise together."""

    rows: Array  # [H, H]: the DCT-II
    cols: Array  # [W, W]
    blur_max: Array  # scalars
    d_min: Array
    logsnr_min: Array
    logsnr_max: Array


def _blurring_at(params, t):
    """a and sigma, b, and d of every frequency, [H, W, 1]."""
    alpha, sigma = schedules.shifted_cosine(
        t, logsnr_min=params.logsnr_min, logsnr_max=params.logsnr_max
    )
    std = schedules.sine_squared(t, maximum=params.blur_max)
    frequency = frequencies(params.rows.shape[0], params.cols.shape[0])
    return alpha, sigma, std, blurring_gain(frequency, std, params.d_min)


def _apply_blurring(params, x0, t, omega):
    alpha, sigma, std, gain = _blurring_at(params, t)
    blurred = degrade_spectral(x0, params.rows, params.cols, gain)
    # std = 0 keeps every frequency, but a transform there and back rounds.
    blurred = jnp.where(std == 0, x0, blurred)
    return add_noise(blurred, alpha, sigma, omega)


def _infer_blurring(params, xt, t, x0_hat, omega):
    _, sigma, _, _ = _blurring_at(params, t)
    noiseless = _apply_blurring(params, x0_hat, t, jnp.zeros_like(x0_hat))
    return infer_noise(xt, jnp.ones_like(sigma), sigma, noiseless, omega)


def blurring_noise(
    image_shape: Sequence[int],
    *,
    blur_max: float,
    d_min: float = 0.001,
    logsnr_min: float = -10.0,
    logsnr_max: float = 10.0,
) -> Degradation:
    """Blurring diffusion: in the DCT, u_t = a(t) d(t, lambda) u_0 + sigma(t) omega.

      d = (1 - d_min) exp(-lambda b^2 / 2) + d_min,   b = blur_max sin^2(pi t / 2)
      (a, sigma) = `schedules.shifted_cosine` between logsnr_min and logsnr_max, unshifted

    See "Blurring Diffusion Models" by Hoogeboom and Salimans
    (https://arxiv.org/abs/2209.05557).

    Args:
      image_shape: (H, W, C) of the images.
      blur_max: std of the blur at t = 1, in pixels. 0 leaves `gaussian_noise` with
        schedule="shifted_cosine".
      d_min: what is left of the highest frequencies.
      logsnr_min, logsnr_max: log(a^2 / sigma^2) at t = 1 and 0. Both infinite leave no
        noise: with d_min = 0 that is `heat` of width b.
    Returns:
      A degradation whose realization is white noise, among the pixels, inferred exactly.
      It has no linear_fn, d not being a product over rows and columns.
    Raises:
      ValueError: if an argument is invalid; the message names it.
    Note:
      logsnr_max is the limit as t falls to 0, where D is the identity; the published one
      adds noise of std 0.0067 at t = 0 already. The network that fits this D predicts x0;
      theirs predicts omega, and a, d and sigma make x0 of it, frequency by frequency.
    """
    height, width, _ = require_shape(image_shape)
    require(0 <= d_min <= 1, f"d_min must lie in [0, 1]; got {d_min}")
    require(
        bool(logsnr_min <= logsnr_max),
        f"logsnr_min must not exceed logsnr_max = {logsnr_max}; got {logsnr_min}",
    )
    rows, cols = (jnp.asarray(dct_matrix(size), jnp.float32) for size in (height, width))
    numbers = (jnp.asarray(x, jnp.float32) for x in (d_min, logsnr_min, logsnr_max))
    return Degradation(
        Blurring(rows, cols, scalar("blur_max", blur_max), *numbers),
        draw_fn=draw_noise,
        apply_fn=_apply_blurring,
        infer_fn=_infer_blurring,
    )


def spectral_functions(params: Blurring) -> tuple[Callable, Callable, Callable]:
    """(to_basis_fn, from_basis_fn, coefficients_fn) as `samplers.blurring` takes them: the DCT,
    its inverse, and t -> (alpha of every frequency, [H, W, 1]; sigma).
    """

    def coefficients_fn(t):
        alpha, sigma, _, gain = _blurring_at(params, t)
        return alpha * gain, sigma

    return (
        lambda x: transform(x, params.rows, params.cols),
        lambda u: transform(u, params.rows.T, params.cols.T),
        coefficients_fn,
    )
