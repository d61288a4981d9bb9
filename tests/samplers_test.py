"""Oracles: an exact restorer; the posterior and EDM's Algorithm 2 in numpy; numbers by hand.

The degradations are tiny functions: a sampler takes callables and knows no more of D.
"""

import inspect
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import noise_process
from scipy import fft, stats

from diffjax import samplers

SHAPE = (4, 3, 2)
STEP_ARGUMENTS = "process key state xt t s omega".split()

# t -> (alpha, sigma). All three start where a division by alpha, or by sigma at 0, would fail.
SCHEDULES = {
    "cosine": lambda t: (jnp.where(t < 1, jnp.cos(t * jnp.pi / 2), 0), jnp.sin(t * jnp.pi / 2)),
    "flow": lambda t: (1 - t, t),
    "ve": lambda t: (jnp.ones_like(t), 20 * t),
}


def smooth_restore_fn(xt, t):
    """Some network: neither exact nor linear."""
    return jnp.tanh(0.7 * xt) * (1 - 0.5 * t) + 0.1


def hot(schedule, restore_fn=smooth_restore_fn, **fields):
    """R and alpha(t) x0 + sigma(t) omega; the schedule by name, or as a function."""
    return noise_process(SCHEDULES.get(schedule, schedule), restore_fn, **fields)


def fade_to_mean(x0, t, omega):
    """A cold D: every channel goes to its mean; noise of std 0.1, if there is any, on the way."""
    mean = jnp.broadcast_to(jnp.mean(x0, (0, 1), keepdims=True), x0.shape)
    noise = 0 if omega is None else jnp.where(t > 0, 0.1, 0) * omega
    return (1 - t) * x0 + t * mean + noise


def cold(restore_fn=smooth_restore_fn):
    return samplers.Process(restore_fn, fade_to_mean)


def same(x):
    return x


def to_dct(x):
    return jnp.tensordot(jnp.asarray(fft.dct(np.eye(SHAPE[0]), norm="ortho", axis=0)), x, 1)


def from_dct(u):
    return jnp.tensordot(jnp.asarray(fft.dct(np.eye(SHAPE[0]), norm="ortho", axis=0).T), u, 1)


def frequency_coefficients(t):
    """Cosine alpha times a blur that is stronger at higher rows of the DCT; sigma."""
    alpha, sigma = SCHEDULES["cosine"](t)
    frequency = jnp.arange(SHAPE[0], dtype=jnp.float32)[:, None, None]
    return alpha * jnp.exp(-frequency * t), sigma


PLAIN = {
    "naive": samplers.naive,
    "improved": samplers.improved,
    "ddim": samplers.ddim(),
    "euler": samplers.euler(),
    "heun": samplers.heun(),
    "dpm_solver_2m": samplers.dpm_solver_2m,
    "ihdm": samplers.ihdm(0.1),
    "indi": samplers.indi(),
}
NOISY = {
    "ddim, eta 0.5": samplers.ddim(eta=0.5),
    "ddpm": samplers.ddpm,
    "euler, churn": samplers.euler(0.3, s_min=0.1, s_max=5.0, s_noise=1.01),
    "heun, churn": samplers.heun(0.3, s_min=0.1, s_max=5.0, s_noise=1.01),
    "indi, epsilon": samplers.indi(0.1),
    "blurring": samplers.blurring(to_dct, from_dct, frequency_coefficients),
}
EVERY = PLAIN | NOISY


def images(number=3, seed=0):
    """A few float32 arrays of SHAPE, uniform in [-1, 1]."""
    return jnp.asarray(
        np.random.default_rng(seed).uniform(-1, 1, (number, *SHAPE)).astype(np.float32)
    )


def walk(sampler, process, xT, omega, steps=8, **settings):
    ts = samplers.uniform_grid(steps)
    return samplers.sample(sampler, process, jax.random.key(0), xT, ts, omega, **settings)


def step(sampler, process, xt, t, s, omega, seed=7):
    """One step from the first state."""
    t, s = jnp.float32(t), jnp.float32(s)
    x, _ = sampler.step(process, jax.random.key(seed), sampler.init(xt), xt, t, s, omega)
    return x


# --- the laws


@jax.jit
def restored_by_every_sampler(one_hot, x0, omega):
    """One compilation for all schedules: the one that counts is chosen by a vector."""

    def schedule_fn(t):
        return one_hot @ jnp.array([schedule_fn(t) for schedule_fn in SCHEDULES.values()])

    process = hot(schedule_fn, lambda xt, t: x0)
    xT = process.degrade_fn(x0, jnp.float32(1), omega)
    return {name: walk(sampler, process, xT, omega) for name, sampler in EVERY.items()}


