"""The central type: a degradation D(x0, t, omega), hot or cold.

    draw(degradation, key, x0) -> omega              what is random in D, explicit
    degrade(degradation, x0, t, omega) -> xt         t in [0, 1]; D(x0, 0) = x0
    infer(degradation, xt, t, x0_hat, omega) -> omega_hat

All three are pure and see one example; `jax.vmap` makes a batch. A Degradation
is a pytree whose leaves are its tables and numbers and whose functions are
static, so that it goes through jit, vmap, pmap and scan as an argument, and two
constructions of one family share one trace.

A family of your own is a `Degradation` of three module-level functions (a
lambda or a partial is a new function each time, and would retrace).
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from diffjax.operators import separable

Array = chex.Array


def no_realisation(params: Any, key: Array, x0: Array) -> None:
    """draw_fn of a degradation in which nothing is random: omega is None."""
    del params, key, x0


def keep(params: Any, xt: Array, t: Array, x0_hat: Array, omega: Any) -> Any:
    """infer_fn that keeps the realisation it is given: Algorithm 2, "fixed noise"."""
    del params, xt, t, x0_hat
    return omega


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Degradation:
    """params: leaves of the pytree; the functions: static.

    Attributes:
      params: pytree of arrays: tables, widths, the numbers of a schedule.
      draw_fn: (params, key, x0) -> omega.
      apply_fn: (params, x0, t, omega) -> xt.
      infer_fn: (params, xt, t, x0_hat, omega) -> omega_hat.
    """

    params: Any
    draw_fn: Callable = dataclasses.field(metadata={"static": True}, default=no_realisation)
    apply_fn: Callable = dataclasses.field(metadata={"static": True}, kw_only=True)
    infer_fn: Callable = dataclasses.field(metadata={"static": True}, default=keep)


def draw(degradation: Degradation, key: Array, x0: Array) -> Any:
    """omega: a realisation of whatever is random in D, for an example like x0."""
    return degradation.draw_fn(degradation.params, key, x0)


def degrade(degradation: Degradation, x0: Array, t: Array, omega: Any = None) -> Array:
    """x_t = D(x0, t, omega).

    Args:
      degradation: D.
      x0: clean image, [H, W, C] float, range [-1, 1].
      t: severity, scalar in [0, 1]; 0 is the identity.
      omega: the realisation, from `draw` or `infer`.
    Returns:
      degraded image, shape and dtype of x0.
    Raises:
      AssertionError: at trace time, if x0 has not the size D was made for.
      ValueError: if t is a concrete number outside [0, 1].
    """
    if isinstance(t, int | float) and not 0 <= t <= 1:
        raise ValueError(f"t must lie in [0, 1]; got {t}")
    return degradation.apply_fn(degradation.params, x0, jnp.asarray(t, jnp.float32), omega)


def infer(degradation: Degradation, xt: Array, t: Array, x0_hat: Array, omega: Any = None) -> Any:
    """omega_hat with D(x0_hat, t, omega_hat) = xt, where D has one; else omega, kept."""
    t = jnp.asarray(t, jnp.float32)
    return degradation.infer_fn(degradation.params, xt, t, x0_hat, omega)


def require(condition: bool, message: str) -> None:
    """Raises ValueError(message) unless the condition holds; for constructors' arguments."""
    if not condition:
        raise ValueError(message)


def _apply_separable(params, x0, t, omega):
    del omega
    return separable.degrade_separable(params, x0, t)


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
    tables = separable.Separable(
        rows=jnp.asarray(rows, jnp.float32),
        cols=None if cols is None else jnp.asarray(cols, jnp.float32),
    )
    return Degradation(tables, apply_fn=_apply_separable)


FAMILIES = {constructor.__name__: constructor for constructor in (gaussian_blur,)}
