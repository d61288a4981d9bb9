"""The central type: a degradation D(x0, t, omega), hot or cold.

    draw(degradation, key, x0) -> omega              what is random in D, explicit
    degrade(degradation, x0, t, omega) -> xt         t in [0, 1]; D(x0, 0) = x0
    infer(degradation, xt, t, x0_hat, omega) -> omega_hat

All three are pure and see one example; `jax.vmap` makes a batch. A Degradation
is a pytree whose leaves are its tables and numbers and whose functions are
static, so that it goes through jit, vmap, pmap and scan as an argument, and two
constructions of one family share one trace.

The families of the literature are constructors in `hot.py`, `cold.py` and
`occlusions.py`; `compose` chains two. One of your own is a `Degradation` of
module-level functions (a lambda or a partial is a new function each time, and would
retrace).
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

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


def coefficients(degradation: Degradation, t: Array) -> tuple[Array, Array] | None:
    """(alpha, sigma) at t where x_t = alpha x0 + sigma omega; None where D is not that."""
    if degradation.linear_fn is None:
        return None
    at_t = degradation.linear_fn(degradation.params, jnp.asarray(t, jnp.float32))
    if any(matrix is not None for matrix in (at_t.rows, at_t.cols, at_t.colors)):
        return None
    return jnp.asarray(at_t.alpha, jnp.float32), jnp.asarray(at_t.sigma, jnp.float32)


def require(condition: bool, message: str) -> None:
    """Raises ValueError(message) unless the condition holds; for constructors' arguments."""
    if not condition:
        raise ValueError(message)


def require_shape(image_shape: Sequence[int]) -> tuple[int, int, int]:
    """(H, W, C) of a constructor's image_shape; raises ValueError unless it is one."""
    shape = tuple(image_shape)
    require(
        len(shape) == 3 and all(isinstance(n, int | np.integer) and n > 0 for n in shape),
        f"image_shape must be (H, W, C), three positive integers; got {shape}",
    )
    return shape


def require_steps(name: str, values: Sequence[float]) -> np.ndarray:
    """One positive number a step, float64 [T]; raises ValueError, naming them, otherwise."""
    values = np.asarray(values, np.float64)
    require(
        values.ndim == 1 and len(values) > 0,
        f"{name} must list one number a step; got shape {values.shape}",
    )
    require(bool(np.all(values > 0)), f"{name} must be positive; got {values.min()}")
    return values


def _draw_composed(params, key, x0):
    first, second, _ = params
    key_first, key_second = jax.random.split(key)
    return draw(first, key_first, x0), draw(second, key_second, x0)


def _shares(params, t):
    """Each degradation's own severity."""
    share = params[2]
    return jnp.minimum(t / share, 1), jnp.maximum((t - share) / (1 - share), 0)


def _apply_composed(params, x0, t, omega):
    first, second, _ = params
    t_first, t_second = _shares(params, t)
    return degrade(second, degrade(first, x0, t_first, omega[0]), t_second, omega[1])


def _infer_composed(params, xt, t, x0_hat, omega):
    first, second, _ = params
    t_first, t_second = _shares(params, t)
    middle = degrade(first, x0_hat, t_first, omega[0])
    first_hat = infer(first, xt, t_first, x0_hat, omega[0])
    second_hat = infer(second, xt, t_second, middle, omega[1])

    def once_second_acts(then, otherwise):
        return jax.tree.map(lambda a, b: jnp.where(t_second > 0, a, b), then, otherwise)

    return once_second_acts(omega[0], first_hat), once_second_acts(second_hat, omega[1])


def compose(first: Degradation, second: Degradation, *, share: float = 0.5) -> Degradation:
    """One degradation after another, each in its own share of the severities.

      D(x0, t) = second(first(x0, min(t / share, 1)), max((t - share) / (1 - share), 0))

    Args:
      first: what acts from t = 0 to t = share, and stays.
      second: what acts on first's end point from t = share to t = 1.
      share: strictly between 0 and 1.
    Returns:
      A degradation whose realisation is the pair of both. `infer` asks first alone up to
      t = share; beyond it, first's is kept and second's is inferred from first's end
      point. It has no linear_fn.
    Raises:
      ValueError: if share is not strictly between 0 and 1.
    Note:
      Each rounds its own severity to its own table: T_1 and T_2 steps are met exactly
      by a grid of T_1 + T_2 with share = T_1 / (T_1 + T_2).
    """
    require(0 < share < 1, f"share must lie strictly between 0 and 1; got {share}")
    return Degradation(
        (first, second, jnp.float32(share)),
        draw_fn=_draw_composed,
        apply_fn=_apply_composed,
        infer_fn=_infer_composed,
    )
