"""Hot degradations: noise, another image, or another degradation's end point comes in.

    x_t = alpha(t) x_0 + sigma(t) omega

omega is anything like an image: white noise makes a hot diffusion (`gaussian_noise`), another
image animorphosis (`animorph`), the degraded end point InDI's bridge (`bridge`). alpha and
sigma are a schedule of `schedules.py`.

Depends on: jax, numpy, base, schedules.
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .. import schedules
from .base import (
    Degradation,
    LinearMap,
    add_noise,
    degrade,
    draw,
    draw_noise,
    infer_noise,
    require,
    require_shape,
    scalar,
)

Array = jax.Array
Schedule = str | Callable[..., tuple[Array, Array]]


class Scheduled(NamedTuple):
    """alpha(t) x0 + sigma(t) omega."""

    numbers: dict[str, Array]  # the schedule's
    source: Any = None  # what omega is drawn from: images [N, H, W, C], a Bridge; None: N(0, I)


class Bridge(NamedTuple):
    """What `end` makes of x0, and the noise on it."""

    end: Degradation
    noise: Array  # scalar


def _draw_image(params, key, x0):
    index = jax.random.randint(key, (), 0, params.source.shape[0])
    return params.source[index].astype(x0.dtype)


@functools.cache
def _scheduled_functions(schedule_fn, zero_terminal_snr) -> dict[str, Any]:
    """Cached, so that two degradations of one schedule have the same functions: one trace."""

    def coefficients(params, t):
        if zero_terminal_snr:
            return schedules.zero_terminal(schedule_fn, t, **params.numbers)
        return schedule_fn(t, **params.numbers)

    def apply_fn(params, x0, t, omega):
        alpha, sigma = coefficients(params, t)
        return add_noise(x0, alpha, sigma, omega)

    def infer_fn(params, xt, t, x0_hat, omega):
        alpha, sigma = coefficients(params, t)
        return infer_noise(xt, alpha, sigma, x0_hat, omega)

    def linear_fn(params, t):
        return LinearMap(*coefficients(params, t))

    return {"apply_fn": apply_fn, "infer_fn": infer_fn, "linear_fn": linear_fn}


def _schedule_numbers(schedule_fn: Callable, numbers: dict[str, Any]) -> dict[str, Array]:
    """Every number of a schedule, given or by default, as arrays: all can be swept."""
    name = schedule_fn.__name__
    parameters = list(inspect.signature(schedule_fn).parameters.values())[1:]
    known = [parameter.name for parameter in parameters]
    unknown = set(numbers) - set(known)
    require(not unknown, f"schedule {name} takes {known or 'no number'}; got {sorted(unknown)}")
    numbers = {p.name: numbers.get(p.name, p.default) for p in parameters}
    missing = [key for key, value in numbers.items() if value is inspect.Parameter.empty]
    require(not missing, f"schedule {name} needs {', '.join(missing)}")
    return {key: jnp.asarray(value, jnp.float32) for key, value in numbers.items()}


def _scheduled(
    schedule: Schedule,
    zero_terminal_snr: bool,
    numbers: dict[str, Any],
    draw_fn: Callable,
    source: Any = None,
) -> Degradation:
    schedule_fn = schedules.SCHEDULES.get(schedule) if isinstance(schedule, str) else schedule
    # A lambda, made anew, is traced anew.
    if schedule_fn is None or getattr(schedule_fn, "__name__", "<lambda>") == "<lambda>":
        raise ValueError(
            f"schedule must be one of {', '.join(schedules.SCHEDULES)}, or a function with a name; "
            f"got {schedule!r}"
        )
    numbers = _schedule_numbers(schedule_fn, numbers)
    called = f"schedule {schedule_fn.__name__} with " + ", ".join(
        f"{key} = {value}" if np.ndim(value) == 0 else f"{key} {np.shape(value)}"
        for key, value in numbers.items()
    )
    ts = np.linspace(0, 1, 65, dtype=np.float32)
    alpha, sigma = (
        np.asarray(values, np.float64)
        for values in jax.vmap(functools.partial(schedule_fn, **numbers))(ts)
    )
    require(alpha.shape == sigma.shape == ts.shape, f"{called} must give two scalars")
    require(
        bool(np.all(np.isfinite(alpha) & np.isfinite(sigma) & (alpha >= 0) & (sigma >= 0))),
        f"{called} must give alpha and sigma that are finite and not negative",
    )
    require(alpha[0] == 1 and sigma[0] == 0, f"{called} must start at alpha = 1, sigma = 0")
    require(
        bool(np.all(sigma[1:] * alpha[:-1] >= sigma[:-1] * alpha[1:] * (1 - 1e-5))),
        f"{called} must not let sigma / alpha fall",
    )
    require(
        not zero_terminal_snr or bool(np.all(np.abs(alpha**2 + sigma**2 - 1) < 1e-5)),
        f"zero_terminal_snr needs alpha^2 + sigma^2 = 1, which {called} has not",
    )
    functions = _scheduled_functions(schedule_fn, bool(zero_terminal_snr))
    steps = len(numbers["table"]) - 1 if schedule_fn is schedules.tabulated else None
    return Degradation(Scheduled(numbers, source), draw_fn=draw_fn, steps=steps, **functions)


def gaussian_noise(
    image_shape: Sequence[int],
    *,
    schedule: Schedule = "cosine",
    zero_terminal_snr: bool = False,
    **numbers: Any,
) -> Degradation:
    """Gaussian diffusion: x_t = alpha(t) x0 + sigma(t) omega, omega ~ N(0, I).

    See "Denoising Diffusion Probabilistic Models" by Ho et al.
    (https://arxiv.org/abs/2006.11239); "Cold Diffusion" by Bansal et al.
    (https://arxiv.org/abs/2208.09392) for its "fixed" (kept) and "estimated" (inferred) noise.

    Args:
      image_shape: (H, W, C) of the images.
      schedule: a name in `schedules.SCHEDULES`, or a module-level function (t, **numbers)
        -> (alpha, sigma) with (1, 0) at t = 0.
      zero_terminal_snr: make it end at alpha = 0 by `schedules.zero_terminal`. A network
        that predicts the noise cannot start there.
      **numbers: the schedule's, in place of its defaults; they become leaves of params.
    Returns:
      A degradation whose realization is white noise, inferred exactly, with a linear_fn.
    Raises:
      ValueError: if an argument is invalid; the message names it.
    Note:
      A published table of T betas is schedule="tabulated",
      table=schedules.beta_table(betas); its step k is t = k/T, and `steps` is T.
    """
    require_shape(image_shape)
    return _scheduled(schedule, zero_terminal_snr, numbers, draw_noise)


def animorph(
    image_shape: Sequence[int],
    *,
    images: Array,
    schedule: Schedule = "cosine",
    zero_terminal_snr: bool = False,
    **numbers: Any,
) -> Degradation:
    """Animorphosis: x_t = alpha(t) x0 + sigma(t) omega, omega another image, drawn from a bank.

    See "Cold Diffusion" by Bansal et al. (https://arxiv.org/abs/2208.09392).

    Args:
      image_shape: (H, W, C) of the images.
      images: the bank, [N, H, W, C] float, range [-1, 1].
      schedule, zero_terminal_snr, **numbers: as in `gaussian_noise`.
    Returns:
      A degradation whose realization is an image of the bank, inferred exactly. Its
      linear_fn is what predictions need; omega has the images' mean and covariance, so the
      linear restorer made of it is not the optimal one.
    Raises:
      ValueError: if an argument is invalid; the message names it.
    Note:
      The authors' T steps of clipped cosine are schedule="tabulated",
      table=schedules.beta_table(schedules.cosine_betas(T)).
    """
    shape = require_shape(image_shape)
    floating = jnp.issubdtype(jnp.result_type(images), jnp.floating)
    require(
        np.ndim(images) == 4 and images.shape[1:] == shape and len(images) > 0 and floating,
        f"images must be [N, {', '.join(map(str, shape))}] float; "
        f"got {np.shape(images)} {jnp.result_type(images)}",
    )
    images = jnp.asarray(images, jnp.float32)
    return _scheduled(schedule, zero_terminal_snr, numbers, _draw_image, images)


def _draw_end(params, key, x0):
    key_end, key_noise = jax.random.split(key)
    end = params.source.end
    y = degrade(end, x0, 1.0, draw(end, key_end, x0))
    return y, draw_noise(params, key_noise, x0)


def _draw_noisy_end(params, key, x0):
    y, n = _draw_end(params, key, x0)
    return add_noise(y, jnp.ones(()), params.source.noise, n)


def _brownian_std(params, t):
    """t e(t)."""
    return params.source.noise * schedules.safe_sqrt(t)


def _apply_brownian(params, x0, t, omega):
    y, n = omega
    bridge = add_noise(x0, *schedules.flow(t), y)
    return add_noise(bridge, jnp.ones_like(t), _brownian_std(params, t), n)


def _infer_brownian(params, xt, t, x0_hat, omega):
    y, n = omega
    bridge = add_noise(xt, jnp.ones_like(t), -_brownian_std(params, t), n)
    return infer_noise(bridge, *schedules.flow(t), x0_hat, y), n


def bridge(
    image_shape: Sequence[int], *, end: Degradation, noise: float = 0.0, brownian: bool = False
) -> Degradation:
    """InDI's bridge to another degradation's end point: x_t = (1 - t) x0 + t (y + e(t) n).

      y = D_end(x0, 1, omega_end),   n ~ N(0, I),   e(t) = noise, or noise / sqrt(t)

    See "Inversion by Direct Iteration" by Delbracio and Milanfar
    (https://arxiv.org/abs/2303.11435).

    Args:
      image_shape: (H, W, C) of the images.
      end: D_end, any degradation of such images.
      noise: the std of the noise at t = 1, and with brownian = False at any t before the
        factor t.
      brownian: e(t) = noise / sqrt(t), the noise of a Brownian motion.
    Returns:
      A degradation whose realization is y + noise n, the noisy end point itself: `draw`
      makes it of x0, and `infer` solves for it without knowing x0 or omega_end, so that
      Algorithm 2 with the inferred one is InDI's step x_s = (s/t) x_t + (1 - s/t) x0_hat.
      Its linear_fn is (1 - t, t), for predictions; as omega is made of x0, the linear
      restorer built on it is not the optimal one.
      With brownian, the realization is the pair (y, n), of which `infer` solves for y and
      keeps n, and there is no linear_fn.
    Raises:
      ValueError: if an argument is invalid; the message names it.
    Note:
      With brownian InDI draws fresh noise of variance (t - dt)^2 (e(t - dt)^2 - e(t)^2) at
      each step, and Algorithm 2 replays n; the marginals are the same.
    """
    shape = require_shape(image_shape)
    require(isinstance(end, Degradation), f"end must be a Degradation; got {type(end).__name__}")
    params = Scheduled({}, Bridge(end, scalar("noise", noise)))
    x0 = jax.ShapeDtypeStruct(shape, jnp.float32)
    try:
        jax.eval_shape(_draw_end, params, jax.random.key(0), x0)
    except AssertionError as error:
        raise ValueError(f"end must degrade images of image_shape = {shape}") from error
    if brownian:
        return Degradation(
            params, draw_fn=_draw_end, apply_fn=_apply_brownian, infer_fn=_infer_brownian
        )
    functions = _scheduled_functions(schedules.flow, False)
    return Degradation(params, draw_fn=_draw_noisy_end, **functions)
