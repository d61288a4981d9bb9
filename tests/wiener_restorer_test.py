"""The restorer fitted to a degradation, and a network on top of it.

Oracles: EDM's c_skip, c_out and c_in; and the formula of the optimal linear restorer with the
whole covariance and D's Jacobian (numpy.kron, jax.jacobian, scipy.linalg), at every level. What
makes a covariance stationary: its mean over all shifts, and the variances of scipy's DCT.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import best_linear
from scipy import fft, linalg

from diffjax import restorers, wiener
from diffjax.degradations.base import Degradation, LinearMap, degrade
from diffjax.degradations.blur import downsample, gaussian_blur
from diffjax.degradations.color import decolor
from diffjax.degradations.heat import heat
from diffjax.degradations.noise import gaussian_noise

SHAPE = (4, 6, 3)
SIZE = 72
FLOOR = 0.01

# One constructor of each form: (degradation, levels).
FAMILIES = {
    "blur": (gaussian_blur(SHAPE, stds=(0.4, 0.5, 0.6), kernel_size=3), 3),
    "downsample": (downsample(SHAPE, sizes=((2, 3), (1, 3)), method="area"), 2),
    "heat": (heat(SHAPE, sigma_max=2, levels=3, noise=0.02), 3),
    "decolor": (decolor(SHAPE, steps=3), 3),
    "noise": (gaussian_noise(SHAPE), None),
}


def fit(degradation, moments, **settings):
    return wiener.fit(restorers.linear_fn(degradation), moments, **settings)


# Compiled: eager, the einsums cost more time than the arithmetic.
@functools.partial(jax.jit, static_argnums=0)
def precondition(network_fn, params, restorer, degradation, xt, t):
    bound_fn = functools.partial(network_fn, params)
    return wiener.precondition(bound_fn, restorer, restorers.linear_fn(degradation), xt, t)


@jax.jit
def estimate(restorer, degradation, xt, t):
    return wiener.estimate(restorer, restorers.linear_fn(degradation), xt, t)


def some_moments(shape=SHAPE):
    images = np.random.default_rng(0).gamma(1, size=(40, *shape)) / 4 - 0.5
    return wiener.measure(np.cumsum(images, axis=1) / 2)


def white_moments(std, shape=SHAPE):
    """Of data with mean 0 and covariance std^2 I."""
    covariances = (size * std**2 * np.eye(n) for n, size in ((4, 18), (6, 12), (3, 24)))
    return wiener.Moments(np.ones(()), np.zeros(shape), *covariances)


def apply_scaled(params, x0, t, omega):
    at_t = linear_scaled(params, t)
    return at_t.alpha * x0 + at_t.sigma * omega


def linear_scaled(params, t):
    return LinearMap(alpha=1 - t * (1 - params["alpha"]), sigma=t * params["sigma"])


def scaled(alpha, sigma):
    """x_t = alpha x0 + sigma omega at t = 1."""
    numbers = {"alpha": jnp.float32(alpha), "sigma": jnp.float32(sigma)}
    return Degradation(numbers, apply_fn=apply_scaled, linear_fn=linear_scaled)


def first_half(params, inputs, t):
    return jnp.tanh(params * inputs[..., :3])


def second_half(params, inputs, t):
    return params * inputs[..., 3:]


def answer(params, inputs, t):
    return params


@jax.jit
def seen_by_network(restorer, degradation, xt, t):
    """What F is given."""
    given = []

    def network_fn(inputs, t):
        given.append(inputs)
        return inputs[..., :3]

    wiener.precondition(network_fn, restorer, restorers.linear_fn(degradation), xt, t)
    return given[0]


@jax.jit
def root_of(restorer, degradation, t):
    """The matrix that R multiplies F's answer with."""
    zeros = jnp.zeros(SHAPE)
    jacobian = jax.jacobian(precondition, argnums=1)
    return jacobian(answer, zeros, restorer, degradation, zeros, t).reshape(SIZE, SIZE)


def zero(params, inputs, t):
    return jnp.zeros_like(inputs[..., :3])


