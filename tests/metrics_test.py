"""Oracles: hand computation, closed forms, scipy.ndimage, scipy.linalg.sqrtm, numpy.cov, loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import linalg, ndimage

from diffjax import metrics


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def random_covariance(rng, size, rank=None):
    factor = rng.normal(size=(size, rank or size))
    return factor @ factor.T


def wang_ssim(image, reference, taps):
    """Wang et al.'s formula with scipy.ndimage, in float64, on windows inside the image."""
    offsets = np.arange(taps) - taps // 2
    kernel = np.exp(-(offsets**2) / (2 * 1.5**2))
    kernel /= kernel.sum()
    inside = slice(taps // 2, -(taps // 2) or None)

    def average(x):
        for axis in (0, 1):
            x = ndimage.correlate1d(x, kernel, axis=axis)
        return x[inside, inside]

    mean1, mean2 = average(image), average(reference)
    variance1 = average(image**2) - mean1**2
    variance2 = average(reference**2) - mean2**2
    covariance = average(image * reference) - mean1 * mean2
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean1 * mean2 + c1) / (mean1**2 + mean2**2 + c1)
    return np.mean(luminance * (2 * covariance + c2) / (variance1 + variance2 + c2))


def test_to_unit_rescales_and_clips():
    x = jnp.array([-3.0, -1.0, 0.0, 0.5, 1.0, 1.5])
    np.testing.assert_array_equal(metrics.to_unit(x), [0, 0, 0.5, 0.75, 1, 1])


def test_to_uint8_rounds_and_clips():
    # (x + 1) 127.5: 0.2 is 153, 0.005 is 128.1375, -0.999 is 0.1275.
    got = metrics.to_uint8(np.array([-1.5, -1.0, -0.999, 0.005, 0.2, 1.0, 7.0]))
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got, [0, 0, 0, 128, 153, 255, 255])
    # All 256 values of a file come back.
    levels = np.arange(256)
    np.testing.assert_array_equal(metrics.to_uint8((levels / 127.5 - 1).astype(np.float32)), levels)


def test_mse_and_psnr_by_hand():
    # Squared differences 0.04, 0, 0.01, 0.25 have the mean 0.075; -10 log10 of it is 11.2493874.
    image = jnp.array([0.5, 0.25, 1.0, 0.0]).reshape(2, 2, 1)
    reference = jnp.array([0.3, 0.25, 0.9, 0.5]).reshape(2, 2, 1)
    np.testing.assert_allclose(metrics.mse(image, reference), 0.075, rtol=1e-6)
    np.testing.assert_allclose(metrics.psnr(image, reference), 11.2493874, rtol=1e-6)
    # A difference of 0.1 everywhere is 20 dB.
    np.testing.assert_allclose(
        metrics.psnr(jnp.full((4, 4, 3), 0.6), jnp.full((4, 4, 3), 0.5)), 20, rtol=1e-6
    )


def test_identical_images_are_perfect(rng):
    image = jnp.asarray(rng.uniform(size=(12, 12, 3)), jnp.float32)
    assert metrics.mse(image, image) == 0
    assert metrics.psnr(image, image) == np.inf
    ssim = jax.jit(metrics.ssim)
    np.testing.assert_allclose(ssim(image, image), 1, atol=1e-6)
    black = jnp.zeros((8, 8, 1))
    np.testing.assert_allclose(ssim(black, black), 1, atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "taps"), [((32, 32, 3), 11), ((12, 15, 1), 11), ((8, 8, 1), 7), ((7, 20, 2), 7)]
)
def test_ssim_is_the_formula_of_wang(rng, shape, taps):
    reference = rng.uniform(size=shape)
    image = np.clip(0.7 * reference + 0.1 + 0.1 * rng.normal(size=shape), 0, 1)
    expected = np.mean([wang_ssim(image[..., c], reference[..., c], taps) for c in range(shape[2])])
    got = jax.jit(metrics.ssim)(
        jnp.asarray(image, jnp.float32), jnp.asarray(reference, jnp.float32)
    )
    np.testing.assert_allclose(got, expected, atol=2e-5)


@pytest.mark.parametrize("metric", [metrics.mse, metrics.psnr, metrics.ssim])
def test_images_of_different_shapes_raise(metric):
    with pytest.raises(AssertionError):
        metric(jnp.zeros((8, 8, 3)), jnp.zeros((8, 8, 1)))


def test_frechet_distance_with_equal_covariances_is_that_of_the_means(rng):
    covariance = random_covariance(rng, 6)
    mean1, mean2 = rng.normal(size=(2, 6))
    got = metrics.frechet_distance(mean1, covariance, mean2, covariance)
    np.testing.assert_allclose(got, np.sum((mean1 - mean2) ** 2), rtol=1e-10)


def test_frechet_distance_of_commuting_covariances(rng):
    # sum (sqrt a - sqrt b)^2 = (2 - 1)^2 + (0 - 3)^2 + (1 - 5)^2 = 26, in any rotated frame.
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    cov1 = rotation @ np.diag([4.0, 0.0, 1.0]) @ rotation.T
    cov2 = rotation @ np.diag([1.0, 9.0, 25.0]) @ rotation.T
    got = metrics.frechet_distance(np.zeros(3), cov1, np.zeros(3), cov2)
    np.testing.assert_allclose(got, 26, rtol=1e-6)


