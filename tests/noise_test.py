"""Oracles: hand computation; closed forms in float64 numpy."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import schedules
from diffjax.degradations.base import add_noise, degrade, draw, draw_noise, infer, infer_noise
from diffjax.degradations.blur import gaussian_blur
from diffjax.degradations.heat import heat
from diffjax.degradations.noise import animorph, bridge, gaussian_noise

SHAPE = (6, 5, 2)
KEY = jax.random.key(0)


def images(count=1, seed=0):
    values = np.random.default_rng(seed).uniform(-1, 1, (count, *SHAPE))
    return values.astype(np.float32)


def blur(std=1.0):
    return gaussian_blur(SHAPE, stds=[std, 2 * std], kernel_size=5)


def test_add_and_infer_noise_by_hand():
    x0, omega = jnp.full((1, 1, 1), 0.5), jnp.full((1, 1, 1), -2.0)
    # 0.6 * 0.5 - 0.8 * 2 = -1.3
    xt = add_noise(x0, jnp.float32(0.6), jnp.float32(0.8), omega)
    np.testing.assert_allclose(xt, [[[-1.3]]], rtol=1e-6)
    # (-1.3 - 0.6 * 1) / 0.8 = -2.375
    got = infer_noise(xt, jnp.float32(0.6), jnp.float32(0.8), jnp.ones((1, 1, 1)), omega)
    np.testing.assert_allclose(got, [[[-2.375]]], rtol=1e-6)


def test_no_noise_is_the_identity_and_keeps_omega():
    x0, omega = images(2)
    one, zero = jnp.float32(1), jnp.float32(0)
    xt = add_noise(x0, one, zero, omega)
    np.testing.assert_array_equal(xt, x0)
    np.testing.assert_array_equal(infer_noise(xt, one, zero, x0 + 1, omega), omega)


@pytest.mark.parametrize("sigma", [0.0, 1e-6, 0.5])
def test_gradients_are_finite_without_noise_too(sigma):
    x0, omega = images(2)

    def total(alpha, sigma, x0):
        xt = add_noise(x0, alpha, sigma, omega)
        return jnp.sum(infer_noise(xt, alpha, sigma, 0.9 * x0, omega))

    gradients = jax.grad(total, argnums=(0, 1, 2))(jnp.float32(0.7), jnp.float32(sigma), x0)
    chex.assert_tree_all_finite(gradients)


def test_dtype_is_that_of_the_image():
    x0, omega = (x.astype(jnp.bfloat16) for x in images(2))
    xt = add_noise(x0, jnp.float32(0.6), jnp.float32(0.8), omega)
    assert xt.dtype == jnp.bfloat16
    assert infer_noise(xt, jnp.float32(0.6), jnp.float32(0.8), x0, omega).dtype == xt.dtype
    assert draw_noise(None, jax.random.key(0), x0).dtype == xt.dtype


def test_noise_of_another_shape_raises():
    x0, omega = images(2)
    one = jnp.float32(1)
    with pytest.raises(AssertionError):
        add_noise(x0, one, one, omega[:1])
    with pytest.raises(AssertionError):
        add_noise(x0, jnp.ones(5), one, omega)
    with pytest.raises(AssertionError):
        infer_noise(x0, one, one, x0[:1], omega)


def test_gaussian_noise_is_its_closed_form():
    x0, omega = images(2)
    flow = gaussian_noise(SHAPE, schedule="flow")
    np.testing.assert_allclose(degrade(flow, x0, 0.25, omega), 0.75 * x0 + 0.25 * omega, atol=1e-6)
    exploding = gaussian_noise(SHAPE, schedule="karras", sigma_max=10.0)
    np.testing.assert_allclose(degrade(exploding, x0, 1.0, omega), x0 + 10 * omega, rtol=1e-5)
    # alpha_bar = 0.64 after the first of two betas, 0.36 after the second.
    tabulated = gaussian_noise(
        SHAPE, schedule="tabulated", table=schedules.beta_table([0.36, 0.4375])
    )
    np.testing.assert_allclose(
        degrade(tabulated, x0, 0.5, omega), 0.8 * x0 + 0.6 * omega, atol=1e-6
    )
    # (x0 + 0.75 x0) / 0.25 = 7 x0
    np.testing.assert_allclose(infer(flow, x0, 0.25, -x0, omega), 7 * x0, atol=1e-5)


def test_gaussian_noise_draws_a_standard_normal():
    omega = draw(gaussian_noise((64, 64, 3)), KEY, jnp.zeros((64, 64, 3)))
    # 12,288 draws: the mean is off by 0.009, the variance by 0.013 at one standard error.
    np.testing.assert_allclose(jnp.mean(omega), 0, atol=0.04)
    np.testing.assert_allclose(jnp.var(omega), 1, atol=0.06)


def test_zero_terminal_snr_ends_in_pure_noise():
    x0, omega = images(2)
    rescaled = gaussian_noise(SHAPE, schedule="linear", zero_terminal_snr=True)
    np.testing.assert_array_equal(degrade(rescaled, x0, 1.0, omega), omega)
    # Without it, sqrt(4.04e-5) of x0 stays.
    plain = degrade(gaussian_noise(SHAPE, schedule="linear"), x0, 1.0, jnp.zeros_like(x0))
    np.testing.assert_allclose(plain, np.sqrt(4.0358e-5) * x0, rtol=1e-4)


def test_stacked_params_are_a_sweep():
    x0, omega = images(2)
    one, other = (gaussian_noise(SHAPE, schedule="karras", sigma_max=s) for s in (10.0, 20.0))
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), one, other)
    swept = jax.vmap(degrade, in_axes=(0, None, None, None))(stacked, x0, jnp.float32(1), omega)
    np.testing.assert_allclose(swept, [x0 + 10 * omega, x0 + 20 * omega], rtol=1e-5)


def test_animorph_draws_images_of_its_bank():
    bank = images(3, seed=4)
    degradation = animorph(SHAPE, images=bank)
    keys = jax.random.split(KEY, 64)
    omegas = np.asarray(jax.vmap(draw, in_axes=(None, 0, None))(degradation, keys, bank[0]))
    distances = np.abs(omegas[:, None] - bank[None]).max(axis=(2, 3, 4))
    assert np.all(distances.min(axis=1) == 0)
    # One of three never drawn in 64: 3 (2/3)^64 = 2e-11.
    assert set(distances.argmin(axis=1)) == {0, 1, 2}


def test_bridge_runs_to_the_end_point():
    (x0,) = images()
    end, to_end = blur(), bridge(SHAPE, end=blur(), noise=0.1)
    omega = draw(to_end, KEY, x0)
    np.testing.assert_array_equal(degrade(to_end, x0, 1.0, omega), omega)
    np.testing.assert_allclose(degrade(to_end, x0, 0.3, omega), 0.7 * x0 + 0.3 * omega, atol=1e-6)
    # omega - y is 0.1 times a standard normal, of 60 draws.
    noise = np.asarray(omega - degrade(end, x0, 1.0)) / 0.1
    assert 0.6 < np.std(noise) < 1.4
    # Heat is continuous: its end point is at t = 1 and nowhere near it.
    silent, end = bridge(SHAPE, end=heat(SHAPE, sigma_max=4.0)), heat(SHAPE, sigma_max=4.0)
    np.testing.assert_array_equal(draw(silent, KEY, x0), degrade(end, x0, 1.0))


def test_algorithm_2_with_the_inferred_end_point_is_the_step_of_indi():
    x0, x0_hat, unread = images(3)
    to_end = bridge(SHAPE, end=blur(), noise=0.1)
    t, s = 0.8, 0.55
    xt = degrade(to_end, x0, t, draw(to_end, KEY, x0))
    omega_hat = infer(to_end, xt, t, x0_hat, unread)
    xs = xt - degrade(to_end, x0_hat, t, omega_hat) + degrade(to_end, x0_hat, s, omega_hat)
    expected = xt + (t - s) / t * (x0_hat - xt)
    np.testing.assert_allclose(xs, expected, atol=1e-6)


@pytest.mark.parametrize("t", [0.25, 1.0])
def test_brownian_noise_grows_as_the_root_of_t(t):
    (x0,) = images()
    degradation = bridge(SHAPE, end=gaussian_noise(SHAPE), noise=0.1, brownian=True)
    y, n = draw(degradation, KEY, x0)
    xt = degrade(degradation, x0, t, (y, n))
    np.testing.assert_allclose(xt, (1 - t) * x0 + t * y + 0.1 * np.sqrt(t) * n, atol=1e-6)
    # y is solved for, n kept.
    y_hat, n_hat = infer(degradation, xt, t, x0, (jnp.zeros_like(y), n))
    np.testing.assert_allclose(y_hat, y, atol=1e-5)
    np.testing.assert_array_equal(n_hat, n)


def negative(t):
    return 1 - 2 * t, t


def growing(t):
    return jnp.where(t < 0.5, 1.0 - t, 1.0), t


def noisy_start(t):
    return 1 - t, 0.1 + t


BANK = images(2)
WRONG = [
    (gaussian_noise, {"schedule": "cosinus"}, "schedule must be one of linear, cosine"),
    (animorph, {"images": BANK, "schedule": None}, "schedule must be one of linear, cosine"),
    (gaussian_noise, {"schedule": lambda t: (1 - t, t)}, "schedule must .* or a function with a"),
    (gaussian_noise, {"beta_min": 0.1}, "schedule cosine takes .*; got .'beta_min'"),
    (gaussian_noise, {"schedule": "tabulated"}, "schedule tabulated needs table"),
    (gaussian_noise, {"schedule": "tabulated", "table": np.ones((3, 3))}, "table must be"),
    (
        gaussian_noise,
        {"schedule": "karras", "sigma_min": -1.0},
        "schedule karras with sigma_min = -1.0",
    ),
    (
        gaussian_noise,
        {"schedule": "karras", "sigma_max": np.ones(3)},
        "schedule karras with .* must give two scalars",
    ),
    (gaussian_noise, {"schedule": negative}, "schedule negative .* not negative"),
    (
        gaussian_noise,
        {"schedule": growing},
        "schedule growing .* must not let sigma / alpha fall",
    ),
    (gaussian_noise, {"schedule": noisy_start}, "schedule noisy_start .* must start at"),
    (gaussian_noise, {"schedule": "flow", "zero_terminal_snr": True}, "zero_terminal_snr needs"),
    (animorph, {"images": BANK[..., :1]}, "images must be"),
    (animorph, {"images": BANK[0]}, "images must be"),
    (animorph, {"images": BANK[:0]}, "images must be"),
    (animorph, {"images": BANK.astype(np.uint8)}, "images must be"),
    (bridge, {"end": None}, "end must be a Degradation"),
    (
        bridge,
        {"end": gaussian_blur((6, 6, 2), stds=[1.0], kernel_size=5)},
        "end must degrade images of image_shape",
    ),
    (bridge, {"end": blur(), "noise": -0.1}, "noise must"),
]


@pytest.mark.parametrize(("constructor", "arguments", "message"), WRONG)
def test_an_argument_that_cannot_be_raises(constructor, arguments, message):
    with pytest.raises(ValueError, match=message):
        constructor(SHAPE, **arguments)


class VariantsTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True, with_device=True, with_pmap=True)
    def test_inference_inverts(self):
        x0, omega = images(2, seed=1)
        alpha, sigma = jnp.float32(0.8), jnp.float32(0.6)
        xt = self.variant(add_noise)(x0, alpha, sigma, omega)
        expected = 0.8 * np.asarray(x0, np.float64) + 0.6 * np.asarray(omega, np.float64)
        np.testing.assert_allclose(xt, expected, atol=1e-6)
        got = self.variant(infer_noise)(xt, alpha, sigma, x0, jnp.zeros_like(omega))
        np.testing.assert_allclose(got, omega, atol=1e-6)
