"""Oracles: closed forms in float64 numpy; scipy.fft.dctn for heat and blurring noise; each
family's limits, where one must become another."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import fft, special

from diffjax import schedules
from diffjax.cold import gaussian_blur, heat
from diffjax.degradations import degrade, draw, infer
from diffjax.hot import animorph, blurring_noise, gaussian_noise, interpolate

SHAPE = (6, 5, 2)
KEY = jax.random.key(0)


def images(count=1, seed=0):
    values = np.random.default_rng(seed).uniform(-1, 1, (count, *SHAPE))
    return values.astype(np.float32)


def blur(std=1.0):
    return gaussian_blur(SHAPE, stds=[std, 2 * std], kernel_size=5)


def cubic(t, *, power=3.0):
    """A schedule of a user's own."""
    return 1 - t**power, t


# Two constructions each, which must share one trace.
FAMILIES = {
    "cosine": [gaussian_noise(SHAPE), gaussian_noise(SHAPE, schedule="cosine", offset=0.02)],
    "zero terminal": [
        gaussian_noise(SHAPE, schedule="linear", zero_terminal_snr=True, beta_max=beta_max)
        for beta_max in (0.02, 0.03)
    ],
    "own": [gaussian_noise(SHAPE, schedule=cubic, power=power) for power in (2.0, 4.0)],
    "animorph": [animorph(SHAPE, images=images(4, seed), schedule="flow") for seed in (1, 2)],
    "blurring": [blurring_noise(SHAPE, blur_max=3.0), blurring_noise(SHAPE, blur_max=2, d_min=0)],
    "interpolate": [interpolate(SHAPE, end=blur(std), noise=std / 9) for std in (1.0, 2.0)],
    "brownian": [
        interpolate(SHAPE, end=gaussian_noise(SHAPE), noise=noise, brownian=True)
        for noise in (0.1, 0.2)
    ],
    "heat": [heat(SHAPE, sigma_max=4), heat(SHAPE, sigma_max=8.0, sigma_min=0.3)],
    "noisy heat": [heat(SHAPE, sigma_max=4, levels=9, noise=noise) for noise in (0.02, 0.05)],
}


@pytest.mark.parametrize("family", FAMILIES)
def test_laws(family):
    traces = []

    @jax.jit
    def observe(degradation, x0, t):
        traces.append(t)
        omega = draw(degradation, KEY, x0)
        xt = degrade(degradation, x0, t, omega)
        replayed = degrade(degradation, x0, t, infer(degradation, xt, t, x0, omega))
        slope = jax.grad(lambda x0: jnp.sum(degrade(degradation, x0, t, omega)))(x0)
        kept = jax.grad(lambda xt: sum_of(infer(degradation, xt, t, x0, omega)))(xt)
        return xt, replayed, slope, kept

    def sum_of(tree):
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(tree)) + jnp.zeros(())

    (x0,) = images()
    results = []
    for degradation in FAMILIES[family]:
        for t in (0.0, 0.3, 1.0):
            xt, replayed, *slopes = observe(degradation, x0, jnp.float32(t))
            np.testing.assert_allclose(replayed, xt, atol=1e-5)
            assert np.all(np.isfinite(xt))
            assert np.all(np.isfinite(slopes))
            if t == 0:
                np.testing.assert_array_equal(xt, x0)
            results.append(np.asarray(xt))
    assert len(traces) == 1
    assert not np.allclose(results[1], results[4], atol=1e-4), "the numbers made no difference"


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
    # 12,288 draws: one standard error of the variance is 0.013.
    np.testing.assert_allclose(np.var(omega), 1, atol=0.06)


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


@pytest.mark.parametrize("family", ["cosine", "animorph", "interpolate"])
def test_linear_fn_is_the_degradation(family):
    degradation = FAMILIES[family][0]
    (x0,) = images()
    omega = draw(degradation, KEY, x0)
    at_t = degradation.linear_fn(degradation.params, jnp.float32(0.3))
    expected = np.float64(at_t.alpha) * x0 + np.float64(at_t.sigma) * np.asarray(omega)
    np.testing.assert_allclose(degrade(degradation, x0, 0.3, omega), expected, atol=1e-6)


