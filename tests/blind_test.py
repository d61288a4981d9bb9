"""Severity and realization told from the image alone, and the way back from there.

Oracles: the severity and the realization that the test degraded with; by hand; shorter walks.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import blind, data, parallel, samplers
from diffjax.degradations.base import degrade, draw
from diffjax.degradations.blur import gaussian_blur
from diffjax.degradations.mask import fade, mask
from diffjax.degradations.noise import gaussian_noise

SHAPE = (8, 8, 1)
RNG = np.random.default_rng(0)
# The median errors bound: half a level where there are levels, for they are told apart (as
# measured: 0); noise is not, and 0.1 is 1.6 times what was measured. A constant makes 0.25.
FAMILIES = {
    "blur": (gaussian_blur(SHAPE, stds=(0.8,) * 10, kernel_size=5, boundary="reflect"), 10, 0.05),
    "fade": (fade(SHAPE, stds=[0.2 + 0.2 * k for k in range(10)]), 10, 0.05),
    "noise": (gaussian_noise(SHAPE, schedule="cosine"), None, 0.1),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_severity_of_held_out_digits(name):
    degradation, levels, bound = FAMILIES[name]
    train, test = data.load("digits", "train"), data.load("digits", "test")
    estimator = blind.fit(
        degradation,
        train.fetch_fn(range(0, 1437, 2))["image"],
        blind.candidates(levels),
        jax.random.key(0),
    )
    t = RNG.uniform(0, 1, 360)
    t = t if levels is None else np.ceil(t * levels) / levels
    xt = parallel.map_examples(lambda D, key, x0, t: degrade(D, x0, t, draw(D, key, x0)))(
        degradation, jax.random.split(jax.random.key(1), 360), test.fetch_fn(range(360))["image"], t
    )
    assert np.median(np.abs(blind.estimate(estimator, xt) - t)) <= bound
    # One image is told as it is among others.
    assert blind.estimate(estimator, xt[:1]) == blind.estimate(estimator, xt)[0]


@pytest.mark.parametrize(("levels", "count"), [(None, 20), (10, 10), (30, 20), (200, 20)])
def test_candidates_are_trained_levels(levels, count):
    ts = blind.candidates(levels)
    assert len(ts) == count
    assert ts[-1] == 1
    assert np.all(np.diff(ts) > 0)
    np.testing.assert_allclose(ts * (levels or 20), np.round(ts * (levels or 20)), atol=1e-9)


def test_grids_start_at_the_severity_and_keep_to_the_levels():
    uniform = np.array([1, 0.75, 0.5, 0.25, 0])
    for t, levels, expected in (
        (0.6, None, [0.6, 0.45, 0.3, 0.15, 0]),
        (1.0, 4, [1, 0.75, 0.5, 0.25, 0]),
        (0.5, 4, [0.5, 0.25, 0, 0, 0]),
        (0.25, 4, [0.25, 0, 0, 0, 0]),
        (0.8, 10, [0.8, 0.6, 0.4, 0.2, 0]),
    ):
        ts = blind.grid_from(t, uniform, levels)
        assert ts.dtype == np.float32
        np.testing.assert_allclose(ts, expected, atol=1e-6)


def paused_walk(sampler, ts):
    """Traced, as `blind.restore` is where ts may end in zeros."""

    def degrade_fn(x0, t, omega):
        return (1 - t) * x0 + t * omega

    def infer_fn(xt, t, x0_hat, omega):
        return (xt - (1 - t) * x0_hat) / t  # nan at t = 0

    process = samplers.Process(lambda xt, t: jnp.tanh(xt + t), degrade_fn, infer_fn)
    xT, omega = jnp.linspace(-1, 1, 4).reshape(2, 2, 1), jnp.ones((2, 2, 1))
    walk = functools.partial(samplers.sample, sampler, process, jax.random.key(0), xT, omega=omega)
    return jax.jit(lambda ts: walk(ts))(jnp.array(ts))


@pytest.mark.parametrize("sampler", [samplers.naive, samplers.ddpm], ids=["naive", "ddpm"])
def test_a_paused_walk_is_the_shorter_walk(sampler):
    short = paused_walk(sampler, [0.5, 0.25, 0.0])
    np.testing.assert_array_equal(
        paused_walk(blind.paused(sampler), [0.5, 0.25, 0.0, 0.0, 0.0]), short
    )


def test_the_realization_is_found():
    x0 = jnp.asarray(data.load("digits", "test").fetch_fn([5])["image"][0])
    realization = jax.jit(blind.realization)
    # A box of 5 x 5 in 8 x 8 has 16 places: 64 draws miss one in 1.6% of cases.
    box = mask(SHAPE, size=5)
    for corner in ([0, 0], [1, 3], [3, 2]):
        xt = degrade(box, x0, 1.0, jnp.array(corner))
        found = realization(box, jax.random.key(0), xt, jnp.float32(1), x0)
        assert found.tolist() == corner
    noise = FAMILIES["noise"][0]
    omega = jax.random.normal(jax.random.key(1), SHAPE)
    xt = degrade(noise, x0, 0.5, omega)
    found = realization(noise, jax.random.key(0), xt, jnp.float32(0.5), x0)
    np.testing.assert_allclose(found, omega, atol=1e-5)
    blur = FAMILIES["blur"][0]
    assert realization(blur, jax.random.key(0), x0, jnp.float32(0.5), x0) is None


@pytest.mark.parametrize("name", FAMILIES)
def test_an_exact_restorer_leads_back_from_any_severity(name):
    degradation, levels, _ = FAMILIES[name]
    x0 = jnp.asarray(data.load("digits", "test").fetch_fn([7])["image"][0])
    omega = draw(degradation, jax.random.key(2), x0)

    @jax.jit
    def restored(xt, ts):
        key = jax.random.key(3)
        return blind.restore(samplers.ddim(), degradation, lambda xt, t: x0, key, xt, ts)

    for t in (0.3, 1.0):
        xt = degrade(degradation, x0, t, omega)
        ts = blind.grid_from(t, np.asarray(samplers.uniform_grid(10)), levels)
        found, unexplained = restored(xt, jnp.asarray(ts))
        np.testing.assert_allclose(found, x0, atol=1e-5)
        assert unexplained < 1e-5
