"""Masks: x_t = m_t x_0 + (1 - m_t) color, with m_t [H, W] in [0, 1] falling from 1.

A *fade* multiplies one Gaussian hole per step; with r the distance to the centre,

    m_k = prod_{i <= k} (1 - exp(-r^2 / (2 std_i^2))).

Every other mask is a *time of loss* tau [H, W]: a pixel is destroyed once t > tau,
so that what is lost at s < t is lost at t as well, and tau >= 1 is never lost.

Depends on: jax, numpy, chex.
"""

from collections.abc import Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

Array = chex.Array


class Fade(NamedTuple):
    """What a fade is made of; the masks are twice as large where its place is drawn."""

    masks: Array  # [T, H, W], or [T, 2 H, 2 W] with the hole at [H - 1, W - 1]
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


def fade_table(
    stds: Sequence[float], shape: tuple[int, int], center: tuple[int, int], *, reverse: bool = False
) -> np.ndarray:
    """Products of Gaussian holes, computed in float64; float32 [T, H, W].

    Args:
      stds: std of each step's hole, in pixels.
      shape: (H, W).
      center: the pixel of the holes' centre, which is exactly 0 after one step.
      reverse: keep at step k what T - k steps would destroy, so that the image is
        lost from the border inwards, all of it at the last step.
    """
    rows, cols = (
        np.square(np.arange(n) - c, dtype=float) for n, c in zip(shape, center, strict=True)
    )
    squared_distance = rows[:, None] + cols
    table = np.empty((len(stds), *shape), np.float32)
    total = np.ones(shape)
    for k, std in enumerate(stds):
        if reverse:
            table[-1 - k] = 1 - total
        total *= -np.expm1(-0.5 * squared_distance / std**2)
        if not reverse:
            table[k] = total
    return table


def draw_offset(key: Array, shape: tuple[int, int]) -> Array:
    """The window's corner, uniform on 0..H and 0..W, both ends included; int32 [2]."""
    return jax.random.randint(key, (2,), 0, jnp.array(shape) + 1)


def draw_color(key: Array, channels: int) -> Array:
    """Uniform on [-0.5, 0.5) in every channel; [C]."""
    return jax.random.uniform(key, (channels,), minval=-0.5, maxval=0.5)


def degrade_fade(params: Fade, x0: Array, t: Array, omega: FadeDraw | None) -> Array:
    """x_t = m_k x_0 + (1 - m_k) color with k = round(t T), the same window at every t.

    Args:
      params: the masks, and the colour unless it is drawn.
      x0: clean image, [H, W, C].
      t: severity, scalar in [0, 1]; 0 is the identity.
      omega: the window's offset and the colour, each where it is drawn.
    Returns:
      degraded image, [H, W, C], dtype of x0.
    """
    chex.assert_rank([x0, t], [3, 0])
    steps = params.masks.shape[0]
    k = jnp.clip(jnp.round(t * steps), 0, steps).astype(jnp.int32)
    first = jnp.maximum(k - 1, 0)
    color = params.color if params.color is not None else omega.color
    if omega is None or omega.offset is None:
        keep = params.masks[first]
    else:
        height, width, _ = x0.shape
        chex.assert_shape(params.masks, (None, 2 * height, 2 * width))
        corner = (first, omega.offset[0], omega.offset[1])
        keep = jax.lax.dynamic_slice(params.masks, corner, (1, height, width))[0]
    return cover(x0, jnp.where(k == 0, 1.0, keep), color)


def pixels_loss_time(uniform: Array, fraction: Array) -> Array:
    """tau = u / fraction: a share t * fraction of all pixels is lost at t; [H, W]."""
    return uniform / fraction


def box_loss_time(corner: Array, size: Array, shape: tuple[int, int]) -> Array:
    """tau of a box that grows about its centre to size[0] x size[1] at t = 1; [H, W].

    Args:
      corner: the full box's first row and column, [2].
      size: its height and width, [2].
      shape: (H, W).
    """
    distances = [
        jnp.abs(jnp.arange(n) + 0.5 - corner[axis] - size[axis] / 2) / (size[axis] / 2)
        for axis, n in enumerate(shape)
    ]
    return jnp.maximum(distances[0][:, None], distances[1][None])


def draw_corner(key: Array, size: Array, shape: tuple[int, int]) -> Array:
    """A corner with which a box of that size lies inside the image, uniform; int32 [2]."""
    return jax.random.randint(key, (2,), 0, jnp.array(shape) - size + 1)


def keep_hard(loss_time: Array, t: Array) -> Array:
    """1 where t <= tau, 0 once t > tau; [H, W]."""
    return jnp.where(t > loss_time, 0.0, 1.0)


def keep_soft(share: Array, t: Array) -> Array:
    """1 - t share: all fade at once, to what is lost of each at t = 1; [H, W]."""
    return 1 - t * share