@pytest.mark.parametrize("name", SCHEDULES)
def test_an_exact_restorer_leads_every_sampler_back_through_noise(name):
    x0, omega, _ = images()
    one_hot = jnp.array([float(name == other) for other in SCHEDULES])
    for key, x in restored_by_every_sampler(one_hot, x0, omega).items():
        np.testing.assert_allclose(x, x0, atol=1e-5, err_msg=key)


@pytest.mark.parametrize("with_noise", [False, True])
def test_an_exact_restorer_leads_every_sampler_back_through_a_cold_degradation(with_noise):
    x0, noise, _ = images()
    omega = noise if with_noise else None

    @jax.jit
    def restored(x0, omega):
        xT = fade_to_mean(x0, jnp.float32(1), omega)
        return {
            key: walk(sampler, cold(lambda xt, t: x0), xT, omega) for key, sampler in PLAIN.items()
        }

    for key, x in restored(x0, omega).items():
        np.testing.assert_allclose(x, x0, atol=1e-6, err_msg=key)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(("t", "s"), [(1.0, 0.6), (0.6, 0.25), (0.25, 0.0)])
def test_ddim_is_its_equation(name, t, s):
    # Equation 12 of DDIM, with alpha^2 for its alpha.
    xt, omega, _ = images()
    x0_hat = smooth_restore_fn(xt, t)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = (
        map(float, SCHEDULES[name](jnp.float32(u))) for u in (t, s)
    )
    expected = alpha_s * x0_hat + sigma_s * (xt - alpha_t * x0_hat) / sigma_t
    for sampler in (samplers.ddim(), samplers.euler(), samplers.dpm_solver_2m):
        np.testing.assert_allclose(step(sampler, hot(name), xt, t, s, omega), expected, atol=1e-5)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(("t", "s"), [(0.9, 0.6), (0.6, 0.55), (0.25, 0.05)])
def test_ddpm_is_the_posterior(name, t, s):
    """The product of q(x_s | x0_hat) and q(x_t | x_s), both Gaussian: precisions add up."""
    xt, omega, _ = images()
    x0_hat = np.asarray(smooth_restore_fn(xt, t), np.float64)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = (
        map(float, SCHEDULES[name](jnp.float32(u))) for u in (t, s)
    )
    alpha_ts = alpha_t / alpha_s
    var_ts = sigma_t**2 - alpha_ts**2 * sigma_s**2
    var = 1 / (1 / sigma_s**2 + alpha_ts**2 / var_ts)
    mean = var * (alpha_ts / var_ts * np.asarray(xt) + alpha_s / sigma_s**2 * x0_hat)
    fresh = jax.random.normal(jax.random.key(7), SHAPE)
    got = step(samplers.ddpm, hot(name), xt, t, s, omega)
    np.testing.assert_allclose(got, mean + np.sqrt(var) * fresh, atol=1e-5)
    # Equation 16 of DDIM: eta scales the posterior's std, the total variance stays.
    std = 0.5 * np.sqrt(var)
    omega_hat = (np.asarray(xt) - alpha_t * x0_hat) / sigma_t
    expected = alpha_s * x0_hat + np.sqrt(sigma_s**2 - std**2) * omega_hat + std * fresh
    got = step(samplers.ddim(0.5), hot(name), xt, t, s, omega)
    np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize("name", SCHEDULES)
def test_algorithm_2_with_inferred_noise_is_ddim(name):
    xT, omega, _ = images()

    def improved_with_inferred(process, key, state, xt, t, s, omega):
        omega_hat = process.infer_fn(xt, t, process.restore_fn(xt, t), omega)
        return samplers.improved_step(process, key, state, xt, t, s, omega_hat)

    both = jax.jit(
        lambda xT: [
            walk(sampler, hot(name), xT, omega)
            for sampler in (
                samplers.Sampler(samplers.init_state, improved_with_inferred),
                samplers.ddim(),
                samplers.euler(),
            )
        ]
    )(xT)
    for x in both[1:]:
        np.testing.assert_allclose(x, both[0], atol=1e-5)


def test_ddim_of_a_kept_realization_is_algorithm_2():
    xT, omega, _ = images()
    for realization in (None, omega):
        walks = [
            walk(sampler, cold(), xT, realization)
            for sampler in (samplers.improved, samplers.ddim(), samplers.dpm_solver_2m)
        ]
        np.testing.assert_allclose(walks[0], walks[1], atol=1e-6)
        # Without noise lambda is infinite everywhere, and nothing is extrapolated.
        if realization is None:
            np.testing.assert_allclose(walks[0], walks[2], atol=1e-6)


def test_fresh_noise_where_there_is_none_to_replace():
    xT, _, _ = images()
    walks = [walk(sampler, cold(), xT, None) for sampler in (samplers.improved, samplers.ddpm)]
    np.testing.assert_array_equal(*walks)


