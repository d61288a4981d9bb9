"""Cold degradations: what destroys the image is not noise. One constructor a family.

Every constructor takes the images' shape and returns a `Degradation`; every
argument that cannot be raises ValueError, naming it.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from diffjax.degradations import Degradation, LinearMap, require
from diffjax.operators import separable


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


def gaussian_blur(
    image_shape: Sequence[int],
    *,
    stds: Sequence[float],
    kernel_size: int,
    boundary: str = "circular",
) -> Degradation:
    """Repeated Gaussian blur: x_t = G_k ... G_1 x0 with k = round(t T), per channel.

    See section 5.1 of "Cold Diffusion" by Bansal et al. (https://arxiv.org/abs/2208.09392).

    Args:
      image_shape: (H, W, C) of the images.
      stds: std of each step's kernel, in pixels, positive; T = len(stds).
      kernel_size: taps of each step's kernel, odd.
      boundary: "circular", "reflect" or "symmetric", as in `convolution_matrix`.
    Returns:
      A linear degradation with no realisation. Its tables hold T H^2 floats, and
      T W^2 more if W differs from H.
    Raises:
      ValueError: naming the argument that cannot be.
    Note:
      The kernel is truncated to kernel_size taps and normalised, as in the authors'
      code: 20 steps of std 7 in 11 taps make a std of 13.6 pixels, not 31.3.
    """
    height, width, _ = image_shape
    stds = np.asarray(stds, np.float64)
    require(
        stds.ndim == 1 and len(stds) > 0, f"stds must list one std a step; got shape {stds.shape}"
    )
    require(bool(np.all(stds > 0)), f"stds must be positive; got {stds.min()}")
    require(kernel_size % 2 == 1 and kernel_size > 0, f"kernel_size must be odd; got {kernel_size}")
    rows = separable.blur_table(stds, kernel_size, height, boundary)
    cols = None if width == height else separable.blur_table(stds, kernel_size, width, boundary)
    return _separable(rows, cols)
