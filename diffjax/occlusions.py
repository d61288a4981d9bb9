"""Cold degradations that cover the image: fading, masks, snow. One constructor a family.

Every constructor takes the images' shape and returns a `Degradation`; every
argument that cannot be raises ValueError, naming it.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from diffjax.degradations import Degradation, no_realisation, require, require_shape, require_steps
from diffjax.operators import mask as masks
from diffjax.operators import snow as snowfall

Array = chex.Array


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
        offset = masks.draw_offset(key_offset, x0.shape[:2]) if place_drawn else None
        color = masks.draw_color(key_color, x0.shape[2]) if color_drawn else None
        return masks.FadeDraw(offset, color)

    return draw_fade if place_drawn or color_drawn else no_realisation


def fade(
    image_shape: Sequence[int],
    *,
    stds: Sequence[float],
    place: str = "centre",
    color: float | Sequence[float] | str = 0.0,
    reverse: bool = False,
) -> Degradation:
    """Inpainting with a hole that grows: x_t = m_k x0 + (1 - m_k) color, k = round(t T).

      m_k = prod_{i <= k} (1 - exp(-r^2 / (2 std_i^2)))

    See "Cold Diffusion" by Bansal et al. (https://arxiv.org/abs/2208.09392).

    Args:
      image_shape: (H, W, C) of the images.
      stds: std of each step's hole, in pixels, positive; T = len(stds).
      place: "centre": r is the distance to pixel ((H - 1) // 2, (W - 1) // 2); "random":
        to a pixel drawn per image, the same for all t.
      color: what the hole shows: one number or one a channel, in [-1, 1], 0 being
        mid-gray; or "drawn": uniform on [-0.5, 0.5)^C, one colour an image.
      reverse: the image is lost from the border inwards: 1 - m_k is what m_(T-k) was.
    Returns:
      A degradation whose realisation is a FadeDraw of the window's offset and the
      colour, each None where it is not random; None if nothing is. Its masks hold
      T H W floats, four times as many if the place is random.
    Raises:
      ValueError: naming the argument that cannot be.
    Note:
      As in the authors' code, a random hole is centred on any of (H + 1) (W + 1) pixels,
      -1 included: it can lie just outside. Forward, x_T is not blank far from
      the hole; reversed, x_T is the colour, everywhere and exactly, but the first
      step is already far from x0 if T is small.
    """
    height, width, channels = require_shape(image_shape)
    stds = require_steps("stds", stds)
    require(place in ("centre", "random"), f"place must be centre or random; got {place!r}")
    require(
        not isinstance(color, str) or color == "drawn",
        f"color must be drawn, one number or one a channel; got {color!r}",
    )
    if place == "centre":
        shape, center = (height, width), ((height - 1) // 2, (width - 1) // 2)
    else:
        shape, center = (2 * height, 2 * width), (height - 1, width - 1)
    drawn = isinstance(color, str)
    params = masks.Fade(
        masks=jnp.asarray(masks.fade_table(stds, shape, center, reverse=reverse)),
        color=None if drawn else _color("color", color, channels),
    )
    return Degradation(
        params, draw_fn=_draw_fade(place == "random", drawn), apply_fn=masks.degrade_fade
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
    return masks.pixels_loss_time(omega, params.extent)


def _box_loss_time(params, omega, shape):
    return masks.box_loss_time(omega, params.extent, shape)


def _draw_pixels(params, key, x0):
    del params
    return jax.random.uniform(key, x0.shape[:2])


def _draw_box(params, key, x0):
    return masks.draw_corner(key, params.extent, x0.shape[:2])


@functools.cache
def _apply_mask(loss_time_fn, soft: bool):
    def apply_mask(params, x0, t, omega):
        chex.assert_rank([x0, t], [3, 0])
        loss_time = loss_time_fn(params, omega, x0.shape[:2])
        if not soft:
            keep = masks.keep_hard(loss_time, t)
        elif omega is None:
            keep = masks.keep_soft(params.extent, t)
        else:
            keep = masks.keep_soft(jnp.where(loss_time < 1, 1.0, 0.0), t)
        return masks.cover(x0, keep, params.fill)

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

    | given    | realisation omega            | hard: lost once        | soft: m_t           |
    |----------|------------------------------|------------------------|---------------------|
    | mask     | None                         | t > 1 - mask           | 1 - t mask          |
    | fraction | u ~ U[0, 1), [H, W]          | t > u / fraction       | 1 - t [u < fraction]|
    | size     | corner of the box, int32 [2] | in a box t times as    | 1 - t [in the box]  |
    |          |                              | large about its centre |                     |

    Args:
      image_shape: (H, W, C) of the images.
      mask: [H, W] or [H, W, 1] in [0, 1]; 1 is destroyed and 0 never touched.
      fraction: share of the pixels lost at t = 1, in (0, 1].
      size: side, or (height, width), of the box at t = 1, in pixels; it lies inside the image.
      soft: see above.
      fill: what is seen where the image is lost: one number or one a channel.
    Returns:
      A degradation with the realisation above.
    Raises:
      ValueError: naming the argument that cannot be.
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
        draw_fn, loss_time_fn = no_realisation, _given_loss_time
    elif fraction is not None:
        require(0 < fraction <= 1, f"fraction must lie in (0, 1]; got {fraction}")
        extent, draw_fn, loss_time_fn = np.float32(fraction), _draw_pixels, _pixels_loss_time
    else:
        extent = np.broadcast_to(np.asarray(size, np.int32), (2,))
        require(
            bool(np.all((extent > 0) & (extent <= (height, width)))),
            f"size must be positive and fit the {height} x {width} image; got {size}",
        )
        draw_fn, loss_time_fn = _draw_box, _box_loss_time
    params = MaskParams(jnp.asarray(extent), _color("fill", fill, channels))
    return Degradation(params, draw_fn=draw_fn, apply_fn=_apply_mask(loss_time_fn, bool(soft)))


def snow(
    image_shape: Sequence[int],
    *,
    steps: int,
    level: int = 3,
    fix_brightness: bool = False,
) -> Degradation:
    """Snowfall after ImageNet-C, heavier with t; see `operators/snow.py` for the equations.

    See "Cold Diffusion" by Bansal et al. (https://arxiv.org/abs/2208.09392)
    and "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations"
    by Hendrycks and Dietterich (https://arxiv.org/abs/1903.12261).

    Args:
      image_shape: (H, W, C) of the images.
      steps: T; step k = round(t T) has the k-th of T evenly spaced thresholds, motion blurs
        and brightnesses.
      level: 1 (light), 2, 3 or 4.
      fix_brightness: only add the flakes; else the image pales as well.
    Returns:
      A nonlinear degradation whose realisation is a SnowDraw, one snowfall an image.
    Raises:
      ValueError: naming the argument that cannot be.
    Note:
      The first step already has the first numbers of each range, so that x_t jumps at
      k = 1, as in the authors' code; there one snowfall is shared by a batch by default.
      x0 is taken to lie in [-1, 1]; x_t is clipped to it for t > 0.
    """
    shape = require_shape(image_shape)
    require(steps > 0, f"steps must be positive; got {steps}")
    levels = range(1, len(snowfall.LEVELS) + 1)
    require(level in levels, f"level must be one of {', '.join(map(str, levels))}; got {level}")
    params = snowfall.snow_tables(shape, snowfall.LEVELS[level - 1], steps, pale=not fix_brightness)
    return Degradation(params, draw_fn=snowfall.draw_snow, apply_fn=snowfall.degrade_snow)
