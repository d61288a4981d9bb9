"""Separable linear degradations: x_t = A_t x_0 B_t^T, whatever the severity.

A Gaussian blur applied k times, along rows and columns and for any boundary
rule, is one H x H and one W x W matrix: the product of the k one-dimensional
convolution matrices. So is a chain of resamplings, down to fewer pixels and back.
The products are tabulated once, in float64; at run time a severity is a gather
and two small matrix products:

    k = round(t T),   x_t = rows[k - 1] x_0 cols[k - 1]^T,   x_0 at k = 0.

So D(x0, t) costs the same at every t and does not grow with T, and it differs
from the iterated chain by float32 rounding only.

Depends on: jax, numpy, chex.
"""

from collections.abc import Sequence
from typing import NamedTuple

import chex
import jax.numpy as jnp
import numpy as np

Array = chex.Array

BOUNDARIES = ("circular", "reflect", "symmetric")
METHODS = ("bicubic", "bilinear", "area")


class Separable(NamedTuple):
    """Tables of A_k and B_k for k = 1..T; the identity of k = 0 is not stored."""

    rows: Array  # [T, H, H]
    cols: Array | None  # [T, W, W]; None: the same as rows


def step_index(t: Array, steps: int) -> Array:
    """k = round(t T), clipped to 0..T: the tabulated step nearest to severity t."""
    return jnp.clip(jnp.round(t * steps), 0, steps).astype(jnp.int32)


def transform(x: Array, rows: Array, cols: Array) -> Array:
    """rows x cols^T for every channel of one image.

    Args:
      x: image, [H, W, C].
      rows: [H', H].
      cols: [W', W].
    Returns:
      [H', W', C], computed in float32 (or wider) at full precision.
    """
    chex.assert_rank([x, rows, cols], [3, 2, 2])
    return jnp.einsum("ih,hwc,jw->ijc", rows, x, cols, precision="highest")


def gather(tables: Separable, t: Array) -> tuple[Array, Array]:
    """(A_k, B_k) of k = round(t T), the identity at k = 0; [H, H] and [W, W]."""
    cols = tables.rows if tables.cols is None else tables.cols
    k = step_index(t, tables.rows.shape[0])
    return tuple(
        jnp.where(k == 0, jnp.eye(table.shape[-1]), table[jnp.maximum(k - 1, 0)])
        for table in (tables.rows, cols)
    )


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


def _period(size: int, boundary: str) -> int:
    """Length of the periodic signal that `size` pixels become under the boundary rule."""
    if boundary not in BOUNDARIES:
        raise ValueError(f"boundary must be one of {', '.join(BOUNDARIES)}; got {boundary!r}")
    return max(1, {"circular": size, "reflect": 2 * size - 2, "symmetric": 2 * size}[boundary])


def _wrap(kernel: np.ndarray, period: int) -> np.ndarray:
    """The kernel on the periodic signal, its centre at 0; [period]."""
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
      kernel: odd number of taps, centre in the middle; may be wider than the image.
      size: number of pixels.
      boundary: what lies beyond the edge of `a b c d`:
        "circular" `c d | a b c d | a b`, "reflect" `c b | a b c d | c b` (the edge
        pixel once), "symmetric" `b a | a b c d | d c` (the edge pixel repeated).
    Raises:
      ValueError: if the boundary is none of these.
    """
    return _periodic_matrix(_wrap(kernel, _period(size, boundary)), size, boundary)


def blur_table(
    stds: Sequence[float],
    kernel_sizes: Sequence[int],
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
      kernel_sizes: number of taps of each step, odd.
      size: number of pixels along the axis.
      boundary: see `convolution_matrix`.
      cumulative: whether step k follows the steps before it.
    """
    period = _period(size, boundary)
    kernels = [gaussian_kernel(*step) for step in zip(kernel_sizes, stds, strict=True)]
    wrapped = np.stack([_wrap(kernel, period) for kernel in kernels])
    if cumulative:
        wrapped = np.fft.irfft(np.cumprod(np.fft.rfft(wrapped), axis=0), n=period)
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
        NOT smoothed when they shrink; "area", the mean of size / new_size pixels.
    Raises:
      ValueError: if the method is none of these, or if new_size must divide size and does not.
    """
    if method not in ("nearest", *METHODS):
        raise ValueError(f"method must be nearest or one of {', '.join(METHODS)}; got {method!r}")
    if method == "area":
        if size % new_size:
            raise ValueError(f"area needs sizes that divide the image's: {new_size} not {size}")
        return np.repeat(np.eye(new_size), size // new_size, axis=1) * (new_size / size)
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


def resample_table(sizes: Sequence[int], size: int, method: str) -> np.ndarray:
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


def dct_matrix(size: int) -> np.ndarray:
    """The orthonormal DCT-II: C_nj = c_n cos(pi n (2 j + 1) / (2 size)); float64 [size, size].

    Its rows are the eigenvectors of the heat equation with reflecting ends, with
    eigenvalues -(pi n / size)^2; C^T is the inverse.
    """
    frequency, pixel = np.arange(size)[:, None], np.arange(size)[None]
    matrix = np.cos(np.pi * frequency * (2 * pixel + 1) / (2 * size)) * np.sqrt(2 / size)
    matrix[0] /= np.sqrt(2)
    return matrix