@pytest.mark.parametrize("sampler", [samplers.ddim(), samplers.euler()], ids=["ddim", "euler"])
def test_euler_of_the_flow_follows_it(sampler):
    xt, omega, _ = images()
    for t, s in [(1.0, 0.7), (0.7, 0.2), (0.2, 0.0)]:
        x0_hat = smooth_restore_fn(xt, t)
        flow = (xt - (1 - t) * x0_hat) / t - x0_hat
        got = step(sampler, hot("flow"), xt, t, s, omega)
        np.testing.assert_allclose(got, xt + (s - t) * flow, atol=1e-6)


def test_indi_is_algorithm_2_on_the_bridge():
    xT, _, _ = images()
    walks = [walk(sampler, hot("flow"), xT, xT) for sampler in (samplers.indi(), samplers.ddim())]
    np.testing.assert_allclose(*walks, atol=1e-6)


def test_noise_of_indi_is_the_brownian_bridge_from_x0_hat_to_xt():
    xt, omega, _ = images()
    plain, noisy = (step(samplers.indi(e), hot("flow"), xt, 0.8, 0.2, omega) for e in (0, 0.5))
    # Variance of a bridge of length 0.8 at 0.2: 0.2 * 0.6 / 0.8 = 0.15.
    expected = 0.5 * np.sqrt(0.15) * jax.random.normal(jax.random.key(7), SHAPE)
    np.testing.assert_allclose(noisy - plain, expected, atol=1e-6)


@pytest.mark.parametrize("name", ["cosine", "flow"])
def test_blurring_without_blur_is_ddpm(name):
    xT, omega, _ = images()
    blurring = samplers.blurring(same, same, SCHEDULES[name])
    walks = [walk(sampler, hot(name), xT, omega) for sampler in (blurring, samplers.ddpm)]
    np.testing.assert_allclose(*walks, atol=1e-5)


def test_blurring_is_the_posterior_of_each_frequency():
    xt, omega, _ = images()
    x0_hat = np.asarray(smooth_restore_fn(xt, 0.7), np.float64)
    ut, u0 = (fft.dct(np.asarray(x, np.float64), norm="ortho", axis=0) for x in (xt, x0_hat))
    frequency = np.arange(SHAPE[0])[:, None, None]
    alpha_t, alpha_s = (np.cos(t * np.pi / 2) * np.exp(-frequency * t) for t in (0.7, 0.4))
    var_t, var_s = (np.sin(t * np.pi / 2) ** 2 for t in (0.7, 0.4))
    alpha_ts = alpha_t / alpha_s
    var_ts = var_t - alpha_ts**2 * var_s
    var = 1 / (1 / var_s + alpha_ts**2 / var_ts)
    us = var * (alpha_ts / var_ts * ut + alpha_s / var_s * u0)
    us += np.sqrt(var) * jax.random.normal(jax.random.key(7), SHAPE)
    sampler = samplers.blurring(to_dct, from_dct, frequency_coefficients)
    expected = fft.idct(us, norm="ortho", axis=0)
    got = step(sampler, hot("cosine"), xt, 0.7, 0.4, omega)
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_ihdm_adds_noise_to_the_mean_and_none_at_the_end():
    xt, omega, _ = images()
    fresh = jax.random.normal(jax.random.key(7), SHAPE)
    for s, delta in [(0.5, 0.2), (0.0, 0.0)]:
        for realization in (None, omega):
            got, state = samplers.ihdm(0.2).step(
                cold(),
                jax.random.key(7),
                None,
                xt,
                jnp.float32(0.7),
                jnp.float32(s),
                realization,
            )
            x0_hat = np.asarray(smooth_restore_fn(xt, 0.7))
            mean = (1 - s) * x0_hat + s * x0_hat.mean((0, 1), keepdims=True)
            np.testing.assert_allclose(got, mean + delta * fresh, atol=1e-6)
            np.testing.assert_array_equal(state.x0_hat, x0_hat)