@pytest.mark.parametrize("std", [0.5, 1.3])
@pytest.mark.parametrize("sigma", [0.002, 0.1, 1, 80])
def test_noise_and_white_data_are_edm(sigma, std):
    degradation = scaled(1, sigma)
    restorer = fit(degradation, white_moments(std), floor=1e-8)
    xt = np.random.default_rng(1).normal(size=SHAPE) * np.hypot(std, sigma)
    c_skip = std**2 / (sigma**2 + std**2)
    c_out = sigma * std / np.sqrt(sigma**2 + std**2)
    c_in = 1 / np.sqrt(sigma**2 + std**2)
    arguments = (restorer, degradation, jnp.asarray(xt, jnp.float32), jnp.float32(1))
    got = precondition(first_half, 1.7, *arguments)
    expected = c_skip * xt + c_out * np.tanh(1.7 * c_in * xt)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)
    got = precondition(second_half, 1.0, *arguments)
    np.testing.assert_allclose(got, c_skip * xt * (1 + c_out / std), rtol=1e-4, atol=1e-6)


def test_scaled_noise_is_edm_of_the_unscaled():
    # x_t / alpha = x0 + (sigma / alpha) omega; c_in alone sees the scale.
    alpha, sigma, std = 0.3, 0.8, 0.5
    degradation = scaled(alpha, sigma)
    restorer = fit(degradation, white_moments(std), floor=1e-8)
    xt = np.random.default_rng(2).normal(size=SHAPE)
    ratio = sigma / alpha
    skipped = std**2 / (ratio**2 + std**2) * xt / alpha
    c_out, c_in = ratio * std / np.hypot(ratio, std), 1 / np.hypot(alpha * std, sigma)
    got = precondition(
        first_half, 1.0, restorer, degradation, jnp.asarray(xt, jnp.float32), jnp.float32(1)
    )
    np.testing.assert_allclose(got, skipped + c_out * np.tanh(c_in * xt), rtol=1e-4, atol=1e-6)


@jax.jit
def jacobians_of(degradation, t):
    """Of D in x0 and in omega: as D is linear, A_t and sigma_t I."""
    zeros = jnp.zeros(SHAPE)
    return jax.jacobian(degrade, argnums=(1, 3))(degradation, zeros, t, zeros)


def over_all_shifts(covariance):
    """Its mean where it wanders along a circle."""
    size = range(len(covariance))
    return np.mean([np.roll(covariance, (shift, shift), axis=(0, 1)) for shift in size], axis=0)


def of_cosines(covariance):
    """Its cosines made uncorrelated."""
    spectral = fft.dctn(covariance, norm="ortho")
    return fft.idctn(np.diag(np.diag(spectral)), norm="ortho")


# What becomes of the covariance along rows and columns where it is taken as stationary.
STATIONARY = {"blur": over_all_shifts, "heat": of_cosines, "noise": of_cosines}


def optimal(degradation, covariances, moments, xt, t):
    """(L_t(xt), P_t, C_t, A_t mu) in float64, from the whole covariance."""
    jacobians = jacobians_of(degradation, t)
    matrix, noise = (np.asarray(leaf, np.float64).reshape(SIZE, SIZE) for leaf in jacobians)
    whole = functools.reduce(np.kron, covariances)
    mean, unsure = moments.mean.reshape(-1), noise @ noise.T + FLOOR**2 * np.eye(SIZE)
    x0_hat, posterior, seen = best_linear(mean, whole, matrix, unsure, xt)
    return x0_hat.reshape(SHAPE), posterior, seen, matrix @ mean


