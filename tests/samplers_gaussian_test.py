"""Gaussian data, where the optimal restorer is known: what must come out, and how fast it does.

Oracle: x0 ~ N(mu, S) and x_t = A x0 + sigma omega give

    E[x0 | x_t] = mu + S A' (A S A' + sigma^2 I)^-1 (x_t - A mu),

and for A = alpha I the probability flow is the transport map from x_t to x_s

    x_s = alpha_s mu + (alpha_s^2 S + sigma_s^2 I)^(1/2) (alpha_t^2 S + sigma_t^2 I)^(-1/2)
          (x_t - alpha_t mu),

both of them computed here by numpy, in float64, from the eigenvectors of S.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import noise_process

from diffjax import samplers

MEAN = np.array([0.5, -1.0, 0.25])
BASIS = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
VARIANCES = np.array([0.05, 0.4, 1.5])
COVARIANCE = BASIS @ np.diag(VARIANCES) @ BASIS.T

SCHEDULES = {
    "cosine": lambda t: (jnp.cos(t * jnp.pi / 2), jnp.sin(t * jnp.pi / 2)),
    "flow": lambda t: (1 - t, t),
    "ve": lambda t: (jnp.ones_like(t), 10 * t),
}
ONE_HOT = dict(zip(SCHEDULES, np.eye(3), strict=True))
BLUR = np.array([0.0, 0.7, 1.5])  # what blurring takes off the log of each frequency's alpha


def mixed(one_hot):
    """The schedule chosen by a vector, so that one compilation serves all three."""
    return lambda t: one_hot @ jnp.array([schedule_fn(t) for schedule_fn in SCHEDULES.values()])


def model(schedule_fn, matrix_fn=lambda t: jnp.ones(3)):
    """R and D of x_t = alpha(t) basis diag(matrix(t)) basis' x0 + sigma(t) omega.

    The basis is that of S's eigenvectors; a vector of three numbers stands for the image.
    """
    mean, rotation = BASIS.T @ MEAN, jnp.asarray(BASIS)

    def degrade_fn(x0, t, omega):
        alpha, sigma = schedule_fn(t)
        return rotation @ (alpha * matrix_fn(t) * (rotation.T @ x0)) + sigma * omega

    def infer_fn(xt, t, x0_hat, omega):
        alpha, sigma = schedule_fn(t)
        return (xt - rotation @ (alpha * matrix_fn(t) * (rotation.T @ x0_hat))) / sigma

    def restore_fn(xt, t):
        alpha, sigma = schedule_fn(t)
        scale = alpha * matrix_fn(t)
        gain = VARIANCES * scale / (scale**2 * VARIANCES + sigma**2)
        return rotation @ (mean + gain * (rotation.T @ xt - scale * mean))

    return samplers.Process(restore_fn, degrade_fn, infer_fn)


def plain(schedule_fn):
    """D per pixel, as alpha x0 + sigma omega: what those that read alpha off D ask for."""
    return noise_process(schedule_fn, model(schedule_fn).restore_fn)


# --- the right distribution

EXAMPLES, STEPS = 10_000, 500


def check_moments(x):
    """Mean and covariance within 4 standard errors of N = 10,000, and 2 % for the 500 steps.

    With an exact restorer the variance after S steps is low by 7.5 / S at most (DDPM here,
    from its own recursion in numpy): the posterior's mean forgets what x0_hat cannot know.
    """
    x = np.asarray(x, np.float64)
    error = np.abs(x.mean(0) - MEAN)
    bound = 4 * np.sqrt(np.diag(COVARIANCE) / EXAMPLES)
    assert np.all(error < bound + 0.01), (error, bound)
    deviation = BASIS.T @ np.cov(x.T) @ BASIS
    # The covariance of the sample covariance of normal numbers: (v_i v_j + [i = j] v_i^2) / N.
    scale = np.sqrt(np.outer(VARIANCES, VARIANCES))
    bound = (4 * np.sqrt(2 / EXAMPLES) + 0.02) * scale
    error = np.abs(deviation - np.diag(VARIANCES))
    assert np.all(error < bound), (error / scale, bound / scale)


def walk(sampler, process, xT, seed=1):
    keys = jax.random.split(jax.random.key(seed), len(xT))
    ts = samplers.uniform_grid(STEPS) ** 2

    @jax.jit
    def walked(keys, xT):
        return jax.vmap(
            lambda key, xT: samplers.sample(sampler, process, key, xT, ts, jnp.zeros_like(xT))
        )(keys, xT)

    return walked(keys, xT)


@pytest.mark.parametrize(
    ("sampler", "schedule"),
    [
        (samplers.ddpm, "cosine"),
        (samplers.ddpm, "flow"),
        (samplers.ddim(eta=0.5), "cosine"),
        (samplers.ddim(), "cosine"),
        (samplers.euler(churn=0.02), "flow"),
        (samplers.heun(churn=0.2, s_min=0.05, s_max=5.0), "ve"),
        (samplers.dpm_solver_2m, "flow"),
    ],
)
def test_mean_and_covariance(sampler, schedule):
    noise = np.random.default_rng(1).normal(size=(EXAMPLES, 3))
    # The severe end of the variance-exploding schedule has not forgotten x0.
    start = noise * 10 + np.random.default_rng(2).multivariate_normal(MEAN, COVARIANCE, EXAMPLES)
    xT = start if schedule == "ve" else noise
    check_moments(walk(sampler, plain(SCHEDULES[schedule]), jnp.asarray(xT, jnp.float32)))


def to_eigenbasis(x):
    return jnp.asarray(BASIS.T, jnp.float32) @ x


def from_eigenbasis(u):
    return jnp.asarray(BASIS, jnp.float32) @ u


def blur(t):
    return jnp.exp(-jnp.asarray(BLUR, jnp.float32) * t)


def blur_coefficients(t):
    alpha, sigma = SCHEDULES["cosine"](t)
    return alpha * blur(t), sigma


def test_mean_and_covariance_of_blurring():
    sampler = samplers.blurring(to_eigenbasis, from_eigenbasis, blur_coefficients)
    xT = jax.random.normal(jax.random.key(0), (EXAMPLES, 3))
    check_moments(walk(sampler, model(SCHEDULES["cosine"], blur), xT))


def test_mean_and_covariance_of_indi():
    """x_t = (1 - t) x0 + t y + epsilon sqrt(t) n with y ~ N(0, I): noise of variance t^2 + t/4."""
    mean, basis = BASIS.T @ MEAN, jnp.asarray(BASIS)

    def restore_fn(xt, t):
        gain = VARIANCES * (1 - t) / ((1 - t) ** 2 * VARIANCES + t**2 + t / 4)
        return basis @ (mean + gain * (basis.T @ xt - (1 - t) * mean))

    xT = np.sqrt(1 + 1 / 4) * jax.random.normal(jax.random.key(0), (EXAMPLES, 3))
    check_moments(walk(samplers.indi(epsilon=0.5), samplers.Process(restore_fn, None, None), xT))


# --- the right map, at the right rate


@functools.partial(jax.jit, static_argnums=0)
def walk_many(sampler, one_hot, xT, ts):
    process, key = plain(mixed(one_hot)), jax.random.key(0)
    return jax.vmap(lambda xT: samplers.sample(sampler, process, key, xT, ts, jnp.zeros_like(xT)))(
        xT
    )


def error_of(sampler, schedule, first, last, steps):
    """Largest distance from the transport map, in float64, between two severities."""
    xT = np.random.default_rng(4).normal(size=(8, 3))
    with jax.enable_x64(True):
        (alpha_t, sigma_t), (alpha_s, sigma_s) = (
            map(float, SCHEDULES[schedule](jnp.asarray(t))) for t in (first, last)
        )
        gain = np.sqrt(alpha_s**2 * VARIANCES + sigma_s**2)
        gain /= np.sqrt(alpha_t**2 * VARIANCES + sigma_t**2)
        xT = alpha_t * MEAN + np.sqrt(alpha_t**2 + sigma_t**2) * xT
        expected = alpha_s * MEAN + (xT - alpha_t * MEAN) @ (BASIS * gain) @ BASIS.T
        # Smaller steps towards t = 0, as any schedule of sigma has them.
        ts = last + (first - last) * np.linspace(1, 0, steps + 1) ** 2
        x = walk_many(sampler, *map(jnp.asarray, (ONE_HOT[schedule], xT, ts)))
    return np.abs(np.asarray(x) - expected).max()


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(
    ("sampler", "order"),
    [
        (samplers.euler(), 1),
        (samplers.heun(), 2),
        (samplers.dpm_solver_2m, 2),
    ],
    ids=["euler", "heun", "dpm_solver_2m"],
)
def test_order_of_convergence(sampler, order, schedule):
    coarse, fine = (error_of(sampler, schedule, 0.98, 0.02, steps) for steps in (128, 512))
    measured = np.log2(coarse / fine) / 2  # the steps are halved twice
    np.testing.assert_allclose(measured, order, atol=0.15)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("sampler", [samplers.ddim(), samplers.heun(), samplers.dpm_solver_2m])
def test_the_whole_way_from_noise_to_data_is_the_transport_map(sampler, schedule):
    # At t = 1, where alpha is 0 for two of the three, down to t = 0, where sigma is.
    assert error_of(sampler, schedule, 1.0, 0.0, 512) < 0.02