@pytest.mark.parametrize("churn", [0.0, 0.25, 2.0])
@pytest.mark.parametrize("order", [1, 2])
def test_edm_algorithm_2(churn, order):
    """Karras et al., line by line in numpy float64; sigma = 20 t, so that t_hat = (1 + gamma) t."""
    s_min, s_max, s_noise = 0.5, 12.0, 1.007
    key, ts = jax.random.key(3), np.array([1.0, 0.5, 0.2, 0.1, 0.01, 0])
    x = np.asarray(20 * images()[1], np.float64)
    xT = jnp.asarray(x, jnp.float32)

    def denoise(x, sigma):
        return np.tanh(0.7 * x) * (1 - 0.5 * sigma / 20) + 0.1

    for i, (sigma, sigma_next) in enumerate(zip(20 * ts[:-1], 20 * ts[1:], strict=True)):
        gamma = min(churn, np.sqrt(2) - 1) if s_min <= sigma <= s_max else 0
        noise = np.asarray(jax.random.normal(jax.random.fold_in(key, i), SHAPE))
        sigma_hat = (1 + gamma) * sigma
        x_hat = x + np.sqrt(sigma_hat**2 - sigma**2) * s_noise * noise
        d = (x_hat - denoise(x_hat, sigma_hat)) / sigma_hat
        x = x_hat + (sigma_next - sigma_hat) * d
        if order == 2 and sigma_next > 0:
            d_next = (x - denoise(x, sigma_next)) / sigma_next
            x = x_hat + (sigma_next - sigma_hat) * (d + d_next) / 2
    sampler = (samplers.euler, samplers.heun)[order - 1](
        churn, s_min=s_min, s_max=s_max, s_noise=s_noise
    )
    got = samplers.sample(
        sampler,
        hot("ve"),
        key,
        xT,
        jnp.asarray(ts, jnp.float32),
        jnp.zeros(SHAPE),
    )
    np.testing.assert_allclose(got, x, atol=2e-5)


@pytest.mark.parametrize("name", ["cosine", "flow"])
def test_churn_raises_the_ratio_and_keeps_the_marginal(name):
    # x_t = alpha x0 + sigma omega must become alpha_hat x0 + sigma_hat (a unit of noise).
    x0, omega, _ = images()
    process = hot(name)
    t = jnp.float32(0.4)
    (alpha, sigma) = map(float, SCHEDULES[name](t))
    noise = np.asarray(jax.random.normal(jax.random.key(1), SHAPE))
    x, t_hat = samplers._churned(
        process,
        jax.random.key(1),
        process.degrade_fn(x0, t, omega),
        t,
        jnp.float32(0),
        omega,
        churn=0.3,
        s_min=0.0,
        s_max=9.0,
        s_noise=1.0,
    )
    alpha_hat, sigma_hat = map(float, SCHEDULES[name](t_hat))
    np.testing.assert_allclose(sigma_hat / alpha_hat, 1.3 * sigma / alpha, rtol=1e-5)
    mixed = (np.asarray(omega) + np.sqrt(1.3**2 - 1) * noise) / 1.3
    np.testing.assert_allclose(x, alpha_hat * np.asarray(x0) + sigma_hat * mixed, atol=1e-5)


@pytest.mark.parametrize(("t", "s_max"), [(0.4, 0.1), (1.0, np.inf)])
def test_churn_leaves_alone_what_is_outside(t, s_max):
    x, omega, _ = images()
    t = jnp.float32(t)
    got, t_hat = samplers._churned(
        hot("cosine"),
        jax.random.key(1),
        x,
        t,
        jnp.float32(0),
        omega,
        churn=0.3,
        s_min=0.0,
        s_max=s_max,
        s_noise=1.0,
    )
    assert t_hat == t
    np.testing.assert_array_equal(got, x)


def test_heun_of_a_flow_by_hand():
    # R = x, so u = (x - (1 - t) x) / t - x = 0 at any (x, t): nothing moves.
    xt, omega, _ = images()
    got = step(samplers.heun(), hot("flow", lambda xt, t: xt), xt, 0.8, 0.4, omega)
    np.testing.assert_allclose(got, xt, atol=1e-6)
    # R = 0: u = x / t; x' = x (1 + (0.4 - 0.8) / 0.8) = x / 2, u' = (x / 2) / 0.4 = u: exact.
    got = step(samplers.heun(), hot("flow", lambda xt, t: jnp.zeros_like(xt)), xt, 0.8, 0.4, omega)
    np.testing.assert_allclose(got, xt / 2, atol=1e-6)
    # R = t: u = (x - (1 - t) t) / t - t = x / t - 1. At x = 1, t = 0.8: 0.25, x' = 0.9;
    # u' = 0.9 / 0.4 - 1 = 1.25; x_s = 1 - 0.4 (0.25 + 1.25) / 2 = 0.7.
    one = jnp.ones(SHAPE)
    process = hot("flow", lambda xt, t: t * jnp.ones_like(xt))
    got = step(samplers.heun(), process, one, 0.8, 0.4, omega)
    np.testing.assert_allclose(got, 0.7 * one, atol=1e-6)


