"""Masks: x_t = m_t x_0 + (1 - m_t) color, with m_t [H, W] in [0, 1] falling from 1.

A *fade* multiplies one Gaussian hole per step; with r the distance to the center,

    m_k = prod_{i <= k} (1 - exp(-r^2 / (2 std_i^2))).

Every other mask is a *time of loss* tau [H, W]: a pixel is destroyed once t > tau,
so that what is lost at s < t is lost at t as well, and tau >= 1 is never lost.

Depends on: jax, numpy, chex, base.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from .base import (
    Degradation,
    no_realization,
    require,
    require_shape,
    require_steps,
    step_index,
)

Array = jax.Array


class Fade(NamedTuple):
    """What a fade is made of: masks that depend on the distance to the center alone."""

    keep: Array  # [T, R]: what is kept at each of the distances
    distance: Array  # int32 in 0..R - 1, [H, W], or [2 H, 2 W] with the hole at [H - 1, W - 1]
    color: Array | None  # [C]; None: drawn


class FadeDraw(NamedTuple):
    """What is random in a fade: None where nothing is."""

    offset: Array | None  # int32 [2]: where the H x W window lies in the masks
    color: Array | None  # [C]


def cover(x0: Array, keep: Array, color: Array) -> Array:
    """keep x_0 + (1 - keep) color.

    Args:
      x0: clean image, [H, W, C].
      keep: how much of each pixel is kept, [H, W], from 1 (all of it) to 0.
      color: what takes its place, [C].
    Returns:
      [H, W, C], dtype of x0.
    """
    chex.assert_shape(keep, x0.shape[:2])
    chex.assert_shape(color, x0.shape[2:])
    keep = keep[..., None]
    return (keep * x0 + (1 - keep) * color[None, None]).astype(x0.dtype)


def distances(shape: tuple[int, int], center: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """The squares of all distances r to a pixel, ascending, [R], and which is whose; int32 [H, W].

    Pixels share them: 128x128 have 1,621 about their center, 256x256 have 5,924.
    """
    rows, cols = (np.square(np.arange(n) - c) for n, c in zip(shape, center, strict=True))
    squares, index = np.unique(rows[:, None] + cols, return_inverse=True)
    return squares, index.reshape(shape).astype(np.int32)


def fade_table(
    stds: Sequence[float] | np.ndarray, squares_R: np.ndarray, *, reverse: bool = False
) -> np.ndarray:
    """Products of Gaussian holes, computed in float64; float32 [T, R].

    Args:
      stds: std of each step's hole, in pixels.
      squares_R: r^2 from `distances`; at r = 0 nothing is kept after one step.
      reverse: keep at step k what T - k steps would destroy, so that the image is
        lost from the border inwards, all of it at the last step.
    """
    table = np.empty((len(stds), len(squares_R)), np.float32)
    total = np.ones(len(squares_R))
    for k, std in enumerate(stds):
        if reverse:
            table[-1 - k] = 1 - total
        total *= -np.expm1(-0.5 * squares_R / std**2)
        if not reverse:
            table[k] = total
    return table


def draw_offset(key: Array, shape: tuple[int, int]) -> Array:
    """The window's corner, uniform on 0..H and 0..W, both ends included; int32 [2]."""
    return jax.random.randint(key, (2,), 0, jnp.array(shape, jnp.int32) + 1, jnp.int32)


def draw_color(key: Array, channels: int) -> Array:
    """Uniform on [-0.5, 0.5) in every channel; [C]."""
    return jax.random.uniform(key, (channels,), minval=-0.5, maxval=0.5)


def degrade_fade(params: Fade, x0: Array, t: Array, omega: Any) -> Array:
    """x_t = m_k x_0 + (1 - m_k) color with k = round(t T), the same window at every t.

    Args:
      params: the table of what is kept, and the color unless it is drawn.
      x0: clean image, [H, W, C].
      t: severity, scalar in [0, 1]; 0 is the identity.
      omega: the window's offset and the color, each where it is drawn.
    Returns:
      degraded image, [H, W, C], dtype of x0.
    """
    chex.assert_rank([x0, t], [3, 0])
    k = step_index(t, params.keep.shape[0])
    color = omega.color if params.color is None else params.color
    distance = params.distance
    if omega is not None and omega.offset is not None:
        height, width, _ = x0.shape
        chex.assert_shape(distance, (2 * height, 2 * width))
        distance = jax.lax.dynamic_slice(distance, omega.offset, (height, width))
    keep = params.keep[jnp.maximum(k - 1, 0)][distance]
    return cover(x0, jnp.where(k == 0, 1.0, keep), color)


