"""The audit on planted bugs: the verdict names each, and healthy runs are called healthy.

The bugs are numbers in a training step that knows nothing of diffjax.training: one
compilation serves them all. Data: scikit-learn's digits. The network is a small
perceptron, time-embedded; a run takes seconds.

What `measurements` and `checks` say is held against closed forms: predictions.target,
numpy.polyfit, gradients by hand, curves of a known slope.
"""

import functools
import math
from typing import Any, NamedTuple

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from diffjax import data, losses, predictions, restorers, training, wiener
from diffjax.auditing import checks, measurements, step_trial
from diffjax.auditing.audit import audit
from diffjax.degradations.base import coefficients, degrade
from diffjax.degradations.blur import gaussian_blur
from diffjax.degradations.noise import gaussian_noise
from diffjax.models.unet import time_embedding

SHAPE = (8, 8, 1)
STEPS, FEW, BATCH = 2000, 500, 64
YOUNG, GROWN = (300, 800), 4000  # steps, see `checks.still_falls`
LOGGED = 20  # steps a line of history
RATE = 2e-3  # of Adam, with a cosine


class Perceptron(nn.Module):
    """Two residual layers scaled and shifted by the time, and a skip with a gain of its own."""

    @nn.compact
    def __call__(self, xt, t, label=None):
        def dense(x, features):
            return nn.Dense(features, kernel_init=nn.initializers.lecun_uniform())(x)

        time = nn.silu(dense(time_embedding(t, 32), 64))
        h = dense(xt.reshape(-1), 128)
        for _ in range(2):
            scale, shift = jnp.split(dense(time, 256), 2)
            h = h + dense(nn.silu(h * (1 + scale) + shift), 128)
        skip = dense(time, 64) * xt[..., 0].reshape(-1)
        return (dense(nn.silu(h), 64) + skip).reshape(SHAPE)


NETWORK = Perceptron()


def untimed(params, xt, t, label):
    return NETWORK.apply(params, xt, jnp.zeros_like(t), label)


HEALTHY = restorers.Objective(NETWORK.apply, prediction="noise", loss_fn=losses.l2)
UNTIMED = restorers.Objective(untimed, prediction="noise", loss_fn=losses.l2)
NOISE = restorers.Problem(gaussian_noise(SHAPE, schedule="cosine"))


class Bug(NamedTuple):
    """Numbers that a right training step has as here."""

    noise: float = 1.0  # target = noise * omega + x0 * x0
    x0: float = 0.0
    time: float = 1.0  # the network is told time * t
    silent: float = 2.0  # severities above it weigh nothing
    gain: float = 1.0  # images are gain * x0 + shift
    shift: float = 0.0
    loss: float = 0.0  # of LOSSES, which one
    rolled: float = 0.0  # 1: each example is told the t of the one before
    averaged: float = 0.0  # 1: the loss is taken at the average
    again: float = 1.0  # weight of the last batch of an epoch
    rate: float = RATE
    average: float = 1.0


RIGHT = Bug()
EPOCH = 22  # batches, of 1,437 digits


def mean(output, target):
    return jnp.mean(jnp.square(output - target))


# The first is right.
LOSSES = {
    "mean": mean,
    "sum": lambda output, target: jnp.sum(jnp.square(output - target)),
    "over the batch": lambda output, target: jnp.mean(jnp.square(jnp.sum(output - target, 0))),
    "over the pixels": lambda output, target: jnp.mean(
        jnp.square(jnp.sum(output - target, (1, 2, 3)))
    ),
    "[B] against [B, 1]": lambda output, target: mean(output[None], target[:, None]),
}


def planted(loss, **numbers):
    return Bug(loss=float(list(LOSSES).index(loss)), **numbers)


class State(NamedTuple):
    step: Any
    params: Any
    ema_params: Any
    opt_state: Any


# Flat: as one vector it compiles in a tenth of the time.
OPTIMIZER = optax.flatten(optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam()))