def test_dpm_solver_is_its_algorithm():
    # Algorithm 2 of DPM-Solver++ with the first and the last step of first order, in float64.
    ts = np.array([0.95, 0.8, 0.5, 0.3, 0.0])
    alpha, sigma = np.cos(ts * np.pi / 2), np.sin(ts * np.pi / 2)
    with np.errstate(divide="ignore"):
        log_snr = np.log(alpha / sigma)
    xT = images()[0]
    x, last = np.asarray(xT, np.float64), None
    for i in range(4):
        x0_hat = np.tanh(0.7 * x) * (1 - 0.5 * ts[i]) + 0.1
        h = log_snr[i + 1] - log_snr[i]
        bar = x0_hat
        if 0 < i < 3:
            r = (log_snr[i] - log_snr[i - 1]) / h
            bar = (1 + 1 / (2 * r)) * x0_hat - 1 / (2 * r) * last
        last = x0_hat
        x = sigma[i + 1] / sigma[i] * x - alpha[i + 1] * np.expm1(-h) * bar
    got = samplers.sample(
        samplers.dpm_solver_2m,
        hot("cosine"),
        jax.random.key(0),
        xT,
        jnp.asarray(ts, jnp.float32),
        jnp.zeros(SHAPE),
    )
    np.testing.assert_allclose(got, x, atol=1e-5)


def test_heun_does_not_run_the_network_at_zero():
    severities = []

    def restore_fn(xt, t):
        jax.debug.callback(lambda t: severities.append(float(t)), t)
        return 0.5 * xt

    walk(samplers.heun(), hot("flow", restore_fn), images()[0], images()[0], steps=2)
    jax.effects_barrier()
    assert sorted(severities) == [0.5, 0.5, 1.0]


# --- the protocol


def public(module):
    """Names of the samplers of a module, and of the functions that make one."""
    for name, value in vars(module).items():
        made = getattr(value, "__annotations__", {}).get("return") is module.Sampler
        if name[0] != "_" and name != "create" and (isinstance(value, module.Sampler) or made):
            yield name


def test_every_public_sampler_is_tested():
    names = {name.split(",")[0] for name in EVERY}
    assert set(public(samplers)) == names == set(samplers.SAMPLERS)


@pytest.mark.parametrize("name", EVERY)
def test_every_sampler_has_the_one_protocol(name):
    sampler = EVERY[name]
    assert list(inspect.signature(sampler.step).parameters) == STEP_ARGUMENTS
    assert list(inspect.signature(sampler.init).parameters) == ["xT"]
    xt, omega, _ = images()
    before = sampler.init(xt)
    _, after = sampler.step(
        hot("cosine"),
        jax.random.key(0),
        before,
        xt,
        jnp.float32(0.5),
        jnp.float32(0.25),
        omega,
    )
    chex.assert_trees_all_equal_shapes_and_dtypes(before, after)
    if "churn" not in name:
        np.testing.assert_array_equal(after.x0_hat, smooth_restore_fn(xt, 0.5))


@pytest.mark.parametrize("name", EVERY)
def test_one_compilation_and_no_round_trip_to_the_host(name):
    chex.clear_trace_counter()  # it counts by name, over all parameters of this test

    @jax.jit
    @chex.assert_max_traces(n=1)
    def restore(sampler_weight, key, xT, ts, omega):
        def restore_fn(xt, t):
            return jnp.tanh(sampler_weight * xt) * (1 - t / 2)

        return samplers.sample(EVERY[name], hot("cosine", restore_fn), key, xT, ts, omega)

    grid = samplers.uniform_grid(3)
    arguments = [
        (jnp.float32(weight), jax.random.key(seed), image, grid**power, omega)
        for weight, seed, image, power, omega in zip(
            (0.5, 0.9), (0, 1), images(2, 1), (1, 2), images(2, 2), strict=True
        )
    ]
    jax.block_until_ready(arguments)
    results = []
    for number, values in enumerate(arguments):
        with jax.transfer_guard("disallow" if number else "allow"):  # compiling uploads constants
            results.append(jax.block_until_ready(restore(*values)))
    assert not np.array_equal(*results)
    assert "callback" not in str(jax.make_jaxpr(restore.__wrapped__.__wrapped__)(*arguments[0]))


def test_equal_settings_are_the_same_object():
    assert samplers.ddim() is samplers.ddim(0) is samplers.ddim(eta=0.0)
    assert samplers.ddpm is samplers.ddim(1) is not samplers.ddim(0.5)
    assert samplers.ihdm(0.1) is samplers.ihdm(delta=0.1)
    assert samplers.indi() is samplers.indi(epsilon=0.0)
    assert samplers.heun() is samplers.heun(s_min=0.0, churn=0.0)
    assert samplers.heun() is not samplers.euler()
    coefficients_fn = SCHEDULES["flow"]
    assert samplers.blurring(same, same, coefficients_fn) is samplers.blurring(
        same, same, coefficients_fn
    )


