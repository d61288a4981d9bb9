"""The robust losses and the weightings by severity.

Oracles: hand computation, scipy.special's huber, pseudo_huber and expit, finite differences.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl.testing import parameterized
from scipy import special

from diffjax import losses, predictions

LOSSES = {
    "l1": losses.l1,
    "l2": losses.l2,
    "huber": functools.partial(losses.huber, delta=1.0),
    "pseudo_huber": functools.partial(losses.pseudo_huber, c=0.5),
}
WEIGHTINGS = losses.WEIGHTINGS | {
    "sigmoid": functools.partial(losses.sigmoid_weight, bias=-1.0),
}
EXTRAS = {"alpha_s": 0.9, "sigma_s": 0.1}
# Differences on either side of every kink (0 and delta = 1), none within 0.2 of one.
DIFFERENCES = np.array([[-2.0, -0.7, -0.25], [0.3, 0.75, 1.6]], np.float32)


def test_huber_is_twice_scipys():
    d = np.linspace(-3, 3, 41).astype(np.float32)
    for delta in (0.1, 1.0, 10.0):
        got = losses.huber(jnp.asarray(d), jnp.zeros(41), delta=delta)
        np.testing.assert_allclose(got, 2 * special.huber(delta, d), rtol=1e-5, atol=1e-7)


def test_pseudo_huber_is_scipys_over_c():
    d = np.concatenate([np.linspace(-3, 3, 41), [1e-4, 1e-3]]).astype(np.float32)
    for c in (0.03, 1.0, 10.0):
        got = losses.pseudo_huber(jnp.asarray(d), jnp.zeros(43), c=c)
        expected = special.pseudo_huber(c, d.astype(np.float64)) / c
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-12)


def test_robust_gradients_by_hand():
    d = jnp.asarray(DIFFERENCES)

    def gradient(loss_fn):
        return jax.grad(lambda d: jnp.sum(loss_fn(d, jnp.zeros_like(d))))(d)

    clipped = 2 * np.clip(DIFFERENCES, -1, 1)
    np.testing.assert_allclose(gradient(LOSSES["huber"]), clipped, rtol=1e-6)
    smooth = DIFFERENCES / np.sqrt(DIFFERENCES**2 + 0.25)
    np.testing.assert_allclose(gradient(LOSSES["pseudo_huber"]), smooth, rtol=1e-5)
    for name in ("huber", "pseudo_huber"):  # smooth where prediction and target agree
        at_zero = jax.grad(lambda d, name=name: LOSSES[name](d, jnp.zeros(())))(jnp.zeros(()))
        np.testing.assert_array_equal(at_zero, 0)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_against_finite_differences(name):
    target = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3)), jnp.float32)
    chex.assert_numerical_grads(
        LOSSES[name], (target + DIFFERENCES, target), order=1, atol=1e-2, eps=1e-2
    )


@pytest.mark.parametrize("name", LOSSES)
def test_mismatch_raises(name):
    with pytest.raises(AssertionError):
        LOSSES[name](jnp.zeros(4), jnp.zeros((4, 1)))
    with pytest.raises(AssertionError):
        LOSSES[name](jnp.zeros(4), jnp.zeros(4, jnp.bfloat16))


def test_widths_that_cannot_be_raise():
    zeros = jnp.zeros(2)
    for width in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="delta must be positive"):
            losses.huber(zeros, zeros, delta=width)
        with pytest.raises(ValueError, match="c must be positive"):
            losses.pseudo_huber(zeros, zeros, c=width)


def test_jitted_robust_losses():
    d, zeros = jnp.asarray(DIFFERENCES), jnp.zeros((2, 3))
    expected = 2 * special.huber(0.5, DIFFERENCES)
    got = jax.jit(losses.huber, static_argnames="delta")(d, zeros, delta=0.5)
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    expected = special.pseudo_huber(0.5, DIFFERENCES) / 0.5
    got = jax.jit(losses.pseudo_huber, static_argnames="c")(d, zeros, c=0.5)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_the_losses_by_name():
    assert losses.LOSSES == {name: getattr(losses, name) for name in LOSSES}


# SNR = 5 and SNR = 1/4, by hand. Defaults: gamma 5 for the min-SNRs, k = gamma = 1, sigma_data 1/2.
BY_HAND = {
    "uniform": (1, 1),
    "snr": (5, 0.25),
    "truncated_snr": (5, 1),
    "min_snr": (5, 0.25),
    "soft_min_snr": (2.5, 1.25 / 5.25),
    "p2": (5 / 6, 0.2),
    "edm": (9, 4.25),
}


@pytest.mark.parametrize("scale", [0.3, 1.0, 7.0])
def test_weights_by_hand(scale):
    for name, (high, low) in BY_HAND.items():
        got = WEIGHTINGS[name](scale * np.sqrt(5), scale)
        np.testing.assert_allclose(got, high, rtol=1e-5, err_msg=name)
        np.testing.assert_allclose(WEIGHTINGS[name](scale, 2 * scale), low, rtol=1e-5, err_msg=name)
    alpha = scale * np.sqrt(5)
    np.testing.assert_allclose(losses.min_snr_weight(alpha, scale, gamma=3), 3, rtol=1e-5)
    np.testing.assert_allclose(losses.soft_min_snr_weight(alpha, scale, gamma=15), 3.75, rtol=1e-5)
    np.testing.assert_allclose(losses.p2_weight(alpha, scale, k=4, gamma=0.5), 5 / 3, rtol=1e-5)
    np.testing.assert_allclose(losses.edm_weight(alpha, scale, sigma_data=1), 6, rtol=1e-5)


@pytest.mark.parametrize("bias", [-3.0, 0.0, 2.0])
@pytest.mark.parametrize("log_snr", [-6.0, 0.0, 6.0])
def test_sigmoid_weight(bias, log_snr):
    alpha, sigma = np.sqrt(special.expit([log_snr, -log_snr]))
    got = losses.sigmoid_weight(alpha, sigma, bias=bias)
    np.testing.assert_allclose(got, np.exp(bias) * special.expit(log_snr - bias), rtol=1e-4)
    on_noise = got / predictions.x0_error_factor("noise", alpha, sigma)
    np.testing.assert_allclose(on_noise, special.expit(bias - log_snr), rtol=1e-4)


@pytest.mark.parametrize("snr", [0.04, 1.0, 30.0])
def test_the_published_multipliers_of_the_output(snr):
    alpha, sigma = np.sqrt(snr / (1 + snr)), np.sqrt(1 / (1 + snr))
    published = {
        ("snr", "noise"): 1,
        ("min_snr", "noise"): min(snr, 5) / snr,
        ("min_snr", "v"): min(snr, 5) / (snr + 1),
        ("p2", "noise"): 1 / (1 + snr),
        ("p2", "v"): snr / (1 + snr) ** 2,
        ("edm", "edm"): 1,
    }
    for (weighting, kind), value in published.items():
        got = WEIGHTINGS[weighting](alpha, sigma) / predictions.x0_error_factor(kind, alpha, sigma)
        np.testing.assert_allclose(got, value, rtol=1e-4, err_msg=f"{weighting} on {kind}")


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("kind", predictions.DIRECTIONS)
def test_the_weight_of_the_output_is_finite_at_both_ends(weighting, kind):
    for alpha, sigma in ((1.0, 0.0), (0.0, 1.0)):
        weight = WEIGHTINGS[weighting](alpha, sigma)
        factor = predictions.x0_error_factor(kind, alpha, sigma, **EXTRAS)
        assert np.isfinite(weight / factor)


def test_limits_of_the_weight_of_the_output():
    # (alpha, sigma) -> (1, 0), then -> (0, 1), by hand from the two tables.
    limits = {
        ("snr", "noise"): (1, 1),
        ("snr", "v"): (1, 0),
        ("snr", "flow"): (1, 0),
        ("snr", "score"): (0, 1),
        ("min_snr", "x0"): (5, 0),
        ("min_snr", "noise"): (0, 1),
        ("uniform", "v"): (0, 1),
        ("p2", "x0"): (1, 0),
        ("edm", "edm"): (1, 1),
        ("edm", "noise"): (1, None),  # 4 / SNR diverges at alpha = 0
        ("truncated_snr", "v"): (1, 1),
    }
    for (weighting, kind), ends in limits.items():
        for (alpha, sigma), limit in zip(((1.0, 0.0), (0.0, 1.0)), ends, strict=True):
            factor = predictions.x0_error_factor(kind, alpha, sigma)
            got = WEIGHTINGS[weighting](alpha, sigma) / factor
            if limit is not None:
                np.testing.assert_allclose(got, limit, rtol=1e-5, atol=1e-7)


def test_the_same_weighting_is_the_same_gradient_whatever_is_predicted():
    # A toy restorer W x_t + b, its x0_hat turned into each kind's output: the gradient in
    # (W, b) of weight / factor * l2(output, target) must not depend on the kind.
    rng = np.random.default_rng(1)
    x0, omega = (jnp.asarray(rng.normal(size=(16, 3)), jnp.float32) for _ in range(2))
    params = tuple(jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((3, 3), (3,)))

    def loss(params, kind, alpha, sigma, weight):
        xt = alpha * x0 + sigma * omega
        x0_hat = xt @ params[0] + jnp.broadcast_to(params[1], xt.shape)
        output = predictions.convert(x0_hat, xt, "x0", kind, alpha, sigma, **EXTRAS)
        target = predictions.target(kind, x0, omega, alpha, sigma, **EXTRAS)
        factor = predictions.x0_error_factor(kind, alpha, sigma, **EXTRAS)
        return weight / factor * jnp.mean(losses.l2(output, target))

    # Variance-preserving, flow, variance-exploding; mild and strong.
    levels = ((0.8, 0.6), (0.3, 0.954), (0.75, 0.25), (0.1, 0.9), (1.0, 0.5), (1.0, 5.0))
    alphas, sigmas = jnp.asarray(levels).T
    for name, weight_fn in WEIGHTINGS.items():
        weights = jax.vmap(weight_fn)(alphas, sigmas)
        by_kind = {
            kind: gradient_at(loss, kind)(params, alphas, sigmas, weights)
            for kind in predictions.DIRECTIONS
        }
        # By hand: the gradient of w mean((x0_hat - x0)^2) in b is 2 w mean(x0_hat - x0) / 3.
        xt = alphas[:, None, None] * x0[None] + sigmas[:, None, None] * omega[None]
        error = xt @ params[0] + params[1][None, None] - x0[None]
        expected = 2 / 3 * weights[:, None] * jnp.mean(error, axis=1)
        for kind, gradient in by_kind.items():
            for got, reference in zip(gradient, by_kind["x0"], strict=True):
                scale = np.abs(reference).max()
                np.testing.assert_allclose(
                    got, reference, rtol=1e-3, atol=1e-4 * scale, err_msg=f"{name}, {kind}"
                )
            np.testing.assert_allclose(
                gradient[1], expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max()
            )


@functools.cache
def gradient_at(loss, kind):
    def gradient(params, alpha, sigma, weight):
        return jax.grad(loss)(params, kind, alpha, sigma, weight)

    return jax.jit(jax.vmap(gradient, in_axes=(None, 0, 0, 0)))


class VariantsTest(chex.TestCase):
    @chex.all_variants()
    @parameterized.named_parameters(*((name, name) for name in LOSSES))
    def test_losses(self, name):
        # By hand, from the definitions.
        d = DIFFERENCES.astype(np.float64)
        expected = {
            "l1": np.abs(d),
            "l2": d**2,
            "huber": np.where(np.abs(d) <= 1, d**2, 2 * np.abs(d) - 1),
            "pseudo_huber": np.sqrt(d**2 + 0.25) - 0.5,
        }[name]
        target = np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3)
        value = self.variant(LOSSES[name])(target + DIFFERENCES, target)
        np.testing.assert_allclose(value, expected, atol=1e-5)
        value_B = self.variant(jax.vmap(LOSSES[name]))(target + DIFFERENCES, target)
        np.testing.assert_allclose(value_B, expected, atol=1e-5)

    @chex.all_variants()
    def test_weightings(self):
        @self.variant
        def weights(alpha, sigma):
            return jnp.stack([WEIGHTINGS[name](alpha, sigma) for name in BY_HAND])

        got = weights(jnp.float32(np.sqrt(5)), jnp.float32(1))
        np.testing.assert_allclose(got, [high for high, _ in BY_HAND.values()], rtol=1e-5)
