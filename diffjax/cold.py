"""Cold degradations that are linear maps of pixels or channels. One constructor a family.

Every constructor takes the images' shape and returns a `Degradation`; every
argument that cannot be raises ValueError, naming it. What covers the image, and
leaves the rest of it alone, is in `occlusions.py`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from diffjax import schedules
from diffjax.degradations import Degradation, LinearMap, require, require_shape, require_steps
from diffjax.operators import color, separable, spectral
from diffjax.operators.noise import add_noise, draw_noise, infer_noise

Array = chex.Array


def _apply_separable(params, x0, t, omega):
    del omega
    return separable.degrade_separable(params, x0, t)


def _linear_separable(params, t):
    rows, cols = separable.gather(params, t)
    return LinearMap(rows=rows, cols=cols)


def _separable(rows: np.ndarray, cols: np.ndarray | None) -> Degradation:
    tables = separable.Separable(
        rows=jnp.asarray(rows, jnp.float32),
        cols=None if cols is None else jnp.asarray(cols, jnp.float32),
    )
    return Degradation(tables, apply_fn=_apply_separable, linear_fn=_linear_separable)


def _apply_decolor(params, x0, t, omega):
    del omega
    return color.degrade_color(params, x0, t)


def _linear_decolor(params, t):
    return LinearMap(colors=color.gather(params, t))


def gaussian_blur(
    image_shape: Sequence[int],
    *,
    stds: Sequence[float],
    kernel_size: int | Sequence[int],
    boundary: str = "circular",
    cumulative: bool = True,
    mean_at_end: bool = False,
) -> Degradation:
    """Repeated Gaussian blur: x_t = G_k ... G_1 x0 with k = round(t T), per channel.

    See section 5.1 of "Cold Diffusion" by Bansal et al. (https://arxiv.org/abs/2208.09392).

    Args:
      image_shape: (H, W, C) of the images.
      stds: std of each step's kernel, in pixels, positive; T = len(stds).
      kernel_size: taps of each step's kernel, odd; one for all, or one a step.
      boundary: "circular", "reflect" or "symmetric", as in `convolution_matrix`.
      cumulative: if False, x_t = G_k x0: each step's kernel alone ("individual").
      mean_at_end: at t = 1 every channel is its mean over x0 (the authors' "discrete").
    Returns:
      A linear degradation with no realisation. Its tables hold T H^2 floats, and
      T W^2 more if W differs from H.
    Raises:
      ValueError: naming the argument that cannot be.
    Note:
      The kernel is truncated to kernel_size taps and normalised, as in the authors'
      code: 20 steps of std 7 in 11 taps make a std of 13.6 pixels, not 31.3. Their
      "discrete" also truncates training inputs to 8 bits, which is no part of D here.
    """
    height, width, _ = require_shape(image_shape)
    stds = require_steps("stds", stds)
    taps = np.asarray(kernel_size)
    require(
        taps.shape in ((), stds.shape) and bool(np.all((taps % 2 == 1) & (taps > 0))),
        f"kernel_size must be odd, one for all or one a step; got {kernel_size}",
    )
    taps = np.broadcast_to(taps, stds.shape)

    def table(size):
        steps = separable.blur_table(stds, taps, size, boundary, cumulative=cumulative)
        if mean_at_end:
            steps[-1] = 1 / size
        return steps

    return _separable(table(height), None if width == height else table(width))


def downsample(
    image_shape: Sequence[int],
    *,
    sizes: Sequence[int | tuple[int, int]] | None = None,
    steps: int | None = None,
    method: str = "bicubic",
) -> Degradation:
    """Lost resolution: x_k = U_k D_k x_(k-1), down to sizes[k - 1] and back up by nearest.

    See "Cold Diffusion" by Bansal et al. (https://arxiv.org/abs/2208.09392).

    Args:
      image_shape: (H, W, C) of the images.
      sizes: pixels left along both axes, or (rows, columns) left, after each step; they
        may not grow. T = len(sizes).
      steps: in place of sizes, T halvings of both sides; 2^T must divide H and W.
      method: how D_k shrinks: "bicubic" (a = -0.75, the authors'), "bilinear" or "area"
        (the mean of the pixels). The first two interpolate between the nearest four or
        two pixels a side, whatever the ratio; the last needs sizes that divide H and W.
    Returns:
      A linear degradation with no realisation; its tables are as large as
      `gaussian_blur`'s.
    Raises:
      ValueError: naming the argument that cannot be.
    Note:
      As in the authors' code every step resamples the H x W image that the last one
      left, so that after a first bicubic halving each later one is the mean of 2 x 2
      pixels. Bicubic overshoots, and nothing clips it: x_t can leave [-1, 1].
    """
    height, width, _ = require_shape(image_shape)
    require((sizes is None) != (steps is None), "downsample takes either sizes or steps")
    if sizes is None:
        require(steps > 0, f"steps must be positive; got {steps}")
        require(
            height % 2**steps == 0 and width % 2**steps == 0,
            f"steps = {steps} halvings need 2^steps to divide the image; got {height} x {width}",
        )
        sizes = [(height >> k, width >> k) for k in range(1, steps + 1)]
    pairs = [(size, size) if np.ndim(size) == 0 else tuple(size) for size in sizes]
    require(len(pairs) > 0, "sizes must list one size a step; got none")
    chain = np.array([(height, width), *pairs])
    require(
        bool(np.all(chain > 0) and np.all(np.diff(chain, axis=0) <= 0)),
        f"sizes must be positive and never grow from {height} x {width}; got {list(sizes)}",
    )
    rows = separable.resample_table(chain[1:, 0], height, method)
    cols = separable.resample_table(chain[1:, 1], width, method)
    return _separable(rows, None if np.array_equal(rows, cols) else cols)


def decolor(
    image_shape: Sequence[int],
    *,
    steps: int,
    schedule: str = "linear",
    factor: float = 0.9,
    gray_at_end: bool = False,
) -> Degradation:
    """Lost colour: x_t = w_k x0 + (1 - w_k) mean_c(x0) with k = round(t T).

    See "Cold Diffusion" by Bansal et al. (https://arxiv.org/abs/2208.09392).

    Args:
      image_shape: (H, W, C) of the images; any number of channels.
      steps: T.
      schedule: "linear", w_k = 1 - k / T, or "constant", w_k = factor^k.
      factor: of the constant schedule, in [0, 1).
      gray_at_end: for the constant schedule, w_T = 0 (the authors' "total_remove").
    Returns:
      A linear degradation with no realisation.
    Raises:
      ValueError: naming the argument that cannot be.
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
    table = jnp.asarray(color.decolor_table(weights, channels), jnp.float32)
    return Degradation(table, apply_fn=_apply_decolor, linear_fn=_linear_decolor)


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
    return params.stds[separable.step_index(t, len(params.stds) - 1)]


def _linear_heat(params, t):
    std = _heat_std(params, t)
    rows, cols = (
        spectral.heat_matrix(basis, std)
        for basis in (params.rows, params.rows if params.cols is None else params.cols)
    )
    return LinearMap(sigma=jnp.where(std == 0, 0.0, params.noise), rows=rows, cols=cols)


def _heat_mean(params, x0, t):
    at_t = _linear_heat(params, t)
    chex.assert_shape(x0, (at_t.rows.shape[0], at_t.cols.shape[0], None))
    blurred = separable.transform(x0, at_t.rows, at_t.cols).astype(x0.dtype)
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
      A linear degradation; its realisation is that noise, or None if noise is 0.
    Raises:
      ValueError: naming the argument that cannot be.
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
    arrays = Heat(
        rows=separable.dct_matrix(height),
        cols=None if width == height else separable.dct_matrix(width),
        sigma_min=sigma_min,
        sigma_max=sigma_max,
        stds=stds,
        noise=noise,
    )
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), arrays)
    drawn = {} if noise == 0 else {"draw_fn": draw_noise}
    return Degradation(
        params, apply_fn=_apply_heat, infer_fn=_infer_heat, linear_fn=_linear_heat, **drawn
    )
