"""Oracles: scipy.fft.dctn and idctn in float64; closed forms; scipy.linalg.expm for heat."""

import chex
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import fft, linalg

from diffjax.operators import spectral

HEIGHT, WIDTH = 8, 5


def bases():
    """Of rows and columns, from scipy."""
    return tuple(
        jnp.asarray(fft.dct(np.eye(size), norm="ortho", axis=0), jnp.float32)
        for size in (HEIGHT, WIDTH)
    )


def image(seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (HEIGHT, WIDTH, 3)).astype(np.float32)


def exact_frequencies():
    n, m = np.arange(HEIGHT)[:, None, None], np.arange(WIDTH)[None, :, None]
    return (np.pi * n / HEIGHT) ** 2 + (np.pi * m / WIDTH) ** 2


def test_basis_is_that_of_scipy_and_back():
    x = image()
    u = spectral.to_basis(x, *bases())
    np.testing.assert_allclose(u, fft.dctn(x, norm="ortho", axes=(0, 1)), atol=1e-5)
    np.testing.assert_allclose(spectral.from_basis(u, *bases()), x, atol=1e-5)


def test_frequencies():
    np.testing.assert_allclose(spectral.frequencies(HEIGHT, WIDTH), exact_frequencies(), rtol=1e-6)


def test_eigenvalues_are_those_of_the_heat_equation():
    # cos(pi n x) on [0, 1] has the second derivative -(pi n)^2 times itself; n = 3, 8 pixels.
    assert spectral.eigenvalues(8)[3].item() == pytest.approx((3 * np.pi / 8) ** 2)


@pytest.mark.parametrize("std", [0.0, 0.7, 20.0])
def test_heat_is_scipys_transform_attenuated(std):
    x = image()
    u = fft.dctn(x.astype(np.float64), norm="ortho", axes=(0, 1))
    u *= np.exp(-exact_frequencies() * std**2 / 2)
    expected = fft.idctn(u, norm="ortho", axes=(0, 1))
    gain = spectral.attenuation(spectral.frequencies(HEIGHT, WIDTH), jnp.float32(std))
    np.testing.assert_allclose(spectral.degrade_spectral(x, *bases(), gain), expected, atol=1e-5)
    rows, cols = (spectral.heat_matrix(basis, jnp.float32(std)) for basis in bases())
    by_matrices = np.einsum("ih,hwc,jw->ijc", rows, x, cols)
    np.testing.assert_allclose(by_matrices, expected, atol=1e-5)


def test_heat_matrix_is_the_exponential_of_its_generator():
    basis = bases()[0]
    matrix = np.asarray(basis, np.float64)
    generator = -matrix.T @ np.diag((np.pi * np.arange(HEIGHT) / HEIGHT) ** 2) @ matrix
    expected = linalg.expm(generator * 1.3**2 / 2)
    np.testing.assert_allclose(spectral.heat_matrix(basis, jnp.float32(1.3)), expected, atol=1e-6)


def test_heat_is_a_semigroup():
    # 0.6^2 + 0.8^2 = 1
    basis = bases()[0]
    first, second, both = (spectral.heat_matrix(basis, jnp.float32(s)) for s in (0.6, 0.8, 1.0))
    np.testing.assert_allclose(np.asarray(second) @ np.asarray(first), both, atol=1e-6)


def test_blurring_gain_has_a_floor():
    frequency = spectral.frequencies(HEIGHT, WIDTH)
    gain = spectral.blurring_gain(frequency, jnp.float32(2.0), jnp.float32(0.1))
    expected = 0.9 * np.exp(-exact_frequencies() * 2) + 0.1
    np.testing.assert_allclose(gain, expected, rtol=1e-5)
    assert gain[0, 0, 0] == 1  # the mean is kept


def test_another_size_raises():
    rows, cols = bases()
    gain = jnp.ones((HEIGHT, WIDTH, 1))
    with pytest.raises(AssertionError):
        spectral.degrade_spectral(jnp.zeros((HEIGHT, HEIGHT, 1)), rows, cols, gain)
    with pytest.raises(AssertionError):
        spectral.degrade_spectral(jnp.zeros((HEIGHT, WIDTH, 1)), rows, cols, gain[:1])
    with pytest.raises(AssertionError):
        spectral.attenuation(gain, jnp.ones(2))


class VariantsTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True, with_device=True, with_pmap=True)
    def test_variants_agree(self):
        x = image(1)
        gain = np.random.default_rng(2).uniform(size=(HEIGHT, WIDTH, 1)).astype(np.float32)
        u = fft.dctn(x.astype(np.float64), norm="ortho", axes=(0, 1)) * gain
        degraded = self.variant(spectral.degrade_spectral)(x, *bases(), gain)
        np.testing.assert_allclose(degraded, fft.idctn(u, norm="ortho", axes=(0, 1)), atol=1e-5)