@pytest.mark.parametrize(
    ("family", "stationary"),
    [(family, False) for family in FAMILIES] + [(family, True) for family in STATIONARY],
)
def test_restorer_is_optimal_at_every_level(family, stationary):
    degradation, levels = FAMILIES[family]
    moments = some_moments()
    rows, cols, colors = wiener.covariances(moments)
    if stationary:
        rows, cols = map(STATIONARY[family], (rows, cols))
    restorer = fit(degradation, moments, levels=levels, floor=FLOOR, stationary=stationary)
    xt = jnp.asarray(np.random.default_rng(3).uniform(-1, 1, SHAPE), jnp.float32)
    ts = np.arange(1, levels + 1) / levels if levels else [0.013, 0.5, 0.97, 1.0]
    for t in map(jnp.float32, ts):
        expected, posterior, covariance, mean_t = optimal(
            degradation, (rows, cols, colors), moments, xt, t
        )
        x0_hat, error = estimate(restorer, degradation, xt, t)
        np.testing.assert_allclose(x0_hat, expected, atol=2e-3)
        np.testing.assert_allclose(error, np.sqrt(np.trace(posterior) / SIZE), rtol=1e-3)
        root = np.asarray(root_of(restorer, degradation, t), np.float64)
        np.testing.assert_allclose(root @ root.T, posterior, atol=1e-3 * posterior.max())
        inputs = seen_by_network(restorer, degradation, xt, t)
        # |C^(-1/2) x|^2 = x' C^-1 x, whichever root it is.
        centered = np.asarray(xt, np.float64).reshape(-1) - mean_t
        square = centered @ linalg.solve(covariance, centered, assume_a="pos")
        np.testing.assert_allclose(np.sum(np.square(inputs[..., :3])), square, rtol=1e-3)
        standardized = (expected - moments.mean) / restorer.std
        np.testing.assert_allclose(inputs[..., 3:], standardized, atol=2e-2)


@pytest.mark.parametrize("family", FAMILIES)
def test_identity_at_zero(family):
    degradation, levels = FAMILIES[family]
    restorer = fit(degradation, some_moments(), levels=levels)
    x0 = jnp.asarray(np.random.default_rng(4).uniform(-1, 1, SHAPE), jnp.float32)
    x0_hat, error = estimate(restorer, degradation, x0, jnp.float32(0))
    np.testing.assert_array_equal(x0_hat, x0)
    assert error == 0
    restored = precondition(first_half, 1.0, restorer, degradation, x0, jnp.float32(0))
    np.testing.assert_array_equal(restored, x0)


def test_error_grows_with_nested_blurs():
    # A circular blur shrinks white noise, so each step is the last one's x_t, blurred and noisier.
    degradation, _ = FAMILIES["blur"]
    restorer = fit(degradation, some_moments(), levels=3)
    ts = jnp.arange(4, dtype=jnp.float32) / 3
    errors = jax.vmap(lambda t: estimate(restorer, degradation, jnp.zeros(SHAPE), t)[1])(ts)
    assert np.all(np.diff(errors) > 0)
    assert errors[-1] < restorer.std


def test_severity_takes_the_nearest_level():
    degradation, _ = FAMILIES["blur"]
    restorer = fit(degradation, some_moments(), levels=3)
    xt = jnp.asarray(np.random.default_rng(5).uniform(-1, 1, SHAPE), jnp.float32)
    near, level = (estimate(restorer, degradation, xt, jnp.float32(t)) for t in (0.6, 2 / 3))
    chex.assert_trees_all_equal(near, level)


def test_a_network_of_zeros_is_the_linear_restorer():
    degradation, _ = FAMILIES["heat"]
    restorer = fit(degradation, some_moments(), levels=3)
    arguments = (restorer, degradation, jnp.ones(SHAPE), jnp.float32(1))
    restored = precondition(zero, None, *arguments)
    np.testing.assert_array_equal(restored, estimate(*arguments)[0])


def test_batches_and_devices_agree_and_gradients_are_finite():
    degradation, levels = FAMILIES["heat"]
    restorer = fit(degradation, some_moments(), levels=levels)
    chex.assert_tree_all_finite(restorer)
    chex.assert_trees_all_equal_dtypes(*jax.tree.leaves(restorer), jnp.float32(0))
    xt_B = jnp.asarray(np.random.default_rng(6).uniform(-1, 1, (2, *SHAPE)), jnp.float32)
    t_B = jnp.array([0, 1], jnp.float32)

    def loss(params, restorer, degradation, xt, t):
        restored = precondition(first_half, params, restorer, degradation, xt, t)
        return jnp.mean(jnp.square(restored))

    value_and_grad = jax.jit(jax.value_and_grad(loss))
    axes = (None, None, None, 0, 0)
    arguments = (jnp.float32(1.7), restorer, degradation, xt_B, t_B)
    one_by_one = [value_and_grad(*arguments[:3], xt, t) for xt, t in zip(xt_B, t_B, strict=True)]
    expected = jax.tree.map(lambda *leaves: jnp.stack(leaves), *one_by_one)
    chex.assert_tree_all_finite(expected)
    for got in (
        jax.jit(jax.vmap(value_and_grad, in_axes=axes))(*arguments),
        jax.pmap(value_and_grad, in_axes=axes)(*arguments),
    ):
        chex.assert_trees_all_close(got, expected, rtol=1e-3, atol=1e-6)


