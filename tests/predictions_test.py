"""Oracles: hand computation, numpy.linalg.solve, and EDM's published c_skip and c_out in numpy."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import predictions

KINDS = tuple(predictions.DIRECTIONS)
# (alpha, sigma) of x_t, and of the milder x_s.
SCHEDULES = {
    "vp": ((0.6, 0.8), (0.8, 0.6)),
    "flow": ((0.3, 0.7), (0.5, 0.5)),
    "ve": ((1.0, 3.0), (1.0, 0.5)),
    "mild": ((0.99, 0.1), (1.0, 0.02)),
}


def example(shape=(4, 4, 1)):
    x0, omega = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    return jnp.asarray(x0), jnp.asarray(omega)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(("source", "destination"), list(itertools.product(KINDS, KINDS)))
def test_every_ordered_pair_converts(source, destination, schedule):
    (alpha, sigma), (alpha_s, sigma_s) = SCHEDULES[schedule]
    extras = {"alpha_s": alpha_s, "sigma_s": sigma_s, "sigma_data": 0.7}
    x0, omega = example()
    xt = alpha * x0 + sigma * omega
    output = predictions.target(source, x0, omega, alpha, sigma, **extras)
    expected = predictions.target(destination, x0, omega, alpha, sigma, **extras)
    got = predictions.convert(output, xt, source, destination, alpha, sigma, **extras)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
    # The same, by way of the clean image alone.
    x0_hat = predictions.to_x0(source, output, xt, alpha, sigma, **extras)
    np.testing.assert_allclose(x0_hat, x0, atol=1e-5)
    got = predictions.convert(x0_hat, xt, "x0", destination, alpha, sigma, **extras)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=2e-3)


def test_targets_by_hand():
    # x0 = 1, omega = 2, alpha = 0.8, sigma = 0.6, so x_t = 2; alpha_s = 0.96, sigma_s = 0.28.
    # EDM sees z = 2 / 0.8 = 2.5 with noise 0.75: c_skip = 0.25 / (0.5625 + 0.25) = 4 / 13 and
    # c_out = 0.75 * 0.5 / sqrt(0.8125), so F = (1 - 2.5 * 4 / 13) / c_out.
    expected = {
        "x0": 1.0,
        "noise": 2.0,
        "v": 0.8 * 2 - 0.6,
        "score": -2 / 0.6,
        "flow": 1.0,
        "edm": (1 - 2.5 * 4 / 13) * np.sqrt(0.8125) / 0.375,
        "previous": 0.96 + 0.56,
    }
    assert set(expected) == set(KINDS)
    for kind, value in expected.items():
        got = predictions.target(
            kind, jnp.ones(1), jnp.full(1, 2.0), 0.8, 0.6, alpha_s=0.96, sigma_s=0.28
        )
        np.testing.assert_allclose(got, [value], rtol=1e-6, err_msg=kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_solve_is_the_two_by_two_system(kind, schedule):
    # [alpha sigma; b e] [x0; omega] = [x_t; y], for any y, not only a true target.
    (alpha, sigma), (alpha_s, sigma_s) = SCHEDULES[schedule]
    extras = {"alpha_s": alpha_s, "sigma_s": sigma_s}
    xt, output = example()
    one, zero = jnp.ones(()), jnp.zeros(())
    b = predictions.target(kind, one, zero, alpha, sigma, **extras)
    e = predictions.target(kind, zero, one, alpha, sigma, **extras)
    matrix = np.array([[alpha, sigma], [b, e]], np.float64)
    expected = np.linalg.solve(matrix, np.stack([xt.ravel(), output.ravel()]).astype(np.float64))
    got = predictions.solve(kind, output, xt, alpha, sigma, **extras)
    np.testing.assert_allclose(
        np.reshape(got, (2, -1)), expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max()
    )


@pytest.mark.parametrize("alpha", [1.0, 0.4])
def test_edm_is_the_published_preconditioning_of_the_rescaled_state(alpha):
    # D = c_skip z + c_out F in float64, with z = x_t / alpha and sigma_e = sigma / alpha.
    sigma, sigma_data = 0.9, 0.5
    xt, output = example()
    z, sigma_e = np.asarray(xt, np.float64) / alpha, sigma / alpha
    total = sigma_e**2 + sigma_data**2
    expected = sigma_data**2 / total * z + sigma_e * sigma_data / np.sqrt(total) * np.asarray(
        output
    )
    got = predictions.to_x0("edm", output, xt, alpha, sigma, sigma_data=sigma_data)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)


def test_error_factors_by_hand():
    # alpha = sqrt(5/6), sigma = sqrt(1/6): SNR = 5 and alpha^2 + sigma^2 = 1.
    vp = {
        "x0": 1.0,
        "noise": 5.0,
        "v": 6.0,
        "score": 30.0,
        "edm": 5 + 1 / 0.25,
        "previous": (np.sqrt(5 / 6) * 0.5 - 0.9) ** 2,  # sigma_s / sigma = 1/2, alpha_s = 0.9
    }
    for kind, value in vp.items():
        got = predictions.x0_error_factor(
            kind, np.sqrt(5 / 6), np.sqrt(1 / 6), alpha_s=0.9, sigma_s=np.sqrt(1 / 6) / 2
        )
        np.testing.assert_allclose(got, value, rtol=1e-5, err_msg=kind)
    # alpha = 1 - t, sigma = t at t = 1/4.
    np.testing.assert_allclose(predictions.x0_error_factor("flow", 0.75, 0.25), 16, rtol=1e-6)
    # Not variance-preserving: (alpha^2 + sigma^2)^2 / sigma^2 = 25 / 4 at alpha = 1, sigma = 2.
    np.testing.assert_allclose(predictions.x0_error_factor("v", 1.0, 2.0), 6.25, rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_error_factor_is_the_ratio_of_the_errors(kind, schedule):
    (alpha, sigma), (alpha_s, sigma_s) = SCHEDULES[schedule]
    extras = {"alpha_s": alpha_s, "sigma_s": sigma_s}
    x0, omega = example()
    x0_hat = x0 + example((4, 4, 1))[1]
    xt = alpha * x0 + sigma * omega
    output = predictions.convert(x0_hat, xt, "x0", kind, alpha, sigma, **extras)
    error = output - predictions.target(kind, x0, omega, alpha, sigma, **extras)
    factor = predictions.x0_error_factor(kind, alpha, sigma, **extras)
    ratio = jnp.sum(error**2) / jnp.sum((x0_hat - x0) ** 2)
    np.testing.assert_allclose(ratio, factor, rtol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_no_noise_gives_the_clean_image(kind):
    # sigma = 0: x_t = alpha x0, whatever the network answered; x0 and previous, which are
    # the answer itself, were answered right.
    extras = {"alpha_s": 0.9, "sigma_s": 0.0}
    x0, output = example()
    output = {"x0": x0, "previous": 0.9 * x0}.get(kind, output)

    def total(output, xt):
        x0_hat = predictions.to_x0(kind, output, xt, 0.8, 0.0, **extras)
        return jnp.sum(x0_hat), x0_hat

    (_, x0_hat), grads = jax.value_and_grad(total, (0, 1), has_aux=True)(output, 0.8 * x0)
    np.testing.assert_allclose(x0_hat, x0, atol=1e-6)
    chex.assert_tree_all_finite(grads)


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_but_noise(kind):
    # alpha = 0: x_t = sigma omega says nothing of x0; the kinds that do, give it back.
    extras = {"alpha_s": 0.1, "sigma_s": 0.9}
    x0, omega = example()
    output = predictions.target(kind, x0, omega, 0.0, 1.0, **extras)
    x0_hat = predictions.to_x0(kind, output, omega, 0.0, 1.0, **extras)
    chex.assert_tree_all_finite(x0_hat)
    if kind not in ("noise", "score"):
        np.testing.assert_allclose(x0_hat, x0, rtol=1e-4, atol=1e-5)


def test_conversion_needs_no_division_by_sigma():
    # At sigma = 0 and alpha = 1, v is the noise itself.
    xt, output = example()
    got = predictions.convert(output, xt, "v", "noise", 1.0, 0.0)
    np.testing.assert_allclose(got, output, atol=1e-6)


def test_x0_is_handed_through_bit_for_bit():
    x0, xt = example()
    for alpha, sigma in ((1.0, 0.0), (0.6, 0.8), (0.0, 1.0)):
        np.testing.assert_array_equal(predictions.to_x0("x0", x0, xt, alpha, sigma), x0)
        same = predictions.convert(x0, xt, "x0", "x0", alpha, sigma)
        np.testing.assert_array_equal(same, x0)


def test_what_cannot_be_raises():
    x0, omega = example()
    names = "x0, noise, v, score, flow, edm, previous"
    with pytest.raises(ValueError, match=f"kind must be one of {names}; got 'epsilon'"):
        predictions.target("epsilon", x0, omega, 0.8, 0.6)
    with pytest.raises(ValueError, match="previous needs alpha_s and sigma_s"):
        predictions.to_x0("previous", x0, omega, 0.8, 0.6)
    with pytest.raises(AssertionError):
        predictions.target("v", x0, omega[None], 0.8, 0.6)
    with pytest.raises(AssertionError):
        predictions.to_x0("v", x0, omega.astype(jnp.bfloat16), 0.8, 0.6)
    with pytest.raises(AssertionError):
        predictions.to_x0("v", x0, omega, jnp.full(2, 0.8), 0.6)


class VariantsTest(chex.TestCase):
    @chex.all_variants()
    def test_variants_agree(self):
        xt, output = example()

        @self.variant
        def to_x0(output, xt, alpha, sigma):
            outputs = [predictions.to_x0(k, output, xt, alpha, sigma) for k in KINDS[:-1]]
            return jnp.stack(outputs)

        # By hand, from the table of the literature.
        a, s, xt64, y = 0.6, 0.8, np.asarray(xt, np.float64), np.asarray(output, np.float64)
        n = np.hypot(s / a, 0.5)
        expected = [
            y,
            (xt64 - s * y) / a,
            a * xt64 - s * y,
            (xt64 + s**2 * y) / a,
            (xt64 - s * y) / (a + s),
            0.25 / n**2 * xt64 / a + s / a * 0.5 / n * y,
        ]
        got = to_x0(output, xt, jnp.float32(a), jnp.float32(s))
        np.testing.assert_allclose(got, expected, atol=1e-5)

    def test_vmap_is_the_loop(self):
        xt_B, output_B = example((3, 4, 4, 1))
        t_B = jnp.array([0.1, 0.5, 1.0])
        alpha_B, sigma_B = 1 - t_B, t_B
        for kind in KINDS[:-1]:
            got = jax.vmap(lambda *args, kind=kind: predictions.to_x0(kind, *args))(
                output_B, xt_B, alpha_B, sigma_B
            )
            loop = [
                predictions.to_x0(kind, *args)
                for args in zip(output_B, xt_B, alpha_B, sigma_B, strict=True)
            ]
            np.testing.assert_allclose(got, jnp.stack(loop), rtol=1e-5, atol=1e-5)
