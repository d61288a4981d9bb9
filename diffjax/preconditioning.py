"""Any network, preconditioned by the best linear restorer: it learns what is left.

    R(x_t, t) = L_t(x_t) + P_t^(1/2) F([C_t^(-1/2) (x_t - A_t mu), (L_t(x_t) - mu) / std(x0)], t)

C_t is the covariance of x_t, L_t the best linear restorer and P_t the covariance of
x0 - L_t(x_t), as `linear` has them, fitted to the mean and covariance of the data. The
network F sees white inputs and answers a white target at every severity, starts at L_t where
its last layer starts at zero, and need not learn to amplify what a degradation made small.
Nor can it contradict what x_t still tells: along those directions P_t is next to nothing. A
walk back needs that. Algorithm 2 degrades each estimate again, so whatever an estimate gets
wrong of what was known stays in x_s; with one scale for all directions in the place of
P_t^(1/2), the errors of a deblurring grow from step to step.

With Gaussian noise and white data of mean 0, this is c_skip, c_out and c_in of EDM: section 5
of "Elucidating the Design Space of Diffusion-Based Generative Models" by Karras et al.
(https://arxiv.org/abs/2206.00364). F sees twice the image's channels.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from diffjax import linear
from diffjax.degradations import Degradation, require

Array = chex.Array


class LinearRestorer(NamedTuple):
    """L_t for every t: arrays alone, so that it goes wherever parameters go."""

    mean: Array  # mu, [H, W, C]
    std: Array  # scalar, std(x0)
    floor: Array  # scalar
    factors: linear.Factors  # a leading axis of levels + 1, or of 1 where t changes nothing


def fit(
    degradation: Degradation,
    moments: linear.Moments,
    *,
    levels: int | None = None,
    floor: float = 1e-5,
) -> LinearRestorer:
    """L_t of a linear degradation on data of these moments; computed in float64.

    Args:
      degradation: D, with a `linear_fn`, and a realisation that is white noise of mean 0
        or None. What is made of another (`animorph`, `interpolate`) is biased.
      moments: of the training images, from `linear.measure` and `linear.merge`.
      levels: how many severities its matrices are tabulated at, k = round(t levels): T for
        a D in T steps. Where D's matrices are continuous in t, L_t is that of the nearest
        level, so t should be drawn on them. alpha and sigma are taken at t itself: None
        where D has no matrices.
      floor: how uncertain x_t itself is, in the units of [-1, 1]; added to sigma in
        quadrature. Rounding to float32 asks for 1e-5, files of 8 bits for 3e-3: L_t turns
        their rounding into noise otherwise.
    Returns:
      Float32 tables, for a blur of 3 (H^2 + W^2) floats a level.
    Raises:
      ValueError: naming the argument that cannot be.
    """
    require(
        degradation.linear_fn is not None,
        "degradation must have a linear_fn: only a linear one has a best linear restorer",
    )
    require(floor > 0, f"floor must be positive; got {floor}")
    require(levels is None or levels > 0, f"levels must be positive or None; got {levels}")
    ts = jnp.zeros(1) if levels is None else jnp.arange(levels + 1) / levels
    maps = jax.jit(jax.vmap(lambda t: degradation.linear_fn(degradation.params, t)))(ts)
    matrices = (maps.rows, maps.cols, maps.colors)
    require(
        levels is not None or all(matrix is None for matrix in matrices),
        "levels must be given: the matrices of this degradation change with t",
    )
    covariances = linear.covariances(moments)
    factors = linear.Factors(
        *(
            linear.factor(covariance, np.eye(len(covariance))[None] if matrix is None else matrix)
            for covariance, matrix in zip(covariances, matrices, strict=True)
        )
    )
    std = np.sqrt(np.mean(np.diag(covariances[2])))
    restorer = LinearRestorer(moments.mean, std, np.asarray(floor), factors)
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), restorer)


class _AtSeverity(NamedTuple):
    """A_t and L_t at one t."""

    factors: linear.Factors
    alpha: Array
    sigma: Array  # floor included
    mean: Array  # A_t mu, [H, W, C]


def _at_severity(restorer: LinearRestorer, degradation: Degradation, t: Array) -> _AtSeverity:
    chex.assert_rank(t, 0)
    at_t = degradation.linear_fn(degradation.params, t)
    alpha = jnp.asarray(at_t.alpha, jnp.float32)

    def nearest(table):
        k = jnp.clip(jnp.round(t * (len(table) - 1)), 0, len(table) - 1).astype(jnp.int32)
        return table[k]

    return _AtSeverity(
        factors=jax.tree.map(nearest, restorer.factors),
        alpha=alpha,
        sigma=jnp.hypot(at_t.sigma, restorer.floor),
        mean=alpha * linear.multiply(restorer.mean, at_t.rows, at_t.cols, at_t.colors),
    )


def _estimate(restorer: LinearRestorer, at: _AtSeverity, xt: Array, t: Array) -> Array:
    x0_hat = linear.restore_linear(at.factors, restorer.mean, at.mean, xt, at.alpha, at.sigma)
    return jnp.where(t == 0, xt, x0_hat)


def restore_linear(
    restorer: LinearRestorer, degradation: Degradation, xt: Array, t: Array
) -> tuple[Array, Array]:
    """(L_t(x_t), e_t); (x_t, 0) at t = 0.

    Args:
      restorer: from `fit`, of this degradation.
      degradation: D.
      xt: degraded image, [H, W, C], range [-1, 1].
      t: severity, scalar in [0, 1].
    Returns:
      x0_hat, [H, W, C], and the scalar root mean square of x0_hat - x0 under the model
      of the data: a scale, not a measurement, see `linear`.
    Raises:
      AssertionError: at trace time, if xt has not the size of the data fitted.
    """
    at = _at_severity(restorer, degradation, t)
    error = linear.error(at.factors, at.alpha, at.sigma)
    return _estimate(restorer, at, xt, t), jnp.where(t == 0, 0, error)


def restore(
    network_fn: Callable[[Any, Array, Array], Array],
    params: Any,
    restorer: LinearRestorer,
    degradation: Degradation,
    xt: Array,
    t: Array,
) -> Array:
    """R = L_t(x_t) + P_t^(1/2) F([C_t^(-1/2) (x_t - A_t mu), (L_t(x_t) - mu) / std(x0)], t).

    Args:
      network_fn: F, (params, [H, W, 2 C], t) -> [H, W, C].
      params: of the network.
      restorer, degradation, xt, t: see `restore_linear`.
    Returns:
      x0_hat, [H, W, C]; xt at t = 0.
    Raises:
      AssertionError: at trace time, if xt or the network's answer has another shape.
    Note:
      x_t is centred, which EDM, of data with mean 0, does not do: a strong blur leaves the
      mean and little else, and C_t^(-1/2) would enlarge it too.
    """
    at = _at_severity(restorer, degradation, t)
    x0_hat = _estimate(restorer, at, xt, t)
    inputs = (
        linear.whiten(at.factors, at.alpha, at.sigma, xt - at.mean),
        (x0_hat - restorer.mean) / restorer.std,
    )
    output = network_fn(params, jnp.concatenate(inputs, axis=-1), t)
    chex.assert_equal_shape([output, xt])
    left = linear.posterior_root(at.factors, at.alpha, at.sigma, output)
    return x0_hat + jnp.where(t == 0, 0, left)