@pytest.mark.parametrize(
    ("factory", "settings", "message"),
    [
        (samplers.ddim, {"eta": 1.5}, "eta must lie in"),
        (samplers.ihdm, {"delta": -1}, "delta must not be negative"),
        (samplers.indi, {"epsilon": float("nan")}, "epsilon must not be negative"),
        (samplers.heun, {"churn": -0.1}, "churn and s_noise must not be negative"),
        (samplers.euler, {"s_noise": -0.1}, "churn and s_noise must not be negative"),
        (samplers.heun, {"s_min": 2.0, "s_max": 1.0}, "s_min must not exceed s_max"),
    ],
)
def test_settings_that_cannot_be_raise(factory, settings, message):
    with pytest.raises(ValueError, match=message):
        factory(**settings)


# --- the loop


@pytest.mark.parametrize("sampler", [samplers.improved, samplers.dpm_solver_2m])
def test_any_grid_is_the_chain_of_its_steps(sampler):
    ts = jnp.array([0.9, 0.65, 0.2, 0.05])
    xT, omega, _ = images()
    process = hot("cosine")
    key, x, state = jax.random.key(5), xT, sampler.init(xT)
    for i in range(3):
        x, state = sampler.step(
            process,
            jax.random.fold_in(key, i),
            state,
            x,
            ts[i],
            ts[i + 1],
            omega,
        )
    got = samplers.sample(sampler, process, key, xT, ts, omega)
    np.testing.assert_allclose(got, x, atol=1e-6)


@pytest.mark.parametrize("every", [1, 3, 7, 10])
def test_trajectory_keeps_every_kth_state_and_the_last(every):
    sampler = samplers.ddpm
    xT, omega, _ = images()
    process = hot("cosine")
    states, estimates, x, key = [xT], [], xT, jax.random.key(0)
    ts = samplers.uniform_grid(7)
    for i in range(7):
        x, state = sampler.step(
            process,
            jax.random.fold_in(key, i),
            None,
            x,
            ts[i],
            ts[i + 1],
            omega,
        )
        states.append(x)
        estimates.append(state.x0_hat)
    kept = [*range(0, 7, every), 7]
    x, trajectory = walk(sampler, process, xT, omega, steps=7, keep_every=every)
    np.testing.assert_allclose(x, states[-1], atol=1e-5)
    np.testing.assert_array_equal(trajectory.xt[-1], x)
    assert len(trajectory.xt) == len(kept)
    assert len(trajectory.x0_hat) == len(kept) - 1
    np.testing.assert_allclose(trajectory.xt, [states[i] for i in kept], atol=1e-5)
    np.testing.assert_allclose(trajectory.x0_hat, [estimates[i] for i in kept[:-1]], atol=1e-5)


def test_keeping_states_changes_nothing():
    xT, omega, _ = images()
    plain = walk(samplers.ddpm, hot("flow"), xT, omega)
    for every, kept in ((1, 9), (3, 4)):
        x, trajectory = walk(samplers.ddpm, hot("flow"), xT, omega, keep_every=every)
        np.testing.assert_array_equal(x, plain)
        assert len(trajectory.xt) == kept


def test_a_process_keeps_omega_and_needs_none_by_default():
    xT, omega, _ = images()
    process = samplers.Process(smooth_restore_fn, fade_to_mean)
    # DDIM of a realization that is kept is Algorithm 2 with it: x_t - D(t) + D(s), by numpy.
    x = np.asarray(xT, np.float64)
    ts = np.array([1, 0.5, 0.25, 0])
    for t, s in itertools.pairwise(ts):
        x0_hat = np.tanh(0.7 * x) * (1 - 0.5 * t) + 0.1
        mean = x0_hat.mean((0, 1), keepdims=True)
        # The noise of D is the same at t and s, but for s = 0, where there is none.
        noise = 0.1 * np.asarray(omega) if s == 0 else 0
        x = x + (t - s) * (x0_hat - mean) - noise
    ts, key = jnp.asarray(ts, jnp.float32), jax.random.key(0)
    got = samplers.sample(samplers.ddim(), process, key, xT, ts, omega)
    np.testing.assert_allclose(got, x, atol=1e-6)
    without = samplers.sample(samplers.ddim(), process, key, xT, ts)
    np.testing.assert_allclose(without, walk_without_noise(xT, ts), atol=1e-6)


def walk_without_noise(x, ts):
    """The same, of a D without a realization."""
    x, ts = np.asarray(x, np.float64), np.asarray(ts, np.float64)
    for t, s in itertools.pairwise(ts):
        x0_hat = np.tanh(0.7 * x) * (1 - 0.5 * t) + 0.1
        x = x + (t - s) * (x0_hat - x0_hat.mean((0, 1), keepdims=True))
    return x


