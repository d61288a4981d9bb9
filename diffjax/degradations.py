"""The central type: a degradation D(x0, t, omega), hot or cold.

    draw(degradation, key, x0) -> omega              what is random in D, explicit
    degrade(degradation, x0, t, omega) -> xt         t in [0, 1]; D(x0, 0) = x0
    infer(degradation, xt, t, x0_hat, omega) -> omega_hat

All three are pure and see one example; `jax.vmap` makes a batch. A Degradation
is a pytree whose leaves are its tables and numbers and whose functions are
static, so that it goes through jit, vmap, pmap and scan as an argument, and two
constructions of one family share one trace.

The families of the literature are constructors in `hot.py` and `cold.py`. One of
your own is a `Degradation` of module-level functions (a lambda or a partial is a
new function each time, and would retrace).
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

Array = chex.Array


def no_realisation(params: Any, key: Array, x0: Array) -> None:
    """draw_fn of a degradation in which nothing is random: omega is None."""
    del params, key, x0


def keep(params: Any, xt: Array, t: Array, x0_hat: Array, omega: Any) -> Any:
    """infer_fn that keeps the realisation it is given: Algorithm 2, "fixed noise"."""
    del params, xt, t, x0_hat
    return omega


class LinearMap(NamedTuple):
    """A linear D at one severity: x_t = alpha (rows x0 cols^T) colors^T + sigma omega.

    rows and cols act on the pixels of every channel, colors on the channels of
    every pixel; None is the identity. omega has unit variance where sigma is not 0.
    """

    alpha: Array | float = 1.0
    sigma: Array | float = 0.0
    rows: Array | None = None  # [H, H]
    cols: Array | None = None  # [W, W]
    colors: Array | None = None  # [C, C]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Degradation:
    """params: leaves of the pytree; the functions: static.

    Attributes:
      params: pytree of arrays: tables, widths, the numbers of a schedule.
      draw_fn: (params, key, x0) -> omega.
      apply_fn: (params, x0, t, omega) -> xt.
      infer_fn: (params, xt, t, x0_hat, omega) -> omega_hat.
      linear_fn: (params, t) -> LinearMap, where D is one: what converts predictions and
        gives the optimal linear restorer. None where D is not linear, or not of this form.
    """

    params: Any
    draw_fn: Callable = dataclasses.field(metadata={"static": True}, default=no_realisation)
    apply_fn: Callable = dataclasses.field(metadata={"static": True}, kw_only=True)
    infer_fn: Callable = dataclasses.field(metadata={"static": True}, default=keep)
    linear_fn: Callable | None = dataclasses.field(metadata={"static": True}, default=None)


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
