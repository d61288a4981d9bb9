"""Oracles: the walk of one mode as a product over steps, in float64 numpy.

The data are Gaussian, their covariance diagonal in the DCT with the variances s_n s_m; a blur
with a symmetric boundary is diagonal there too. Mode (n, m) of a kernel g of std 1 step is

    a = sum_j g_j cos(pi n j / H) sum_j g_j cos(pi m j / W)

and the Wiener restorer's answer is a S / (a^2 S + q^2) of it.
"""

import functools

import jax
import numpy as np
import pytest
from scipy import fft

from diffjax import samplers, wiener
from diffjax.auditing import generation_laws
from diffjax.degradations.blur import downsample, gaussian_blur
from diffjax.degradations.heat import heat
from diffjax.degradations.snow import snow

HEIGHT, WIDTH = 6, 8
SHAPE = (HEIGHT, WIDTH, 1)
Q = 0.02
TAPS = 31
# Falling with the frequency; no two modes are equal, so that their order is one.
VARIANCES_HW = np.multiply.outer(
    0.5 / (0.35 + np.arange(HEIGHT)) ** 2, 0.5 / (0.5 + np.arange(WIDTH)) ** 2
)


def product_moments():
    """The moments of images of the covariance above, as `wiener.covariances` reads them."""
    total = VARIANCES_HW.sum()
    axes = [
        fft.idct(np.diag(VARIANCES_HW.sum(axis)), axis=0, norm="ortho", type=2) for axis in (1, 0)
    ]
    rows, cols = (fft.idct(axis, axis=1, norm="ortho", type=2) for axis in axes)
    mean = np.random.default_rng(0).uniform(-0.5, 0.5, SHAPE)
    return wiener.Moments(np.asarray(1.0), mean, rows, cols, np.full((1, 1), total))


MOMENTS = product_moments()


def stds(steps):
    """Of each step, so that the std of all steps so far is log-spaced."""
    return np.sqrt(np.diff(np.geomspace(0.3, 12, steps) ** 2, prepend=0))


STDS = {name: stds(steps) for name, steps in (("long", 200), ("fifty", 50), ("five", 5))}
STDS["jumps"] = 0.3 + 0.05 * np.arange(20)


def blur(step_stds):
    return gaussian_blur(
        *(SHAPE,),
        **{"stds": step_stds, "kernel_size": TAPS, "boundary": "symmetric", "mean_at_end": True},
    )


def amplitudes(step_stds):
    """a of every mode before any step and after each, the mean at the end; [T + 1, H, W]."""
    offsets = np.arange(TAPS) - TAPS // 2
    axes = []
    for size in (HEIGHT, WIDTH):
        kernels = np.exp(-0.5 * (offsets / np.asarray(step_stds)[:, None]) ** 2)
        kernels /= kernels.sum(axis=1, keepdims=True)
        steps = kernels @ np.cos(np.pi * np.outer(offsets, np.arange(size)) / size)
        total = np.concatenate([np.ones((1, size)), np.cumprod(steps, axis=0)])
        total[-1] = np.arange(size) == 0
        axes.append(total)
    return axes[0][:, :, None] * axes[1][:, None, :]


def walked(amplitude, p, q):
    """The std of each mode at t = 0 after Algorithm 2 from x_T = A_T x0 + p n; [H, W]."""
    std = np.sqrt(amplitude[-1] ** 2 * VARIANCES_HW + p**2)
    for a_t, a_s in zip(amplitude[:0:-1], amplitude[-2::-1], strict=True):
        gain = (a_s - a_t) * a_t * VARIANCES_HW / (a_t**2 * VARIANCES_HW + q**2)
        std = std * (1 + gain)
    return std


def ordered(values_HW, q=Q):
    """The modes that count, those of the largest variance first."""
    modes = np.argsort(-VARIANCES_HW, axis=None)
    modes = modes[VARIANCES_HW.ravel()[modes] > 10 * q**2]
    return values_HW.ravel()[modes]


@functools.cache
def check(name, **settings):
    settings = {"perturbation": Q, "samples": 5000} | settings
    degradation = blur(STDS[name])
    return generation_laws.check_generation(degradation, MOMENTS, jax.random.key(0), **settings)


def test_the_moments_are_of_the_covariance():
    # So that nothing below rests on how `wiener` scales the factors.
    rows, cols, colors = wiener.covariances(MOMENTS)
    covariance = np.kron(rows, cols) * colors[0, 0]
    basis = np.kron(*(fft.dct(np.eye(size), axis=0, norm="ortho") for size in (HEIGHT, WIDTH)))
    expected = np.diag(VARIANCES_HW.ravel())
    np.testing.assert_allclose(basis @ covariance @ basis.T, expected, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "p"), [("long", Q), ("fifty", 1.5 * Q), ("jumps", 1.1 * Q), ("five", 1.1 * Q)]
)
def test_every_mode_is_the_product_over_the_steps(name, p):
    # The std of 5,000 images is within 4% of the law's, four standard deviations.
    found = check(name, start_perturbation=p)
    np.testing.assert_allclose(found.data_std, ordered(np.sqrt(VARIANCES_HW)), rtol=1e-5)
    expected = ordered(walked(amplitudes(STDS[name]), p, Q))
    got = found.made["Algorithm 2"] * found.data_std
    np.testing.assert_allclose(got, expected, rtol=0.05, atol=1e-6)