def test_noise_may_come_from_a_table():
    """DDPM in numpy, float64: x = alpha x0 + sigma omega, the fresh noise of a step looked up."""
    ts = np.array([1, 0.75, 0.5, 0.25, 0])
    alpha, sigma = np.cos(ts * np.pi / 2), np.sin(ts * np.pi / 2)
    alpha[0] = 0
    table = np.asarray(images(4, seed=5))
    xT = images()[0]
    x = np.asarray(xT, np.float64)
    for i in range(4):
        x0_hat = np.tanh(0.7 * x) * (1 - 0.5 * ts[i]) + 0.1
        # Equations 6 and 7 of DDPM, alpha_ts^2 = 1 - beta.
        alpha_ts = alpha[i] / alpha[i + 1]
        beta = sigma[i] ** 2 - (alpha_ts * sigma[i + 1]) ** 2
        mean = alpha_ts * sigma[i + 1] ** 2 * x + alpha[i + 1] * beta * x0_hat
        x = mean / sigma[i] ** 2 + np.sqrt(beta) * sigma[i + 1] / sigma[i] * table[i]

    def look_up(key, t, s, like):
        return jnp.asarray(table)[jnp.round(4 * (1 - t)).astype(int)].astype(like.dtype)

    process = hot("cosine", noise_fn=look_up)
    grid = jnp.asarray(ts, jnp.float32)
    walks = [
        samplers.sample(samplers.ddpm, process, key, xT, grid, jnp.zeros(SHAPE))
        for key in jax.random.split(jax.random.key(0))
    ]
    np.testing.assert_allclose(walks[0], x, atol=1e-5)
    np.testing.assert_array_equal(*walks)  # the key is not read


def test_fresh_noise_is_like_the_realization():
    like = {"a": jnp.zeros((2, 3)), "b": (None, jnp.zeros(20_000))}
    got = samplers.draw_normal(jax.random.key(0), None, None, like)
    chex.assert_trees_all_equal_shapes_and_dtypes(got, like)
    # Its law: a Kolmogorov-Smirnov statistic above 1.95 / sqrt(N) is one in a thousand.
    assert stats.kstest(np.asarray(got["b"][1]), "norm").statistic < 1.95 / np.sqrt(20_000)
    assert samplers.draw_normal(jax.random.key(0), None, None, None) is None


# --- what is refused


@pytest.mark.parametrize("ts", [jnp.ones(1), jnp.ones((3, 1)), jnp.float32(1)])
def test_a_grid_that_is_none_raises(ts):
    with pytest.raises(AssertionError):
        samplers.sample(samplers.naive, cold(), None, jnp.zeros(SHAPE), ts)


def refusals():
    """name -> (what is given in place of what is right, what is said of it)"""
    no_inference = hot("cosine")._replace(infer_fn=None)
    return {
        "factory": ({"sampler": samplers.ddim}, r"got ddim: call it, as in ddim\(\)"),
        "other factory": ({"sampler": samplers.heun}, r"got heun: call it, as in heun\(\)"),
        "name": ({"sampler": "ddim"}, "sampler must be a Sampler; got 'ddim'"),
        "bytes": ({"xT": jnp.zeros(SHAPE, jnp.uint8)}, "xT must be floating point.*got uint8"),
        "increasing": ({"ts": jnp.array([0, 0.5, 1])}, "ts must decrease strictly"),
        "repeated": ({"ts": jnp.array([1, 0.5, 0.5, 0])}, "ts must decrease strictly"),
        "not a number": ({"ts": jnp.array([1, jnp.nan, 0])}, "ts must decrease strictly"),
        "negative": ({"keep_every": -1}, "keep_every must not be negative; got -1"),
    } | {
        f"{name} infers": (
            {"sampler": sampler, "process": no_inference},
            f"{name} infers omega: process.infer_fn must be a function, not None",
        )
        for name, sampler in (
            ("ddim", samplers.ddim()),
            ("ddim", samplers.ddpm),
            ("euler", samplers.euler()),
            ("heun", samplers.heun()),
            ("dpm_solver_2m", samplers.dpm_solver_2m),
        )
    }


@pytest.mark.parametrize("jitted", [False, True])
@pytest.mark.parametrize("name", refusals())
def test_a_walk_that_cannot_be_is_refused_while_tracing(name, jitted):
    wrong, message = refusals()[name]
    right = {"sampler": samplers.naive, "process": hot("cosine"), "xT": jnp.zeros(SHAPE)}
    given = right | {"ts": jnp.array([1, 0.5, 0]), "keep_every": 0} | wrong

    def restored(omega):
        # ts is closed over: its numbers are known while omega is traced.
        return samplers.sample(
            given["sampler"],
            given["process"],
            jax.random.key(0),
            given["xT"],
            given["ts"],
            omega,
            keep_every=given["keep_every"],
        )

    with pytest.raises(ValueError, match=message) as caught:
        (jax.jit(restored) if jitted else restored)(jnp.zeros(SHAPE))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["naive", "improved", "ihdm", "indi", "blurring"])