def pixels_loss_time(uniform: Array, fraction: Array) -> Array:
    """tau = u / fraction: a share t * fraction of all pixels is lost at t; [H, W]."""
    return uniform / fraction


def box_loss_time(corner: Array, size: Array, shape: tuple[int, int]) -> Array:
    """tau of a box that grows about its center to size[0] x size[1] at t = 1; [H, W].

    Args:
      corner: the full box's first row and column, [2].
      size: its height and width, [2].
      shape: (H, W).
    """
    corner, size = (jnp.asarray(pair, jnp.float32) for pair in (corner, size))
    distances = [
        jnp.abs(jnp.arange(n, dtype=jnp.float32) + 0.5 - corner[axis] - size[axis] / 2)
        / (size[axis] / 2)
        for axis, n in enumerate(shape)
    ]
    return jnp.maximum(distances[0][:, None], distances[1][None])


def draw_corner(key: Array, size: Array, shape: tuple[int, int]) -> Array:
    """A corner with which a box of that size lies inside the image, uniform; int32 [2]."""
    return jax.random.randint(key, (2,), 0, jnp.array(shape, jnp.int32) - size + 1, jnp.int32)


def keep_hard(loss_time: Array, t: Array) -> Array:
    """1 where t <= tau, 0 once t > tau; [H, W]."""
    return jnp.where(t > loss_time, 0.0, 1.0)


def keep_soft(share: Array, t: Array) -> Array:
    """1 - t share: all fade at once, to what is lost of each at t = 1; [H, W]."""
    return 1 - t * share


def _color(name: str, value: float | Sequence[float], channels: int) -> Array:
    color = np.asarray(value, np.float32)
    require(
        color.shape in ((), (channels,)),
        f"{name} must be one number or one a channel ({channels}); got shape {color.shape}",
    )
    return jnp.asarray(np.broadcast_to(color, (channels,)))


@functools.cache
def _draw_fade(place_drawn: bool, color_drawn: bool):
    def draw_fade(params, key, x0):
        del params
        key_offset, key_color = jax.random.split(key)
        offset = draw_offset(key_offset, x0.shape[:2]) if place_drawn else None
        color = draw_color(key_color, x0.shape[2]) if color_drawn else None
        return FadeDraw(offset, color)

    return draw_fade if place_drawn or color_drawn else no_realization


