"""Blur and lost resolution: x_t = A_t x_0 B_t^T, whatever the severity.

A Gaussian blur applied k times, along rows and columns and for any boundary
rule, is one H x H and one W x W matrix: the product of the k one-dimensional
convolution matrices. So is a chain of resamplings, down to fewer pixels and back.
The products are tabulated once, in float64; at run time a severity is a gather
and two small matrix products:

    k = round(t T),   x_t = rows[k - 1] x_0 cols[k - 1]^T,   x_0 at k = 0.

So D(x0, t) costs the same at every t and does not grow with T, and it differs
from the iterated chain by float32 rounding only.

Depends on: jax, numpy, chex, base.
"""

from collections.abc import Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from .base import (
    Degradation,
    LinearMap,
    at_step,
    require,
    require_shape,
    require_steps,
    step_index,
    transform,
)

Array = jax.Array

BOUNDARIES = ("circular", "reflect", "symmetric")
METHODS = ("bicubic", "bilinear", "area")


class Separable(NamedTuple):
    """Tables of A_k and B_k for k = 1..T; the identity of k = 0 is not stored."""

    rows: Array  # [T, H, H]
    cols: Array | None  # [T, W, W]; None: the same as rows


def gather(tables: Separable, t: Array) -> tuple[Array, Array]:
    """(A_k, B_k) of k = round(t T), the identity at k = 0; [H, H] and [W, W]."""
    cols = tables.rows if tables.cols is None else tables.cols
    k = step_index(t, tables.rows.shape[0])
    rows, cols = (at_step(table, k, jnp.eye(table.shape[-1])) for table in (tables.rows, cols))
    return rows, cols


def degrade_separable(tables: Separable, x0: Array, t: Array) -> Array:
    """x_t = A_k x_0 B_k^T with k = round(t T), in O(1) of t and T.

    Args:
      tables: the steps' matrices.
      x0: clean image, [H, W, C].
      t: severity, scalar in [0, 1]; 0 is the identity, bit for bit.
    Returns:
      degraded image, [H, W, C], dtype of x0.
    Raises:
      AssertionError: at trace time, if x0 has not the tables' size.
    """
    rows, cols = gather(tables, t)
    chex.assert_shape(x0, (rows.shape[-1], cols.shape[-1], None))
    chex.assert_rank(t, 0)
    k = step_index(t, tables.rows.shape[0])
    return jnp.where(k == 0, x0, transform(x0, rows, cols).astype(x0.dtype))


def gaussian_kernel(size: int, std: float) -> np.ndarray:
    """g_j proportional to exp(-(j - size // 2)^2 / (2 std^2)), summing to 1; float64 [size]."""
    offsets = np.arange(size) - size // 2
    weights = np.exp(-0.5 * (offsets / std) ** 2)
    return weights / weights.sum()


def _spectrum(kernel_size: int | None, std: float, period: int) -> np.ndarray:
    """The real FFT of a Gaussian on the periodic signal: of its taps, or exp(-(std w)^2 / 2)."""
    if kernel_size is None:
        return np.exp(-0.5 * np.square(2 * np.pi * std * np.fft.rfftfreq(period)))
    return np.fft.rfft(_wrap(gaussian_kernel(kernel_size, std), period))


def _period(size: int, boundary: str) -> int:
    """Length of the periodic signal that `size` pixels become under the boundary rule."""
    if boundary not in BOUNDARIES:
        raise ValueError(f"boundary must be one of {', '.join(BOUNDARIES)}; got {boundary!r}")
    return max(1, {"circular": size, "reflect": 2 * size - 2, "symmetric": 2 * size}[boundary])


