"""Which severities a training step sees: sampling t in (0, 1].

Every sampler is two independent choices:

    u = spacing_fn(key, position, batch_size)   how even: `uniform` or `stratified`
    t, density = warp(u, histogram)            how often: a histogram over severities

`histogram` [K] is the probability of each bin ((k - 1) / K, k / K], uniform within it, so
the density that comes with t is exact, whatever law the histogram approximates.

One example's t is a function of the step's key, its position in the global batch and
that batch's size, never of the device. The mean of f(t) / density is that of f under a
uniform t:

  - uniform, stratified: the density is 1.
  - importance: divide the loss by the density; the objective is then unchanged, and
    only its variance falls.
  - log-normal, logit-normal: in their papers the density is the weighting, and nothing
    is divided. Dividing would give the uniform objective back.

Levels: a degradation tabulated in T steps wants t on {1/T, ..., 1} (`snap`). The density
of t before snapping is the one to divide by; the mean is then that over the levels,
each counted alike, even where K is not T.

Depends on: jax, numpy, chex.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


def uniform(key: Array, position: Array, batch_size: int) -> Array:
    """u ~ U(0, 1], independent of every other example's.

    Args:
      key: of the step, the same for the whole batch; for this use alone.
      position: index in the global batch, scalar integer.
      batch_size: of the global batch.
    Returns:
      Scalar float32.
    """
    del batch_size
    return 1 - jax.random.uniform(jax.random.fold_in(key, position), dtype=jnp.float32)


def stratified(key: Array, position: Array, batch_size: int) -> Array:
    """u_i = 1 - (r + i / B mod 1), with one r ~ U[0, 1) a step: each u_i is uniform on
    (0, 1], and the batch has exactly one in every interval of length 1 / B.

    See Appendix I.1 of "Variational Diffusion Models" by Kingma et al.
    (https://arxiv.org/abs/2107.00630).

    Args:
      key: of the step, the same for the whole batch; for this use alone.
      position: index in the global batch, scalar integer in [0, batch_size).
      batch_size: of the global batch.
    Returns:
      Scalar float32.
    """
    place = jnp.asarray(position / batch_size, jnp.float32)
    return 1 - (jax.random.uniform(key, dtype=jnp.float32) + place) % 1


def warp(u: Array, histogram: Array) -> tuple[Array, Array]:
    """t = P^-1(u), where P's density is K histogram[k] on bin k; monotone in u.

    Args:
      u: scalar in (0, 1].
      histogram: [K], not negative, of any positive sum.
    Returns:
      t in (0, 1] and its density there, relative to the uniform one; scalars.
    Raises:
      AssertionError: at trace time, if histogram is not a vector.
    """
    chex.assert_rank([u, histogram], [0, 1])
    upper = jnp.cumsum(histogram)
    upper = upper / upper[-1]
    bins = histogram.shape[0]
    k = jnp.searchsorted(upper, u)  # the first bin with upper >= u: never one of no mass
    lower = jnp.where(k == 0, 0, upper[k - 1])
    mass = upper[k] - lower
    return (k + (u - lower) / mass) / bins, mass * bins


def snap(t: Array, levels: int | None) -> Array:
    """The level k / levels at or above t, k = 1..levels; with None, t itself."""
    return t if levels is None else jnp.ceil(t * levels) / levels


def draw(
    key: Array,
    position: Array,
    batch_size: int,
    histogram: Array | None = None,
    *,
    spacing_fn: Callable[[Array, Array, int], Array] = uniform,
    levels: int | None = None,
) -> tuple[Array, Array]:
    """One example's severity, and the density with which it was drawn.

    Args:
      key: of the step, the same for the whole batch; for this use alone.
      position: index in the global batch, scalar integer in [0, batch_size).
      batch_size: of the global batch.
      histogram: how often, see `warp`; None is uniform.
      spacing_fn: `uniform` or `stratified`.
      levels: see `snap`.
    Returns:
      t in (0, 1] and its density relative to the uniform one; scalars.
    """
    u = spacing_fn(key, position, batch_size)
    t, density = (u, jnp.ones_like(u)) if histogram is None else warp(u, histogram)
    return snap(t, levels), density


def _normal_histogram(edges: np.ndarray, mean: float, std: float) -> np.ndarray:
    """The normal law's share of each interval between edges; float64, of sum 1."""
    if not std > 0:
        raise ValueError(f"std must be positive; got {std}")
    scaled = (np.asarray(edges, np.float64) - mean) / (std * math.sqrt(2))
    histogram = np.diff([0.5 * (1 + math.erf(edge)) for edge in scaled])
    if not (np.all(histogram >= 0) and histogram.sum() > 0):
        raise ValueError("the severities' edges must increase, and meet the normal law's bulk")
    return histogram / histogram.sum()


def log_normal_histogram(
    log_sigmas: np.ndarray, *, mean: float = -1.2, std: float = 1.2
) -> np.ndarray:
    """ln(sigma / alpha) ~ N(mean, std^2): EDM's law, read in t through the schedule.

    See Table 1 of "Elucidating the Design Space of Diffusion-Based Generative Models" by
    Karras et al. (https://arxiv.org/abs/2206.00364).

    Args:
      log_sigmas: ln(sigma / alpha) at t = 0, 1 / K, ..., 1, increasing; the ends may be
        -inf and inf.
      mean, std: of the law.
    Returns:
      histogram, float64 [K]. What the law puts outside the schedule is cut off.
    Raises:
      ValueError: if log_sigmas does not increase, or std is not positive.
    """
    return _normal_histogram(log_sigmas, mean, std)


def logit_normal_histogram(bins: int, *, mean: float = 0.0, std: float = 1.0) -> np.ndarray:
    """ln(t / (1 - t)) ~ N(mean, std^2), in K = bins equal bins.

    See section 3.1 of "Scaling Rectified Flow Transformers for High-Resolution Image
    Synthesis" by Esser et al. (https://arxiv.org/abs/2403.03206).

    Returns:
      histogram, float64 [bins].
    Raises:
      ValueError: if std is not positive.
    """
    inner = np.arange(1, bins) / bins
    logits = np.log(inner / (1 - inner))
    return _normal_histogram(np.concatenate([[-np.inf], logits, [np.inf]]), mean, std)


class Importance(NamedTuple):
    """What `importance_histogram` knows of the loss in each of K bins of severity."""

    square: Array  # [K] float32: running mean of the squared loss
    # Never called as tuple.count.
    count: Array  # type: ignore[assignment]  # [K] int32: losses seen, up to the window


def create_importance(bins: int) -> Importance:
    """The state before the first loss."""
    return Importance(jnp.zeros(bins), jnp.zeros(bins, jnp.int32))


def bin_index(t: Array, bins: int) -> Array:
    """k - 1 of the bin ((k - 1) / bins, k / bins] that a severity in [0, 1] falls in; int32.

    A snapped t lies on a bin's upper edge: what rounding adds does not carry it over.
    """
    return jnp.clip(jnp.ceil(t * bins - 1e-3) - 1, 0, bins - 1).astype(jnp.int32)


def update_importance(
    state: Importance,
    t_B: Array,
    losses_B: Array,
    *,
    window: int = 10,
    axis_name: str | None = None,
) -> Importance:
    """Counts a batch's losses in.

    The first `window` losses of a bin are averaged; later ones move the average
    exponentially, with that memory.

    Args:
      state: the last one, the same on every device.
      t_B: severities in (0, 1], snapped or not.
      losses_B: each example's loss, weighted but not yet divided by the density.
      window: losses remembered per bin.
      axis_name: the mapped axis to sum over; None on one device.
    Returns:
      The next state.
    """
    chex.assert_rank([t_B, losses_B], 1)
    bins = state.count.shape[0]
    bin_B = bin_index(t_B, bins)
    count = jnp.zeros(bins, jnp.int32).at[bin_B].add(1)
    total = jnp.zeros(bins).at[bin_B].add(jnp.square(losses_B))
    if axis_name is not None:
        count, total = jax.lax.psum((count, total), axis_name)
    seen = jnp.minimum(state.count + count, window)
    rate = count / jnp.maximum(jnp.maximum(seen, count), 1)
    mean = total / jnp.maximum(count, 1)
    return Importance(state.square + rate * (mean - state.square), seen)


def importance_histogram(
    state: Importance, *, window: int = 10, uniform_fraction: float = 0.001
) -> Array:
    """A histogram proportional to sqrt(E[loss^2]), for the least variance of loss / density.

    Uniform until every bin has seen `window` losses: with levels, no more bins than
    levels, or some never do.

    See section 3.3 of "Improved Denoising Diffusion Probabilistic Models" by Nichol and
    Dhariwal (https://arxiv.org/abs/2102.09672).

    Args:
      state: from `update_importance`.
      window: the one given to it.
      uniform_fraction: share of the draws that stays uniform; the density is never less.
    Returns:
      histogram, float32 [K], of sum 1.
    """
    bins = state.count.shape[0]
    root = jnp.sqrt(state.square)
    total = jnp.sum(root)
    warm = jnp.all(state.count >= window) & (total > 0)
    share = jnp.where(warm, root / jnp.where(total > 0, total, 1), 1 / bins)
    return (1 - uniform_fraction) * share + uniform_fraction / bins
