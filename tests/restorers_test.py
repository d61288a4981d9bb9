"""R, whatever the network answers, and what a walk with it takes.

Oracles: the clean image, given back from its exact target; the formula of the best linear
restorer with dense matrices, of kernels made by numpy and scipy; severities and grids by hand;
numpy's statistics.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import best_linear
from scipy import ndimage

from diffjax import losses, predictions, priors, restorers, samplers, schedules, training, wiener
from diffjax.degradations.base import Degradation, LinearMap, coefficients, degrade, draw
from diffjax.degradations.blur import gaussian_blur
from diffjax.degradations.color import decolor
from diffjax.degradations.heat import blurring_noise, heat
from diffjax.degradations.mask import fade
from diffjax.degradations.noise import gaussian_noise

SHAPE = (5, 5, 1)
SIZE = 25
STEPS = 10
BLUR = gaussian_blur(SHAPE, stds=(0.5,) * STEPS, kernel_size=3)
NOISE = gaussian_noise(SHAPE, schedule="cosine")


def answer(params, xt, t, label):
    """A network that answers its parameters, whatever it is shown."""
    return jnp.broadcast_to(params, xt.shape)


def images(count, shape=SHAPE, seed=0):
    x = np.random.default_rng(seed).uniform(-1, 1, (count, *shape))
    return ndimage.uniform_filter(x, (0, 3, 3, 0)).astype(np.float32)


# --- levels


@pytest.mark.parametrize(
    ("degradation", "steps"),
    [
        (BLUR, STEPS),
        (fade(SHAPE, stds=(1.0, 2.0)), 2),
        (decolor((4, 4, 3), steps=7), 7),
        (gaussian_noise(SHAPE, schedule="tabulated", table=schedules.beta_table([0.1] * 6)), 6),
        (NOISE, None),
        (blurring_noise(SHAPE, blur_max=3.0), None),
    ],
    ids=["blur", "fade", "decolor", "tabulated", "noise", "blurring"],
)
def test_levels_are_the_steps_of_d_unless_they_are_given(degradation, steps):
    assert restorers.levels(restorers.Objective(answer), degradation) == steps
    assert restorers.levels(restorers.Objective(answer, levels=4), degradation) == 4


def off_the_steps(params, xt, t, label):
    """|10 t - its nearest integer|, as an image."""
    return jnp.full_like(xt, params * jnp.abs(STEPS * t - jnp.round(STEPS * t)))


@pytest.mark.parametrize(("degradation", "expected"), [(BLUR, 0.0), (NOISE, 0.25)])
def test_a_tabulated_degradation_is_trained_at_its_own_steps(degradation, expected):
    # R = |10 t - k| against x0 = 0: on the steps the loss is 0, for a uniform t its mean is 1/4,
    # its variance 1/48.
    optimizer, count = optax.sgd(0.0), 2000
    state = training.create_state(jnp.ones(()), optimizer)
    batch = {"image": np.zeros((count, *SHAPE), np.float32), "position": np.arange(count)}
    step = functools.partial(
        training.train_step,
        objective=restorers.Objective(off_the_steps, loss_fn=losses.l1),
        optimizer=optimizer,
        ema_decay=0.9,
    )
    problem = restorers.Problem(degradation)
    _, metrics = jax.jit(step)(state, batch, jax.random.key(0), problem)
    assert abs(metrics["loss"] - expected) < 5 * np.sqrt(1 / 48 / count) * (expected > 0) + 1e-5


def blur_matrix(k):
    """k steps of the kernel of std 0.5 in 3 taps on a periodic image, on x.reshape(-1)."""
    kernel = np.exp(-0.5 * (np.arange(-1, 2) / 0.5) ** 2)
    kernel /= kernel.sum()
    x = np.eye(SIZE).reshape(SIZE, 5, 5)
    for _ in range(k):
        for axis in (1, 2):
            x = ndimage.convolve1d(x, kernel, axis=axis, mode="wrap")
    return x.reshape(SIZE, SIZE).T


def test_the_wiener_table_is_that_of_the_same_step_wherever_r_is_trained():
    objective, floor = restorers.Objective(answer), 0.01
    moments = wiener.measure(images(60))
    levels = restorers.levels(objective, BLUR)
    linear_fn = restorers.linear_fn(BLUR)
    restorer = wiener.fit(linear_fn, moments, levels=levels, floor=floor)
    covariance = functools.reduce(np.kron, wiener.covariances(moments))
    x0 = jnp.asarray(images(1, seed=1)[0])
    estimate = jax.jit(lambda xt, t: wiener.estimate(restorer, linear_fn, xt, t)[0])
    blurs = [blur_matrix(k) for k in range(STEPS + 1)]
    for t in np.arange(1, levels + 1, dtype=np.float32) / np.float32(levels):
        xt = np.ravel(degrade(BLUR, x0, jnp.asarray(t)))
        # Whichever step D takes at t, L_t must be that step's.
        errors = [np.abs(blur @ np.ravel(x0) - xt).max() for blur in blurs]
        matrix = blurs[np.argmin(errors)]
        assert min(errors) < 1e-5
        expected, _, _ = best_linear(
            moments.mean.reshape(-1), covariance, matrix, floor**2 * np.eye(SIZE), xt
        )
        got = np.ravel(estimate(jnp.asarray(xt.reshape(SHAPE)), jnp.asarray(t)))
        # float32, and x_t amplified by at most std / (2 floor).
        assert np.sqrt(np.mean((got - expected) ** 2)) < 1e-3, t


# --- what the network answers


@pytest.mark.parametrize("kind", [kind for kind in predictions.DIRECTIONS if kind != "previous"])
def test_the_exact_target_is_restored_to_the_clean_image(kind):
    x0, omega = images(2)
    t = jnp.float32(0.6)
    target = predictions.target(kind, x0, omega, *coefficients(NOISE, t))
    objective = restorers.Objective(answer, prediction=kind)
    xt = degrade(NOISE, x0, t, omega)
    got = restorers.restore(objective, target, restorers.Problem(NOISE), xt, t)
    np.testing.assert_allclose(got, x0, atol=1e-5)
    restore_fn = restorers.restorer(objective, target, restorers.Problem(NOISE))
    np.testing.assert_array_equal(restore_fn(xt, t), got)


def test_previous_is_the_state_one_level_milder():
    objective = restorers.Objective(answer, prediction="previous", levels=5)
    assert restorers.previous(objective, NOISE, jnp.float32(0.2)) == 0
    np.testing.assert_allclose(restorers.previous(objective, NOISE, jnp.float32(1)), 0.8)
    # x_s answered, x0_hat is x0 where D is alpha x0 + sigma omega.
    x0, omega = images(2)
    xt, xs = (degrade(NOISE, x0, t, omega) for t in (0.6, 0.4))
    got = restorers.restore(objective, xs, restorers.Problem(NOISE), xt, jnp.float32(0.6))
    np.testing.assert_allclose(got, x0, atol=1e-5)
    # Where D has matrices the answer is x0_hat itself, and levels are D's.
    objective = restorers.Objective(answer, prediction="previous")
    got = restorers.restore(objective, x0, restorers.Problem(BLUR), xt, jnp.float32(0.6))
    np.testing.assert_array_equal(got, x0)
    np.testing.assert_allclose(restorers.previous(objective, BLUR, jnp.float32(0.6)), 0.5)
    with pytest.raises(ValueError, match="prediction 'previous' needs levels"):
        restorers.previous(objective, NOISE, jnp.float32(0.6))


def test_what_needs_alpha_and_sigma_is_refused_where_there_is_none():
    objective = restorers.Objective(answer, prediction="noise")
    arguments = (jnp.zeros(SHAPE), restorers.Problem(BLUR), jnp.zeros(SHAPE), jnp.float32(0.5))
    with pytest.raises(ValueError, match="prediction 'noise' and weightings by SNR need"):
        restorers.restore(objective, *arguments)


def test_a_network_of_zeros_is_the_wiener_restorer():
    linear_fn = restorers.linear_fn(BLUR)
    fitted = wiener.fit(linear_fn, wiener.measure(images(40)), levels=STEPS)
    problem = restorers.Problem(BLUR, fitted)
    xt, t = jnp.asarray(images(1)[0]), jnp.float32(0.3)
    shown = []

    def network_fn(params, inputs, t, label):
        shown.append((inputs.shape, label))
        return params * inputs[..., :1]

    objective = restorers.Objective(network_fn)
    got = restorers.predict(objective, jnp.zeros(()), problem, xt, t, label=3)
    np.testing.assert_array_equal(got, wiener.estimate(fitted, linear_fn, xt, t)[0])
    # Shown x_t whitened and L_t beside it, and told the label; the image alone without.
    restorers.predict(objective, jnp.zeros(()), problem._replace(wiener=None), xt, t)
    assert shown == [((5, 5, 2), 3), ((5, 5, 1), None)]


def bare(params, x0, t, omega):
    return x0


def scaled(params, t):
    return LinearMap(alpha=1 - t / 2)


def test_a_degradation_that_is_not_linear_has_no_linear_fn():
    with pytest.raises(ValueError, match="degradation must have a linear_fn, which bare has not"):
        restorers.linear_fn(Degradation(None, apply_fn=bare))
    found = restorers.linear_fn(Degradation(None, apply_fn=bare, linear_fn=scaled))(jnp.float32(1))
    assert tuple(found) == (0.5, 0.0, None, None, None)


# --- a walk


@pytest.mark.parametrize("degradation", [NOISE, BLUR], ids=["noise", "blur"])
def test_a_process_degrades_and_infers_as_d_does(degradation):
    x0, noise = images(2)
    omega = noise if degradation is NOISE else None
    process = restorers.process(degradation, lambda xt, t: x0)
    t = jnp.float32(0.5)
    xt = process.degrade_fn(x0, t, omega)
    np.testing.assert_array_equal(xt, degrade(degradation, x0, t, omega))
    np.testing.assert_array_equal(process.restore_fn(xt, t), x0)
    omega_hat = process.infer_fn(xt, t, x0, jax.tree.map(jnp.zeros_like, omega))
    if omega is not None:
        np.testing.assert_allclose(omega_hat, omega, atol=1e-5)
    assert (omega_hat is None) == (omega is None)
    # An exact restorer leads back, by the sampler and the grid of that name.
    sampler = restorers.sampler("ddim", degradation)
    ts = restorers.grid("uniform", 5, degradation, levels=degradation.steps)
    got = samplers.sample(sampler, process, jax.random.key(0), xt, ts / 2, omega)
    np.testing.assert_allclose(got, x0, atol=1e-5)


def test_samplers_by_name():
    assert restorers.sampler("ddim", NOISE, eta=0.5) is samplers.ddim(0.5)
    assert restorers.sampler("improved", BLUR) is samplers.improved
    with pytest.raises(ValueError, match="sampler must be one of"):
        restorers.sampler("cold", BLUR)
    with pytest.raises(ValueError, match="sampler 'ddim' takes eta; got delta"):
        restorers.sampler("ddim", BLUR, delta=1)


@pytest.mark.parametrize("degradation", [NOISE, BLUR, heat(SHAPE, sigma_max=2)])
def test_the_blurring_sampler_is_for_blurring_noise_alone(degradation):
    with pytest.raises(ValueError, match="'blurring' is for the degradation blurring_noise alone"):
        restorers.sampler("blurring", degradation)


@pytest.mark.parametrize(
    "limits", [{"d_min": 0.0}, {"d_min": 0.0, "logsnr_min": np.inf, "logsnr_max": np.inf}]
)
def test_the_blurring_sampler_reaches_x0_where_frequencies_or_noise_are_gone(limits):
    x0 = images(1)[0]
    degradation = blurring_noise(SHAPE, blur_max=20.0, **limits)
    end = samplers.sample(
        restorers.sampler("blurring", degradation),
        restorers.process(degradation, lambda xt, t: x0),
        jax.random.key(0),
        jnp.ones(SHAPE),
        samplers.uniform_grid(4),
    )
    np.testing.assert_allclose(end, x0, atol=1e-5)


def test_the_blurring_sampler_takes_its_frequencies_from_d():
    # Without blur D is noise of the shifted cosine, and the step is DDPM's posterior.
    degradation = blurring_noise(SHAPE, blur_max=0.0)
    xT, omega = images(2)
    sampled = [
        samplers.sample(
            restorers.sampler(name, degradation),
            # The same noise, among the pixels for one and among the frequencies for the other.
            restorers.process(degradation, lambda xt, t: jnp.tanh(xt))._replace(noise_fn=no_noise),
            jax.random.key(0),
            jnp.asarray(xT),
            samplers.uniform_grid(4),
            jnp.asarray(omega),
        )
        for name in ("blurring", "ddpm")
    ]
    np.testing.assert_allclose(*sampled, atol=1e-4)


def no_noise(key, t, s, like):
    return jnp.zeros_like(like)


@pytest.mark.parametrize(
    ("name", "steps", "levels", "expected"),
    [
        ("uniform", 4, None, [1, 0.75, 0.5, 0.25, 0]),
        # 10 t = 10, 7.5, 5, 2.5, 0: halves go to the even neighbor.
        ("uniform", 4, 10, [1, 0.8, 0.5, 0.2, 0]),
        ("uniform", 50, 4, [1, 0.75, 0.5, 0.25, 0]),
        ("trailing", 3, 10, [1, 0.7, 0.3, 0]),
        ("leading", 2, 10, [0.6, 0.1, 0]),
        ("linspace", 4, 10, [1, 0.7, 0.4, 0.1, 0]),
        ("trailing", 50, 5, [1, 0.8, 0.6, 0.4, 0.2, 0]),  # no more steps than levels
        ("trailing", 4, None, [1, 0.75, 0.5, 0.25, 0]),
        ("shifted", 2, None, [1, 0.75, 0]),
        ("shifted", 2, 2, [1, 0]),  # 2 t = 1.5 goes to 2, which is there
    ],
)
def test_grids_by_name(name, steps, levels, expected):
    ts = restorers.grid(name, steps, BLUR, levels=levels)
    assert ts.dtype == jnp.float32
    np.testing.assert_allclose(ts, expected, atol=1e-7)


@pytest.mark.parametrize("levels", [None, 7, 1000])
@pytest.mark.parametrize("name", samplers.GRIDS)
def test_every_grid_keeps_to_the_levels(name, levels):
    ts = np.asarray(restorers.grid(name, 6, NOISE, levels=levels), np.float64)
    assert np.all(np.diff(ts) < 0)
    assert ts[-1] == 0
    if levels is not None:
        np.testing.assert_allclose(ts * levels, np.round(ts * levels), atol=1e-4)


def test_the_karras_grid_is_made_of_ds_own_alpha_and_sigma():
    flow = gaussian_noise(SHAPE, schedule="flow")
    ts = np.asarray(restorers.grid("karras", 5, flow), np.float64)[1:-1]
    roots = 80 ** (1 / 7), 0.002 ** (1 / 7)
    expected = (roots[0] + np.arange(1, 5) / 4 * (roots[1] - roots[0])) ** 7
    np.testing.assert_allclose(ts / (1 - ts), expected, rtol=1e-4)
    with pytest.raises(ValueError, match="grid 'karras' needs x_t = alpha x0"):
        restorers.grid("karras", 5, BLUR)


def test_a_grid_of_no_such_name():
    names = re.escape(", ".join(samplers.GRIDS))
    with pytest.raises(ValueError, match=f"grid must be one of {names}; got 'cosine'"):
        restorers.grid("cosine", 5, BLUR)


# --- the start


def test_without_a_prior_it_starts_at_a_degraded_blank():
    xT, omega = restorers.start(jax.random.key(0), NOISE, None, 0.0, SHAPE)
    _, sigma = coefficients(NOISE, 1.0)
    np.testing.assert_allclose(xT, sigma * omega, atol=1e-6)
    assert np.std(omega) > 0.5
    gray = fade(SHAPE, stds=(2.0,), color=0.25, reverse=True)
    xT, omega = restorers.start(jax.random.key(0), gray, None, 0.0, SHAPE)
    np.testing.assert_allclose(xT, 0.25, atol=1e-6)
    assert omega is None


def starts(prior, perturbation, degradation, count=400):
    keys = jax.random.split(jax.random.key(1), count)
    one = functools.partial(
        restorers.start,
        degradation=degradation,
        prior=prior,
        perturbation=perturbation,
        image_shape=SHAPE,
    )
    xT, omega = jax.jit(jax.vmap(one))(keys)
    return np.asarray(xT), omega


def test_a_bank_gives_its_own_images():
    bank = images(3)
    xT, omega = starts(priors.BankPrior(jnp.asarray(bank)), 0.0, NOISE)
    distance = np.abs(xT[:, None] - bank[None]).max(axis=(2, 3, 4))
    np.testing.assert_allclose(distance.min(axis=1), 0, atol=1e-6)
    # Each about as often: 400 / 3 within five standard deviations.
    counts = np.bincount(distance.argmin(axis=1), minlength=3)
    assert np.all(np.abs(counts - 400 / 3) < 5 * np.sqrt(400 * 2 / 9))
    # omega is D's own draw, and no part of x_T.
    flat = np.asarray(omega).reshape(400, -1)
    assert abs(flat.std() - 1) < 5 / np.sqrt(2 * flat.size)
    assert np.abs(np.corrcoef(flat[:, 0], xT.reshape(400, -1)[:, 0])[0, 1]) < 5 / np.sqrt(400)
    noisy, _ = starts(priors.BankPrior(jnp.asarray(bank)), 0.1, NOISE)
    spread = np.abs(noisy[:, None] - bank[None]).mean(axis=(2, 3, 4)).min(axis=1)
    # The mean of |N(0, 0.1^2)| is 0.1 sqrt(2 / pi).
    np.testing.assert_allclose(spread.mean(), 0.1 * np.sqrt(2 / np.pi), rtol=0.05)


def test_a_mixture_gives_images_of_its_law():
    blurred = np.stack([degrade(BLUR, jnp.asarray(x0), 1.0) for x0 in images(100)])
    prior = priors.fit_mixture(blurred, components=1)
    xT, omega = starts(prior, 0.0, BLUR)
    assert omega is None
    error = xT.mean(axis=0) - blurred.mean(axis=0)
    assert np.all(np.abs(error) < 5 * blurred.std(axis=0) / np.sqrt(400) + 1e-3)
    # A sample's variance is within 5 sqrt(2 / N) of the law's.
    np.testing.assert_allclose(
        xT.var(axis=0).sum(), blurred.var(axis=0).sum(), rtol=5 * np.sqrt(2 / 400)
    )


def test_a_start_is_its_keys():
    for prior in (None, priors.BankPrior(jnp.asarray(images(3)))):
        first, again, other = (
            restorers.start(jax.random.key(seed), NOISE, prior, 0.1, SHAPE) for seed in (0, 0, 1)
        )
        np.testing.assert_array_equal(first[0], again[0])
        np.testing.assert_array_equal(first[1], again[1])
        assert not np.array_equal(first[1], other[1])
    assert draw(BLUR, jax.random.key(0), jnp.zeros(SHAPE)) is None


@pytest.mark.parametrize("perturbation", [0.0, 0.3])
def test_every_cold_start_is_perturbed(perturbation):
    # x_T is a color that D draws, gray, or an image of the bank: the same key, with and without.
    drawn = fade(SHAPE, stds=(2.0,), color="drawn", reverse=True)
    gray = fade(SHAPE, stds=(2.0,), color=0.25, reverse=True)
    bank = priors.BankPrior(jnp.asarray(images(3)))
    for degradation, prior in ((drawn, None), (gray, None), (BLUR, bank)):
        plain, omega = starts(prior, 0.0, degradation)
        xT, same = starts(prior, perturbation, degradation)
        jax.tree.map(np.testing.assert_array_equal, same, omega)
        noise = np.asarray(xT, np.float64) - plain
        count = noise.size
        assert abs(noise.mean()) <= 5 * perturbation / np.sqrt(count)
        # White noise's std within five of its own deviations, in every pixel and in each image.
        np.testing.assert_allclose(
            noise.std(), perturbation, rtol=5 / np.sqrt(2 * count), atol=1e-7
        )
        assert np.abs(noise.mean(axis=0)).max() <= 5 * perturbation / np.sqrt(len(noise))
        assert np.abs(noise.mean(axis=(1, 2, 3))).max() <= 6 * perturbation / np.sqrt(SIZE)