def test_any_function_will_do_that_returns_five():
    """A D that is no `Degradation`: columns averaged as t grows, a tuple of numpy and floats."""
    average = np.full((6, 6), 1 / 6)

    def linear_fn(t):
        return 1 - t / 4, 0.2 * t, None, (1 - t) * jnp.eye(6) + t * average, None

    moments = some_moments()
    restorer = wiener.fit(linear_fn, moments, levels=4, floor=FLOOR)
    xt = jnp.asarray(np.random.default_rng(7).uniform(-1, 1, SHAPE), jnp.float32)
    whole = functools.reduce(np.kron, wiener.covariances(moments))
    for t in (0.25, 0.75, 1.0):
        matrix = functools.reduce(
            np.kron, (np.eye(4), (1 - t) * np.eye(6) + t * average, np.eye(3))
        )
        unsure = ((0.2 * t) ** 2 + FLOOR**2) * np.eye(SIZE)
        expected, posterior, _ = best_linear(
            moments.mean.reshape(-1), whole, (1 - t / 4) * matrix, unsure, xt
        )
        x0_hat, error = wiener.estimate(restorer, linear_fn, xt, jnp.float32(t))
        np.testing.assert_allclose(x0_hat.reshape(-1), expected, atol=2e-3)
        np.testing.assert_allclose(error, np.sqrt(np.trace(posterior) / SIZE), rtol=1e-3)


def test_a_stationary_restorer_keeps_one_table_of_numbers():
    blur, levels = gaussian_blur((16, 16, 3), stds=(1,) * 50, kernel_size=3), 50
    restorer = fit(blur, some_moments((16, 16, 3)), levels=levels, stationary=True)
    held = sum(leaf.size for leaf in restorer.factors.rows)
    assert held == (levels + 1) * 16 + 3 * 16**2


@pytest.mark.parametrize("boundary", ["reflect", "symmetric", "circular"])
def test_a_stationary_restorer_needs_a_basis_that_does_not_change(boundary):
    blur = gaussian_blur(SHAPE, stds=(0.4, 0.5), kernel_size=3, boundary=boundary)
    if boundary == "reflect":
        with pytest.raises(ValueError, match="diagonal in the DCT-II or the Fourier basis"):
            fit(blur, some_moments(), levels=2, stationary=True)
    else:
        chex.assert_tree_all_finite(fit(blur, some_moments(), levels=2, stationary=True))


def test_wrong_arguments_raise():
    blur, moments = FAMILIES["blur"][0], some_moments()
    with pytest.raises(ValueError, match="levels must be given"):
        fit(blur, moments)
    with pytest.raises(ValueError, match="levels must be positive or None; got 0"):
        fit(blur, moments, levels=0)
    with pytest.raises(ValueError, match="floor must be positive and finite; got 0"):
        fit(blur, moments, levels=3, floor=0)
    with pytest.raises(ValueError, match="matrix must be of size"):
        fit(blur, some_moments((5, 6, 3)), levels=3)
    restorer = fit(blur, moments, levels=3)
    with pytest.raises(AssertionError):
        estimate(restorer, blur, jnp.zeros((4, 6, 1)), jnp.float32(1))
    with pytest.raises(AssertionError):  # the network answers for the inputs, not the image
        precondition(lambda params, x, t: x, None, restorer, blur, jnp.zeros(SHAPE), jnp.float32(1))