def test_animorph_draws_images_of_its_bank():
    bank = images(3, seed=4)
    degradation = animorph(SHAPE, images=bank)
    keys = jax.random.split(KEY, 64)
    omegas = np.asarray(jax.vmap(draw, in_axes=(None, 0, None))(degradation, keys, bank[0]))
    distances = np.abs(omegas[:, None] - bank[None]).max(axis=(2, 3, 4))
    assert np.all(distances.min(axis=1) == 0)
    # One of three never drawn in 64: 3 (2/3)^64 = 2e-11.
    assert set(distances.argmin(axis=1)) == {0, 1, 2}


def attenuated(x0, gain):
    u = fft.dctn(x0.astype(np.float64), norm="ortho", axes=(0, 1)) * gain
    return fft.idctn(u, norm="ortho", axes=(0, 1))


def frequencies():
    n, m = np.arange(SHAPE[0])[:, None, None], np.arange(SHAPE[1])[None, :, None]
    return (np.pi * n / SHAPE[0]) ** 2 + (np.pi * m / SHAPE[1]) ** 2


@pytest.mark.parametrize("t", [0.1, 0.5, 1.0])
def test_blurring_noise_is_its_closed_form(t):
    x0, omega = images(2)
    std = 3 * np.sin(np.pi * t / 2) ** 2
    gain = 0.9 * np.exp(-frequencies() * std**2 / 2) + 0.1
    first, last = np.arctan(np.exp(-5)), np.arctan(np.exp(5))
    logsnr = -2 * np.log(np.tan(first + t * (last - first)))
    expected = attenuated(x0, gain * np.sqrt(special.expit(logsnr)))
    expected += np.sqrt(special.expit(-logsnr)) * omega
    degradation = blurring_noise(SHAPE, blur_max=3.0, d_min=0.1)
    np.testing.assert_allclose(degrade(degradation, x0, t, omega), expected, atol=2e-6)


@pytest.mark.parametrize("t", [0.0, 0.01, 0.5, 1.0])
def test_blurring_noise_without_blur_is_gaussian_noise(t):
    x0, omega = images(2)
    numbers = {"logsnr_min": -10.0, "logsnr_max": 10.0}
    noisy = gaussian_noise(SHAPE, schedule="shifted_cosine", **numbers)
    unblurred = blurring_noise(SHAPE, blur_max=0.0, **numbers)
    np.testing.assert_array_equal(degrade(unblurred, x0, t, omega), degrade(noisy, x0, t, omega))


@pytest.mark.parametrize("t", [0.0, 0.5, 0.8, 1.0])
def test_blurring_noise_without_noise_is_heat(t):
    x0, omega = images(2)
    silent = blurring_noise(SHAPE, blur_max=4.0, d_min=0.0, logsnr_min=np.inf, logsnr_max=np.inf)
    # The same std: 4 sin^2(pi t / 2) = 0.5 * 8^t_heat.
    std = 4 * np.sin(np.pi * t / 2) ** 2
    t_heat = np.log(std / 0.5) / np.log(8) if t else 0.0
    expected = degrade(heat(SHAPE, sigma_max=4.0), x0, float(min(t_heat, 1)))
    np.testing.assert_allclose(degrade(silent, x0, t, omega), expected, atol=2e-6)


@pytest.mark.parametrize("t", [0.02, 0.5, 1.0])
def test_heat_is_scipys_transform_attenuated(t):
    (x0,) = images()
    std = 0.5 * 8**t
    expected = attenuated(x0, np.exp(-frequencies() * std**2 / 2))
    np.testing.assert_allclose(degrade(heat(SHAPE, sigma_max=4.0), x0, t), expected, atol=2e-6)