def fade(
    image_shape: Sequence[int],
    *,
    stds: Sequence[float],
    place: str = "center",
    color: float | Sequence[float] | str = 0.0,
    reverse: bool = False,
) -> Degradation:
    """Inpainting with a hole that grows: x_t = m_k x0 + (1 - m_k) color, k = round(t T).

      m_k = prod_{i <= k} (1 - exp(-r^2 / (2 std_i^2)))

    See "Cold Diffusion" by Bansal et al. (https://arxiv.org/abs/2208.09392).

    Args:
      image_shape: (H, W, C) of the images.
      stds: std of each step's hole, in pixels, positive; T = len(stds).
      place: "center": r is the distance to pixel ((H - 1) // 2, (W - 1) // 2); "random":
        to a pixel drawn per image, the same for all t.
      color: what the hole shows: one number or one a channel, in [-1, 1], 0 being
        mid-gray; or "drawn": uniform on [-0.5, 0.5)^C, one color an image.
      reverse: the image is lost from the border inwards: 1 - m_k is what m_(T-k) was.
    Returns:
      A degradation whose realization is a FadeDraw of the window's offset and the
      color, each None where it is not random; None if nothing is. It holds T numbers for
      each distance that occurs, see `distances`.
    Raises:
      ValueError: if an argument is invalid; the message names it.
    Note:
      As in the authors' code, a random hole is centered on any of (H + 1) (W + 1) pixels,
      -1 included: it can lie just outside. Forward, x_T is not blank far from
      the hole; reversed, x_T is the color, everywhere and exactly, but the first
      step is already far from x0 if T is small.
    """
    height, width, channels = require_shape(image_shape)
    stds_T = require_steps("stds", stds)
    require(place in ("center", "random"), f"place must be center or random; got {place!r}")
    require(
        not isinstance(color, str) or color == "drawn",
        f"color must be drawn, one number or one a channel; got {color!r}",
    )
    if place == "center":
        shape, center = (height, width), ((height - 1) // 2, (width - 1) // 2)
    else:
        shape, center = (2 * height, 2 * width), (height - 1, width - 1)
    drawn = isinstance(color, str)
    squares_R, distance = distances(shape, center)
    params = Fade(
        keep=jnp.asarray(fade_table(stds_T, squares_R, reverse=reverse)),
        distance=jnp.asarray(distance),
        color=None if isinstance(color, str) else _color("color", color, channels),
    )
    return Degradation(
        params,
        draw_fn=_draw_fade(place == "random", drawn),
        apply_fn=degrade_fade,
        steps=len(stds),
    )


class MaskParams(NamedTuple):
    """extent: the mask [H, W], the fraction of pixels, or the size [2] of the box."""

    extent: Array
    fill: Array  # [C]


def _given_loss_time(params, omega, shape):
    del omega
    chex.assert_shape(params.extent, shape)
    return 1 - params.extent


def _pixels_loss_time(params, omega, shape):
    chex.assert_shape(omega, shape)
    return pixels_loss_time(omega, params.extent)


def _box_loss_time(params, omega, shape):
    return box_loss_time(omega, params.extent, shape)


def _draw_pixels(params, key, x0):
    del params
    return jax.random.uniform(key, x0.shape[:2])


def _draw_box(params, key, x0):
    return draw_corner(key, params.extent, x0.shape[:2])


@functools.cache
def _apply_mask(loss_time_fn, soft: bool):
    def apply_mask(params, x0, t, omega):
        chex.assert_rank([x0, t], [3, 0])
        loss_time = loss_time_fn(params, omega, x0.shape[:2])
        if not soft:
            keep = keep_hard(loss_time, t)
        elif omega is None:
            keep = keep_soft(params.extent, t)
        else:
            keep = keep_soft(jnp.where(loss_time < 1, 1.0, 0.0), t)
        return cover(x0, keep, params.fill)

    return apply_mask


def mask(
    image_shape: Sequence[int],
    *,
    mask: Array | None = None,
    fraction: float | None = None,
    size: int | tuple[int, int] | None = None,
    soft: bool = False,
    fill: float | Sequence[float] = 0.0,
) -> Degradation:
    """A mask of your own, of random pixels, or a random box: x_t = m_t x0 + (1 - m_t) fill.

    Give one of `mask`, `fraction` and `size`. A hard mask takes one pixel after another,
    whole, and what is lost at s < t is lost at t; a soft one fades all its pixels at once.

    | given    | realization omega            | hard: lost once        | soft: m_t           |
    |----------|------------------------------|------------------------|---------------------|
    | mask     | None                         | t > 1 - mask           | 1 - t mask          |
    | fraction | u ~ U[0, 1), [H, W]          | t > u / fraction       | 1 - t [u < fraction]|
    | size     | corner of the box, int32 [2] | in a box t times as    | 1 - t [in the box]  |
    |          |                              | large about its center |                     |

    Args:
      image_shape: (H, W, C) of the images.
      mask: [H, W] or [H, W, 1] in [0, 1]; 1 is destroyed and 0 never touched.
      fraction: share of the pixels lost at t = 1, in (0, 1].
      size: side, or (height, width), of the box at t = 1, in pixels; it lies inside the image.
      soft: see above.
      fill: what is seen where the image is lost: one number or one a channel.
    Returns:
      A degradation with the realization above.
    Raises:
      ValueError: if an argument is invalid; the message names it.
    Note:
      Severity is continuous here; nothing is tabulated. A mask of 0 and 1 only, if hard,
      is all there at any t > 0.
    """
    height, width, channels = require_shape(image_shape)
    given = sum(argument is not None for argument in (mask, fraction, size))
    require(given == 1, f"mask takes one of mask, fraction and size; got {given}")
    if mask is not None:
        extent = np.asarray(mask, np.float32)
        require(
            extent.shape in ((height, width), (height, width, 1)),
            f"mask must have shape {(height, width)} or {(height, width, 1)}; got {extent.shape}",
        )
        extent = extent.reshape(height, width)
        inside = bool(np.all((extent >= 0) & (extent <= 1)))
        require(inside, f"mask must lie in [0, 1]; got {extent.min()} to {extent.max()}")
        draw_fn, loss_time_fn = no_realization, _given_loss_time
    elif fraction is not None:
        require(0 < fraction <= 1, f"fraction must lie in (0, 1]; got {fraction}")
        extent = np.asarray(fraction, np.float32)
        draw_fn, loss_time_fn = _draw_pixels, _pixels_loss_time
    else:
        extent = np.broadcast_to(np.asarray(size, np.int32), (2,))
        require(
            bool(np.all((extent > 0) & (extent <= (height, width)))),
            f"size must be positive and fit the {height} x {width} image; got {size}",
        )
        draw_fn, loss_time_fn = _draw_box, _box_loss_time
    params = MaskParams(jnp.asarray(extent), _color("fill", fill, channels))
    return Degradation(params, draw_fn=draw_fn, apply_fn=_apply_mask(loss_time_fn, bool(soft)))