def _wrap(kernel: np.ndarray, period: int) -> np.ndarray:
    """The kernel on the periodic signal, its center at 0; [period]."""
    wrapped = np.zeros(period)
    np.add.at(wrapped, (np.arange(len(kernel)) - len(kernel) // 2) % period, kernel)
    return wrapped


def _periodic_matrix(wrapped: np.ndarray, size: int, boundary: str) -> np.ndarray:
    """The matrix on `size` pixels of a correlation on their periodic extension."""
    period = len(wrapped)
    position = np.arange(period)
    matrix = wrapped[(position - np.arange(size)[:, None]) % period]
    # Beyond the last pixel the extension runs back over the same pixels.
    mirrored = period - position[size:] - (boundary == "symmetric")
    matrix[:, mirrored] += matrix[:, size:]
    return matrix[:, :size]


def convolution_matrix(kernel: np.ndarray, size: int, boundary: str) -> np.ndarray:
    """The matrix of a one-dimensional correlation on `size` pixels; float64 [size, size].

    Args:
      kernel: odd number of taps, center in the middle; may be wider than the image.
      size: number of pixels.
      boundary: what lies beyond the edge of `a b c d`:
        "circular" `c d | a b c d | a b`, "reflect" `c b | a b c d | c b` (the edge
        pixel once), "symmetric" `b a | a b c d | d c` (the edge pixel repeated).
    Raises:
      ValueError: if the boundary is none of these.
    """
    return _periodic_matrix(_wrap(kernel, _period(size, boundary)), size, boundary)


def blur_table(
    stds: Sequence[float] | np.ndarray,
    kernel_sizes: Sequence[int | None] | np.ndarray,
    size: int,
    boundary: str,
    *,
    cumulative: bool = True,
) -> np.ndarray:
    """Blurs A_k = G_k ... G_1 along one axis, or G_k alone; float64 [T, size, size].

    Under all three boundary rules a symmetric kernel keeps the periodic extension of
    the signal what it is, so that the chain is a product of the kernels' spectra:
    T N^2 operations, where products of matrices would take T N^3.

    Args:
      stds: std of each of the T steps, in pixels.
      kernel_sizes: number of taps of each step, odd; None: the whole Gaussian, by its spectrum.
      size: number of pixels along the axis.
      boundary: see `convolution_matrix`.
      cumulative: whether step k follows the steps before it.
    """
    period = _period(size, boundary)
    spectra = np.stack([_spectrum(*step, period) for step in zip(kernel_sizes, stds, strict=True)])
    if cumulative:
        spectra = np.cumprod(spectra, axis=0)
    wrapped = np.fft.irfft(spectra, n=period)
    table = np.empty((len(wrapped), size, size))
    for k, kernel in enumerate(wrapped):
        table[k] = _periodic_matrix(kernel, size, boundary)
    return table


def _cubic(distance: np.ndarray) -> np.ndarray:
    """The cubic convolution kernel of Keys with a = -0.75, at distances of at most 2."""
    a, d = -0.75, np.abs(distance)
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((d - 5) * d + 8) * d * a - 4 * a
    return np.where(d <= 1, near, far)


def resize_matrix(size: int, new_size: int, method: str) -> np.ndarray:
    """The matrix that resamples `size` pixels to `new_size`; float64 [new_size, size].

    Pixel i of the result lies at (i + 1/2) size / new_size - 1/2 in the source; beyond
    the edge the edge pixel is repeated.

    Args:
      size: number of pixels.
      new_size: number of pixels of the result.
      method: "nearest"; "bilinear" and "bicubic" (a = -0.75), interpolations that are
        NOT smoothed when they shrink; "area", the mean of pixels floor(i size / new_size) to
        ceil((i + 1) size / new_size) - 1, the rule of adaptive average pooling.
    Raises:
      ValueError: if the method is none of these.
    """
    if method not in ("nearest", *METHODS):
        raise ValueError(f"method must be nearest or one of {', '.join(METHODS)}; got {method!r}")
    if method == "area":
        source, pixel = np.arange(size), np.arange(new_size)[:, None]
        inside = (source >= pixel * size // new_size) & (
            source < -(-(pixel + 1) * size // new_size)
        )
        return inside / inside.sum(axis=1, keepdims=True)
    pixel = np.arange(new_size)[:, None]
    if method == "nearest":
        return np.eye(size)[(2 * pixel[:, 0] + 1) * size // (2 * new_size)]
    position = (pixel + 0.5) * size / new_size - 0.5
    taps = np.arange(-1, 3) if method == "bicubic" else np.arange(2)
    source = np.floor(position).astype(int) + taps
    distance = position - source
    weights = _cubic(distance) if method == "bicubic" else 1 - np.abs(distance)
    matrix = np.zeros((new_size, size))
    np.add.at(matrix, (pixel, np.clip(source, 0, size - 1)), weights)
    return matrix


def resample_table(sizes: Sequence[int] | np.ndarray, size: int, method: str) -> np.ndarray:
    """A_k = U_k D_k ... U_1 D_1 along one axis; float64 [T, size, size].

    D_k resamples `size` pixels to sizes[k - 1] by the method, U_k back by nearest.
    """
    table = np.empty((len(sizes), size, size))
    total = np.eye(size)
    for k, new_size in enumerate(sizes):
        down = resize_matrix(size, new_size, method)
        total = resize_matrix(new_size, size, "nearest") @ (down @ total)
        table[k] = total
    return table


def _apply_separable(params, x0, t, omega):
    del omega
    return degrade_separable(params, x0, t)


def _linear_separable(params, t):
    rows, cols = gather(params, t)
    return LinearMap(rows=rows, cols=cols)


def _separable(rows: np.ndarray, cols: np.ndarray | None) -> Degradation:
    tables = Separable(
        rows=jnp.asarray(rows, jnp.float32),
        cols=None if cols is None else jnp.asarray(cols, jnp.float32),
    )
    return Degradation(
        tables, apply_fn=_apply_separable, linear_fn=_linear_separable, steps=len(rows)
    )


def spread_table(table: np.ndarray, between: int, faintest: float) -> np.ndarray:
    """Every step of a table of matrices along one axis made of `between`; float64 [K T, N, N].

    Step j = 1..K from A to B is w_j A + (1 - w_j) B with w_j = faintest^(j / (K - 1)), w_K = 0.
    The first step starts at the identity.
    """
    if between == 1:
        return table
    weights = faintest ** (np.arange(1, between + 1) / (between - 1))
    weights[-1] = 0
    weights = weights[:, None, None]
    before = np.concatenate([np.eye(table.shape[-1])[None], table[:-1]])
    steps = [weights * last + (1 - weights) * new for last, new in zip(before, table, strict=True)]
    return np.concatenate(steps)


def gaussian_blur(
    image_shape: Sequence[int],
    *,
    stds: Sequence[float],
    kernel_size: int | Sequence[int] | None = None,
    boundary: str = "circular",
    cumulative: bool = True,
    mean_at_end: bool = False,
) -> Degradation:
    """Repeated Gaussian blur: x_t = G_k ... G_1 x0 with k = round(t T), per channel.

    See section 5.1 of "Cold Diffusion" by Bansal et al. (https://arxiv.org/abs/2208.09392).

    Args:
      image_shape: (H, W, C) of the images.
      stds: std of each step's kernel, in pixels, positive; T = len(stds).
      kernel_size: taps of each step's kernel, odd; one for all, or one a step. None: the whole
        Gaussian, by its spectrum exp(-(std w)^2 / 2), so that k blurs have the std
        sqrt(std_1^2 + ... + std_k^2), however small they are.
      boundary: "circular", "reflect" or "symmetric", as in `convolution_matrix`.
      cumulative: if False, x_t = G_k x0: each step's kernel alone ("individual").
      mean_at_end: at t = 1 every channel is its mean over x0 (the authors' "discrete").
    Returns:
      A linear degradation with no realization. Its tables hold T H^2 floats, and
      T W^2 more if W differs from H.
    Raises:
      ValueError: if an argument is invalid; the message names it.
    Note:
      A kernel of kernel_size taps is a sampled, truncated and normalized Gaussian, as in the
      authors' code: 20 steps of std 7 in 11 taps make a std of 13.6 pixels, not 31.3, and
      steps below 0.3 pixels none. Their
      "discrete" also truncates training inputs to 8 bits, which is no part of D here.
    """
    height, width, _ = require_shape(image_shape)
    stds_T = require_steps("stds", stds)
    taps_T = np.full(stds_T.shape, None)
    if kernel_size is not None:
        taps = np.asarray(kernel_size)
        require(
            taps.shape in ((), stds_T.shape) and bool(np.all((taps % 2 == 1) & (taps > 0))),
            f"kernel_size must be odd, one for all or one a step; got {kernel_size}",
        )
        taps_T[:] = taps

    def table(size):
        steps = blur_table(stds_T, taps_T, size, boundary, cumulative=cumulative)
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
    between: int = 1,
    faintest: float = 0.01,
) -> Degradation:
    """Lost resolution: x_k = U_k D_k x_(k-1), down to sizes[k - 1] and back up by nearest.

    See "Cold Diffusion" by Bansal et al. (https://arxiv.org/abs/2208.09392).

    Args:
      image_shape: (H, W, C) of the images.
      sizes: pixels left along both axes, or (rows, columns) left, one after another; they
        may not grow.
      steps: in place of sizes, so many halvings of both sides; 2^steps must divide H and W.
      method: how D_k shrinks: "bicubic" (a = -0.75, the authors'), "bilinear" or "area"
        (the mean of the pixels that a new one covers). The first two interpolate between the
        nearest four or two pixels a side, whatever the ratio.
      between: K steps from one size to the next, T = K len(sizes). With K > 1 step j of them
        is w last + (1 - w) next along each axis, w = faintest^(j / (K - 1)), and next at j = K:
        what a walk that generates needs, where a hard step is a jump.
      faintest: what is left of the last size before it is gone, in (0, 1).
    Returns:
      A linear degradation with no realization; its tables are as large as
      `gaussian_blur`'s.
    Raises:
      ValueError: if an argument is invalid; the message names it.
    Note:
      As in the authors' code every step resamples the H x W image that the last one
      left, so that after a first bicubic halving each later one is the mean of 2 x 2
      pixels. Bicubic overshoots, and nothing clips it: x_t can leave [-1, 1].
    """
    height, width, _ = require_shape(image_shape)
    require((sizes is None) != (steps is None), "downsample takes either sizes or steps")
    if steps is not None:
        require(steps > 0, f"steps must be positive; got {steps}")
        require(
            height % 2**steps == 0 and width % 2**steps == 0,
            f"steps = {steps} halvings need 2^steps to divide the image; got {height} x {width}",
        )
        sizes = [(height >> k, width >> k) for k in range(1, steps + 1)]
    assert sizes is not None  # one of the two was given
    pairs = [tuple(np.broadcast_to(size, 2)) for size in sizes]
    require(len(pairs) > 0, "sizes must list one size a step; got none")
    chain = np.array([(height, width), *pairs])
    require(
        bool(np.all(chain > 0) and np.all(np.diff(chain, axis=0) <= 0)),
        f"sizes must be positive and never grow from {height} x {width}; got {list(sizes)}",
    )
    require(between >= 1, f"between must be at least 1; got {between}")
    require(0 < faintest < 1, f"faintest must lie in (0, 1); got {faintest}")
    rows, cols = (
        spread_table(resample_table(chain[1:, axis], size, method), between, faintest)
        for axis, size in enumerate((height, width))
    )
    return _separable(rows, None if np.array_equal(rows, cols) else cols)
