"""Oracle: the schedulers of `diffusers` (PyPI; needs torch), given the same network and noise.

A test-only extra, not among the requirements: `pip install diffusers torch`. Where
diffusers walks in x / alpha, its states are brought back before they are compared.
"""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import noise_process

from diffjax import samplers, schedules

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    REASON = "the comparison with diffusers needs `pip install diffusers torch`"
    torch = pytest.importorskip("torch", reason=REASON)
    diffusers = pytest.importorskip("diffusers", reason=REASON)

pytestmark = pytest.mark.filterwarnings("ignore")

STEPS, LEVELS, SHAPE = 10, 1000, (4, 4, 3)
LINEAR = {
    "num_train_timesteps": LEVELS,
    "beta_start": 1e-4,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "timestep_spacing": "trailing",
    "prediction_type": "sample",
}
KEY = jax.random.key(11)


def network(xt, t, library=jnp):
    """R: fixed, analytic, and neither exact nor linear."""
    return 0.8 * library.tanh(xt) + 0.1 * t


def start():
    return np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)


def ours(sampler, schedule_fn, xT, ts):
    """Every state of diffjax's walk."""
    _, trajectory = samplers.sample(
        sampler,
        noise_process(schedule_fn, network),
        KEY,
        jnp.asarray(xT),
        jnp.asarray(ts, jnp.float32),
        jnp.zeros(SHAPE),
        keep_every=1,
    )
    return np.asarray(trajectory.xt)


def noises():
    """What step i of ours draws from KEY, as torch tensors."""
    for i in range(STEPS):
        yield torch.from_numpy(np.array(jax.random.normal(jax.random.fold_in(KEY, i), SHAPE)))


def theirs(scheduler, xT, predict, **arguments):
    """Every state of a scheduler's walk; predict(x, i) -> what its network answers."""
    x = torch.from_numpy(np.array(xT))
    states = [x.numpy()]
    for i, timestep in enumerate(scheduler.timesteps):
        x = scheduler.step(predict(x, i), timestep, x, **arguments).prev_sample
        states.append(x.numpy())
    return np.stack(states)


def agree(mine, other):
    print(f"largest difference {np.abs(mine - other).max():.1e}")
    np.testing.assert_allclose(mine, other, atol=1e-4)


def severity(scheduler, i):
    """diffusers' timestep n has had n + 1 of the 1000 degradations."""
    return (float(scheduler.timesteps[i]) + 1) / LEVELS


def test_schedules():
    t = jnp.arange(1, LEVELS + 1) / LEVELS
    for name, schedule_fn in [
        ("linear", schedules.linear),
        ("squaredcos_cap_v2", schedules.cosine),
    ]:
        scheduler = diffusers.DDPMScheduler(**LINEAR | {"beta_schedule": name})
        alpha, sigma = jax.vmap(schedule_fn)(t)
        alpha_bar = scheduler.alphas_cumprod.numpy()
        agree(np.asarray(alpha), np.sqrt(alpha_bar))
        agree(np.asarray(sigma), np.sqrt(1 - alpha_bar))


@pytest.mark.parametrize("steps", [7, 10, 50])
@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
def test_spacings(spacing, steps):
    scheduler = diffusers.DDIMScheduler(**LINEAR | {"timestep_spacing": spacing})
    scheduler.set_timesteps(steps)
    ts = [severity(scheduler, i) for i in range(steps)]
    agree(np.asarray(samplers.GRIDS[spacing](steps, levels=LEVELS)), np.append(ts, 0))


