"""The central type: a degradation D(x0, t, omega), and what all families share.

    draw(degradation, key, x0) -> omega              what is random in D, explicit
    degrade(degradation, x0, t, omega) -> xt         t in [0, 1]; D(x0, 0) = x0
    infer(degradation, xt, t, x0_hat, omega) -> omega_hat

All three are pure and see one example; `jax.vmap` makes a batch. A Degradation
is a pytree whose leaves are its tables and numbers and whose functions are
static, so that it goes through jit, vmap, pmap and scan as an argument, and two
constructions of one family share one trace.

The families of the literature are the other files of this folder, one file each: the
mathematics as pure functions, the constructor below them. `compose` chains two. One of
your own is a `Degradation` of module-level functions (a lambda or a partial is a new
function each time, and would retrace).

Depends on: jax, numpy, chex.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


def no_realization(params: Any, key: Array, x0: Array) -> None:
    """draw_fn of a degradation in which nothing is random: omega is None."""
    del params, key, x0


def keep(params: Any, xt: Array, t: Array, x0_hat: Array, omega: Any) -> Any:
    """infer_fn that keeps the realization it is given: Algorithm 2, "fixed noise"."""
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
      steps: T of a D that is tabulated in T steps, k = round(t T): training, grids and the
        tables of the linear restorer keep to t = k / T. None: continuous in t.
    """

    params: Any
    draw_fn: Callable = dataclasses.field(metadata={"static": True}, default=no_realization)
    apply_fn: Callable = dataclasses.field(metadata={"static": True}, kw_only=True)
    infer_fn: Callable = dataclasses.field(metadata={"static": True}, default=keep)
    linear_fn: Callable | None = dataclasses.field(metadata={"static": True}, default=None)
    steps: int | None = dataclasses.field(metadata={"static": True}, default=None, kw_only=True)

    def __post_init__(self):
        for name in ("draw_fn", "apply_fn", "infer_fn", "linear_fn"):
            fn = getattr(self, name)
            if isinstance(fn, functools.partial) or getattr(fn, "__name__", "") == "<lambda>":
                raise ValueError(
                    f"{name} must be a function with a name: a lambda or a partial is a new one "
                    "each time, and everything compiled with it would be compiled again"
                )


def draw(degradation: Degradation, key: Array, x0: Array) -> Any:
    """omega: a realization of whatever is random in D, for an example like x0."""
    return degradation.draw_fn(degradation.params, key, x0)


def degrade(degradation: Degradation, x0: Array, t: Array | float, omega: Any = None) -> Array:
    """x_t = D(x0, t, omega).

    Args:
      degradation: D.
      x0: clean image, [H, W, C] float, range [-1, 1].
      t: severity, scalar in [0, 1]; 0 is the identity.
      omega: the realization, from `draw` or `infer`.
    Returns:
      degraded image, shape and dtype of x0.
    Raises:
      AssertionError: at trace time, if x0 has not the size D was made for.
      ValueError: if t is a Python number outside [0, 1].
    """
    if isinstance(t, int | float) and not 0 <= t <= 1:
        raise ValueError(f"t must lie in [0, 1]; got {t}")
    return degradation.apply_fn(degradation.params, x0, jnp.asarray(t, jnp.float32), omega)


def infer(
    degradation: Degradation, xt: Array, t: Array | float, x0_hat: Array, omega: Any = None
) -> Any:
    """omega_hat with D(x0_hat, t, omega_hat) = xt, where D has one; else omega, kept."""
    t = jnp.asarray(t, jnp.float32)
    return degradation.infer_fn(degradation.params, xt, t, x0_hat, omega)


def has_coefficients(degradation: Degradation) -> bool:
    """Whether x_t = alpha x0 + sigma omega: linear, and no matrix on pixels or channels."""
    if degradation.linear_fn is None:
        return False
    t = jax.ShapeDtypeStruct((), jnp.float32)
    at_t = jax.eval_shape(degradation.linear_fn, degradation.params, t)
    return at_t.rows is None and at_t.cols is None and at_t.colors is None


def coefficients(degradation: Degradation, t: Array | float) -> tuple[Array, Array]:
    """(alpha, sigma) at t, float32 scalars, where x_t = alpha x0 + sigma omega.

    Raises:
      ValueError: if D is not of that form, see `has_coefficients`.
    """
    if degradation.linear_fn is None or not has_coefficients(degradation):
        raise ValueError(
            f"x_t = alpha x0 + sigma omega is needed, which {degradation.apply_fn.__qualname__} "
            "is not"
        )
    at_t = degradation.linear_fn(degradation.params, jnp.asarray(t, jnp.float32))
    return jnp.asarray(at_t.alpha, jnp.float32), jnp.asarray(at_t.sigma, jnp.float32)