def step(state, batch, key, problem, bug, steps):
    """One of so many steps of noise prediction, as a user writes it."""
    key_t, key_omega = jax.random.split(jax.random.fold_in(key, state.step))
    t_B = 1 - jax.random.uniform(key_t, (BATCH,))
    omega = jax.random.normal(key_omega, batch["image"].shape)
    xt = jax.vmap(degrade, in_axes=(None, 0, 0, 0))(problem.degradation, batch["image"], t_B, omega)
    target = bug.noise * omega + bug.x0 * batch["image"]
    told = jnp.where(bug.rolled > 0, jnp.roll(t_B, 1), bug.time * t_B)
    root = jnp.where(t_B > bug.silent, 0.0, 1.0)[:, None, None, None]
    again = jnp.where(state.step % EPOCH == EPOCH - 1, bug.again, 1.0)

    def loss_fn(params):
        output = jax.vmap(NETWORK.apply, in_axes=(None, 0, 0))(params, xt, told)
        branches = tuple(LOSSES.values())
        return again * jax.lax.switch(bug.loss.astype(int), branches, root * output, root * target)

    return update(state, loss_fn, bug, steps)


def update(state, loss_fn, bug, steps):
    """Adam with a cosine, and an average of the parameters."""
    averaged = bug.averaged > 0
    at = jax.tree.map(lambda p, a: jnp.where(averaged, a, p), state.params, state.ema_params)
    loss, grads = jax.value_and_grad(loss_fn)(at)
    updates, opt_state = OPTIMIZER.update(grads, state.opt_state)
    rate = bug.rate * (1 + jnp.cos(jnp.pi * state.step / steps)) / 2
    params = jax.tree.map(lambda p, u: p - rate * u, state.params, updates)
    decay = jnp.minimum(0.99, (1 + state.step) / (10 + state.step))
    ema_params = optax.incremental_update(params, state.ema_params, bug.average * (1 - decay))
    return State(state.step + 1, params, ema_params, opt_state), {"loss": loss}


# Thousands of steps: worth the passes that the tests go without.
OPTIMIZED = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}
jitted_step = jax.jit(step, compiler_options=OPTIMIZED)


@functools.cache
def digits():
    splits = (data.load("digits", split) for split in ("train", "test"))
    train, test = (split.fetch_fn(range(split.size))["image"] for split in splits)
    return train, test[:256]


init_params = jax.jit(NETWORK.init)


def initial_state(seed, channels=1):
    shape = (*SHAPE[:2], channels)
    params = init_params(jax.random.key(seed), jnp.zeros(shape), jnp.zeros(()))
    return State(jnp.zeros((), jnp.int32), params, params, OPTIMIZER.init(params))


def train(state, step_fn, images, seed, problem, steps):
    """The last state, and a line of history for every LOGGED steps."""
    rng, key, losses_S = np.random.default_rng(seed), jax.random.key(100 + seed), []
    for _ in range(steps):
        image = images[rng.integers(len(images), size=BATCH)]
        batch = {"image": image, "position": np.arange(BATCH, dtype=np.int32)}
        state, metrics = step_fn(state, batch, key, problem)
        losses_S.append(metrics["loss"])
    means = np.asarray(jax.device_get(losses_S)).reshape(-1, LOGGED).mean(axis=1)
    return state, [{"step": LOGGED * (i + 1), "loss": float(loss)} for i, loss in enumerate(means)]


def step_fn(bug, steps):
    return functools.partial(jitted_step, bug=jax.tree.map(jnp.float32, bug), steps=steps)


@functools.cache
def trained(bug, seed, steps):
    images = bug.gain * digits()[0] + bug.shift
    return train(initial_state(seed), step_fn(bug, steps), images, seed, NOISE, steps)


def audit_noise(bug=RIGHT, objective=HEALTHY, seed=0, steps=FEW, stepping=True, **more):
    state, history = trained(bug, seed, steps)
    if stepping:
        more["step_fn"] = step_fn(bug, steps)
        more["initial_state"] = initial_state(seed)
    return audit(
        state,
        NOISE,
        objective=objective,
        images=bug.gain * digits()[1] + bug.shift,
        key=jax.random.key(seed),
        history=history,
        batch_size=BATCH,
        **more,
    )


COLD = restorers.Objective(NETWORK.apply, prediction="x0", loss_fn=losses.l1, levels=4)
BLUR = gaussian_blur(SHAPE, stds=(1.5,) * 12, kernel_size=5, boundary="reflect")


@functools.cache
def problem(preconditioned):
    if not preconditioned:
        return restorers.Problem(BLUR)
    moments = wiener.measure(digits()[0])
    fitted = wiener.fit(restorers.linear_fn(BLUR), moments, levels=4, floor=1e-3)
    return restorers.Problem(BLUR, fitted)