@pytest.mark.parametrize("name", ["ddpm", "ddim", "ddim, eta 0.5", "ddim, eta 1"])
def test_ddpm_and_ddim(name, monkeypatch):
    family = name.split(",")[0]
    module = f"diffusers.schedulers.scheduling_{family}"
    draws = noises()
    monkeypatch.setattr(f"{module}.randn_tensor", lambda *a, **k: next(draws))
    if family == "ddpm":
        scheduler = diffusers.DDPMScheduler(
            **LINEAR, clip_sample=False, variance_type="fixed_small"
        )
        sampler, arguments = samplers.ddpm, {}
    else:
        scheduler = diffusers.DDIMScheduler(**LINEAR, clip_sample=False, set_alpha_to_one=True)
        eta = float(name.split("eta")[1]) if "eta" in name else 0.0
        sampler, arguments = samplers.ddim(eta), {"eta": eta}
    scheduler.set_timesteps(STEPS)
    other = theirs(
        scheduler,
        start(),
        lambda x, i: network(x, severity(scheduler, i), torch),
        **arguments,
    )
    agree(ours(sampler, schedules.linear, start(), samplers.trailing_grid(STEPS)), other)


def test_euler():
    # Without churn: diffusers' Euler hands its network the image before the noise is added.
    scheduler = diffusers.EulerDiscreteScheduler(**LINEAR)
    scheduler.set_timesteps(STEPS)
    alpha = 1 / np.sqrt(1 + scheduler.sigmas.numpy().astype(np.float64) ** 2)

    def predict(x, i):
        return network(x * float(alpha[i]), severity(scheduler, i), torch)

    other = theirs(scheduler, start() / np.float32(alpha[0]), predict)
    other = other * alpha[:, None, None, None]
    ts = samplers.trailing_grid(STEPS)
    agree(ours(samplers.euler(), schedules.linear, start(), ts), other)


def test_heun_on_karras_levels():
    scheduler = diffusers.HeunDiscreteScheduler(
        num_train_timesteps=LEVELS,
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule="linear",
        prediction_type="epsilon",
        use_karras_sigmas=True,
    )
    scheduler.set_timesteps(STEPS)
    levels = scheduler.sigmas.numpy()
    sigma_max, sigma_min = float(levels[0]), float(levels[-2])

    def variance_exploding(t):
        return jnp.ones_like(t), sigma_max * t

    ts = samplers.karras_grid(variance_exploding, STEPS, sigma_min=sigma_min, sigma_max=sigma_max)
    # Each level but the first stands twice there: once as a goal, once as a start.
    agree(np.asarray(sigma_max * ts), np.append(levels[0], levels[1::2]))

    def predict(x, i):
        return (x - network(x, float(levels[i]) / sigma_max, torch)) / float(levels[i])

    other = theirs(scheduler, start() * sigma_max, predict)
    mine = ours(samplers.heun(), variance_exploding, start() * sigma_max, ts)
    # Euler's guesses lie between; the first states are as large as sigma_max.
    other = np.concatenate([other[:1], other[2::2], other[-1:]])
    scale = np.maximum(1, np.asarray(sigma_max * ts))[:, None, None, None]
    agree(mine / scale, other / scale)


@pytest.mark.parametrize("steps", [STEPS, 25])
def test_dpm_solver_2m(steps):
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **LINEAR, algorithm_type="dpmsolver++", solver_order=2, final_sigmas_type="zero"
    )
    scheduler.set_timesteps(steps)
    other = theirs(scheduler, start(), lambda x, i: network(x, severity(scheduler, i), torch))
    ts = samplers.trailing_grid(steps)
    agree(ours(samplers.dpm_solver_2m, schedules.linear, start(), ts), other)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_euler(shift):
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=LEVELS, shift=shift)
    scheduler.set_timesteps(sigmas=np.linspace(1, 0, STEPS + 1)[:-1])
    ts = samplers.shifted_grid(STEPS, shift=shift)
    agree(ts, scheduler.sigmas.numpy())

    def predict(x, i):
        t = float(scheduler.sigmas[i])
        return (x - network(x, t, torch)) / t

    other = theirs(scheduler, start(), predict)
    agree(ours(samplers.ddim(), schedules.flow, start(), ts), other)