def require(condition: bool, message: str) -> None:
    """Raises ValueError(message) unless the condition holds; for constructors' arguments."""
    if not condition:
        raise ValueError(message)


def scalar(name: str, value: float) -> Array:
    """A constructor's number as an array; raises ValueError unless it is one, not negative."""
    require(np.ndim(value) == 0 and bool(value >= 0), f"{name} must be a number >= 0; got {value}")
    return jnp.asarray(value, jnp.float32)


def require_shape(image_shape: Sequence[int]) -> tuple[int, int, int]:
    """(H, W, C) of a constructor's image_shape; raises ValueError unless it is one."""
    shape = tuple(image_shape)
    require(
        len(shape) == 3 and all(isinstance(n, int | np.integer) and n > 0 for n in shape),
        f"image_shape must be (H, W, C), three positive integers; got {shape}",
    )
    height, width, channels = shape
    return height, width, channels


def require_steps(name: str, values: Sequence[float]) -> np.ndarray:
    """One positive number a step, float64 [T]; raises ValueError, naming them, otherwise."""
    values_T = np.asarray(values, np.float64)
    require(
        values_T.ndim == 1 and len(values_T) > 0,
        f"{name} must list one number a step; got shape {values_T.shape}",
    )
    require(bool(np.all(values_T > 0)), f"{name} must be positive; got {values_T.min()}")
    return values_T


def step_index(t: Array, steps: int) -> Array:
    """k = round(t T), clipped to 0..T: the tabulated step nearest to severity t."""
    return jnp.clip(jnp.round(t * steps), 0, steps).astype(jnp.int32)


def at_step(table: Array, k: Array, identity: Array | float) -> Array:
    """table[k - 1], the entry of step k = 1..T; `identity` at k = 0, which no table stores."""
    identity = jnp.asarray(identity, table.dtype)
    return jnp.where(k == 0, identity, table[jnp.maximum(k - 1, 0)])


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


def draw_noise(params: Any, key: Array, x0: Array) -> Array:
    """omega ~ N(0, I), shape and dtype of x0; the params of a degradation are not read."""
    del params
    return jax.random.normal(key, x0.shape, x0.dtype)


def add_noise(x0: Array, alpha: Array, sigma: Array, omega: Array) -> Array:
    """x_t = alpha x_0 + sigma omega.

    See Equation 4 of "Denoising Diffusion Probabilistic Models" by Ho et al.
    (https://arxiv.org/abs/2006.11239).

    Args:
      x0: clean image, [H, W, C].
      alpha, sigma: scalars; (1, 0) is the identity, bit for bit.
      omega: the realization, like x0.
    Returns:
      degraded image, shape and dtype of x0.
    Raises:
      AssertionError: at trace time, if omega is not like x0, or a coefficient not a scalar.
    """
    chex.assert_equal_shape([x0, omega])
    chex.assert_rank([alpha, sigma], 0)
    return (alpha * x0 + sigma * omega).astype(x0.dtype)


def infer_noise(xt: Array, alpha: Array, sigma: Array, x0_hat: Array, omega: Array) -> Array:
    """omega_hat = (x_t - alpha x0_hat) / sigma, "estimated noise"; omega, kept, at sigma = 0.

    See Equation 12 of "Denoising Diffusion Implicit Models" by Song et al.
    (https://arxiv.org/abs/2010.02502), whose predicted noise this is.

    Args:
      xt: degraded image, [H, W, C].
      alpha, sigma: scalars.
      x0_hat: estimate of the clean image, like xt.
      omega: what to answer where x_t holds no noise, like xt.
    Returns:
      [H, W, C], dtype of xt; finite, as are its gradients.
    Raises:
      AssertionError: at trace time, if the arrays differ in shape.
    """
    chex.assert_equal_shape([xt, x0_hat, omega])
    chex.assert_rank([alpha, sigma], 0)
    noiseless = sigma == 0
    # Never divided by 0, not even where `where` discards it: its gradient would be nan.
    divisor = jnp.where(noiseless, 1.0, sigma)
    return jnp.where(noiseless, omega, (xt - alpha * x0_hat) / divisor).astype(xt.dtype)


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
      A degradation whose realization is the pair of both. `infer` asks first alone up to
      t = share; beyond it, first's is kept and second's is inferred from first's end
      point. It has no linear_fn.
    Raises:
      ValueError: if share is not strictly between 0 and 1.
    Note:
      Each rounds its own severity to its own table.
    """
    require(0 < share < 1, f"share must lie strictly between 0 and 1; got {share}")
    steps = None
    if first.steps is not None and second.steps is not None:
        both = first.steps + second.steps
        steps = both if np.isclose(share * both, first.steps) else None
    return Degradation(
        (first, second, jnp.float32(share)),
        draw_fn=_draw_composed,
        apply_fn=_apply_composed,
        infer_fn=_infer_composed,
        steps=steps,
    )