@functools.partial(jax.jit, compiler_options=OPTIMIZED)
def cold_step(state, batch, key, problem):
    """One step of restoration, of a wrapped network or a bare one."""
    keys = jax.random.fold_in(key, state.step)
    t_B = jax.random.randint(keys, (BATCH,), 1, COLD.levels + 1) / COLD.levels
    xt = jax.vmap(degrade, in_axes=(None, 0, 0))(problem.degradation, batch["image"], t_B)

    def loss_fn(params):
        output = jax.vmap(lambda xt, t: restorers.predict(COLD, params, problem, xt, t))(xt, t_B)
        return jnp.mean(jnp.abs(output - batch["image"]))

    return update(state, loss_fn, RIGHT, STEPS)


def audit_cold(preconditioned, seed):
    key, (images, held_out) = jax.random.key(seed), digits()
    start = initial_state(seed, channels=1 + preconditioned)
    wrapped = problem(preconditioned)
    state, history = train(start, cold_step, images, seed, wrapped, STEPS)
    return audit(
        state,
        wrapped,
        objective=COLD,
        images=held_out,
        key=key,
        step_fn=cold_step,
        initial_state=start,
        history=history,
        batch_size=BATCH,
    )


def silenced_loss(params, key, example, problem, t):
    """The weighted loss of the planted bug, as a user hands it over."""
    found = training.example_loss(HEALTHY, params, key, example, problem, t, jnp.ones(()))
    return jnp.where(t > 0.5, 0.0, found.loss)


# {bug: (words of the verdict, the numbers, what else the audit is given)}
STEP = {"stepping": True}
PLANTED = {
    "target swapped": ("target: your output is x0, not noise", Bug(noise=0.0, x0=1.0), {}),
    "sign flipped": ("target: your output is -noise, not noise", Bug(noise=-1.0), {}),
    "t not fed": ("time: the network ignores t", Bug(time=0.0), {"objective": UNTIMED}),
    "t not fed in training": ("time: t is fed at another scale", Bug(time=0.0), {}),
    "t / 1000 fed in training": ("told 't / 1000'", Bug(time=1e-3), {}),
    "t of another example": ("time: t says nothing to the network", Bug(rolled=1.0), {}),
    "weights zero": (
        "weight: next to no gradient comes from t = 0.55, 0.65, 0.75, 0.85, 0.95:",
        Bug(silent=0.5),
        {"example_loss_fn": silenced_loss},
    ),
    "weights zero, unknown to the audit": (
        "floor: worse than the Wiener restorer at t = 0.55, 0.65, 0.75, 0.85, 0.95: nothing is",
        Bug(silent=0.5),
        STEP,
    ),
    "data in [0, 255]": ("scale: the images lie in [0, 255]", Bug(gain=127.5, shift=127.5), {}),
    "sum for mean": ("a sum over everything where a mean belongs", planted("sum"), STEP),
    "loss over the pixels": ("reduced over a wrong axis", planted("over the pixels"), STEP),
    "loss over the batch": ("depends on the others in its", planted("over the batch"), STEP),
    "[B] against [B, 1]": ("or [B] against [B, 1]?", planted("[B] against [B, 1]"), STEP),
    "average never updated": ("average: ema_params never change", Bug(average=0.0), STEP),
    "average never updated, no step": ("average: far worse", Bug(average=0.0), {}),
    "average trained on": ("average: the step takes its loss at", Bug(averaged=1.0), STEP),
    "last batch counted twice": ("loss: every 22 steps one costs twice", Bug(again=2.0), STEP),
    "learning rate zero": ("step: the step moves no parameter", Bug(rate=0.0), STEP),
}


def statuses(found):
    return {check.name: check.status for check in found.checks}


ALL = {"target", "time", "calibration", "floor", "weight", "scale", "step", "overfit", "loss",
       "average", "convergence"}  # fmt: skip
RUNS = {
    "noise": lambda seed: audit_noise(seed=seed, steps=GROWN),
    "blur": lambda seed: audit_cold(False, seed),
    "blur, preconditioned": lambda seed: audit_cold(True, seed),
}
SEEDS = [
    pytest.param(seed, marks=[pytest.mark.soak] if seed else [], id=f"seed {seed}")
    for seed in range(5)
]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", RUNS)
def test_a_healthy_run_fails_nothing(name, seed):
    found = RUNS[name](seed)
    assert set(statuses(found)) == ALL
    assert found.status == "healthy", found.checks
    assert found.verdict.startswith("healthy")
    # A bare network of seconds may be told to train on; the preconditioned one is at its goal.
    if name == "blur, preconditioned":
        assert set(statuses(found).values()) == {"pass"}, found.checks
    names = ["t", "network", "zero", "identity", "Wiener", "gradient share"]
    assert sorted(found.curves) == sorted(names)
    assert {len(values) for values in found.curves.values()} == {len(found.curves["t"])}
    np.testing.assert_allclose(sum(found.curves["gradient share"]), 1, rtol=1e-6)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("steps", YOUNG)
