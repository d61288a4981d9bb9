"""Every law refuses a toy loss that breaks it, by its name and with its cause; ours meet all.

The toys are DDPM's noise loss with one thing wrong. The numbers that the messages must hold
are worked out by hand. Adapters of the module's docstring are run against stand-ins for the
libraries' code.
"""

import functools
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import Partial

from diffjax import losses, predictions, restorers, schedules, training
from diffjax.auditing.loss_laws import LAWS, LawError, check_loss
from diffjax.degradations.base import coefficients, degrade, draw
from diffjax.degradations.blur import gaussian_blur
from diffjax.degradations.heat import heat
from diffjax.degradations.mask import fade
from diffjax.degradations.noise import animorph, gaussian_noise

SHAPE = (6, 5, 1)
KEY = jax.random.key(0)
NOISE = gaussian_noise(SHAPE, schedule="shifted_cosine")
LEVELS = 100


@pytest.fixture(autouse=True)
def broadcast_silently():
    """As in anybody's session; this project's tests raise where ranks differ."""
    with jax.numpy_rank_promotion("allow"):
        yield


def over(values_B):
    return values_B[:, None, None, None]


def numbers(t_B):
    return jax.vmap(functools.partial(coefficients, NOISE))(t_B)


def drawn(key, x0):
    """t on the grid of LEVELS, and omega."""
    key_t, key_omega = jax.random.split(key)
    t = jnp.ceil((1 - jax.random.uniform(key_t, (len(x0),))) * LEVELS) / LEVELS
    return t, jax.random.normal(key_omega, x0.shape)


def mixed(x0, t, omega):
    alpha, sigma = numbers(t)
    return over(alpha) * x0 + over(sigma) * omega


def toy(
    network_fn,
    key,
    x0,
    *,
    draw_fn=drawn,
    mix_fn=mixed,
    tell_fn=lambda t: t,
    target_fn=lambda x0, xt, t, omega: omega,
    reduce_fn=lambda output, target, t: jnp.mean((output - target) ** 2),
):
    """mean (network_fn(x_t, t) - omega)^2, and what may be broken in it."""
    t, omega = draw_fn(key, x0)
    xt = mix_fn(x0, t, omega)
    return reduce_fn(network_fn(xt, tell_fn(t)), target_fn(x0, xt, t, omega), t)


def check(loss_fn=toy, degradation=NOISE, **settings):
    settings = {"prediction": "noise", "levels": LEVELS} | settings
    return check_loss(loss_fn, degradation, KEY, SHAPE, **settings)


