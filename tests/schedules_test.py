"""Oracles: the published formulas in float64 numpy and scipy; numpy's cumulative products for
tables of betas; hand computation; timesteps of diffusers 0.42.1 where it is named."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from diffjax import schedules
from diffjax.degradations.base import degrade
from diffjax.degradations.blur import gaussian_blur

CIRCLE = ("linear", "cosine", "sigmoid", "shifted_cosine", "tabulated")


def bound(name):
    """t -> (alpha, sigma) with the default numbers; a short table for "tabulated"."""
    numbers = {}
    if name == "tabulated":
        numbers["table"] = jnp.asarray(schedules.beta_table([0.1, 0.4, 0.9]), jnp.float32)
    return functools.partial(schedules.SCHEDULES[name], **numbers)


def at(schedule_fn, ts):
    alpha, sigma = jax.jit(jax.vmap(schedule_fn))(jnp.asarray(ts, jnp.float32))
    return np.asarray(alpha, np.float64), np.asarray(sigma, np.float64)


@pytest.mark.parametrize("name", schedules.SCHEDULES)
def test_every_schedule_starts_clean_and_only_loses(name):
    schedule_fn = bound(name)
    assert [float(x) for x in schedule_fn(jnp.float32(0))] == [1, 0]
    ts = np.concatenate([[0, 1e-7, 1e-4], np.linspace(0.001, 1, 998)])
    (alpha, sigma), *slopes = jax.jit(
        jax.vmap(lambda t: (schedule_fn(t), jax.jacfwd(schedule_fn)(t), jax.jacrev(schedule_fn)(t)))
    )(jnp.asarray(ts, jnp.float32))
    alpha, sigma = np.asarray(alpha, np.float64), np.asarray(sigma, np.float64)
    assert np.all(np.isfinite(slopes))
    assert (alpha[0], sigma[0]) == (1, 0)
    assert np.all(np.isfinite(alpha) & np.isfinite(sigma) & (alpha >= 0) & (sigma >= 0))
    # sigma / alpha grows, alpha may end at 0.
    assert np.all(sigma[1:] * alpha[:-1] >= sigma[:-1] * alpha[1:])
    if name in CIRCLE:
        np.testing.assert_allclose(alpha**2 + sigma**2, 1, atol=1e-6)


def test_linear_is_the_table_of_ddpm():
    # Section 4 of DDPM: 1,000 betas from 1e-4 to 0.02.
    alpha_bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    alpha, sigma = at(schedules.linear, np.arange(1, 1001) / 1000)
    np.testing.assert_allclose(alpha, np.sqrt(alpha_bar), rtol=2e-6)
    np.testing.assert_allclose(sigma, np.sqrt(1 - alpha_bar), rtol=1e-6)
    # alphas_cumprod[[0, 499, 999]] of diffusers' DDIMScheduler(beta_schedule="linear").
    np.testing.assert_allclose(
        alpha[[0, 499, 999]] ** 2, [0.9999, 0.0785872, 4.03583e-5], rtol=1e-5
    )


def test_cosine_is_the_clipped_table_of_improved_ddpm():
    f = np.cos((np.arange(1001) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
    alpha_bar = np.cumprod(np.maximum(f[1:] / f[:-1], 1 - 0.999))
    alpha, sigma = at(schedules.cosine, np.arange(1, 1001) / 1000)
    np.testing.assert_allclose(alpha, np.sqrt(alpha_bar), rtol=2e-5)
    np.testing.assert_allclose(sigma, np.sqrt(1 - alpha_bar), rtol=1e-6)


@pytest.mark.parametrize(("steps", "last"), [(50, 9.7e-7), (200, 6.07e-8)])
def test_cosine_betas_end_where_the_cold_diffusion_code_does(steps, last):
    # The last alpha_bar, as observed in running the authors' code.
    table = schedules.beta_table(schedules.cosine_betas(steps))
    np.testing.assert_allclose(table[-1, 0] ** 2, last, rtol=5e-3)
    assert schedules.cosine_betas(steps)[-1] == 0.999


def test_sigmoid():
    ts = np.linspace(0.001, 0.999, 200)
    for start, end, temperature in ((-3, 3, 1.0), (0, 3, 0.3)):
        first, last = (special.expit(x / temperature) for x in (start, end))
        middle = special.expit((start + ts * (end - start)) / temperature)
        alpha, sigma = at(
            functools.partial(schedules.sigmoid, start=start, end=end, temperature=temperature), ts
        )
        np.testing.assert_allclose(alpha**2, (last - middle) / (last - first), rtol=5e-4)
        np.testing.assert_allclose(sigma**2, (middle - first) / (last - first), rtol=5e-6)
    np.testing.assert_allclose(at(schedules.sigmoid, [1])[0], np.sqrt(1e-9), rtol=1e-6)


@pytest.mark.parametrize(("image_size", "noise_size", "bound"), [(1, 1, 10), (128, 32, 15)])
def test_shifted_cosine(image_size, noise_size, bound):
    ts = np.linspace(0.001, 1, 200)
    first, last = np.arctan(np.exp(-bound / 2)), np.arctan(np.exp(bound / 2))
    logsnr = -2 * np.log(np.tan(first + ts * (last - first))) + 2 * np.log(noise_size / image_size)
    numbers = {"image_size": image_size, "noise_size": noise_size}
    numbers |= {"logsnr_min": -bound, "logsnr_max": bound}
    alpha, sigma = at(functools.partial(schedules.shifted_cosine, **numbers), ts)
    np.testing.assert_allclose(alpha**2, special.expit(logsnr), rtol=2e-5)
    np.testing.assert_allclose(sigma**2, special.expit(-logsnr), rtol=5e-6)
    # log SNR ends at the bound and the shift, by the definition.
    shift = 2 * np.log(noise_size / image_size)
    np.testing.assert_allclose(2 * np.log(alpha[-1] / sigma[-1]), shift - bound, rtol=1e-5)


def test_shifted_cosine_without_bounds_is_the_quarter_circle():
    numbers = {"logsnr_min": -np.inf, "logsnr_max": np.inf}
    alpha, sigma = at(functools.partial(schedules.shifted_cosine, **numbers), [0.5, 1])
    np.testing.assert_allclose(alpha, [np.sqrt(0.5), 0], atol=1e-7)
    np.testing.assert_allclose(sigma, [np.sqrt(0.5), 1], atol=1e-7)


def test_flow_variance_exploding_and_karras():
    ts = np.linspace(0.01, 1, 100)
    np.testing.assert_allclose(at(schedules.flow, ts), (1 - ts, ts), atol=1e-7)
    exploding = functools.partial(schedules.variance_exploding, sigma_min=0.01, sigma_max=50.0)
    alpha, sigma = at(exploding, ts)
    np.testing.assert_allclose(sigma, 0.01 * 5000**ts, rtol=1e-5)
    assert np.all(alpha == 1)
    alpha, sigma = at(schedules.karras, ts)
    roots = 0.002 ** (1 / 7), 80 ** (1 / 7)
    np.testing.assert_allclose(sigma, (roots[0] + ts * (roots[1] - roots[0])) ** 7, rtol=1e-5)
    assert np.all(alpha == 1)
    np.testing.assert_allclose(sigma[-1], 80, rtol=1e-6)
    np.testing.assert_allclose(at(schedules.karras, [1e-9])[1], 0.002, rtol=1e-5)


def test_beta_table_by_hand():
    # Products of 1 - beta: 0.64, 0.36, 0.04, hence alpha = 0.8, 0.6, 0.2.
    table = schedules.beta_table([0.36, 0.4375, 8 / 9])
    expected = [[1, 0], [0.8, 0.6], [0.6, 0.8], [0.2, np.sqrt(0.96)]]
    np.testing.assert_allclose(table, expected, atol=1e-15)
    # (alpha - 0.2) / (1 - 0.2)
    tabulated = functools.partial(schedules.tabulated, table=jnp.asarray(table, jnp.float32))
    alpha, sigma = at(functools.partial(schedules.zero_terminal, tabulated), np.arange(4) / 3)
    np.testing.assert_allclose(alpha, [1, 0.75, 0.5, 0], atol=1e-6)
    np.testing.assert_allclose(sigma**2, [0, 0.4375, 0.75, 1], atol=1e-6)


def test_zero_terminal_is_that_of_diffusers():
    # alphas_cumprod[[0, 499, 998]] of DDIMScheduler(rescale_betas_zero_snr=True), linear betas.
    zero_terminal = functools.partial(schedules.zero_terminal, schedules.linear)
    alpha, _ = at(zero_terminal, np.array([1, 500, 999]) / 1000)
    np.testing.assert_allclose(alpha**2, [0.9999, 0.0760287, 4.21327e-9], rtol=1e-3)


def test_tabulated_is_its_rows_and_the_circle_between():
    table = schedules.beta_table(np.linspace(1e-4, 0.02, 1000))
    schedule_fn = functools.partial(schedules.tabulated, table=jnp.asarray(table, jnp.float32))
    alpha, sigma = at(schedule_fn, np.arange(1001) / 1000)
    np.testing.assert_allclose(alpha, table[:, 0], rtol=2e-6)
    np.testing.assert_allclose(sigma, table[:, 1], rtol=2e-6)
    # Half-way from (1, 0) to (0, 1) on the circle is (1, 1) / sqrt 2.
    corners = jnp.asarray([[1.0, 0.0], [0.0, 1.0]])
    got = schedules.tabulated(jnp.float32(0.5), table=corners)
    np.testing.assert_allclose(got, np.sqrt([0.5, 0.5]), rtol=1e-6)


@pytest.mark.parametrize("name", CIRCLE)
def test_zero_terminal_rescales_alpha(name):
    ts = np.linspace(0, 1, 101)
    alpha, _ = at(bound(name), ts)
    expected = (alpha - alpha[-1]) / (1 - alpha[-1])
    got, sigma = at(functools.partial(schedules.zero_terminal, bound(name)), ts)
    np.testing.assert_allclose(got, expected, atol=1e-6)
    np.testing.assert_allclose(sigma**2, 1 - got**2, atol=2e-6)
    assert (got[0], sigma[0]) == (1, 0)
    assert (got[-1], sigma[-1]) == (0, 1)


def test_widths_of_the_published_blurs():
    # Cold Diffusion's routines, i counting from 0: s, s (i + 1), i / 100 + 0.35, exp(s i).
    assert schedules.linear_stds(3, start=7.0).tolist() == [7, 7, 7]
    np.testing.assert_allclose(schedules.linear_stds(3, start=0.1, slope=0.1), [0.1, 0.2, 0.3])
    np.testing.assert_allclose(
        schedules.linear_stds(50, start=0.35, slope=0.01)[[0, 1, -1]], [0.35, 0.36, 0.84]
    )
    # exp(0.01) and exp(1.99).
    np.testing.assert_allclose(
        schedules.exponential_stds(200, rate=0.01)[[0, 1, -1]], [1, 1.010050167, 7.315533763]
    )
    # 0.5 to 32 in 7 levels: doubling.
    np.testing.assert_allclose(
        schedules.heat_stds(7, sigma_min=0.5, sigma_max=32), [0.5, 1, 2, 4, 8, 16, 32]
    )
    # sin^2 of 0, 45 and 90 degrees.
    got = [schedules.sine_squared(jnp.float32(t), maximum=20.0).item() for t in (0, 0.5, 1)]
    np.testing.assert_allclose(got, [0, 10, 20], rtol=1e-6)


def test_log_spaced():
    got = [
        schedules.log_spaced(jnp.float32(t), sigma_min=0.5, sigma_max=32.0).item()
        for t in (0, 1 / 6, 0.5, 1)
    ]
    np.testing.assert_allclose(got, [0, 1, 4, 32], rtol=1e-6)


@pytest.mark.parametrize("shape", [(), (3,), (2, 2)])
def test_invert_is_the_inverse_in_closed_form(shape):
    ratios = np.geomspace(0.02, 40, max(int(np.prod(shape)), 1)).reshape(shape)
    got = schedules.invert(schedules.flow, ratios)
    assert (got.shape, got.dtype) == (shape, jnp.float32)
    # t / (1 - t) = r
    np.testing.assert_allclose(got, ratios / (1 + ratios), rtol=1e-6)
    exploding = functools.partial(schedules.variance_exploding, sigma_min=0.01, sigma_max=50.0)
    got = schedules.invert(exploding, ratios)
    np.testing.assert_allclose(got, np.log(ratios / 0.01) / np.log(5000), rtol=1e-5)


def test_invert_of_what_is_not_reached():
    # The flow reaches any ratio, DDPM's linear schedule 157, and this one 50, at t = 1.
    exploding = functools.partial(schedules.variance_exploding, sigma_min=0.01, sigma_max=50.0)
    np.testing.assert_array_equal(schedules.invert(exploding, jnp.array([50.1, jnp.inf])), 1)
    np.testing.assert_array_equal(schedules.invert(schedules.linear, 158.0), 1)
    assert schedules.invert(schedules.linear, 157.0) < 1
    np.testing.assert_array_equal(schedules.invert(schedules.flow, jnp.inf), 1)
    # No noise at all is t = 0, within what float32 tells from it.
    assert schedules.invert(schedules.flow, 0.0) < 1e-6


@pytest.mark.parametrize("name", schedules.SCHEDULES)
def test_invert_leads_back_to_the_severity(name):
    ts = np.linspace(0.05, 0.95, 19)
    alpha, sigma = at(bound(name), ts)
    got = jax.jit(lambda ratio: schedules.invert(bound(name), ratio))(sigma / alpha)
    np.testing.assert_allclose(got, ts, atol=2e-5)


@pytest.mark.parametrize("betas", [[], [[0.1]], [0.1, 1.1], [-0.1], [np.nan]])
def test_betas_that_are_none_raise(betas):
    with pytest.raises(ValueError, match="betas must be"):
        schedules.beta_table(betas)


@pytest.mark.parametrize("shape", [(3,), (1, 2), (3, 3)])
def test_table_of_another_shape_raises(shape):
    with pytest.raises(ValueError, match="table must be"):
        schedules.tabulated(jnp.float32(0.5), table=jnp.ones(shape))


@pytest.mark.parametrize("steps", [2, 50, 300])
def test_blur_increments_add_up_to_log_spaced_totals(steps):
    increments = schedules.blur_increments(steps, first=0.3, last=12.0)
    assert (increments.shape, increments.dtype) == ((steps,), np.float64)
    # Stds of blurs one after another add in squares; and equal ratios of 40^(1 / (T - 1)).
    total = np.sqrt(np.cumsum(increments**2))
    np.testing.assert_allclose(total[[0, -1]], [0.3, 12], rtol=1e-12)
    np.testing.assert_allclose(total[1:] / total[:-1], 40 ** (1 / (steps - 1)), rtol=1e-10)


def test_a_blur_of_such_increments_has_the_total_std():
    # The second moment of an impulse's response, along rows; the steps of 0.12 pixels and more.
    size, steps = 121, 50
    increments = schedules.blur_increments(steps, first=0.3, last=12.0)
    assert increments.min() < 0.13
    degradation = gaussian_blur((size, 1, 1), stds=increments)
    impulse = np.zeros((size, 1, 1), np.float32)
    impulse[size // 2] = 1
    offsets = np.arange(size) - size // 2
    for k, expected in enumerate(np.geomspace(0.3, 12, steps), start=1):
        response = np.asarray(degrade(degradation, impulse, k / steps), np.float64)[:, 0, 0]
        np.testing.assert_allclose(response.sum(), 1, rtol=1e-5)
        np.testing.assert_allclose(np.sqrt(response @ offsets**2), expected, rtol=1e-3)


@pytest.mark.parametrize(
    ("steps", "first", "last"),
    [(1, 0.3, 12), (0, 0.3, 12), (5, 0, 12), (5, -1, 12), (5, 12, 12), (5, 13, 12), (5, 1, np.inf)],
)
def test_increments_that_cannot_be_raise(steps, first, last):
    message = f"want steps >= 2 and 0 < first < last; got {steps}, {first}, {last}"
    with pytest.raises(ValueError, match=message):
        schedules.blur_increments(steps, first=first, last=last)