def test_heat_of_levels_is_tabulated():
    (x0,) = images()
    tabulated = heat(SHAPE, sigma_max=8.0, levels=5)
    # Levels 0.5, 1, 2, 4, 8 at k = 1..5; t = 0.31 is k = round(1.55) = 2, t = 0.09 is k = 0.
    for t, std in ((0.2, 0.5), (0.31, 1.0), (0.6, 2.0), (1.0, 8.0)):
        expected = attenuated(x0, np.exp(-frequencies() * std**2 / 2))
        np.testing.assert_allclose(degrade(tabulated, x0, t), expected, atol=2e-6)
    np.testing.assert_array_equal(degrade(tabulated, x0, 0.09), x0)


def test_heat_is_a_semigroup():
    # Stds 3 and 4 make 5: sigma_max at t = 1 of three degradations.
    (x0,) = images()
    three, four, five = (heat(SHAPE, sigma_max=std) for std in (3.0, 4.0, 5.0))
    twice = degrade(four, degrade(three, x0, 1.0), 1.0)
    np.testing.assert_allclose(twice, degrade(five, x0, 1.0), atol=1e-6)


def test_noise_of_heat():
    x0, omega = images(2)
    noisy, silent = (heat(SHAPE, sigma_max=4.0, noise=noise) for noise in (0.02, 0.0))
    assert draw(silent, KEY, x0) is None
    for t in (0.01, 1.0):
        difference = degrade(noisy, x0, t, omega) - degrade(silent, x0, t)
        np.testing.assert_allclose(difference, 0.02 * omega, atol=1e-6)
    np.testing.assert_array_equal(degrade(noisy, x0, 0.0, omega), x0)


@pytest.mark.parametrize("t", [0.0, 0.4])
def test_linear_fn_of_heat(t):
    x0, omega = images(2)
    degradation = heat(SHAPE, sigma_max=4.0, noise=0.1)
    at_t = degradation.linear_fn(degradation.params, jnp.float32(t))
    expected = np.einsum("ih,hwc,jw->ijc", at_t.rows, x0, at_t.cols) + at_t.sigma * omega
    np.testing.assert_allclose(degrade(degradation, x0, t, omega), expected, atol=1e-6)


def test_interpolate_runs_to_the_end_point():
    (x0,) = images()
    end, bridge = blur(), interpolate(SHAPE, end=blur(), noise=0.1)
    omega = draw(bridge, KEY, x0)
    np.testing.assert_array_equal(degrade(bridge, x0, 1.0, omega), omega)
    np.testing.assert_allclose(degrade(bridge, x0, 0.3, omega), 0.7 * x0 + 0.3 * omega, atol=1e-6)
    # omega - y is 0.1 times a standard normal, of 60 draws.
    noise = np.asarray(omega - degrade(end, x0, 1.0)) / 0.1
    assert 0.6 < np.std(noise) < 1.4
    # Heat is continuous: its end point is at t = 1 and nowhere near it.
    silent, end = interpolate(SHAPE, end=heat(SHAPE, sigma_max=4.0)), heat(SHAPE, sigma_max=4.0)
    np.testing.assert_array_equal(draw(silent, KEY, x0), degrade(end, x0, 1.0))


def test_algorithm_2_with_the_inferred_end_point_is_the_step_of_indi():
    x0, x0_hat, unread = images(3)
    bridge = interpolate(SHAPE, end=blur(), noise=0.1)
    t, s = 0.8, 0.55
    xt = degrade(bridge, x0, t, draw(bridge, KEY, x0))
    omega_hat = infer(bridge, xt, t, x0_hat, unread)
    xs = xt - degrade(bridge, x0_hat, t, omega_hat) + degrade(bridge, x0_hat, s, omega_hat)
    expected = xt + (t - s) / t * (x0_hat - xt)
    np.testing.assert_allclose(xs, expected, atol=1e-6)


@pytest.mark.parametrize("t", [0.25, 1.0])
def test_brownian_noise_grows_as_the_root_of_t(t):
    (x0,) = images()
    y, n = draw(FAMILIES["brownian"][0], KEY, x0)
    xt = degrade(FAMILIES["brownian"][0], x0, t, (y, n))
    np.testing.assert_allclose(xt, (1 - t) * x0 + t * y + 0.1 * np.sqrt(t) * n, atol=1e-6)
    # y is solved for, n kept.
    y_hat, n_hat = infer(FAMILIES["brownian"][0], xt, t, x0, (jnp.zeros_like(y), n))
    np.testing.assert_allclose(y_hat, y, atol=1e-5)
    np.testing.assert_array_equal(n_hat, n)