def refused(law, cause, loss_fn=toy, /, *args, **settings):
    with pytest.raises(LawError, match=f"^{re.escape(law)}: .*likely: .*{cause}") as caught:
        check(loss_fn, *args, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def broken(**parts):
    return functools.partial(toy, **parts)


def test_the_toy_meets_every_law():
    report = check()
    assert list(report) == list(LAWS)
    assert all(np.isfinite(list(report.values())))


@pytest.mark.parametrize("name", LAWS)
def test_no_law_goes_unbroken(name):
    assert name in {law for law, *_ in BROKEN} | {"one call"}


def t_of_the_batch(key, x0):
    t, omega = drawn(key, x0)
    return jnp.full_like(t, t[0]), omega


def noise_of_the_batch(key, x0):
    t, omega = drawn(key, x0)
    return t, jnp.broadcast_to(omega[:1], x0.shape)


def fixed_t(key, x0):
    return drawn(jax.random.key(5), x0)[0], drawn(key, x0)[1]


def fixed_noise(key, x0):
    return drawn(key, x0)[0], drawn(jax.random.key(5), x0)[1]


def uniform_noise(key, x0):
    return drawn(key, x0)[0], jax.random.uniform(key, x0.shape)


def two_noises(x0, xt, t, omega):
    return jax.random.normal(jax.random.key(9), x0.shape)


def variance_for_std(x0, t, omega):
    alpha, sigma = numbers(t)
    return over(alpha) * x0 + over(sigma**2) * omega


def weighted(weight_fn):
    return lambda output, target, t: jnp.mean(over(weight_fn(t)) * (output - target) ** 2)


def b_against_b1(output, target, t):
    loss_B = jnp.mean((output - target) ** 2, (1, 2, 3))
    return jnp.mean((1 + t)[:, None] * loss_B)


def all_against_all(output, target, t):
    return jnp.mean((output[:, None] - target[None]) ** 2)


def mean_first(output, target, t):
    return jnp.mean(jnp.mean(output - target, (1, 2, 3)) ** 2)


def one_plus(t):
    return 1 + t


def compared_with_itself(output, target, t):
    return jnp.mean((output - jax.lax.stop_gradient(output)) ** 2)


def channels_apart(output, target, t):
    columns = jnp.arange(output.shape[2])[:, None]
    return jnp.mean((columns == 0) * output.shape[2] * (output - target) ** 2)


def half_precision(x0, t, omega):
    return mixed(x0, t, omega).astype(jnp.bfloat16).astype(jnp.float32)


def fixed_divisor(output, target, t):
    return jnp.sum((output - target) ** 2) / (48 * 30)


def detached_factor(output, target, t):
    loss = jnp.mean((output - target) ** 2)
    return loss + 2 * (loss - jax.lax.stop_gradient(loss))


# (law, cause, loss, settings)
BROKEN = [
    ("one call", "detached", broken(reduce_fn=lambda o, target, t: jnp.mean(target**2)), {}),
    ("one call", "divides by zero", broken(reduce_fn=weighted(lambda t: 1 / (1 - t))), {}),
    ("one call", "an axis too many", broken(tell_fn=lambda t: t[:, None]), {}),
    ("one call", "an axis too many", broken(reduce_fn=lambda o, target, t: (o - target) ** 2), {}),
    ("t on its scale", "steps are told: declare", broken(tell_fn=lambda t: t * LEVELS), {}),
    ("t on its scale", "logarithm", broken(tell_fn=lambda t: jnp.log(t) / 4), {}),
    (
        *("t on its scale", "counted from 1 instead of 0"),
        *(broken(tell_fn=lambda t: jnp.round(t * LEVELS)), {"t_scale": range(LEVELS)}),
    ),
    ("t on its scale", "told t / T", toy, {"t_scale": range(LEVELS), "levels": None}),
    ("t told", "every example is told t = 0.5", broken(tell_fn=lambda t: 0 * t + 0.5), {}),
    ("t told", "off by one: x_t is one step later", broken(tell_fn=lambda t: t - 0.01), {}),
    ("t on its scale", "off by one", broken(tell_fn=lambda t: t + 0.01), {}),
    (
        *("t told", "off by one: x_t is one step earlier"),
        *(broken(tell_fn=lambda t: jnp.minimum(t + 0.01, 1)), {}),
    ),
    ("t told", "another one of the batch", broken(tell_fn=lambda t: jnp.roll(t, 1)), {}),
    ("t told", "another one of the batch", broken(tell_fn=lambda t: t[::-1]), {}),
    ("t told", "the network is told 1 - t", broken(tell_fn=lambda t: 1 - t), {}),
    ("t told", "on another scale: x_t has 2 times", broken(tell_fn=lambda t: t / 2), {}),
    ("t told", r"sigma\^2 stands where sigma", broken(mix_fn=variance_for_std), {}),
    ("t told", r"mean 0\.\d\d and std 0\.2", broken(draw_fn=uniform_noise), {}),
    (
        *("t told", r"rescales its images: x0 arrives as 2\.00 x0 \+ -1\.00"),
        *(broken(mix_fn=lambda x0, t, omega: mixed(2 * x0 - 1, t, omega)), {}),
    ),
    (
        *("t told", "another schedule"),
        *(broken(mix_fn=lambda x0, t, omega: mixed(x0, t**2 / 2 + t / 2, omega)), {}),
    ),
    (
        *("t told", r"every x_t has the severity 0\.[45]"),
        *(broken(mix_fn=lambda x0, t, omega: mixed(x0, 0 * t + 0.5, omega)), {}),
    ),
    ("own t and noise", "t is drawn once a batch", broken(draw_fn=t_of_the_batch), {}),
    ("own t and noise", "noise is drawn once a batch", broken(draw_fn=noise_of_the_batch), {}),
    ("keys", "t does not depend on the key", broken(draw_fn=fixed_t), {}),
    ("keys", "noise does not depend on the key", broken(draw_fn=fixed_noise), {}),
    ("zero for the exact answer", "wants noise, not x0", toy, {"prediction": "x0"}),
    (
        *("zero for the exact answer", "wants minus noise, not noise"),
        *(broken(target_fn=lambda x0, xt, t, omega: -omega), {}),
    ),
    (
        *("zero for the exact answer", "wants x_t, not x0"),
        *(broken(target_fn=lambda x0, xt, t, omega: xt), {"prediction": "x0"}),
    ),
    ("zero for the exact answer", "drawn twice", broken(target_fn=two_noises), {}),
    (
        *("zero for the exact answer", "off by one: the target is of one step earlier"),
        broken(target_fn=lambda x0, xt, t, omega: predictions_v(x0, t - 1 / LEVELS, omega)),
        {"prediction": "v"},
    ),
    (
        *("not zero for another", "whatever the network answers"),
        *(broken(reduce_fn=weighted(jnp.zeros_like)), {}),
    ),
    ("not zero for another", "a target made of it", broken(reduce_fn=compared_with_itself), {}),
    (
        *("own target", r"\[B\] against \[B, 1\]"),
        broken(target_fn=lambda x0, xt, t, omega: x0, reduce_fn=all_against_all),
        {"prediction": "x0"},
    ),
    ("growth with the error", "loss='l2'", toy, {"loss": "l1"}),
    (
        *("growth with the error", "such as Huber's"),
        broken(reduce_fn=lambda o, target, t: jnp.mean(losses.huber(o, target, delta=1.0))),
        {},
    ),
    (
        *("growth with the error", "l1, or a root"),
        *(broken(reduce_fn=lambda o, target, t: jnp.sqrt(jnp.mean((o - target) ** 2))), {}),
    ),
    (
        *("growth with the error", "not squared"),
        *(broken(reduce_fn=lambda o, target, t: jnp.mean(o - target)), {"loss": "l1"}),
    ),
    (
        *("constant error", "factor 1/2, as in optax"),
        *(broken(reduce_fn=lambda o, target, t: jnp.mean((o - target) ** 2) / 2), {}),
    ),
    (
        *("constant error", "sum over everything"),
        *(broken(reduce_fn=lambda o, target, t: jnp.sum((o - target) ** 2)), {}),
    ),
    (
        *("constant error", "sum over pixels and channels"),
        broken(reduce_fn=lambda o, target, t: jnp.mean(jnp.sum((o - target) ** 2, (1, 2, 3)))),
        {},
    ),
    (
        *("constant error", "sum over the examples"),
        broken(reduce_fn=lambda o, target, t: jnp.sum(jnp.mean((o - target) ** 2, (1, 2, 3)))),
        {},
    ),
    ("constant error", "declare weight_fn, or None", broken(reduce_fn=weighted(one_plus)), {}),
    (
        *("constant error", "another weighting than weight_fn"),
        *(broken(reduce_fn=weighted(one_plus)), {"weight_fn": lambda t: 1 + t**2}),
    ),
    (
        *("weights", r"\[B\] against \[B, 1\]"),
        *(broken(reduce_fn=b_against_b1), {"weight_fn": one_plus}),
    ),
    (
        *("weights", r"\[B\] against \[B, 1\]"),
        *(broken(reduce_fn=b_against_b1), {"weight_fn": None}),
    ),
    (
        *("weights", "below 0"),
        *(broken(reduce_fn=weighted(lambda t: t - 0.2)), {"weight_fn": None}),
    ),
    (
        *("weights", "leaves out a range"),
        *(broken(reduce_fn=weighted(lambda t: (t > 0.35) * 1.0)), {"weight_fn": None}),
    ),
    ("gradient", "before the loss", broken(reduce_fn=mean_first), {}),
    ("gradient", "count unequally", broken(reduce_fn=channels_apart), {}),
    ("gradient", "detached factor", broken(reduce_fn=detached_factor), {"weight_fn": None}),
    (
        *("batch and image size", "sum over everything"),
        broken(reduce_fn=lambda o, target, t: jnp.sum((o - target) ** 2)),
        {"weight_fn": None},
    ),
    ("batch and image size", "", broken(reduce_fn=fixed_divisor), {}),
    (
        *("dtype kept", "another dtype"),
        *(toy, {"dtype": jnp.bfloat16}),
    ),
    (
        *("dtype kept", "low precision"),
        broken(reduce_fn=lambda o, target, t: jnp.mean((o - target) ** 2).astype(jnp.bfloat16)),
        {"weight_fn": None, "loss": None},
    ),
]


def predictions_v(x0, t, omega):
    alpha, sigma = numbers(t)
    return over(alpha) * omega - over(sigma) * x0


@pytest.mark.parametrize(
    ("law", "cause", "loss_fn", "settings"),
    BROKEN,
    ids=[f"{law}-{i}" for i, (law, *_) in enumerate(BROKEN)],
)
def test_a_broken_toy_is_refused_with_its_law_and_cause(law, cause, loss_fn, settings):
    refused(law, cause, loss_fn, **settings)


def test_numbers_in_the_message_are_those_by_hand():
    # 0.5^2 = 0.25, and a sum over 6 x 5 pixels instead of their mean is 30 times it.
    def reduce_fn(output, target, t):
        return jnp.mean(jnp.sum((output - target) ** 2, (1, 2, 3)))

    message = refused("constant error", "sum over pixels", broken(reduce_fn=reduce_fn))
    assert "an error of 0.5 costs 7.5, not 0.25" in message
    # l1 of twice the error is twice as much, where l2's is four times.
    message = refused("growth with the error", "declare loss='l2'", loss="l1")
    assert "twice the error costs 4 times as much, not 2" in message


def test_two_terms_are_refused():
    def loss_fn(network_fn, key, x0):
        return sum(toy(network_fn, key, x0) for key in jax.random.split(key))

    refused("one call", "check one at a time", loss_fn)


def test_a_loss_that_is_not_traceable_is_refused():
    def loss_fn(network_fn, key, x0):
        return np.mean(np.asarray(toy(network_fn, key, x0)))

    refused("one call", "cannot be traced", loss_fn)


def test_a_part_of_the_batch_is_refused():
    def loss_fn(network_fn, key, x0):
        return toy(network_fn, key, x0[: len(x0) // 2])

    refused("one call", "part of the batch", loss_fn)


# Degradations that are not alpha x0 + sigma omega.

BLUR = gaussian_blur(SHAPE, stds=[0.6] * 10, kernel_size=5)
WARM = heat(SHAPE, sigma_max=3.0, levels=10, noise=0.1)
HIDE = fade(SHAPE, stds=[0.5, 1.0, 2.0, 4.0], place="random")
MORPH = animorph(SHAPE, images=np.linspace(-1, 1, 150).reshape(5, *SHAPE))


def restoring(
    degradation, steps, network_fn, key, x0, *, tell_fn=lambda t: t, target_fn=lambda x0, *_: x0
):
    """mean |network_fn(x_t, t) - x0|, as cold diffusion has it."""
    key_t, key_omega = jax.random.split(key)
    t = jnp.ceil((1 - jax.random.uniform(key_t, (len(x0),))) * steps) / steps

    def one(key, x0, t):
        omega = draw(degradation, key, x0)
        return degrade(degradation, x0, t, omega), target_fn(x0, t, omega)

    xt, target = jax.vmap(one)(jax.random.split(key_omega, len(x0)), x0, t)
    return jnp.mean(jnp.abs(network_fn(xt, tell_fn(t)) - target))


@pytest.mark.parametrize(
    ("degradation", "steps"),
    [(BLUR, 10), (WARM, 10), (HIDE, 4), (MORPH, 100)],
    ids=["blur", "heat with noise", "fade", "animorph"],
)
def test_other_degradations(degradation, steps):
    settings = {"prediction": "x0", "loss": "l1", "levels": steps}
    loss_fn = functools.partial(restoring, degradation, steps)
    assert check(loss_fn, degradation, **settings)["zero for the exact answer"] == 0
    reversed_fn = functools.partial(loss_fn, tell_fn=lambda t: 1 + 1 / steps - t)
    refused("t told", "", reversed_fn, degradation, **settings)
    fixed_fn = functools.partial(loss_fn, tell_fn=lambda t: 0 * t + 0.5)
    refused("t told", "every example is told t = 0.5", fixed_fn, degradation, **settings)


@pytest.mark.parametrize("degradation", [BLUR, WARM], ids=["blur", "heat with noise"])
def test_one_step_of_blur_is_told_apart(degradation):
    settings = {"prediction": "x0", "loss": "l1", "levels": 10}
    loss_fn = functools.partial(restoring, degradation, 10, tell_fn=lambda t: t - 0.1)
    refused("t told", "off by one: x_t is one step later", loss_fn, degradation, **settings)


def test_the_previous_state_of_a_blur():
    def milder(x0, t, omega):
        return degrade(BLUR, x0, jnp.maximum(t - 0.1, 0), omega)

    loss_fn = functools.partial(restoring, BLUR, 10, target_fn=milder)
    settings = {"loss": "l1", "levels": 10}
    check(loss_fn, BLUR, prediction="previous", **settings)
    message = "wants previous, not x0"
    refused("zero for the exact answer", message, loss_fn, BLUR, prediction="x0", **settings)


# The library's own losses.

KINDS = list(predictions.DIRECTIONS)
WEIGHTINGS = losses.WEIGHTINGS | {"sigmoid": functools.partial(losses.sigmoid_weight, bias=-1.0)}
UNREDUCED = {
    "l1": losses.l1,
    "l2": losses.l2,
    "huber": functools.partial(losses.huber, delta=1.0),
    "pseudo_huber": functools.partial(losses.pseudo_huber, c=0.5),
}


def coefficients_at(t):
    alpha, sigma = coefficients(NOISE, t)
    alpha_s, sigma_s = coefficients(NOISE, jnp.maximum(t - 1 / LEVELS, 0))
    return {"alpha": alpha, "sigma": sigma, "alpha_s": alpha_s, "sigma_s": sigma_s}


@jax.jit
def weight(kind, weighting, degree, t):
    c = coefficients_at(t)
    on_x0 = jnp.stack([fn(c["alpha"], c["sigma"]) for fn in WEIGHTINGS.values()])[weighting]
    factor = jnp.stack([predictions.x0_error_factor(k, **c) for k in KINDS])[kind]
    return on_x0 / factor ** (degree / 2)


def ours(kind, weighting, degree, unreduced, network_fn, key, x0):
    """All kinds, weightings and losses in one trace: which one is an array."""
    t, omega = drawn(key, x0)
    output = network_fn(jax.vmap(degrade, (None, 0, 0, 0))(NOISE, x0, t, omega), t)

    def one(output, x0, omega, t):
        c = coefficients_at(t)
        target = jnp.stack([predictions.target(k, x0, omega, **c) for k in KINDS])[kind]
        loss = jnp.stack([fn(output, target) for fn in UNREDUCED.values()])[unreduced]
        return weight(kind, weighting, degree, t) * jnp.mean(loss)

    return jnp.mean(jax.vmap(one)(output, x0, omega, t))


@pytest.mark.parametrize("prediction", KINDS)
def test_our_weightings_and_losses_meet_every_law(prediction):
    kind = jnp.int32(KINDS.index(prediction))
    for w in range(len(WEIGHTINGS)):
        for u, (name, unreduced_fn) in enumerate(UNREDUCED.items()):
            declared = (kind, jnp.int32(w), jnp.float32(1 if name == "l1" else 2))
            report = check(
                Partial(ours, *declared, jnp.int32(u)),
                prediction=prediction,
                loss=unreduced_fn,
                weight_fn=Partial(weight, *declared),
            )
            assert list(report) == list(LAWS)


@pytest.mark.parametrize("prediction", ["x0", "v", "previous"])
def test_what_is_trained_meets_every_law(prediction):
    objective = restorers.Objective(
        lambda network_fn, xt, t, label: network_fn(xt[None], t[None])[0],
        prediction=prediction,
        loss_fn=losses.l2,
        levels=LEVELS,
    )

    def loss_fn(network_fn, key, x0):
        keys = jax.random.split(key, len(x0))
        t, _ = drawn(key, x0)

        def one(key, x0, t):
            example = {"image": x0}
            problem = restorers.Problem(NOISE)
            return training.example_loss(
                objective, network_fn, key, example, problem, t, jnp.ones(())
            ).weighted

        return jnp.mean(jax.vmap(one)(keys, x0, t))

    check(loss_fn, prediction=prediction)


# The adapters of the docstring.


def test_optax_style():
    def train_loss(params, apply_fn, x0, key):
        t, omega = drawn(key, x0)
        return losses.l2(apply_fn(params, mixed(x0, t, omega), t), omega)

    def adapted(network_fn, key, x0):
        return train_loss(None, lambda params, xt, t: network_fn(xt, t), x0, key).mean()

    check(adapted)


def test_diffusers_style():
    betas = np.linspace(1e-4, 0.02, 1000)
    alphas_cumprod = jnp.asarray(np.cumprod(1 - betas), jnp.float32)

    def add_noise(x0, noise, t):
        return (
            over(jnp.sqrt(alphas_cumprod[t])) * x0 + over(jnp.sqrt(1 - alphas_cumprod[t])) * noise
        )

    def adapted(network_fn, key, x0):
        key_t, key_noise = jax.random.split(key)
        t = jax.random.randint(key_t, (len(x0),), 0, 1000)
        noise = jax.random.normal(key_noise, x0.shape)
        return jnp.mean((network_fn(add_noise(x0, noise, t), t) - noise) ** 2)

    table = schedules.beta_table(betas)
    ddpm = gaussian_noise(SHAPE, schedule="tabulated", table=table)
    check(adapted, ddpm, t_scale=range(1000), levels=None)


def test_score_sde_style():
    def get_loss_fn(model):
        def loss_fn(key, params, states, batch):
            t, omega = drawn(key, batch["image"])
            score = model.apply({"params": params, **states}, mixed(batch["image"], t, omega), t)
            sigma = over(numbers(t)[1])
            return jnp.mean((score * sigma + omega) ** 2), states

        return loss_fn

    def adapted(network_fn, key, x0):
        model = types.SimpleNamespace(apply=lambda variables, xt, t: network_fn(xt, t))
        return get_loss_fn(model)(key, None, {}, {"image": x0})[0]

    check(adapted, prediction="score", weight_fn=lambda t: coefficients(NOISE, t)[1] ** 2)


def test_one_example_at_a_time():
    def loss_fn(one_fn, key, x0):
        t, omega = (draws[0] for draws in drawn(key, x0[None]))
        return jnp.mean((one_fn(mixed(x0[None], t[None], omega)[0], t) - omega) ** 2)

    def adapted(network_fn, key, x0):
        one_fn = lambda xt, t: network_fn(xt[None], t[None])[0]  # noqa: E731
        keys = jax.random.split(key, len(x0))
        return jnp.mean(jax.vmap(lambda key, x0: loss_fn(one_fn, key, x0))(keys, x0))

    check(adapted)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prediction": "epsilon"}, "prediction must be one of x0, noise"),
        ({"loss": "mse"}, "loss must be one of l2, l1, a function or None"),
        ({"t_scale": "step"}, "t_scale must be 'unit', 'sigma' or a range"),
        ({"t_scale": range(0, 1000, 2)}, "count steps one by one"),
        ({"t_scale": range(10), "levels": 5}, r"levels must be len\(t_scale\)"),
        ({"prediction": "previous", "levels": None}, "'previous' needs levels"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(ValueError, match=message):
        check(**settings)


def test_a_blur_predicts_no_noise_and_has_no_sigma():
    with pytest.raises(ValueError, match="needs a D of the form alpha x0"):
        check(degradation=BLUR)
    with pytest.raises(ValueError, match="t_scale='sigma' needs a D"):
        check(degradation=BLUR, prediction="x0", t_scale="sigma")
    with pytest.raises(ValueError, match=r"shape must be \(H, W, C\)"):
        check_loss(toy, NOISE, KEY, (4, *SHAPE), prediction="noise")
