"""Separable linear degradations: x_t = A_t x_0 B_t^T, whatever the severity.

A Gaussian blur applied k times, along rows and columns and for any boundary
rule, is one H x H and one W x W matrix: the product of the k one-dimensional
convolution matrices. The products are tabulated once, in float64; at run time
a severity is a gather and two small matrix products:

    k = round(t T),   x_t = rows[k - 1] x_0 cols[k - 1]^T,   x_0 at k = 0.

So D(x0, t) costs the same at every t and does not grow with T, and it differs
from the iterated chain by float32 rounding only.

Depends on: jax, numpy, chex.
"""

from typing import NamedTuple

import chex
import jax.numpy as jnp
import numpy as np

Array = chex.Array

BOUNDARIES = ("circular", "reflect", "symmetric")


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
    if boundary not in BOUNDARIES:
        raise ValueError(f"boundary must be one of {', '.join(BOUNDARIES)}; got {boundary!r}")
    pixel = np.arange(size)[:, None]
    source = pixel + np.arange(len(kernel)) - len(kernel) // 2
    if boundary == "circular" or size == 1:
        source = source % size
    else:
        period = 2 * size - (2 if boundary == "reflect" else 0)
        mirror = period - (1 if boundary == "symmetric" else 0)
        source = source % period
        source = np.minimum(source, mirror - source)
    matrix = np.zeros((size, size))
    np.add.at(matrix, (np.broadcast_to(pixel, source.shape), source), kernel)
    return matrix


def blur_table(stds: np.ndarray, kernel_size: int, size: int, boundary: str) -> np.ndarray:
    """Cumulative blurs A_k = G_k ... G_1 along one axis; float64 [T, size, size].

    Args:
      stds: std of each of the T steps, in pixels.
      kernel_size: number of taps, odd.
      size: number of pixels along the axis.
      boundary: see `convolution_matrix`.
    """
    table = np.empty((len(stds), size, size))
    total = np.eye(size)
    for k, std in enumerate(stds):
        total = convolution_matrix(gaussian_kernel(kernel_size, std), size, boundary) @ total
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
