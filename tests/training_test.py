"""Oracles: numpy in float64, of gradients, Adam and averages derived by hand.

The network is linear, R(xt, t) = a xt + b t. Where levels = 1 every severity is 1, so that
with D(x0, 1) = x0 / 2, r = R - x0 and the squared error,

    L = mean r^2,    dL/da = mean(2 r x0 / 2),    dL/db = mean(2 r).
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import fft, stats

from diffjax import data, losses, parallel, time_sampling, training
from diffjax.degradations.base import Degradation, degrade, draw, draw_noise
from diffjax.degradations.blur import gaussian_blur
from diffjax.restorers import Objective, Problem

PARAMS = {"a": jnp.float32(0.3), "b": jnp.float32(-0.2)}
KEY = jax.random.key(7)


def linear(params, xt, t, label=None):
    del label
    return params["a"] * xt + params["b"] * t


def fading(params, x0, t, omega):
    del omega
    return (1 - params * t) * x0


def noising(params, x0, t, omega):
    del params
    return x0 + t * omega


FADE = Degradation(jnp.float32(0.5), apply_fn=fading)
NOISE = Degradation(None, draw_fn=draw_noise, apply_fn=noising)


def step_with(optimizer, network_fn=linear, loss_fn=losses.l2, ema_decay=0.9, levels=None):
    """train_step, jitted, of (state, batch, key, degradation)."""
    objective = Objective(network_fn, loss_fn=loss_fn, levels=levels)
    step = jax.jit(
        functools.partial(
            training.train_step, objective=objective, optimizer=optimizer, ema_decay=ema_decay
        )
    )
    return lambda state, batch, key, degradation: step(state, batch, key, Problem(degradation))


def images(count):
    return np.random.default_rng(0).uniform(-1, 1, (count, 2, 3, 1)).astype(np.float32)


def as_batch(x0_BHWC, position=None):
    position = np.arange(len(x0_BHWC)) if position is None else position
    return {"image": x0_BHWC, "position": np.asarray(position, np.int32)}


def as_vector(params):
    return np.array([params["a"], params["b"]], np.float64)


def loss_and_gradient(params, x0):
    r = params[0] * x0 / 2 + params[1] - x0
    return np.mean(r**2), np.array([np.mean(2 * r * x0 / 2), np.mean(2 * r)])


def test_steps_are_gradient_descent_by_hand():
    optimizer, x0 = optax.sgd(0.5), images(4)
    step = step_with(optimizer, levels=1)
    state = training.create_state(PARAMS, optimizer)
    expected = expected_ema = as_vector(PARAMS)
    for n in range(3):
        state, metrics = step(state, as_batch(x0), KEY, FADE)
        loss, gradient = loss_and_gradient(expected, x0.astype(np.float64))
        expected = expected - 0.5 * gradient
        # d' = min(d, (1 + n)/(10 + n)): 1/10, 2/11 and 3/12 are all below d = 0.9.
        decay = (1 + n) / (10 + n)
        expected_ema = decay * expected_ema + (1 - decay) * expected
        np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
        np.testing.assert_allclose(metrics["grad_norm"], np.linalg.norm(gradient), rtol=1e-5)
        np.testing.assert_allclose(as_vector(state.params), expected, rtol=1e-5)
        np.testing.assert_allclose(as_vector(state.ema_params), expected_ema, rtol=1e-5)
        assert state.step == n + 1


def test_severity_sums_by_hand():
    # levels = 1 puts all four examples into the last of the bins; the other bins stay empty.
    optimizer, x0 = optax.sgd(0.0), images(4)
    state = training.create_state(PARAMS, optimizer)
    _, metrics = step_with(optimizer, levels=1)(state, as_batch(x0), KEY, FADE)
    x0 = x0.astype(np.float64)
    error = (0.3 * x0 / 2 - 0.2 - x0) ** 2
    expected = {
        "count": 4,
        "loss": error.mean((1, 2, 3)).sum(),
        "error": error.mean((1, 2, 3)).sum(),
        "target": x0.mean((1, 2, 3)).sum(),
        "target_square": (x0**2).mean((1, 2, 3)).sum(),
        "restored": error.mean((1, 2, 3)).sum() / 4,  # of [0, 1], half as wide as [-1, 1]
    }
    assert set(metrics["severity"]) == set(expected)
    for name, value in expected.items():
        sums = metrics["severity"][name]
        assert sums.shape == (training.BINS,)
        np.testing.assert_allclose(sums[-1], value, rtol=1e-5)
        np.testing.assert_array_equal(sums[:-1], 0)


def test_severity_curves_are_those_of_the_pixels():
    # Two bins of images, one bin without any: numpy's own statistics of all pixels of a bin.
    rng = np.random.default_rng(0)
    target, output = rng.normal(size=(2, 2, 5, 3, 3, 1)) + 1
    examples = {
        "count": np.ones((2, 5)),
        "loss": np.abs(output - target).mean((2, 3, 4)),
        "error": ((output - target) ** 2).mean((2, 3, 4)),
        "target": target.mean((2, 3, 4)),
        "target_square": (target**2).mean((2, 3, 4)),
        "restored": ((output - target) ** 2).mean((2, 3, 4)),
    }
    sums = {name: np.append(values.sum(axis=1), 0.0) for name, values in examples.items()}
    curves = training.severity_curves(sums)
    expected = {
        "loss": [np.abs(o - x).mean() for o, x in zip(output, target, strict=True)],
        "rmse": [np.sqrt(((o - x) ** 2).mean()) for o, x in zip(output, target, strict=True)],
        "explained_variance": [
            1 - ((o - x) ** 2).mean() / np.var(x) for o, x in zip(output, target, strict=True)
        ],
    }
    assert set(curves) == set(expected)
    for name, values in expected.items():
        assert curves[name][2] is None
        np.testing.assert_allclose(curves[name][:2], values, rtol=1e-9, err_msg=name)


def test_the_average_keeps_the_decay_it_is_given_once_that_is_the_smaller():
    # At step 9, (1 + 9)/(10 + 9) = 0.526 > 0.5 = d; a learning rate of 0 leaves params alone.
    optimizer = optax.sgd(0.0)
    ema_params = {"a": jnp.float32(1), "b": jnp.float32(2)}
    state = training.create_state(PARAMS, optimizer)
    state = state._replace(step=jnp.int32(9), ema_params=ema_params)
    state, _ = step_with(optimizer, ema_decay=0.5)(state, as_batch(images(1)), KEY, FADE)
    expected = (np.array([1, 2]) + as_vector(PARAMS)) / 2
    np.testing.assert_allclose(as_vector(state.ema_params), expected, rtol=1e-6)


@pytest.mark.parametrize("clip_norm", [None, 1.0])
def test_optimizer_is_adam_of_the_clipped_gradient(clip_norm):
    # Norms 5 and 0.5: with clip_norm 1 the first is divided by 5, the second is not touched.
    gradients = np.array([[3.0, 4.0], [0.3, -0.4]])
    optimizer = training.create_optimizer(0.1, clip_norm=clip_norm)
    params = jnp.zeros(2)
    state = optimizer.init(params)
    m, v, expected = np.zeros(2), np.zeros(2), np.zeros(2)
    for n, gradient in enumerate(gradients, start=1):
        updates, state = optimizer.update(jnp.asarray(gradient, jnp.float32), state, params)
        params = optax.apply_updates(params, updates)
        if clip_norm is not None:
            gradient = gradient / max(1, np.linalg.norm(gradient) / clip_norm)
        # Algorithm 1 of "Adam" (https://arxiv.org/abs/1412.6980) and its default constants.
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        expected -= 0.1 * (m / (1 - 0.9**n)) / (np.sqrt(v / (1 - 0.999**n)) + 1e-8)
    np.testing.assert_allclose(params, expected, rtol=1e-4)


def test_accumulated_batches_are_one_larger_batch():
    x0 = images(12)
    accumulated = training.create_optimizer(0.1, clip_norm=0.05, accumulate=3)
    at_once = training.create_optimizer(0.1, clip_norm=0.05)
    step = step_with(accumulated, levels=1)
    state = training.create_state(PARAMS, accumulated)
    for part in np.split(x0, 3):
        np.testing.assert_array_equal(as_vector(state.params), as_vector(PARAMS))
        state, _ = step(state, as_batch(part), KEY, FADE)
    # Twice, so that Adam's first step, which knows the gradient's sign alone, is not the last.
    for part in np.split(x0[::-1], 3):
        state, _ = step(state, as_batch(part), KEY, FADE)
    step, expected = step_with(at_once, levels=1), training.create_state(PARAMS, at_once)
    for whole in (x0, x0[::-1]):
        expected, _ = step(expected, as_batch(whole), KEY, FADE)
    # The same sums in another order: float32 rounding.
    chex.assert_trees_all_close(state.params, expected.params, rtol=1e-5)


@pytest.mark.parametrize("levels", [None, 1])  # t and omega are random; omega alone
def test_randomness_is_of_the_position_and_the_step(levels):
    optimizer, x0 = optax.sgd(0.0), images(4)
    step = step_with(optimizer, levels=levels)
    state = training.create_state(PARAMS, optimizer)

    def loss(position, state=state, key=KEY, order=(0, 1, 2, 3)):
        return step(state, as_batch(x0[list(order)], position), key, NOISE)[1]["loss"]

    first = loss([0, 1, 2, 3])
    # Where in its device's share an example stands does not matter: its position does.
    np.testing.assert_allclose(loss([2, 0, 3, 1], order=(2, 0, 3, 1)), first, rtol=1e-6)
    for other in (
        loss([2, 0, 3, 1]),
        loss([0, 1, 2, 3], state._replace(step=jnp.int32(1))),
        loss([0, 1, 2, 3], key=jax.random.key(8)),
    ):
        assert abs(other - first) > 1e-3


@pytest.mark.parametrize("levels", [None, 1, 3])
def test_severities_are_equally_frequent_and_never_zero(levels):
    # R(xt, t) = params[k(t)] against x0 = 0: the gradient of mean |R| at params = 1 is the
    # share of the examples that drew k. Bin 0 is t = 0 alone, bin k is ((k - 1)/n, k/n].
    bins, count = levels or 5, 5000

    def lookup(params, xt, t, label):
        return jnp.full_like(xt, params[jnp.ceil(t * bins - 1e-4).astype(jnp.int32)])

    optimizer = optax.sgd(1.0)
    state = training.create_state(jnp.ones(bins + 1), optimizer)
    step = step_with(optimizer, lookup, losses.l1, levels=levels)
    state, _ = step(state, as_batch(np.zeros((count, 1, 1, 1), np.float32)), KEY, FADE)
    shares = 1 - np.asarray(state.params, np.float64)
    assert shares[0] == 0
    # Binomial shares of mean p: within five standard deviations, and float32 rounding.
    p = 1 / bins
    tolerance = 5 * np.sqrt(p * (1 - p) / count) + 1e-3
    np.testing.assert_allclose(shares[1:], p, atol=tolerance)


@pytest.mark.parametrize("levels", [None, 4])
def test_severities_lie_where_they_should(levels):
    # R = t against 0: the mean of t^2. Over U(0, 1] it is 1/3, its variance 1/5 - 1/9 = 4/45;
    # over {1/4, 2/4, 3/4, 1}, (1 + 4 + 9 + 16)/(4 * 16) = 15/32, and less than 1/5 is ample.
    count, optimizer = 5000, optax.sgd(0.0)
    params = {"a": jnp.float32(0), "b": jnp.float32(1)}
    state = training.create_state(params, optimizer)
    step = step_with(optimizer, levels=levels)
    _, metrics = step(state, as_batch(np.zeros((count, 1, 1, 1), np.float32)), KEY, FADE)
    expected = 1 / 3 if levels is None else 15 / 32
    assert abs(metrics["loss"] - expected) < 5 * np.sqrt(1 / 5 / count)


def test_loss_falls_when_four_digits_are_overfitted():
    def perceptron(params, xt, t, label):
        x = jnp.append(xt.ravel(), t)
        return (params["outer"] @ jax.nn.silu(params["inner"] @ x)).reshape(xt.shape)

    x0 = data.load("digits", "train").fetch_fn(range(4))["image"]
    inner, outer = jax.random.split(KEY)
    params = {
        "inner": jax.random.normal(inner, (64, 65)) / 8,
        "outer": jax.random.normal(outer, (64, 64)) / 8,
    }
    blur = gaussian_blur((8, 8, 1), stds=(0.8,) * 10, kernel_size=5, boundary="reflect")
    optimizer = training.create_optimizer(3e-3, clip_norm=1.0)
    step = step_with(optimizer, perceptron, losses.l1, ema_decay=0.95, levels=10)
    state = training.create_state(params, optimizer)
    history = []
    for _ in range(300):
        state, metrics = step(state, as_batch(x0), KEY, blur)
        history.append(metrics["loss"].item())
    assert np.mean(history[-20:]) < 0.2 * np.mean(history[:5])
    averaged = step(state._replace(params=state.ema_params), as_batch(x0), KEY, blur)[1]["loss"]
    assert averaged < 0.2 * np.mean(history[:5])


def unguarded_step(state, batch, key, problem, *, objective, optimizer, ema_decay):
    """`training.train_step` for one device and uniform times, without a look at its numbers."""
    key_times, key_examples = jax.random.split(jax.random.fold_in(key, state.step))

    def batch_loss(params):
        def one(example):
            t, density = time_sampling.draw(
                key_times, example["position"], len(batch["position"]), None, levels=None,
                spacing_fn=objective.spacing_fn,
            )  # fmt: skip
            key = jax.random.fold_in(key_examples, example["position"])
            return training.example_loss(objective, params, key, example, problem, t, density)

        examples = jax.vmap(one)(dict(batch))
        return jnp.mean(examples.weighted), examples

    (_, examples), grads = jax.value_and_grad(batch_loss, has_aux=True)(state.params)
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
    ema_params = optax.incremental_update(params, state.ema_params, 1 - decay)
    importance = time_sampling.update_importance(
        state.importance, examples.t, examples.weighted, axis_name=None
    )
    return training.TrainState(state.step + 1, params, ema_params, opt_state, importance)


def test_a_step_with_finite_numbers_is_what_it_was_without_the_guard():
    optimizer, batch = training.create_optimizer(1e-2, clip_norm=0.1), as_batch(images(4))
    state = expected = training.create_state(PARAMS, optimizer)
    plain = jax.jit(
        functools.partial(
            unguarded_step, objective=Objective(linear), optimizer=optimizer, ema_decay=0.9
        )
    )
    step = step_with(optimizer, loss_fn=losses.l1)
    for _ in range(3):
        state, metrics = step(state, batch, KEY, NOISE)
        expected = plain(expected, batch, KEY, Problem(NOISE))
        assert not metrics["skipped"]
        assert metrics["culprit"] == -1
        chex.assert_trees_all_equal(state, expected)


def square_root(params, xt, t, label):
    """Of finite value and infinite slope where params["b"] is 0."""
    return params["a"] * xt + jnp.sqrt(params["b"])


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_step_with_numbers_that_are_not_finite_changes_nothing_but_the_step(what, accumulate):
    optimizer = training.create_optimizer(1e-2, clip_norm=1.0, accumulate=accumulate)
    x0, params = images(4), PARAMS
    if what == "loss":
        x0[2, 0, 0] = np.nan
        step = step_with(optimizer)
    else:
        params, step = (
            {"a": jnp.float32(0.3), "b": jnp.float32(0)},
            step_with(optimizer, square_root),
        )
    before = training.create_state(params, optimizer)
    good, _ = step_with(optimizer)(before, as_batch(images(4)), KEY, FADE)
    before = good._replace(params=params)  # an optimizer's state that is not its first
    after, metrics = step(before, as_batch(x0), KEY, FADE)
    assert metrics["skipped"]
    assert after.step == before.step + 1
    chex.assert_trees_all_equal(after._replace(step=before.step), before)
    # The leaves in order are a and b; a NaN in the data is in both.
    assert metrics["culprit"] == (0 if what == "loss" else 1)
    assert np.isfinite(metrics["loss"]) == (what == "gradient")


def test_the_first_average_is_a_copy():
    # The state is donated where it is trained, and one buffer cannot be donated twice.
    state = training.create_state(PARAMS, optax.sgd(0.1))
    chex.assert_trees_all_equal(state.params, state.ema_params)
    for name in PARAMS:
        buffers = (state.params[name], state.ema_params[name])
        assert buffers[0].unsafe_buffer_pointer() != buffers[1].unsafe_buffer_pointer()


def test_two_constructions_of_a_degradation_share_one_trace():
    traces = []

    def network_fn(params, xt, t, label):
        traces.append(xt.shape)
        return linear(params, xt, t)

    optimizer = optax.sgd(0.1)
    step = step_with(optimizer, network_fn)
    state = training.create_state(PARAMS, optimizer)
    for stds in ((0.5, 1.0), (0.6, 0.7)):
        blur = gaussian_blur((2, 3, 1), stds=stds, kernel_size=3)
        state, _ = step(state, as_batch(images(2)), KEY, blur)
    assert len(traces) == 1


# --- noise on x_t


def seen(perturbation, key, x0, t=0.5):
    """The loss of one noisy example, and what the network was shown: x_t, t, label."""
    shown = []

    def network_fn(params, xt, t, label):
        shown.append((np.asarray(xt, np.float64), float(t), int(label)))
        return linear(params, xt, t)

    objective = Objective(
        network_fn, loss_fn=losses.l1, num_classes=3, label_dropout=0.5, perturbation=perturbation
    )
    example = {"image": x0, "label": jnp.int32(1)}
    told = (PARAMS, key, example, Problem(NOISE), jnp.float32(t), jnp.float32(2))
    return training.example_loss(objective, *told), *shown[0]


def test_a_perturbation_is_white_noise_on_xt_and_nothing_else():
    q, x0, labels, noises = 0.1, jnp.zeros((48, 48, 1)), [], []
    for seed in range(4):
        key = jax.random.key(seed)
        _, plain, t, label = seen(0.0, key, x0)
        loss, perturbed, *same = seen(q, key, x0)
        assert same == [t, label]
        assert (loss.t, loss.density) == (0.5, 2)
        # x_t = 0 + omega / 2: with another omega this would have a std of 7.
        noise, omega = (perturbed - plain).ravel() / q, 2 * plain.ravel()
        assert stats.kstest(noise, stats.norm.cdf).pvalue > 1e-3
        assert abs(noise.mean()) < 5 / 48
        assert abs(noise.std() - 1) < 5 / np.sqrt(2) / 48
        # White, and neither omega nor made of it: correlations are 0 within five deviations.
        field = noise.reshape(48, 48)
        for other in (omega, np.roll(field, 1, 0).ravel(), np.roll(field, 1, 1).ravel()):
            assert abs(np.corrcoef(noise, other)[0, 1]) < 5 / 48
        labels.append(label)
        noises.append(noise)
    # Each example's own; both a label and none (3) were shown.
    correlation = np.corrcoef(noises) - np.eye(4)
    assert np.max(np.abs(correlation)) < 5 / 48
    assert set(labels) == {1, 3}


def test_without_a_perturbation_the_loss_is_of_d_alone():
    x0 = jnp.asarray(images(1)[0])
    loss, xt, _, label = seen(0.0, KEY, x0)
    key_omega, key_label = jax.random.split(KEY)
    omega = draw(NOISE, key_omega, x0)
    expected = degrade(NOISE, x0, jnp.float32(0.5), omega)
    np.testing.assert_array_equal(xt, expected)
    assert label == (3 if jax.random.bernoulli(key_label, 0.5) else 1)
    output = linear(PARAMS, expected, jnp.float32(0.5))
    assert loss.loss == jnp.mean(losses.l1(output, x0))
    # And so is a step: bit for bit that of an objective that was never told of it.
    optimizer = optax.adam(0.1)
    state = training.create_state(PARAMS, optimizer)
    told = functools.partial(
        training.train_step,
        objective=Objective(linear, loss_fn=losses.l2, perturbation=0.0, basis="pixels"),
        optimizer=optimizer,
        ema_decay=0.9,
    )
    batch = as_batch(images(4))
    chex.assert_trees_all_equal(
        jax.jit(told)(state, batch, KEY, Problem(NOISE)),
        step_with(optimizer)(state, batch, KEY, NOISE),
    )


def test_the_perturbation_is_of_the_position_on_any_number_of_devices():
    # D draws nothing and t is 1: all that is random is the perturbation.
    optimizer, x0 = optax.sgd(0.1), images(4)
    step = functools.partial(
        training.train_step,
        objective=Objective(linear, loss_fn=losses.l2, levels=1, perturbation=0.5),
        optimizer=optimizer,
        ema_decay=0.9,
    )
    state, on_one = training.create_state(PARAMS, optimizer), jax.jit(step)

    def loss(position, order=(0, 1, 2, 3)):
        batch = as_batch(x0[list(order)], position)
        return on_one(state, batch, KEY, Problem(FADE))[1]["loss"]

    first = loss([0, 1, 2, 3])
    np.testing.assert_allclose(loss([2, 0, 3, 1], order=(2, 0, 3, 1)), first, rtol=1e-6)
    assert abs(loss([2, 0, 3, 1]) - first) > 1e-3
    on_two = parallel.pmap_step(step)
    _, metrics = on_two(
        *(parallel.replicate(state), parallel.shard(as_batch(x0)), KEY),
        parallel.replicate(Problem(FADE)),
    )
    np.testing.assert_allclose(metrics["loss"], first, rtol=1e-6)


# --- the basis of the loss


@pytest.mark.parametrize("name", ["l1", "l2"])
def test_the_loss_of_the_coefficients_is_scipys(name):
    x0 = np.random.default_rng(1).uniform(-1, 1, (6, 5, 2)).astype(np.float32)
    output = np.random.default_rng(2).uniform(-1, 1, x0.shape).astype(np.float32)

    def loss(basis):
        objective = Objective(
            lambda params, xt, t, label: params, loss_fn=losses.LOSSES[name], basis=basis
        )
        told = ({"image": jnp.asarray(x0)}, Problem(FADE), jnp.float32(1), jnp.float32(1))
        return training.example_loss(objective, jnp.asarray(output), KEY, *told)

    found, in_pixels = loss("dct"), loss("pixels")
    output_dct, x0_dct = (
        fft.dctn(x.astype(np.float64), type=2, norm="ortho", axes=(0, 1)) for x in (output, x0)
    )
    expected = np.mean(np.abs(output_dct - x0_dct) ** {"l1": 1, "l2": 2}[name])
    np.testing.assert_allclose(found.loss, expected, rtol=1e-5)
    assert found.weighted == found.loss
    if name == "l2":  # the DCT is a rotation
        np.testing.assert_allclose(found.loss, in_pixels.loss, rtol=1e-5)
    else:
        assert abs(found.loss / in_pixels.loss - 1) > 1e-3
    # The curves of the run stay in pixels.
    for field in ("error", "target", "target_square"):
        assert getattr(found, field) == getattr(in_pixels, field)
