"""Oracles: least squares (numpy.linalg.lstsq), the formula with the whole covariance
(numpy.kron, scipy.linalg), numpy.cov, and Monte Carlo.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import best_linear
from scipy import fft, linalg

from diffjax import wiener

HEIGHT, WIDTH, CHANNELS = SHAPE = (4, 3, 2)
SIZE = HEIGHT * WIDTH * CHANNELS


def random_covariance(rng, size, rank=None):
    root = rng.normal(size=(size, rank or size))
    return root @ root.T / size


def smooth_covariance(size, length):
    """exp(-d^2 / (2 length^2)): what images have, ill-conditioned."""
    distance = np.subtract.outer(np.arange(size), np.arange(size))
    return np.exp(-0.5 * (distance / length) ** 2)


def circular_blur(size, std):
    distance = np.abs(np.subtract.outer(np.arange(size), np.arange(size)))
    weights = np.exp(-0.5 * (np.minimum(distance, size - distance) / std) ** 2)
    return weights / weights.sum(axis=1, keepdims=True)


def block_mean(size, block):
    return linalg.block_diag(*[np.full((block, block), 1 / block)] * (size // block))


def heat(size, std):
    decay = np.exp(-0.5 * (np.pi * np.arange(size) / size * std) ** 2)
    return fft.idct(
        decay[:, None] * fft.dct(np.eye(size), norm="ortho", axis=0), norm="ortho", axis=0
    )


# (rows, cols, colors); None is the identity.
MATRICES = {
    "noise": (None, None, None),
    "blur": (circular_blur(HEIGHT, 0.6), circular_blur(WIDTH, 0.8), None),
    "downsample": (block_mean(HEIGHT, 2), block_mean(WIDTH, 3), None),
    "heat": (heat(HEIGHT, 0.7), heat(WIDTH, 0.5), None),
    "decolor": (None, None, 0.2 * np.eye(CHANNELS) + 0.8 / CHANNELS),
    "all": (heat(HEIGHT, 0.7), block_mean(WIDTH, 3), 0.9 * np.eye(CHANNELS) + 0.1 / CHANNELS),
}


def dense(matrices):
    """The matrix on x.reshape(-1) of rows, cols and colors on x, [H, W, C]."""
    matrices = [
        np.eye(n) if matrix is None else matrix for n, matrix in zip(SHAPE, matrices, strict=True)
    ]
    return functools.reduce(np.kron, matrices)


def factorize(covariances, matrices=(None, None, None)):
    return wiener.Factors(*map(wiener.factor, covariances, matrices))


def matrix_of(function, factors, alpha, sigma):
    """Of a linear function of an image, on x.reshape(-1); in float64."""
    with jax.enable_x64(True):
        alpha, sigma = jnp.asarray(alpha), jnp.asarray(sigma)
        images = jax.vmap(lambda z: function(factors, alpha, sigma, z))(
            np.eye(SIZE).reshape(SIZE, *SHAPE)
        )
    return np.asarray(images).reshape(SIZE, SIZE).T


def sample_with_exact_moments(rng, covariances, mean, count):
    """Images whose *sample* covariance is the product, and noise exactly white beside them."""
    drawn = rng.normal(size=(count, 2 * SIZE))
    drawn -= drawn.mean(axis=0)
    white = linalg.qr(drawn, mode="economic")[0] * np.sqrt(count)
    root = np.linalg.cholesky(dense(covariances))
    images = mean + (white[:, :SIZE] @ root.T).reshape(count, *SHAPE)
    return images, white[:, SIZE:]


def restore_all(factors, mean, mean_t, xt, alpha, sigma):
    def one(xt):
        return wiener.posterior_mean(
            factors, mean, mean_t, xt, jnp.asarray(alpha), jnp.asarray(sigma)
        )

    return jax.jit(jax.vmap(one))(xt)


@pytest.mark.parametrize("family", MATRICES)
def test_restorer_and_error_are_those_of_least_squares(family):
    rng = np.random.default_rng(0)
    true = [random_covariance(rng, n) for n in SHAPE]
    mean = rng.normal(size=SHAPE)
    x0, omega = sample_with_exact_moments(rng, true, mean, 300)
    alpha, sigma, matrix = 0.7, 0.1, dense(MATRICES[family])
    xt = alpha * x0.reshape(-1, SIZE) @ matrix.T + sigma * omega
    inputs = np.concatenate([xt, np.ones((300, 1))], axis=1)
    solution = np.linalg.lstsq(inputs, x0.reshape(-1, SIZE), rcond=None)[0]
    expected = (inputs @ solution).reshape(x0.shape)

    moments = wiener.measure(x0)
    factors = factorize(wiener.covariances(moments), MATRICES[family])
    mean_t = (alpha * matrix @ moments.mean.reshape(-1)).reshape(SHAPE)
    x0_hat = restore_all(factors, moments.mean, mean_t, xt.reshape(x0.shape), alpha, sigma)
    np.testing.assert_allclose(x0_hat, expected, atol=5e-5)
    error = wiener.posterior_error(factors, jnp.asarray(alpha), jnp.asarray(sigma))
    np.testing.assert_allclose(error, np.sqrt(np.mean((expected - x0) ** 2)), rtol=1e-5)


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("family", MATRICES)
def test_closed_form_with_the_whole_covariance(family, rank):
    rng = np.random.default_rng(1)
    covariances = [random_covariance(rng, n, rank) for n in SHAPE]
    mean, xt = rng.normal(size=(2, *SHAPE))
    alpha, sigma = 0.9, 1e-3
    whole, matrix = dense(covariances), alpha * dense(MATRICES[family])
    white = sigma**2 * np.eye(SIZE)
    expected, posterior, _ = best_linear(mean.reshape(-1), whole, matrix, white, xt)
    mean_t = matrix @ mean.reshape(-1)
    variance = np.trace(posterior) / SIZE

    factors = factorize(covariances, MATRICES[family])
    with jax.enable_x64(True):
        alpha, sigma = jnp.asarray(alpha), jnp.asarray(sigma)
        x0_hat = wiener.posterior_mean(factors, mean, mean_t.reshape(SHAPE), xt, alpha, sigma)
        error = wiener.posterior_error(factors, alpha, sigma)
    np.testing.assert_allclose(x0_hat.reshape(-1), expected, rtol=1e-7, atol=1e-7)
    # The oracle's difference of traces cancels: it is known to 1e-13 or so, not the error.
    np.testing.assert_allclose(error**2, variance, rtol=1e-6, atol=1e-13)


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("family", MATRICES)
def test_posterior_root_squares_to_the_posterior_covariance(family, rank):
    rng = np.random.default_rng(11)
    covariances = [random_covariance(rng, n, rank) for n in SHAPE]
    alpha, sigma = 0.9, 0.03
    whole, matrix = dense(covariances), alpha * dense(MATRICES[family])
    zeros, white = np.zeros(SIZE), sigma**2 * np.eye(SIZE)
    _, posterior, _ = best_linear(zeros, whole, matrix, white, zeros)
    factors = factorize(covariances, MATRICES[family])

    root = matrix_of(wiener.posterior_root, factors, alpha, sigma)
    np.testing.assert_allclose(root @ root.T, posterior, atol=1e-9)
    # Where nothing is known, scipy's symmetric root of S; its accuracy is that of a root of 0.
    prior_root = matrix_of(wiener.posterior_root, factors, alpha, 1e9)
    np.testing.assert_allclose(prior_root, np.real(linalg.sqrtm(whole)), atol=1e-6)


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("family", MATRICES)
def test_whitened_is_white(family, rank):
    rng = np.random.default_rng(12)
    covariances = [random_covariance(rng, n, rank) for n in SHAPE]
    alpha, sigma = 0.9, 0.03
    matrix = alpha * dense(MATRICES[family])
    seen = matrix @ dense(covariances) @ matrix.T + sigma**2 * np.eye(SIZE)
    factors = factorize(covariances, MATRICES[family])
    whitener = matrix_of(wiener.whiten, factors, alpha, sigma)
    np.testing.assert_allclose(whitener @ seen @ whitener.T, np.eye(SIZE), atol=1e-8)
    # It turns as the posterior's root does: their product is symmetric where A is the identity.
    if family == "noise":
        product = matrix_of(wiener.posterior_root, factors, alpha, sigma) @ whitener
        gain = linalg.solve(seen, linalg.sqrtm(dense(covariances))).real * sigma
        np.testing.assert_allclose(product, gain, atol=1e-6)


def test_error_is_the_mean_squared_error_by_monte_carlo():
    rng = np.random.default_rng(2)
    covariances = [random_covariance(rng, n) for n in SHAPE]
    mean, sigma = rng.normal(size=SHAPE), 0.05
    root = np.linalg.cholesky(dense(covariances))
    x0 = mean.reshape(-1) + rng.normal(size=(20_000, SIZE)) @ root.T
    xt = x0 @ dense(MATRICES["blur"]).T + sigma * rng.normal(size=x0.shape)
    factors = factorize(covariances, MATRICES["blur"])
    mean_t = (dense(MATRICES["blur"]) @ mean.reshape(-1)).reshape(SHAPE)
    x0_hat = restore_all(factors, mean, mean_t, xt.reshape(-1, *SHAPE), 1.0, sigma)
    square = np.mean((np.asarray(x0_hat).reshape(x0.shape) - x0) ** 2, axis=1)
    standard_error = np.std(square) / np.sqrt(len(square))
    assert standard_error < 0.01 * np.mean(square)
    error = wiener.posterior_error(factors, jnp.asarray(1.0), jnp.asarray(sigma))
    assert abs(error**2 - np.mean(square)) < 4 * standard_error


def test_float32_restores_a_strong_blur():
    # Smooth data and a blur that leaves amplitudes down to 1e-12, with sigma = 1e-5.
    size, sigma = 32, 1e-5
    covariances = (smooth_covariance(size, 3), smooth_covariance(size, 2), np.eye(1))
    matrices = (circular_blur(size, 2), circular_blur(size, 2), None)
    factors = factorize(covariances, matrices)
    rng = np.random.default_rng(3)
    modes = rng.normal(size=(20, size, size, 1))
    roots = [
        linalg.sqrtm(covariance + 1e-12 * np.eye(len(covariance))) for covariance in covariances
    ]
    with jax.enable_x64(True):
        x0 = jax.vmap(lambda x: wiener.multiply(x, *map(np.real, roots)))(modes)
        xt = jax.vmap(lambda x: wiener.multiply(x, *matrices))(x0)
        zeros = jnp.zeros((size, size, 1))
        exact = restore_all(factors, zeros, zeros, xt, 1.0, sigma)
        error = float(wiener.posterior_error(factors, jnp.asarray(1.0), jnp.asarray(sigma)))
    singles = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), (factors, xt))
    single = restore_all(
        singles[0], *np.zeros((2, size, size, 1), np.float32), singles[1], 1.0, sigma
    )
    assert single.dtype == jnp.float32
    rounding = np.sqrt(np.mean((np.asarray(single) - np.asarray(exact)) ** 2))
    # x_t of size 1 rounded to 6e-8 and amplified by at most 1 / (2 sigma) is 3e-3.
    assert rounding < 3e-3
    assert rounding < 0.1 * error
    single_error = wiener.posterior_error(singles[0], jnp.float32(1), jnp.float32(sigma))
    np.testing.assert_allclose(single_error, error, rtol=1e-3)


def whole_covariance(images):
    flat = images.reshape(len(images), -1)
    return np.cov(flat, rowvar=False, bias=True).reshape(*images.shape[1:], *images.shape[1:])


def test_moments_are_partial_traces_of_the_covariance():
    images = np.random.default_rng(4).gamma(1, size=(50, *SHAPE)) + 100
    moments = wiener.measure(images)
    whole = 50 * whole_covariance(images)
    np.testing.assert_allclose(moments.mean, images.mean(axis=0))
    np.testing.assert_allclose(moments.rows, np.einsum("hwcgwc->hg", whole), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(moments.cols, np.einsum("hwchvc->wv", whole), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(moments.colors, np.einsum("hwchwd->cd", whole), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sizes", [(25, 25), (1, 40, 9)])
def test_merged_moments_are_those_of_the_whole(sizes):
    images = (
        np.random.default_rng(5).normal(size=(50, *SHAPE))
        + np.linspace(0, 9, 50)[:, None, None, None]
    )
    parts = map(wiener.measure, np.split(images, np.cumsum(sizes)[:-1]))
    chex.assert_trees_all_close(
        functools.reduce(wiener.merge, parts), wiener.measure(images), rtol=1e-12
    )


def test_covariances_of_a_product_are_its_factors():
    rng = np.random.default_rng(6)
    true = [random_covariance(rng, n) for n in SHAPE]
    images, _ = sample_with_exact_moments(rng, true, rng.normal(size=SHAPE), 100)
    rows, cols, colors = wiener.covariances(wiener.measure(images))
    np.testing.assert_allclose(dense((rows, cols, colors)), dense(true), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose([np.trace(rows), np.trace(cols)], [HEIGHT, WIDTH])


def test_total_variance_is_kept_for_any_images():
    images = np.random.default_rng(7).gamma(1, size=(50, *SHAPE)) * np.arange(CHANNELS)
    traces = [np.trace(covariance) for covariance in wiener.covariances(wiener.measure(images))]
    np.testing.assert_allclose(np.prod(traces), np.var(images, axis=0).sum())


def test_pixels_that_never_change_are_restored_to_what_they_are():
    images = np.random.default_rng(8).uniform(-1, 1, (50, *SHAPE))
    images[:, 0] = -1
    moments = wiener.measure(images)
    factors = factorize(wiener.covariances(moments))
    x0_hat = restore_all(factors, moments.mean, moments.mean, images + 0.1, 1.0, 1e-3)
    assert np.all(np.isfinite(x0_hat))
    np.testing.assert_allclose(x0_hat[:, 0], -1, atol=1e-6)
    np.testing.assert_allclose(x0_hat[:, 1:], images[:, 1:] + 0.1, atol=1e-3)


def test_a_table_of_matrices_gives_a_table():
    covariance = smooth_covariance(5, 1)
    table = np.stack([circular_blur(5, std) for std in (0.5, 1, 2)])
    stacked = wiener.factor(covariance, table)
    for k, matrix in enumerate(table):
        analysis, synthesis, singular, rotation = (leaf[k] for leaf in stacked)
        # A S A' = U diag(s^2) U' and S A' = B V diag(s) U', from A B = U diag(s) V'.
        blurred = analysis.T @ np.diag(singular**2) @ analysis
        np.testing.assert_allclose(blurred, matrix @ covariance @ matrix.T, atol=1e-12)
        crossed = synthesis @ np.diag(singular) @ analysis
        np.testing.assert_allclose(crossed, covariance @ matrix.T, atol=1e-12)
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(5), atol=1e-12)


def test_wrong_arguments_raise():
    images = np.random.default_rng(9).normal(size=(4, *SHAPE))
    with pytest.raises(ValueError, match="images_BHWC must have shape"):
        wiener.measure(images[0])
    with pytest.raises(ValueError, match="images_BHWC must have shape"):
        wiener.measure(images[:0])
    with pytest.raises(ValueError, match=r"moments of images \(4, 3, 2\) and \(3, 3, 2\)"):
        wiener.merge(wiener.measure(images), wiener.measure(images[:, 1:]))
    with pytest.raises(ValueError, match="their variance is 0"):
        wiener.covariances(wiener.measure(images[:1]))
    with pytest.raises(ValueError, match=r"matrix must be of size \(4, 4\); got \(3, 3\)"):
        wiener.factor(np.eye(4), np.eye(3))
    factors = factorize(wiener.covariances(wiener.measure(images)))
    one = jnp.asarray(1.0)
    with pytest.raises(AssertionError):
        wiener.posterior_mean(factors, images[0], images[0], images[0, :, :, :1], one, one)
    with pytest.raises(AssertionError):
        wiener.posterior_mean(factors, images[0], images[0], images[0], one, jnp.ones(3))


class VariantsTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True, with_device=True, with_pmap=True)
    def test_variants_agree(self):
        rng = np.random.default_rng(10)
        factors = factorize([random_covariance(rng, n) for n in SHAPE], MATRICES["all"])
        factors, mean, xt = jax.tree.map(
            lambda leaf: np.asarray(leaf, np.float32), (factors, *rng.normal(size=(2, *SHAPE)))
        )
        arguments = (factors, mean, mean, xt, np.float32(0.9), np.float32(0.1))
        # The same formula by numpy, one mode after another.
        s = 0.9 * np.einsum("i,j,k->ijk", *(axis.singular for axis in factors))
        modes = np.einsum("ih,jw,kc,hwc->ijk", *(axis.analysis for axis in factors), xt - mean)
        modes = modes * s / (s**2 + 0.01)
        expected = mean + np.einsum(
            "hi,wj,ck,ijk->hwc", *(axis.synthesis for axis in factors), modes
        )
        restored = self.variant(wiener.posterior_mean)(*arguments)
        np.testing.assert_allclose(restored, expected, atol=1e-4)
