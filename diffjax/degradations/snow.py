"""Snow, after ImageNet-C: bright flakes, stretched by motion, laid over the image.

With z a field of flakes (normal noise, enlarged), in [0, 1]:

    S_t = blur_{std_t}(clip(z [z >= threshold_t], 0, 1))      along one axis
    y_t = b_t x_0 + (1 - b_t) max(x_0, 1.5 gray(x_0) + 0.5)
    x_t = clip(y_t + S_t + S_t turned by half, 0, 1)

As t grows the threshold falls, so that more of z shows, the motion blur widens
and the image pales. z and the axis are one realization; each S_t is made of them
directly, at a cost that depends on neither t nor the number of steps.

Depends on: jax, numpy, chex, base.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from .base import Degradation, require, require_shape, step_index

Array = jax.Array


class Level(NamedTuple):
    """The numbers of one strength of snow; pairs run linearly from the first step to the last."""

    mean: float
    std: float
    zoom: float
    taps: int
    threshold: tuple[float, float]
    motion_std: tuple[float, float]
    brightness: tuple[float, float]


LEVELS = (
    Level(0.1, 0.3, 3.0, 5, (0.7, 0.3), (0.5, 5.0), (0.95, 0.7)),
    Level(0.55, 0.3, 2.5, 11, (1.15, 0.7), (0.05, 12.0), (0.95, 0.55)),
    Level(0.55, 0.3, 2.5, 11, (1.15, 0.7), (0.05, 16.0), (0.95, 0.4)),
    Level(0.55, 0.3, 2.5, 11, (1.15, 0.55), (0.05, 20.0), (0.95, 0.3)),
)


class Snow(NamedTuple):
    """Tables of one strength of snow on images of one size."""

    mean: Array
    std: Array
    rows: Array  # [H, h]: enlarges h normal draws to H
    cols: Array  # [W, w]
    thresholds: Array  # [T]
    motion_kernels: Array  # [T, taps]
    brightness: Array  # [T]; 1 leaves the image as bright as it is
    gray: Array  # [C]: weights that add up to 1


class SnowDraw(NamedTuple):
    """One snowfall."""

    flakes: Array  # [H, W]: z
    vertical: Array  # bool: whether the flakes move along H, not W


def zoom_matrix(size: int, zoom: float) -> np.ndarray:
    """Enlarges the middle of `size` pixels to fill them, linearly; float64 [size, h].

    The middle is h = ceil(size / zoom) pixels. They are spread over round(h zoom), the
    first and last on the ends, as scipy.ndimage.zoom does at order 1, and of these
    the middle `size` are kept.
    """
    crop = math.ceil(size / zoom)
    zoomed = round(crop * zoom)
    start = (zoomed - size) // 2
    position = (start + np.arange(size)) * (crop - 1) / max(zoomed - 1, 1)
    return np.maximum(1 - np.abs(position[:, None] - np.arange(crop)), 0)


def snow_tables(shape: tuple[int, int, int], level: Level, steps: int, *, pale: bool) -> Snow:
    """The tables of a level, for images [H, W, C]; pale: whether the image loses contrast.

    Gray is 0.299 R + 0.587 G + 0.114 B, and the channels' mean where they are not three.
    """
    height, width, channels = shape
    offsets = np.arange(level.taps) - level.taps // 2
    stds = np.linspace(*level.motion_std, steps)[:, None]
    kernels = np.exp(-0.5 * (offsets / stds) ** 2)
    tables: dict[str, Any] = {
        "mean": level.mean,
        "std": level.std,
        "rows": zoom_matrix(height, level.zoom),
        "cols": zoom_matrix(width, level.zoom),
        "thresholds": np.linspace(*level.threshold, steps),
        "motion_kernels": kernels / kernels.sum(axis=1, keepdims=True),
        "brightness": np.linspace(*level.brightness, steps) if pale else np.ones(steps),
        "gray": (0.299, 0.587, 0.114) if channels == 3 else np.full(channels, 1 / channels),
    }
    return Snow(**{name: jnp.asarray(table, jnp.float32) for name, table in tables.items()})


def draw_snow(params: Snow, key: Array, x0: Array) -> SnowDraw:
    """A snowfall: normal noise, enlarged, and the axis along which it falls."""
    del x0
    key_flakes, key_axis = jax.random.split(key)
    shape = (params.rows.shape[1], params.cols.shape[1])
    noise = params.mean + params.std * jax.random.normal(key_flakes, shape)
    flakes = jnp.einsum("hi,ij,wj->hw", params.rows, noise, params.cols, precision="highest")
    return SnowDraw(flakes, jax.random.bernoulli(key_axis))


def motion_blur(layer: Array, kernel: Array) -> Array:
    """Correlates the columns of [H, W] with an odd kernel; zeros beyond the edge."""
    taps, height = kernel.shape[0], layer.shape[0]
    padded = jnp.pad(layer, ((taps // 2, taps // 2), (0, 0)))
    moved = (kernel[j] * padded[j : j + height] for j in range(taps))
    return sum(moved, start=jnp.zeros_like(layer))


def snow_layer(omega: SnowDraw, threshold: Array, kernel: Array) -> Array:
    """S_t: the flakes above the threshold, clipped to [0, 1], stretched along their axis."""
    layer = jnp.clip(jnp.where(omega.flakes < threshold, 0.0, omega.flakes), 0, 1)
    return jnp.where(omega.vertical, motion_blur(layer, kernel), motion_blur(layer.T, kernel).T)


def degrade_snow(params: Snow, x0: Array, t: Array, omega: SnowDraw) -> Array:
    """x_t of step k = round(t T) of T.

    Args:
      params: the level's tables.
      x0: clean image, [H, W, C], range [-1, 1].
      t: severity, scalar in [0, 1]; 0 is the identity, bit for bit.
      omega: the snowfall.
    Returns:
      degraded image, [H, W, C], dtype of x0, range [-1, 1].
    Raises:
      AssertionError: at trace time, if x0 has not the tables' size.
    """
    chex.assert_shape(x0, (params.rows.shape[0], params.cols.shape[0], params.gray.shape[0]))
    chex.assert_rank(t, 0)
    steps = params.thresholds.shape[0]
    k = step_index(t, steps)
    first = jnp.maximum(k - 1, 0)
    layer = snow_layer(omega, params.thresholds[first], params.motion_kernels[first])
    x = (x0 + 1) / 2
    gray = jnp.sum(x * params.gray[None, None], axis=-1, keepdims=True)
    brightness = params.brightness[first]
    paled = brightness * x + (1 - brightness) * jnp.maximum(x, 1.5 * gray + 0.5)
    snowy = jnp.clip(paled + (layer + layer[::-1, ::-1])[..., None], 0, 1)
    return jnp.where(k == 0, x0, (2 * snowy - 1).astype(x0.dtype))


def snow(
    image_shape: Sequence[int],
    *,
    steps: int,
    level: int = 3,
    fix_brightness: bool = False,
) -> Degradation:
    """Snowfall after ImageNet-C, heavier with t; see the top of this file for the equations.

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
      A nonlinear degradation whose realization is a SnowDraw, one snowfall an image.
    Raises:
      ValueError: if an argument is invalid; the message names it.
    Note:
      The first step already has the first numbers of each range, so that x_t jumps at
      k = 1, as in the authors' code; there one snowfall is shared by a batch by default.
      x0 is taken to lie in [-1, 1]; x_t is clipped to it for t > 0.
    """
    shape = require_shape(image_shape)
    require(steps > 0, f"steps must be positive; got {steps}")
    levels = range(1, len(LEVELS) + 1)
    require(level in levels, f"level must be one of {', '.join(map(str, levels))}; got {level}")
    params = snow_tables(shape, LEVELS[level - 1], steps, pale=not fix_brightness)
    return Degradation(params, draw_fn=draw_snow, apply_fn=degrade_snow, steps=steps)
