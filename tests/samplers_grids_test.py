"""Oracles: Table 2 of Lin et al. by hand, timesteps of diffusers 0.42.1 where it is named, EDM's
levels in float64 numpy, and closed forms.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import samplers, schedules

SPACED = ("trailing", "leading", "linspace")


def test_uniform_grid():
    np.testing.assert_array_equal(samplers.uniform_grid(4), [1, 0.75, 0.5, 0.25, 0])


# "Common Diffusion Noise Schedules and Sample Steps are Flawed" (https://arxiv.org/abs/2305.08891).
@pytest.mark.parametrize(
    ("name", "levels", "steps"),
    [
        # T = 1000 and S = 10 is the table's own example.
        ("leading", 1000, [901, 801, 701, 601, 501, 401, 301, 201, 101, 1]),
        ("linspace", 1000, [1000, 889, 778, 667, 556, 445, 334, 223, 112, 1]),
        ("trailing", 1000, [1000, 900, 800, 700, 600, 500, 400, 300, 200, 100]),
        # floor(1000 / 7) = 142 is the distance of the leading ones.
        ("leading", 1000, [853, 711, 569, 427, 285, 143, 1]),
        # 1000 - 1000 j / 7 is 857.1, 714.3, 571.4, 428.6, 285.7, 142.9.
        ("trailing", 1000, [1000, 857, 714, 571, 429, 286, 143]),
        # 1 + 9 j / 3
        ("linspace", 10, [10, 7, 4, 1]),
        ("leading", 10, [7, 4, 1]),
        ("trailing", 10, [10, 7, 3]),
        # As many steps as levels: all of them, whatever the spacing.
        *((name, 5, [5, 4, 3, 2, 1]) for name in SPACED),
    ],
)
def test_spacings_are_those_of_the_table(name, levels, steps):
    ts = samplers.GRIDS[name](len(steps), levels=levels)
    assert ts.dtype == jnp.float32
    np.testing.assert_allclose(ts, np.append(steps, 0) / levels, rtol=1e-6)


def test_trailing_grid_is_that_of_diffusers():
    # DDIMScheduler(timestep_spacing="trailing").set_timesteps(7), each timestep i being (i + 1)/T.
    timesteps = [999, 856, 713, 570, 428, 285, 142]
    ts = samplers.trailing_grid(7)
    assert ts.dtype == jnp.float32
    np.testing.assert_allclose(ts, [*(np.array(timesteps) + 1) / 1000, 0], rtol=1e-6)


@pytest.mark.parametrize("name", SPACED)
@pytest.mark.parametrize("steps", [0, -1, 11])
def test_a_grid_of_no_such_steps_raises(name, steps):
    with pytest.raises(ValueError, match=r"steps must lie in 1\.\.levels = 10"):
        samplers.GRIDS[name](steps, levels=10)


def test_shifted_grid():
    # 3 u / (1 + 2 u) at u = 3/4, 1/2, 1/4: 9/10, 3/4, 1/2.
    np.testing.assert_allclose(samplers.shifted_grid(4), [1, 0.9, 0.75, 0.5, 0], rtol=1e-6)
    np.testing.assert_allclose(samplers.shifted_grid(7, shift=1), samplers.uniform_grid(7))
    # sigma / alpha = t / (1 - t) of the flow is multiplied by the shift: Equation 23 of Esser et
    # al. (https://arxiv.org/abs/2403.03206).
    for shift in (0.5, 4.0):
        t, u = (
            np.asarray(ts, np.float64)[1:-1]
            for ts in (samplers.shifted_grid(9, shift=shift), samplers.uniform_grid(9))
        )
        np.testing.assert_allclose(t / (1 - t), shift * u / (1 - u), rtol=1e-5)


@pytest.mark.parametrize("shift", [0.0, -1.0, float("nan")])
def test_a_shift_that_cannot_be_raises(shift):
    with pytest.raises(ValueError, match="shift must be positive"):
        samplers.shifted_grid(4, shift=shift)


def ratio(schedule_fn, ts):
    alpha, sigma = jax.jit(jax.vmap(schedule_fn))(jnp.asarray(ts, jnp.float32))
    return np.asarray(sigma, np.float64) / np.asarray(alpha, np.float64)


@pytest.mark.parametrize("name", ["linear", "flow"])
def test_karras_grid_meets_the_levels_of_edm(name):
    ts = samplers.karras_grid(schedules.SCHEDULES[name], 18)
    assert ts.shape == (19,)
    assert (ts[0], ts[-1]) == (1, 0)
    assert np.all(np.diff(ts) < 0)
    i = np.arange(1, 18)
    roots = 80 ** (1 / 7), 0.002 ** (1 / 7)
    expected = (roots[0] + i / 17 * (roots[1] - roots[0])) ** 7
    np.testing.assert_allclose(ratio(schedules.SCHEDULES[name], ts[1:-1]), expected, rtol=2e-4)


def test_karras_grid_of_the_karras_schedule_is_uniform():
    ts = samplers.karras_grid(schedules.karras, 5)
    np.testing.assert_allclose(ts, [1, 0.75, 0.5, 0.25, 0, 0], atol=1e-5)
    # The last level is sigma_min, a step above 0.
    np.testing.assert_allclose(schedules.karras(ts[-2])[1], 0.002, rtol=1e-4)
    assert samplers.karras_grid(schedules.karras, 1).tolist() == [1, 0]


def test_karras_grid_below_the_schedule_raises():
    with pytest.raises(ValueError, match=r"sigma_min = 0\.0001"):
        samplers.karras_grid(schedules.karras, 18, sigma_min=1e-4)


def test_snapped_by_hand():
    # 4 t of the ten steps is 4, 3.6, 3.2, 2.8, 2.4, 2, 1.6, 1.2, 0.8, 0.4, 0.
    got = samplers.snap_grid(samplers.uniform_grid(10), 4)
    assert got.dtype == jnp.float32
    assert got.tolist() == [1, 0.75, 0.5, 0.25, 0]
    # What lies on the levels stays as it is.
    ts = samplers.uniform_grid(5)
    np.testing.assert_array_equal(samplers.snap_grid(ts, 10), ts)


GRIDS = {
    name: make_fn if name != "karras" else functools.partial(make_fn, schedules.linear)
    for name, make_fn in samplers.GRIDS.items()
}


@pytest.mark.parametrize("levels", [1, 7, 30, 1000])
@pytest.mark.parametrize("name", GRIDS)
def test_snapped_grids_keep_to_the_levels(name, levels):
    for steps in (1, 10, 50):
        ts = GRIDS[name](steps)
        got = np.asarray(samplers.snap_grid(ts, levels), np.float64)
        assert np.all(np.diff(got) < 0)
        assert len(got) - 1 <= min(steps, levels)
        np.testing.assert_allclose(got * levels, np.round(got * levels), atol=1e-4)
        # The ends are the grid's own, and no severity has gone further than to the nearest level.
        for end in (0, -1):
            np.testing.assert_allclose(got[end], ts[end], atol=0.5 / levels + 1e-6)
        if name not in ("leading", "linspace"):
            assert got[0] == 1
        assert got[-1] == 0
        distance = np.abs(got - np.asarray(ts, np.float64)[:, None]).min(axis=1)
        assert distance.max() <= 0.5 / levels + 1e-6