def negative(t):
    return 1 - 2 * t, t


def growing(t):
    return jnp.where(t < 0.5, 1.0 - t, 1.0), t


def noisy_start(t):
    return 1 - t, 0.1 + t


BANK = images(2)
WRONG = {
    "image_shape must": [
        lambda: gaussian_noise((6, 5)),
        lambda: animorph((6, 5), images=BANK),
        lambda: blurring_noise((6, 0, 1), blur_max=1.0),
        lambda: interpolate((6,), end=blur()),
        lambda: heat((6, 5), sigma_max=4.0),
    ],
    "schedule must be one of linear, cosine": [
        lambda: gaussian_noise(SHAPE, schedule="cosinus"),
        lambda: animorph(SHAPE, images=BANK, schedule=None),
    ],
    "schedule cosine takes .*; got .'beta_min'": [lambda: gaussian_noise(SHAPE, beta_min=0.1)],
    "schedule tabulated needs table": [lambda: gaussian_noise(SHAPE, schedule="tabulated")],
    "table must be": [lambda: gaussian_noise(SHAPE, schedule="tabulated", table=np.ones((3, 3)))],
    "schedule karras with sigma_min = -1.0": [
        lambda: gaussian_noise(SHAPE, schedule="karras", sigma_min=-1.0)
    ],
    "schedule karras with .* must give two scalars": [
        lambda: gaussian_noise(SHAPE, schedule="karras", sigma_max=np.ones(3))
    ],
    "schedule negative .* not negative": [lambda: gaussian_noise(SHAPE, schedule=negative)],
    "schedule growing .* must not let sigma / alpha fall": [
        lambda: gaussian_noise(SHAPE, schedule=growing)
    ],
    "schedule noisy_start .* must start at": [lambda: gaussian_noise(SHAPE, schedule=noisy_start)],
    "zero_terminal_snr needs": [
        lambda: gaussian_noise(SHAPE, schedule="flow", zero_terminal_snr=True)
    ],
    "images must be": [
        lambda: animorph(SHAPE, images=BANK[..., :1]),
        lambda: animorph(SHAPE, images=BANK[0]),
        lambda: animorph(SHAPE, images=BANK[:0]),
        lambda: animorph(SHAPE, images=BANK.astype(np.uint8)),
    ],
    "blur_max must": [lambda: blurring_noise(SHAPE, blur_max=-1.0)],
    "d_min must": [lambda: blurring_noise(SHAPE, blur_max=1.0, d_min=1.1)],
    "logsnr_min must": [lambda: blurring_noise(SHAPE, blur_max=1.0, logsnr_min=11.0)],
    "end must be a Degradation": [lambda: interpolate(SHAPE, end=None)],
    "end must degrade images of image_shape": [lambda: interpolate((6, 6, 2), end=blur())],
    "noise must": [
        lambda: interpolate(SHAPE, end=blur(), noise=-0.1),
        lambda: heat(SHAPE, sigma_max=4.0, noise=-0.1),
    ],
    "sigma_min must": [lambda: heat(SHAPE, sigma_max=4.0, sigma_min=0.0)],
    "sigma_max must": [lambda: heat(SHAPE, sigma_max=0.4), lambda: heat(SHAPE, sigma_max=np.nan)],
    "levels must": [
        lambda: heat(SHAPE, sigma_max=4.0, levels=1),
        lambda: heat(SHAPE, sigma_max=4.0, levels=-3),
    ],
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_arguments_raise(message):
    for construct in WRONG[message]:
        with pytest.raises(ValueError, match=message):
            construct()


@pytest.mark.parametrize("family", ["blurring", "heat", "interpolate"])
def test_image_of_another_size_raises(family):
    degradation = FAMILIES[family][0]
    omega = None if family == "heat" else draw(degradation, KEY, images()[0])
    with pytest.raises(AssertionError):
        degrade(degradation, jnp.zeros((6, 6, 2)), 0.5, omega)