def test_those_that_infer_nothing_need_no_infer_fn(name):
    xT, omega, _ = images()
    process = hot("cosine")
    walks = [
        walk(EVERY[name], given, xT, omega) for given in (process, process._replace(infer_fn=None))
    ]
    np.testing.assert_array_equal(*walks)


def test_a_grid_that_is_traced_is_not_judged():
    ts = jnp.array([1, 0.5, 0.5, 0])
    xT = images()[0]
    key = jax.random.key(0)
    got = jax.jit(lambda ts: samplers.sample(samplers.improved, cold(), key, xT, ts))(ts)
    # A step from t to t changes nothing in Algorithm 2.
    np.testing.assert_allclose(got, walk_without_noise(xT, [1, 0.5, 0]), atol=1e-6)


def test_create_is_the_sampler_of_that_name():
    assert samplers.create("naive") is samplers.naive
    assert samplers.create("ddim", eta=0.5) is samplers.ddim(0.5)
    assert samplers.create("heun", churn=0.1, s_max=2.0) is samplers.heun(0.1, s_max=2.0)
    functions = (to_dct, from_dct, frequency_coefficients)
    assert samplers.create("blurring", *functions) is samplers.blurring(*functions)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("cold", {}, "sampler must be one of naive, improved, .*; got 'cold'"),
        ("ddim", {"delta": 1.0}, "sampler 'ddim' takes eta; got delta"),
        ("naive", {"eta": 1.0}, "sampler 'naive' takes no settings; got eta"),
        ("heun", {"eta": 1.0}, "'heun' takes churn, s_min, s_max, s_noise; got eta"),
        ("blurring", {"to_basis_fn": 1}, "'blurring' takes no settings; got to_basis_fn"),
        ("ihdm", {}, "sampler 'ihdm': .*delta"),
        ("ddim", {"eta": 2.0}, "eta must lie in"),
    ],
)
def test_a_sampler_that_cannot_be_created(name, settings, message):
    with pytest.raises(ValueError, match=message) as caught:
        samplers.create(name, **settings)
    assert "\n" not in str(caught.value)


class VariantsTest(chex.TestCase):
    @chex.variants(with_jit=True, without_jit=True, with_pmap=True)
    def test_variants_agree(self):
        xT, omega, _ = images()
        got = self.variant(lambda xT, omega: walk(samplers.heun(), hot("flow"), xT, omega))(
            xT, omega
        )
        batch = jax.vmap(lambda xT, omega: walk(samplers.heun(), hot("flow"), xT, omega))(
            xT[None], omega[None]
        )
        np.testing.assert_allclose(got, batch[0], atol=1e-5)


# --- what wraps R


def test_clip():
    restore_fn = samplers.clip(lambda xt, t: xt * t)
    got = restore_fn(jnp.array([-3.0, -0.5, 0.2, 4.0]), 2.0)
    np.testing.assert_allclose(got, [-1, -1, 0.4, 1])


@pytest.mark.parametrize("scale", [0.5, 3.0])
def test_dynamic_threshold(scale):
    x = np.asarray(images()[0]) * scale
    bound = max(np.quantile(np.abs(x), 0.9), 1)
    got = samplers.dynamic_threshold(lambda xt, t: xt, 0.9)(jnp.asarray(x), 0.5)
    np.testing.assert_allclose(got, np.clip(x, -bound, bound) / bound, atol=1e-6)


def test_guide():
    calls = []

    def unconditional_fn(xt, t):
        jax.debug.callback(lambda t: calls.append(float(t)), t)
        return xt

    guided = samplers.guide(lambda xt, t: xt + t, unconditional_fn, 3.0, interval=(0.25, 0.5))
    # u + 3 (c - u) = x + 3 t inside, ends included; c = x + t outside.
    for t, expected in [(0.2, 1.2), (0.25, 1.75), (0.4, 2.2), (0.5, 2.5), (0.75, 1.75)]:
        np.testing.assert_allclose(guided(jnp.float32(1), jnp.float32(t)), expected, rtol=1e-6)
    jax.effects_barrier()
    np.testing.assert_allclose(calls, [0.25, 0.4, 0.5])
    for scale, expected in [(0.0, 1.0), (1.0, 1.7), (2.0, 2.4)]:
        guided = samplers.guide(lambda xt, t: xt + t, lambda xt, t: xt, scale)
        np.testing.assert_allclose(guided(jnp.float32(1), jnp.float32(0.7)), expected, rtol=1e-6)


def test_wrappers_refuse_what_cannot_be():
    for quantile in (0, 1.1):
        with pytest.raises(ValueError, match="quantile must lie in"):
            samplers.dynamic_threshold(same, quantile)
    for interval in ((0.5, 0.2), (-0.1, 1), (0, 1.5)):
        with pytest.raises(ValueError, match="interval must be"):
            samplers.guide(same, same, 2.0, interval)