def test_small_steps_from_p_of_q_make_the_data():
    found = check("long", start_perturbation=Q)
    assert len(found.data_std) > 20
    np.testing.assert_allclose(found.made["Algorithm 2"], 1, atol=0.12)
    assert found.broken == ()
    assert found.summary.startswith("can generate: ")


def test_without_noise_and_by_algorithm_1_nothing_is_made():
    # What is left is the mean color, which D keeps.
    found = check("long", start_perturbation=Q)
    for way in ("p = 0", "Algorithm 1"):
        assert abs(found.made[way][0] - 1) < 0.05
        assert np.max(found.made[way][1:]) < 1e-2


@pytest.mark.parametrize(
    ("name", "settings", "broken", "said"),
    [
        ("fifty", {"start_perturbation": 0.0}, ("perturbation",), "noise of 0 and R was trained"),
        (
            *("fifty", {"perturbation": Q / 10, "start_perturbation": Q}, ("perturbation",)),
            "xT carries noise of 0.02 and R was trained with 0.002: want 1.1 of it",
        ),
        ("fifty", {"perturbation": 0.0, "start_perturbation": Q}, ("perturbation",), "q = 0"),
        ("fifty", {"perturbation": 9.0}, ("perturbation",), "no mode of the data stands out"),
        # Twenty steps would lose the excess, fifty do not.
        ("fifty", {"start_perturbation": 1.5 * Q}, ("perturbation",), "too much for 50 steps"),
        ("jumps", {"start_perturbation": 1.1 * Q}, ("jump",), "they come as their mean"),
        ("five", {"start_perturbation": 1.1 * Q}, ("jump", "steps"), "5 steps are too few"),
    ],
    ids=["p = 0", "q / 10", "q = 0", "q = 9", "1.5 q", "jump", "five steps"],
)
def test_what_must_fail_names_its_condition(name, settings, broken, said):
    found = check(name, **settings)
    assert found.broken == broken
    assert found.summary.startswith("cannot generate: ")
    assert said in found.summary
    assert "\n" not in found.summary


def test_five_steps_of_fifty_are_too_few_and_no_jump_of_d():
    settings = {"perturbation": Q, "ts": samplers.uniform_grid(5)}
    found = generation_laws.check_generation(
        blur(STDS["fifty"]), MOMENTS, jax.random.key(0), **settings
    )
    assert found.broken == ("steps",)
    expected = ordered(walked(amplitudes(STDS["fifty"])[::10], 1.1 * Q, Q))
    got = found.made["Algorithm 2"] * found.data_std
    np.testing.assert_allclose(np.median(got / expected), 1, atol=0.05)


def test_a_jump_is_counted_by_hand():
    found = check("jumps", start_perturbation=1.1 * Q)
    before, last = amplitudes(STDS["jumps"])[-2:]
    expected = ordered((before - last) * np.sqrt(VARIANCES_HW))
    np.testing.assert_allclose(found.jump, expected, rtol=0.05, atol=1e-5)
    count = np.sum(expected > 1.5 * Q)
    assert count > 1
    assert f"takes {count} of {len(expected)} modes out of view" in found.summary
    assert np.max(check("fifty", start_perturbation=1.5 * Q).jump) < Q / 10


def test_halvings_jump_and_those_in_twenty_steps_do_not():
    for between, broken in ((1, True), (20, False)):
        halvings = downsample((8, 8, 1), steps=2, method="area", between=between)
        images = np.random.default_rng(0).standard_normal((200, 8, 8, 1)).cumsum(1).cumsum(2) / 9
        found = generation_laws.check_generation(
            halvings, wiener.measure(images), jax.random.key(0), perturbation=Q, samples=128
        )
        assert ("jump" in found.broken) == broken
        assert (found.broken != ()) == broken


def test_noise_of_ds_own_counts():
    # Heat that ends in the mean under white noise: it carries q itself, and p = q = 0 are right.
    own = heat(SHAPE, sigma_max=12.0, sigma_min=0.3, levels=100, noise=Q)
    found = generation_laws.check_generation(
        own, MOMENTS, jax.random.key(0), perturbation=0.0, samples=256
    )
    assert found.broken == ()


@pytest.mark.parametrize(
    ("degradation", "settings", "message"),
    [
        (snow((8, 8, 1), steps=2), {}, "degradation must be linear: give it a linear_fn"),
        (
            blur(STDS["five"]),
            {"perturbation": -1.0},
            "perturbation must be finite and not negative; got",
        ),
        (
            blur(STDS["five"]),
            {"start_perturbation": np.inf},
            "start_perturbation must be finite and not",
        ),
    ],
)
def test_what_cannot_be_checked_raises(degradation, settings, message):
    with pytest.raises(ValueError, match=message):
        generation_laws.check_generation(
            degradation, MOMENTS, jax.random.key(0), **{"perturbation": Q} | settings
        )