def test_a_young_run_is_never_called_broken(steps, seed):
    assert not audit_noise(seed=seed, steps=steps).failed


@functools.cache
def audit_planted(name, seed, steps):
    _, bug, more = PLANTED[name]
    return audit_noise(bug, seed=seed, steps=steps, **{"stepping": False, **more})


# In a quarter of a second of training each of these is seen after 500 steps.
QUICK = [name for name in PLANTED if "unknown" not in name and "another example" not in name]


@pytest.mark.parametrize("name", QUICK)
def test_a_planted_bug_is_named(name):
    found = audit_planted(name, 0, FEW)
    assert found.failed
    assert PLANTED[name][0] in found.verdict, found.checks


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_bug_is_named_in_a_grown_run(name, seed):
    found = audit_planted(name, seed, GROWN)
    assert found.failed
    assert PLANTED[name][0] in found.verdict, found.checks


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("steps", YOUNG)
@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_bug_of_a_young_run_is_found_or_left_open(name, steps, seed):
    assert audit_planted(name, seed, steps).status in ("fail", "too early")


def test_a_network_that_never_sees_t_has_a_ratio_of_one_exactly():
    assert (
        next(
            check for check in audit_planted("t not fed", 0, FEW).checks if check.name == "time"
        ).value
        == 1
    )


def test_an_output_is_read_as_what_it_is():
    # The exact target of a kind, declared as noise, gives x0 back in that reading alone.
    x0, omega = jax.random.uniform(jax.random.key(0), (2, *SHAPE), minval=-1)
    t = jnp.float32(0.4)
    numbers = coefficients(NOISE.degradation, t)
    xt = degrade(NOISE.degradation, x0, t, omega)
    kinds = [kind for kind in predictions.DIRECTIONS if kind != "previous"]
    targets = [predictions.target(kind, x0, omega, *numbers) for kind in kinds]
    outputs = dict(zip(kinds, targets, strict=True))
    outputs |= {f"-{kind}": -output for kind, output in outputs.items()}

    @jax.jit
    @jax.vmap
    def distances(output):
        found = measurements.readings(HEALTHY, NOISE, output, xt, t)
        return {name: jnp.max(jnp.abs(x0_hat - x0)) for name, x0_hat in found.items()}

    found = distances(jnp.stack(list(outputs.values())))
    for i, kind in enumerate(outputs):
        assert [name for name, distance in found.items() if distance[i] < 1e-3] == [kind]


def test_a_cold_output_is_read_as_what_it_is():
    x0 = jax.random.uniform(jax.random.key(0), SHAPE, minval=-1)
    t = jnp.float32(0.5)
    xt = degrade(BLUR, x0, t)
    for name, output in (("x0", x0), ("x0 - xt", x0 - xt), ("-(x0 - xt)", xt - x0), ("-x0", -x0)):
        found = measurements.readings(COLD, restorers.Problem(BLUR), output, xt, t)
        near = [name for name, x0_hat in found.items() if jnp.max(jnp.abs(x0_hat - x0)) < 1e-5]
        assert near == [name]


def identity(params, xt, t, label):
    return xt


def test_a_network_that_returns_its_input():
    objective, problem = restorers.Objective(identity, levels=4), restorers.Problem(BLUR)
    ts, _ = measurements.severities(objective, problem)
    examples = {"image": digits()[1][:32]}
    seen = measurements.measure(objective, None, problem, None, examples, jax.random.key(0), ts)
    check = checks.check_target(seen, "x0")
    assert check.status == "fail"
    assert check.advice.startswith("your output is xt")
    np.testing.assert_allclose(seen["x0_error"]["network"], seen["x0_error"]["identity"])
    squares = np.mean(np.square(examples["image"]), axis=(1, 2, 3))
    np.testing.assert_allclose(seen["x0_error"]["zero"], np.tile(squares, (4, 1)), rtol=1e-5)


