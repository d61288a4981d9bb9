"""Oracles: scipy.fft.dct, dctn and idctn in float64; closed forms; scipy.linalg.expm for heat;
the limits in which blurring noise must become another family."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import fft, linalg, special

from diffjax.degradations import heat
from diffjax.degradations.base import degrade, draw, transform
from diffjax.degradations.noise import gaussian_noise

HEIGHT, WIDTH = 8, 5
SHAPE = (HEIGHT, WIDTH, 3)


def images(count=1, seed=0):
    values = np.random.default_rng(seed).uniform(-1, 1, (count, *SHAPE))
    return values.astype(np.float32)


def bases():
    """Of rows and columns, from scipy."""
    return tuple(
        jnp.asarray(fft.dct(np.eye(size), norm="ortho", axis=0), jnp.float32)
        for size in (HEIGHT, WIDTH)
    )


def exact_frequencies():
    n, m = np.arange(HEIGHT)[:, None, None], np.arange(WIDTH)[None, :, None]
    return (np.pi * n / HEIGHT) ** 2 + (np.pi * m / WIDTH) ** 2


def attenuated(x0, gain):
    u = fft.dctn(x0.astype(np.float64), norm="ortho", axes=(0, 1)) * gain
    return fft.idctn(u, norm="ortho", axes=(0, 1))


@pytest.mark.parametrize("size", [1, 2, 7, 32])
def test_dct_matrix(size):
    matrix = heat.dct_matrix(size)
    np.testing.assert_allclose(matrix, fft.dct(np.eye(size), norm="ortho", axis=0), atol=1e-13)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(size), atol=1e-13)


def test_basis_is_that_of_scipy_and_back():
    x = images()[0]
    u = transform(x, *bases())
    np.testing.assert_allclose(u, fft.dctn(x, norm="ortho", axes=(0, 1)), atol=1e-5)
    np.testing.assert_allclose(transform(u, *(basis.T for basis in bases())), x, atol=1e-5)


def test_frequencies():
    np.testing.assert_allclose(heat.frequencies(HEIGHT, WIDTH), exact_frequencies(), rtol=1e-6)


def test_eigenvalues_are_those_of_the_heat_equation():
    # cos(pi n x) on [0, 1] has the second derivative -(pi n)^2 times itself; n = 3, 8 pixels.
    assert heat.eigenvalues(8)[3].item() == pytest.approx((3 * np.pi / 8) ** 2)


@pytest.mark.parametrize("std", [0.0, 0.7, 20.0])
def test_degrade_spectral_is_scipys_transform_attenuated(std):
    x = images()[0]
    expected = attenuated(x, np.exp(-exact_frequencies() * std**2 / 2))
    gain = heat.attenuation(heat.frequencies(HEIGHT, WIDTH), jnp.float32(std))
    np.testing.assert_allclose(heat.degrade_spectral(x, *bases(), gain), expected, atol=1e-5)
    rows, cols = (heat.heat_matrix(basis, jnp.float32(std)) for basis in bases())
    by_matrices = np.einsum("ih,hwc,jw->ijc", rows, x, cols)
    np.testing.assert_allclose(by_matrices, expected, atol=1e-5)


def test_heat_matrix_is_the_exponential_of_its_generator():
    basis = bases()[0]
    matrix = np.asarray(basis, np.float64)
    generator = -matrix.T @ np.diag((np.pi * np.arange(HEIGHT) / HEIGHT) ** 2) @ matrix
    expected = linalg.expm(generator * 1.3**2 / 2)
    np.testing.assert_allclose(heat.heat_matrix(basis, jnp.float32(1.3)), expected, atol=1e-6)


def test_heat_matrix_is_a_semigroup():
    # 0.6^2 + 0.8^2 = 1
    basis = bases()[0]
    first, second, both = (heat.heat_matrix(basis, jnp.float32(s)) for s in (0.6, 0.8, 1.0))
    np.testing.assert_allclose(np.asarray(second) @ np.asarray(first), both, atol=1e-6)


def test_blurring_gain_has_a_floor():
    frequency = heat.frequencies(HEIGHT, WIDTH)
    gain = heat.blurring_gain(frequency, jnp.float32(2.0), jnp.float32(0.1))
    expected = 0.9 * np.exp(-exact_frequencies() * 2) + 0.1
    np.testing.assert_allclose(gain, expected, rtol=1e-5)
    assert gain[0, 0, 0] == 1  # the mean is kept


def test_another_size_raises():
    rows, cols = bases()
    gain = jnp.ones((HEIGHT, WIDTH, 1))
    with pytest.raises(AssertionError):
        heat.degrade_spectral(jnp.zeros((HEIGHT, HEIGHT, 1)), rows, cols, gain)
    with pytest.raises(AssertionError):
        heat.degrade_spectral(jnp.zeros((HEIGHT, WIDTH, 1)), rows, cols, gain[:1])
    with pytest.raises(AssertionError):
        heat.attenuation(gain, jnp.ones(2))


@pytest.mark.parametrize("t", [0.02, 0.5, 1.0])
def test_heat_is_scipys_transform_attenuated(t):
    (x0,) = images()
    std = 0.5 * 8**t
    expected = attenuated(x0, np.exp(-exact_frequencies() * std**2 / 2))
    np.testing.assert_allclose(degrade(heat.heat(SHAPE, sigma_max=4.0), x0, t), expected, atol=2e-6)


def test_heat_of_levels_is_tabulated():
    (x0,) = images()
    tabulated = heat.heat(SHAPE, sigma_max=8.0, levels=5)
    # Levels 0.5, 1, 2, 4, 8 at k = 1..5; t = 0.31 is k = round(1.55) = 2, t = 0.09 is k = 0.
    for t, std in ((0.2, 0.5), (0.31, 1.0), (0.6, 2.0), (1.0, 8.0)):
        expected = attenuated(x0, np.exp(-exact_frequencies() * std**2 / 2))
        np.testing.assert_allclose(degrade(tabulated, x0, t), expected, atol=2e-6)
    np.testing.assert_array_equal(degrade(tabulated, x0, 0.09), x0)


def test_heat_is_a_semigroup():
    # Stds 3 and 4 make 5: sigma_max at t = 1 of three degradations.
    (x0,) = images()
    three, four, five = (heat.heat(SHAPE, sigma_max=std) for std in (3.0, 4.0, 5.0))
    twice = degrade(four, degrade(three, x0, 1.0), 1.0)
    np.testing.assert_allclose(twice, degrade(five, x0, 1.0), atol=1e-6)


def test_noise_of_heat():
    x0, omega = images(2)
    noisy, silent = (heat.heat(SHAPE, sigma_max=4.0, noise=noise) for noise in (0.02, 0.0))
    assert draw(silent, jax.random.key(0), x0) is None
    for t in (0.01, 1.0):
        difference = degrade(noisy, x0, t, omega) - degrade(silent, x0, t)
        np.testing.assert_allclose(difference, 0.02 * omega, atol=1e-6)
    np.testing.assert_array_equal(degrade(noisy, x0, 0.0, omega), x0)


def blurring_by_hand(t):
    """(alpha of every frequency, sigma) of blur_max = 3, d_min = 0.1."""
    std = 3 * np.sin(np.pi * t / 2) ** 2
    gain = 0.9 * np.exp(-exact_frequencies() * std**2 / 2) + 0.1
    first, last = np.arctan(np.exp(-5)), np.arctan(np.exp(5))
    logsnr = -2 * np.log(np.tan(first + t * (last - first)))
    return gain * np.sqrt(special.expit(logsnr)), np.sqrt(special.expit(-logsnr))


@pytest.mark.parametrize("t", [0.1, 0.5, 1.0])
def test_blurring_noise_is_its_closed_form(t):
    x0, omega = images(2)
    alpha, sigma = blurring_by_hand(t)
    degradation = heat.blurring_noise(SHAPE, blur_max=3.0, d_min=0.1)
    xt = degrade(degradation, x0, t, omega)
    np.testing.assert_allclose(xt, attenuated(x0, alpha) + sigma * omega, atol=2e-6)


@pytest.mark.parametrize("t", [0.1, 1.0])
def test_spectral_functions_are_blurring_noise_without_its_noise(t):
    (x0,) = images()
    degradation = heat.blurring_noise(SHAPE, blur_max=3.0, d_min=0.1)
    to_fn, from_fn, coefficients_fn = heat.spectral_functions(degradation.params)
    alpha, sigma = coefficients_fn(jnp.float32(t))
    np.testing.assert_allclose(to_fn(x0), fft.dctn(x0, norm="ortho", axes=(0, 1)), atol=1e-5)
    np.testing.assert_allclose(from_fn(to_fn(x0)), x0, atol=1e-5)
    gain, expected_sigma = blurring_by_hand(t)
    np.testing.assert_allclose(alpha, gain, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(sigma, expected_sigma, rtol=1e-4)


@pytest.mark.parametrize("t", [0.0, 0.01, 0.5, 1.0])
def test_blurring_noise_without_blur_is_gaussian_noise(t):
    x0, omega = images(2)
    numbers = {"logsnr_min": -10.0, "logsnr_max": 10.0}
    noisy = gaussian_noise(SHAPE, schedule="shifted_cosine", **numbers)
    unblurred = heat.blurring_noise(SHAPE, blur_max=0.0, **numbers)
    np.testing.assert_array_equal(degrade(unblurred, x0, t, omega), degrade(noisy, x0, t, omega))


@pytest.mark.parametrize("t", [0.0, 0.5, 0.8, 1.0])
def test_blurring_noise_without_noise_is_heat(t):
    x0, omega = images(2)
    silent = heat.blurring_noise(
        SHAPE, blur_max=4.0, d_min=0.0, logsnr_min=np.inf, logsnr_max=np.inf
    )
    # The same std: 4 sin^2(pi t / 2) = 0.5 * 8^t_heat.
    std = 4 * np.sin(np.pi * t / 2) ** 2
    t_heat = np.log(std / 0.5) / np.log(8) if t else 0.0
    expected = degrade(heat.heat(SHAPE, sigma_max=4.0), x0, float(min(t_heat, 1)))
    np.testing.assert_allclose(degrade(silent, x0, t, omega), expected, atol=2e-6)


WRONG = [
    (heat.heat, {"sigma_max": 4.0, "noise": -0.1}, "noise must"),
    (heat.heat, {"sigma_max": 4.0, "sigma_min": 0.0}, "sigma_min must"),
    (heat.heat, {"sigma_max": 0.4}, "sigma_max must"),
    (heat.heat, {"sigma_max": np.nan}, "sigma_max must"),
    (heat.heat, {"sigma_max": 4.0, "levels": 1}, "levels must"),
    (heat.heat, {"sigma_max": 4.0, "levels": -3}, "levels must"),
    (heat.blurring_noise, {"blur_max": -1.0}, "blur_max must"),
    (heat.blurring_noise, {"blur_max": 1.0, "d_min": 1.1}, "d_min must"),
    (heat.blurring_noise, {"blur_max": 1.0, "logsnr_min": 11.0}, "logsnr_min must"),
]


@pytest.mark.parametrize(("constructor", "arguments", "message"), WRONG)
def test_an_argument_that_cannot_be_raises(constructor, arguments, message):
    with pytest.raises(ValueError, match=message):
        constructor(SHAPE, **arguments)


class VariantsTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True, with_device=True, with_pmap=True)
    def test_variants_agree(self):
        x = images(seed=1)[0]
        gain = np.random.default_rng(2).uniform(size=(HEIGHT, WIDTH, 1)).astype(np.float32)
        degraded = self.variant(heat.degrade_spectral)(x, *bases(), gain)
        np.testing.assert_allclose(degraded, attenuated(x, gain), atol=1e-5)