def test_frechet_distance_is_that_of_scipys_matrix_root(rng):
    mean1, mean2 = rng.normal(size=(2, 20))
    cov1, cov2 = random_covariance(rng, 20), random_covariance(rng, 20)
    root = linalg.sqrtm(cov1 @ cov2)
    expected = np.sum((mean1 - mean2) ** 2) + np.trace(cov1 + cov2 - 2 * root.real)
    np.testing.assert_allclose(
        metrics.frechet_distance(mean1, cov1, mean2, cov2), expected, rtol=1e-9
    )
    np.testing.assert_allclose(
        metrics.frechet_distance(mean2, cov2, mean1, cov1), expected, rtol=1e-9
    )


def test_frechet_distance_of_singular_covariances(rng):
    # Vectors u, v of length 1: tr (u u^T v v^T)^(1/2) = |u . v|, so the distance is 2 - 2 |u . v|.
    u, v = (x / np.linalg.norm(x) for x in rng.normal(size=(2, 50)))
    zero = np.zeros(50)
    got = metrics.frechet_distance(zero, np.outer(u, u), zero, np.outer(v, v))
    np.testing.assert_allclose(got, 2 - 2 * abs(u @ v), atol=1e-6)
    singular = random_covariance(rng, 50, rank=5)
    got = metrics.frechet_distance(zero, singular, zero, singular)
    assert 0 <= got < 1e-5 * np.trace(singular)
    # One Gaussian a point: the trace of the other.
    got = metrics.frechet_distance(zero, np.zeros((50, 50)), zero, singular)
    np.testing.assert_allclose(got, np.trace(singular), rtol=1e-10)


def test_frechet_distance_of_mismatched_shapes_raises():
    zero, eye = np.zeros(3), np.eye(3)
    for arguments in [
        (zero, eye, np.zeros(2), np.eye(2)),
        (zero, eye, zero, np.eye(2)),
        (zero, np.ones(3), zero, eye),
        (eye, eye, eye, eye),
    ]:
        with pytest.raises(ValueError, match=r"must be \[F\], \[F, F\]"):
            metrics.frechet_distance(*arguments)


def brute_force_kernel_distance(features1, features2):
    def kernel(x, y):
        return (np.dot(x, y) / len(x) + 1) ** 3

    def within(xs):
        pairs = [kernel(x, y) for i, x in enumerate(xs) for j, y in enumerate(xs) if i != j]
        return np.mean(pairs)

    between = np.mean([kernel(x, y) for x in features1 for y in features2])
    return within(features1) + within(features2) - 2 * between


def test_kernel_distance_is_the_mean_over_pairs(rng):
    features1, features2 = rng.normal(size=(9, 4)), rng.normal(0.5, 2, size=(6, 4))
    np.testing.assert_allclose(
        metrics.kernel_distance(features1, features2),
        brute_force_kernel_distance(features1, features2),
        rtol=1e-12,
    )


def test_kernel_distance_by_hand_past_one_block():
    # 1,500 times 1 against 2 and 0, F = 1. Within: 2^3 = 8, and 1 (k(2, 0) alone);
    # between: the mean of 3^3 and 1 is 14. So 8 + 1 - 28 = -19.
    ones, others = np.ones((1500, 1)), np.array([[2.0], [0.0]])
    np.testing.assert_allclose(metrics.kernel_distance(ones, others), -19, rtol=1e-12)
    np.testing.assert_allclose(metrics.kernel_distance(others, ones), -19, rtol=1e-12)


def test_kernel_distance_is_unbiased():
    # Sets of one distribution: mean 0 over 400 draws, within 4 standard errors of it.
    rng = np.random.default_rng(1)
    draws = [metrics.kernel_distance(*rng.normal(size=(2, 10, 3))) for _ in range(400)]
    assert abs(np.mean(draws)) < 4 * np.std(draws) / np.sqrt(len(draws))


@pytest.mark.parametrize(
    ("features1", "features2", "message"),
    [
        (np.zeros((1, 3)), np.zeros((5, 3)), "features1 must be .* N >= 2"),
        (np.zeros((5, 3)), np.zeros(3), "features2 must be .* N >= 2"),
        (np.zeros((5, 3)), np.zeros((5, 2)), "must have one length"),
        (np.zeros((5, 3)), np.full((5, 3), np.nan), "features2 must be finite"),
    ],
)
def test_kernel_distance_of_other_features_raises(features1, features2, message):
    with pytest.raises(ValueError, match=message):
        metrics.kernel_distance(features1, features2)


def test_the_gaussian_of_features_far_from_0(rng):
    # An offset of 1e6 would cancel a naive E[f f'] - mean mean'; numpy's two passes are the oracle.
    features = rng.normal(size=(99, 5)) @ rng.normal(size=(5, 5)) + 1e6
    mean, covariance = metrics.gaussian(features)
    deviations = features - features.sum(axis=0) / 99
    np.testing.assert_allclose(mean, features.sum(axis=0) / 99, rtol=1e-14)
    np.testing.assert_allclose(covariance, deviations.T @ deviations / 98, atol=1e-7)
    assert metrics.gaussian(features[:, :1])[1].shape == (1, 1)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (np.zeros((1, 3)), "N >= 2"),
        (np.zeros(3), "N >= 2"),
        (np.full((2, 3), np.inf), "must be finite"),
    ],
)
def test_features_without_a_gaussian_raise(features, message):
    with pytest.raises(ValueError, match=message):
        metrics.gaussian(features)