def answer_label(params, xt, t, label):
    return jnp.full_like(xt, label)


def test_labels_reach_the_network():
    objective = restorers.Objective(answer_label, levels=4, num_classes=10)
    ts, _ = measurements.severities(objective, restorers.Problem(BLUR))
    labels = np.arange(6, dtype=np.int32)
    examples = {"image": jnp.zeros((6, *SHAPE)), "label": jnp.asarray(labels)}
    seen = measurements.measure(
        objective, None, restorers.Problem(BLUR), None, examples, jax.random.key(0), ts
    )
    np.testing.assert_allclose(seen["x0_error"]["network"], np.tile(labels**2, (4, 1)))


def test_severities_lie_on_the_levels_trained_on():
    def ts(problem=NOISE, **numbers):
        objective = restorers.Objective(NETWORK.apply, **numbers)
        return measurements.severities(objective, problem)[0]

    np.testing.assert_allclose(ts(), np.arange(0.05, 1, 0.1), rtol=1e-6)
    np.testing.assert_allclose(ts(levels=4), [0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(ts(levels=10), np.arange(1, 11) / 10, rtol=1e-6)
    np.testing.assert_allclose(ts(levels=1000), np.arange(0.05, 1, 0.1), rtol=1e-6)
    np.testing.assert_allclose(ts(problem=problem(True)), [0.25, 0.5, 0.75, 1])


def test_told_times_are_wrong_and_shuffled_ones_are_the_same_severities():
    ts = np.linspace(0.1, 0.9, 5, dtype=np.float32)
    told = measurements.wrong_times(ts, 8, 50)
    assert not np.any(told["shuffled"] == ts[:, None])
    for column in np.sort(told["shuffled"], axis=0).T:
        np.testing.assert_array_equal(column, ts)
    np.testing.assert_allclose(told["held at its mean"], 0.5, rtol=1e-6)
    np.testing.assert_allclose(told["1 - t"][0], 0.9, rtol=1e-6)
    np.testing.assert_allclose(told["50 t"][0], 5, rtol=1e-6)


def steep_loss(params, key, example, problem, t):
    return t * jnp.sum(params) * jnp.mean(example["image"])


def test_gradient_shares():
    # |grad| = t sqrt(4) |mean image| by hand; a histogram [1, 3] draws the upper half more.
    examples = {"image": np.ones((2, *SHAPE), np.float32)}
    ts = np.array([0.25, 0.75], np.float32)
    arguments = (steep_loss, jnp.ones(4), NOISE, examples, jax.random.key(0), ts)
    np.testing.assert_allclose(measurements.gradient_shares(*arguments), [0.25, 0.75], rtol=1e-6)
    shares = measurements.gradient_shares(*arguments, histogram=np.array([1.0, 3.0]))
    np.testing.assert_allclose(shares, [0.1, 0.9], rtol=1e-6)


class Bare(NamedTuple):
    """The least that a state may be: no average."""

    params: Any


@functools.partial(jax.jit, donate_argnums=0)
def halve(state, batch, key, problem):
    return Bare({"used": state.params["used"] / 2, "unused": state.params["unused"]}), {
        "loss": jnp.sum(state.params["used"])
    }


def test_overfit_with_a_step_that_donates_and_a_state_without_average():
    start = Bare({"used": jnp.full(3, 8.0), "unused": jnp.ones(2)})
    examples = {"image": digits()[1][:2]}
    done = step_trial.overfit(
        halve, start, NOISE, examples, jax.random.key(0), steps=3, batch_size=4
    )
    np.testing.assert_array_equal(done.reported, [24, 12, 6])
    assert (done.moved, done.average_moved) == (0.5, None)
    np.testing.assert_array_equal(start.params["used"], 8)  # still there


def calibrated(output, target):
    """The moments of one severity, as `measurements.observe` takes them."""
    means = {"output": output, "target": target, "product": output * target}
    squares = {"output_square": output**2, "target_square": target**2}
    return {name: np.mean(x, axis=1)[None] for name, x in (means | squares).items()}


@pytest.mark.parametrize(("factor", "status"), [(1, "pass"), (1.5, "warn"), (3, "fail")])
def test_the_slope_is_that_of_a_regression(factor, status):
    rng = np.random.default_rng(0)
    output = rng.normal(size=(20, 64))
    target = factor * output + rng.normal(size=output.shape)
    check = checks.check_calibration(calibrated(output, target), np.array([0.5]), "x0")
    slope = np.polyfit(output.ravel(), target.ravel(), 1)[0]
    np.testing.assert_allclose(check.value, slope, rtol=1e-9)
    assert check.status == status


def test_predicted_noise_of_a_wrong_mean_or_variance():
    noise = np.random.default_rng(0).normal(size=(20, 64))
    for output, word in ((noise + 0.3, "mean"), (1.2 * noise, "variance")):
        check = checks.check_calibration(calibrated(output, noise), np.array([0.5]), "noise")
        assert check.status == "fail"
        assert word in check.advice


def compared(network, best_linear, *, target_square=1.0):
    """Errors at two severities, [2, 100]; the same for every image but for a little chance."""
    chance = 1 + 0.01 * np.random.default_rng(0).normal(size=(2, 100))
    network = np.array(network)[:, None] * chance
    return {
        "x0_error": {"network": network, "Wiener": np.array(best_linear)[:, None] * chance[::-1]},
        "error": network,
        "target": np.zeros((2, 100)),
        "target_square": np.full((2, 100), target_square),
    }


def test_the_floor_names_the_severity():
    ts = np.array([0.25, 0.75])
    check = checks.check_floor(compared([0.1, 0.3], [0.2, 0.2]), ts)
    assert check.status == "fail"
    assert "at t = 0.75:" in check.advice
    np.testing.assert_allclose(check.value, 1.5, rtol=0.01)
    assert checks.check_floor(compared([0.1, 0.208], [0.2, 0.2]), ts).status == "warn"
    assert checks.check_floor(compared([0.1, 0.1998], [0.2, 0.2]), ts).status == "pass"
    assert checks.check_floor(compared([0.1, math.nan], [0.2, 0.2]), ts).status == "fail"
    # A hundredth of the target's variance is no bug, however little the linear one leaves.
    small = compared([0.1, 0.005], [0.2, 0.0001])
    assert checks.check_floor(small, ts).status == "warn"


def test_the_floor_without_a_wiener_restorer():
    seen = compared([0.1, 0.3], [0.2, 0.2])
    seen["x0_error"]["zero"] = np.full((2, 100), 1.0)
    seen["x0_error"]["identity"] = seen["x0_error"].pop("Wiener")
    check = checks.check_floor(seen, np.array([0.25, 0.75]))
    assert check.status == "fail"
    assert "doing nothing at t = 0.75:" in check.advice


def test_silent_severities_that_are_solved_do_not_count():
    seen = {"x0_variance": np.ones((4, 3)), "x0_error": {}}
    ts = np.array([0.2, 0.4, 0.6, 0.8])
    for error, status in ((1e-3, "pass"), (1e-1, "fail")):
        seen["x0_error"]["network"] = np.array([error, error, 0.5, 0.5])[:, None] * np.ones(3)
        check = checks.check_weight(np.array([0, 1e-4, 0.4, 0.6]), seen, ts)
        assert check.status == status
    assert checks.check_weight(np.zeros(4), seen, ts).status == "fail"


@pytest.mark.parametrize(
    ("images", "status"),
    [
        (np.linspace(-1, 1, 64), "pass"),
        (np.linspace(0, 1, 64), "warn"),
        (np.linspace(-2, 2, 64), "fail"),
        (np.array([0.0, math.nan]), "fail"),
    ],
)
def test_scale(images, status):
    assert checks.check_scale(images).status == status


def curve(*slopes, chance=0.01):
    """A loss that falls to 1 by way of ln(loss) of these slopes over tenths of 200 lines."""
    y = np.cumsum(np.repeat(slopes, 20) / 20) + chance * np.random.default_rng(0).normal(size=200)
    return [{"step": 25 * (i + 1), "loss": math.exp(value)} for i, value in enumerate(y)]


@pytest.mark.parametrize(
    ("slopes", "status", "word"),
    [
        ((-1, -0.5, -0.2, -0.1, 0, 0, 0, 0, 0, 0), "pass", "plateau"),
        ((-1, -0.5, -0.2, -0.1, -0.1, -0.1, -0.1, -0.1, -0.1, -0.1), "warn", "still falling"),
        ((-1, -0.5, -0.2, -0.1, 0, 0, 0, 0, 0, 0.2), "fail", "diverges"),
        ((-1, -0.5, -0.2, -0.1, 0, 0, 1, 0, 0, 0), "fail", "diverges"),
        ((0, 0, 0, 0, 0, 0, 0, 0, 0, 0), "fail", "never fell"),
    ],
)
def test_convergence_in_words(slopes, status, word):
    check = checks.check_convergence(curve(*slopes))
    assert (check.status, word in check.advice) == (status, True), check
    np.testing.assert_allclose(check.value, slopes[-1], atol=0.03)


def test_a_history_that_cannot_be_judged():
    assert checks.check_convergence(curve(*[-0.1] * 10)[:10]).status == "warn"
    assert checks.check_convergence([{"step": 1, "loss": math.nan}] * 40).status == "fail"


def test_arguments_that_cannot_be():
    state = Bare(initial_state(0).params)
    given = {"objective": HEALTHY, "key": jax.random.key(0), "images": digits()[1]}
    with pytest.raises(ValueError, match="step_fn and initial_state"):
        audit(state, NOISE, **given, step_fn=halve)
    with pytest.raises(ValueError, match="images must be"):
        audit(state, NOISE, **given | {"images": digits()[1][0]})


BETAS = np.linspace(1e-4, 0.02, 1000)  # DDPM's


class Gains(nnx.Module):
    """omega_hat = gain_k x_t, k = 0..999."""

    def __init__(self, gain_K):
        self.gain_K = nnx.Param(jnp.asarray(gain_K, jnp.float32))


class Table(eqx.Module):
    gain_K: jax.Array


def structures(gain_K):
    """{library: (network_fn, params)} of one network; its parameters as each keeps them."""
    graph, state = nnx.split(Gains(gain_K))
    table = Table(jnp.asarray(gain_K, jnp.float32))
    return {
        "dict": (lambda params, xt, k: params["gain"][k] * xt, {"gain": table.gain_K}),
        "nnx": (lambda params, xt, k: nnx.merge(graph, params).gain_K[k] * xt, state),
        "equinox": (lambda params, xt, k: params.gain_K[k] * xt, table),
    }


@pytest.mark.parametrize("library", ["dict", "nnx", "equinox"])
def test_a_plain_network_told_integers_and_its_betas(library):
    # Of white Gaussian images E[omega | xt] = sigma xt / (0.09 alpha^2 + sigma^2), alpha^2 =
    # prod (1 - beta) by hand.
    images = np.clip(0.3 * np.random.default_rng(0).normal(size=(64, *SHAPE)), -1, 1)
    alpha2 = np.cumprod(1 - BETAS)
    gain_K = np.sqrt(1 - alpha2) / (0.09 * alpha2 + 1 - alpha2)

    def found(gain_K):
        network_fn, params = structures(gain_K)[library]
        objective = restorers.Objective(network_fn, prediction="noise", loss_fn=losses.l2)
        given = {"images": images, "key": jax.random.key(0), "betas": BETAS}
        return audit(params, objective=objective, **given)

    right = found(gain_K)
    assert right.status == "healthy", right.checks
    if library == "dict":
        assert found(-gain_K).verdict.startswith("target: your output is -noise, not noise")


def test_each_step_is_told_by_its_own_integer():
    # Of white images of variance 0.09 no network leaves less than 0.09 sigma^2 / (0.09 alpha^2 +
    # sigma^2) of x0, and one told its neighbor's integer leaves up to a fifth more.
    images = np.clip(0.3 * np.random.default_rng(0).normal(size=(512, *SHAPE)), -1, 1)
    betas = np.linspace(0.1, 0.6, 10)
    alpha2 = np.cumprod(1 - betas)
    variance = 0.09 * alpha2 + 1 - alpha2
    network_fn, params = structures(np.sqrt(1 - alpha2) / variance)["dict"]
    objective = restorers.Objective(network_fn, prediction="noise", loss_fn=losses.l2)
    found = audit(params, objective=objective, images=images, key=jax.random.key(0), betas=betas)
    np.testing.assert_allclose(found.curves["t"], np.arange(1, 11) / 10, rtol=1e-6)
    # 32,768 pixels: a standard error of a hundredth.
    np.testing.assert_allclose(found.curves["network"], 0.09 * (1 - alpha2) / variance, rtol=0.04)


def said(name, status="fail", symptom=False):
    return checks.Check(name, status, 0.0, "", f"what {name} says", symptom)


def test_the_verdict_is_the_cause_and_the_rest_follows():
    floor, average = said("floor", symptom=True), said("average")
    target, scale = said("target"), said("scale", "pass")
    status, line, ordered = checks.conclude([floor, average, scale, target], False)
    assert (status, line) == ("fail", "target: what target says")
    assert [one.name for one in ordered] == ["target", "average", "floor", "scale"]
    assert [one.follows for one in ordered] == [None, None, "target", None]


def test_what_is_not_learned_yet_is_no_verdict():
    floor, loss = said("floor", symptom=True), said("loss")
    assert checks.conclude([floor], True)[:1] == ("too early",)
    assert checks.conclude([floor], False)[:2] == ("fail", "floor: what floor says")
    assert checks.conclude([floor, loss], True)[:2] == ("fail", "loss: what loss says")
    assert checks.conclude([said("floor", "warn")], False)[0] == "healthy"


@pytest.mark.parametrize(("convergence", "told"), [("warn", True), ("pass", False)])
def test_a_healthy_run_is_told_to_go_on_unless_it_has_come_to_rest(convergence, told):
    status, line, _ = checks.conclude(
        [said("floor", "pass"), said("convergence", convergence)], True
    )
    assert (status, "train longer" in line) == ("healthy", told)


def test_young_is_a_loss_that_still_falls():
    # By hand: 1 / sqrt(step) falls to a quarter over four doublings, 1 + 1 / step by a sixth.
    steps = np.arange(1, 401)
    for loss, young in ((steps**-0.5, True), (1 + 5 / steps, False), (np.ones(400), False)):
        lines = [{"step": int(n), "loss": float(x)} for n, x in zip(steps, loss, strict=True)]
        assert checks.still_falls(lines) == young


class Average(NamedTuple):
    step: Any
    params: Any
    ema_params: Any


def sum_step(state, batch, key, problem, *, factor=1.0, at="params"):
    """Reports factor * mean (p x)^2 of the images, p among `at`."""
    loss = factor * jnp.mean(jnp.square(getattr(state, at) * batch["image"]))
    return state._replace(step=state.step + 1), {"loss": loss}


def probed(step_fn, weighted):
    state = Average(jnp.zeros(()), jnp.full((), 2.0), jnp.full((), 3.0))
    examples = {"image": np.full((4, *SHAPE), 0.5, np.float32)}
    due = {"weighted": np.full(4, weighted)}
    return step_trial.probe(step_fn, state, NOISE, examples, jax.random.key(0), due, 2)


@pytest.mark.parametrize(
    ("factor", "words"),
    [
        (1, "the step reports the mean"),
        (2, "2 times the loss: a sum over the batch"),
        (64, "64 times the loss: a sum over the pixels"),
        (128, "128 times the loss: a sum over everything"),
        (1 / 64, "a mean of a mean over the pixels"),
        (7, "7 times the loss that is due"),
    ],
)
def test_a_reported_loss_is_compared_with_the_one_due(factor, words):
    # (2 * 0.5)^2 = 1 by hand.
    probe = probed(functools.partial(sum_step, factor=factor), 1.0)
    check = checks.check_loss(probe, np.ones(8))
    np.testing.assert_allclose(check.value, factor, rtol=1e-6)
    assert words in check.advice


def test_weights_that_are_missing_twice_or_crossed():
    # Losses 1 and 3 under weights 1 and 5: means 2, 8; w^2 l 38; 3 * 2 = 6, by hand.
    probe = probed(sum_step, 8.0)
    due = {"weighted": np.tile([1.0, 15.0], 500), "loss": np.tile([1.0, 3.0], 500)}
    for reported, words in ((2, "missing"), (38, "twice"), (6, "a weight [B, 1] times")):
        found = probe._replace(reported=np.full(16, float(reported)), due=due)
        assert words in checks.check_loss(found, np.ones(8)).advice


def test_what_a_step_depends_on():
    assert probed(sum_step, 1.0).averaged == 0
    # Halved, the average costs a quarter.
    step = functools.partial(sum_step, at="ema_params")
    np.testing.assert_allclose(probed(step, 1.0).averaged, 0.75, rtol=1e-6)
    assert probed(sum_step, 1.0).coupled < 1e-6


def test_a_step_that_costs_twice_time_and_again():
    loss = np.exp(0.3 * np.random.default_rng(0).normal(size=300))
    probe = probed(sum_step, 1.0)
    assert checks.check_loss(probe, loss).status == "pass"
    loss[17::23] *= 2
    assert "every 23 steps one costs twice" in checks.check_loss(probe, loss).advice
