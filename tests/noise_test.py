"""Oracles: hand computation; the closed form alpha x0 + sigma omega in float64 numpy."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax.operators import noise


def pair(seed=0, shape=(4, 5, 2)):
    rng = np.random.default_rng(seed)
    return (jnp.asarray(rng.normal(size=shape), jnp.float32) for _ in range(2))


def test_by_hand():
    x0, omega = jnp.full((1, 1, 1), 0.5), jnp.full((1, 1, 1), -2.0)
    # 0.6 * 0.5 - 0.8 * 2 = -1.3
    xt = noise.add_noise(x0, jnp.float32(0.6), jnp.float32(0.8), omega)
    np.testing.assert_allclose(xt, [[[-1.3]]], rtol=1e-6)
    # (-1.3 - 0.6 * 1) / 0.8 = -2.375
    got = noise.infer_noise(xt, jnp.float32(0.6), jnp.float32(0.8), jnp.ones((1, 1, 1)), omega)
    np.testing.assert_allclose(got, [[[-2.375]]], rtol=1e-6)


def test_no_noise_is_the_identity_and_keeps_omega():
    x0, omega = pair()
    one, zero = jnp.float32(1), jnp.float32(0)
    xt = noise.add_noise(x0, one, zero, omega)
    np.testing.assert_array_equal(xt, x0)
    np.testing.assert_array_equal(noise.infer_noise(xt, one, zero, x0 + 1, omega), omega)


@pytest.mark.parametrize("sigma", [0.0, 1e-6, 0.5])
def test_gradients_are_finite_without_noise_too(sigma):
    x0, omega = pair()

    def total(alpha, sigma, x0):
        xt = noise.add_noise(x0, alpha, sigma, omega)
        return jnp.sum(noise.infer_noise(xt, alpha, sigma, 0.9 * x0, omega))

    gradients = jax.grad(total, argnums=(0, 1, 2))(jnp.float32(0.7), jnp.float32(sigma), x0)
    chex.assert_tree_all_finite(gradients)


def test_dtype_is_that_of_the_image():
    x0, omega = (x.astype(jnp.bfloat16) for x in pair())
    xt = noise.add_noise(x0, jnp.float32(0.6), jnp.float32(0.8), omega)
    assert xt.dtype == jnp.bfloat16
    assert noise.infer_noise(xt, jnp.float32(0.6), jnp.float32(0.8), x0, omega).dtype == xt.dtype
    assert noise.draw_noise(None, jax.random.key(0), x0).dtype == xt.dtype


def test_draw_noise_is_standard_normal():
    omega = noise.draw_noise(None, jax.random.key(0), jnp.zeros((64, 64, 3)))
    # 12,288 draws: the mean is off by 0.009, the variance by 0.013 at one standard error.
    np.testing.assert_allclose(jnp.mean(omega), 0, atol=0.04)
    np.testing.assert_allclose(jnp.var(omega), 1, atol=0.06)


def test_another_shape_raises():
    x0, omega = pair()
    one = jnp.float32(1)
    with pytest.raises(AssertionError):
        noise.add_noise(x0, one, one, omega[:1])
    with pytest.raises(AssertionError):
        noise.add_noise(x0, jnp.ones(5), one, omega)
    with pytest.raises(AssertionError):
        noise.infer_noise(x0, one, one, x0[:1], omega)


class VariantsTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True, with_device=True, with_pmap=True)
    def test_inference_inverts(self):
        x0, omega = pair(1)
        alpha, sigma = jnp.float32(0.8), jnp.float32(0.6)
        xt = self.variant(noise.add_noise)(x0, alpha, sigma, omega)
        expected = 0.8 * np.asarray(x0, np.float64) + 0.6 * np.asarray(omega, np.float64)
        np.testing.assert_allclose(xt, expected, atol=1e-6)
        got = self.variant(noise.infer_noise)(xt, alpha, sigma, x0, jnp.zeros_like(omega))
        np.testing.assert_allclose(got, omega, atol=1e-6)
