"""Every constructor meets every law; and each law refuses a toy that breaks it.

A new constructor is one more row of CASES. The numbers that the messages must hold are
worked out by hand from the toys.
"""

import functools
import itertools
import re
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from diffjax import samplers, schedules
from diffjax.degradations import laws
from diffjax.degradations.base import Degradation, LinearMap, compose, degrade, draw, infer
from diffjax.degradations.blur import downsample, gaussian_blur
from diffjax.degradations.color import decolor
from diffjax.degradations.families import FAMILIES
from diffjax.degradations.heat import blurring_noise, heat
from diffjax.degradations.laws import LawError, check_degradation
from diffjax.degradations.mask import fade, mask
from diffjax.degradations.noise import animorph, bridge, gaussian_noise
from diffjax.degradations.snow import snow

SHAPE = (9, 7, 3)


def composed(image_shape, share):
    return compose(decolor(image_shape, steps=4), gaussian_noise(image_shape), share=share)


def masked_and_gray(image_shape):
    gray = decolor(image_shape, steps=3)
    return compose(mask(image_shape, fraction=0.5), gray, share=0.25)


def cubic(t, *, power=3.0):
    """A schedule of a user's own."""
    return 1 - t**power, t


def case(constructor, image_shape, **settings):
    plain = [str(value) for value in settings.values() if isinstance(value, str | float | list)]
    name = ", ".join([constructor.__name__, str(image_shape), *plain])
    return pytest.param(
        functools.partial(constructor, image_shape, **settings), image_shape, id=name
    )


# Few shapes: each costs seconds of compilation, and the later rows of the same none.
CASES = [
    case(gaussian_blur, (8, 8, 1), stds=[1.0] * 5, kernel_size=5),
    case(gaussian_blur, (8, 8, 1), stds=[0.4, 0.8, 7.0], kernel_size=11, boundary="reflect"),
    case(gaussian_blur, (8, 8, 1), stds=[0.1, 0.2, 0.7], boundary="symmetric"),
    case(gaussian_blur, (8, 8, 1), stds=[2.0], kernel_size=3, boundary="symmetric"),
    case(gaussian_blur, (9, 7, 3), stds=[0.5, 1.0], kernel_size=5, boundary="circular"),
    case(gaussian_blur, (9, 7, 3), stds=[0.5, 1.0], kernel_size=5, boundary="reflect"),
    case(gaussian_blur, (9, 7, 3), stds=[0.5, 1.0], kernel_size=5, boundary="symmetric"),
    case(
        *(gaussian_blur, (9, 7, 3)),
        **{"stds": [1.0, 2.0], "kernel_size": [1, 3], "cumulative": False, "mean_at_end": True},
    ),
    case(
        *(gaussian_blur, (9, 7, 3)),
        **{"stds": [2.0, 6.0, 10.0], "kernel_size": [1, 3, 5], "boundary": "reflect"},
        **{"cumulative": False, "mean_at_end": True},
    ),
    case(heat, (9, 7, 3), sigma_max=3.0),
    case(heat, (9, 7, 3), sigma_max=3.0, noise=0.1),
    case(heat, (8, 8, 1), sigma_max=3.0, levels=10, noise=0.02),
    case(downsample, (8, 8, 1), steps=2),
    case(downsample, (9, 7, 3), sizes=[(6, 5), (2, 2)], method="bilinear"),
    case(downsample, (8, 8, 1), sizes=[(7, 5), (3, 3), 1], method="bilinear"),
    case(downsample, (8, 8, 1), steps=3, method="area"),
    case(downsample, (9, 7, 3), sizes=[(6, 5), (2, 2)], method="area", between=3),
    case(decolor, (9, 7, 3), steps=4),
    case(decolor, (9, 7, 3), steps=4, schedule="constant", gray_at_end=True),
    case(decolor, (8, 8, 1), steps=4, schedule="constant", gray_at_end=True),
    case(fade, (9, 7, 3), stds=[1.0, 2.0]),
    case(fade, (8, 8, 1), stds=[1.0, 2.0], place="random", color=0.3),
    case(fade, (9, 7, 3), stds=[1.0, 2.0], color="drawn", reverse=True),
    case(fade, (9, 7, 3), stds=[1.0, 2.0], place="random", color="drawn", reverse=True),
    case(mask, (9, 7, 3), fraction=0.7),
    case(mask, (8, 8, 1), size=4, soft=True),
    case(mask, (8, 8, 1), mask=np.eye(8), fill=0.5),
    case(mask, (9, 7, 3), mask=np.eye(9, 7), fill=[0.1, 0.2, 0.3]),
    case(mask, (8, 8, 1), mask=np.eye(8) / 2, soft=True),
    case(snow, (8, 8, 1), steps=4),
    case(snow, (9, 7, 3), steps=4, level=1, fix_brightness=True),
    case(gaussian_noise, (8, 8, 1)),
    case(gaussian_noise, (8, 8, 1), schedule="linear", zero_terminal_snr=True),
    case(gaussian_noise, (8, 8, 1), schedule="flow"),
    case(gaussian_noise, (8, 8, 1), schedule="karras"),
    case(gaussian_noise, (8, 8, 1), schedule=cubic, power=2.0),
    case(
        *(gaussian_noise, (8, 8, 1)),
        **{"schedule": "tabulated", "table": schedules.beta_table([0.1, 0.3, 0.9])},
    ),
    case(blurring_noise, (9, 7, 3), blur_max=3.0),
    case(animorph, (8, 8, 1), images=np.linspace(-1, 1, 192).reshape(3, 8, 8, 1)),
    case(
        *(animorph, (8, 8, 1)),
        **{"images": np.linspace(-1, 1, 192).reshape(3, 8, 8, 1), "schedule": "flow"},
    ),
    case(bridge, (8, 8, 1), end=downsample((8, 8, 1), steps=2), noise=0.1),
    case(
        *(bridge, (8, 8, 1)),
        **{"end": downsample((8, 8, 1), steps=2), "noise": 0.1, "brownian": True},
    ),
    case(
        *(bridge, (8, 8, 1)),
        **{"end": gaussian_noise((8, 8, 1)), "noise": 0.1, "brownian": True},
    ),
    case(composed, (9, 7, 3), share=0.4),
    case(masked_and_gray, (9, 7, 3)),
]


def test_every_family_has_a_case():
    # Two composed ones stand for compose, which takes degradations.
    constructors = {case.values[0].func for case in CASES} | {compose}
    assert constructors - {composed, masked_and_gray} == set(FAMILIES.values())


@pytest.mark.parametrize(("construct", "shape"), CASES)
def test_constructor_meets_every_law(construct, shape):
    report = check_degradation(construct(), jax.random.key(0), shape, tolerance=1e-5)
    assert set(laws.LAWS) - set(report) <= {"linear map"}
    assert max(report.values()) <= 1e-5


@pytest.mark.parametrize(("construct", "shape"), CASES)
def test_two_constructions_share_one_trace(construct, shape):
    chex.clear_trace_counter()  # it goes by the function's name

    @jax.jit
    @chex.assert_max_traces(n=1)
    def degraded(degradation, key, x0, t):
        return degrade(degradation, x0, t, draw(degradation, key, x0))

    x0 = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
    for t in (0.0, 1.0):
        xt = degraded(construct(), jax.random.key(0), x0, jnp.float32(t))
    assert np.any(xt != x0) or (construct.func is decolor and shape[2] == 1)


def bank(seed):
    return np.random.default_rng(seed).uniform(-1, 1, (4, *SHAPE)).astype(np.float32)


def blur(std):
    return gaussian_blur(SHAPE, stds=[std, 2 * std], kernel_size=5)


# Constructions of other numbers: one trace, and other images.
PAIRS = {
    "cosine": [gaussian_noise(SHAPE, offset=offset) for offset in (0.008, 0.02)],
    "zero terminal": [
        gaussian_noise(SHAPE, schedule="linear", zero_terminal_snr=True, beta_max=beta_max)
        for beta_max in (0.02, 0.03)
    ],
    "own": [gaussian_noise(SHAPE, schedule=cubic, power=power) for power in (2.0, 4.0)],
    "animorph": [animorph(SHAPE, images=bank(seed), schedule="flow") for seed in (1, 2)],
    "blurring": [blurring_noise(SHAPE, blur_max=3.0), blurring_noise(SHAPE, blur_max=2, d_min=0)],
    "bridge": [bridge(SHAPE, end=blur(std), noise=std / 9) for std in (1.0, 2.0)],
    "brownian": [
        bridge(SHAPE, end=gaussian_noise(SHAPE), noise=noise, brownian=True) for noise in (0.1, 0.2)
    ],
    "heat": [heat(SHAPE, sigma_max=4), heat(SHAPE, sigma_max=8.0, sigma_min=0.3)],
    "noisy heat": [heat(SHAPE, sigma_max=4, levels=9, noise=noise) for noise in (0.02, 0.05)],
    "blur": [blur(1.0), blur(2.0)],
    "fade": [fade(SHAPE, stds=[std]) for std in (1.0, 2.0)],
    "mask": [mask(SHAPE, fraction=fraction) for fraction in (0.3, 0.6)],
    "snow": [snow(SHAPE, steps=4, level=level) for level in (2, 4)],
    "decolor": [decolor(SHAPE, steps=2, schedule="constant", factor=e) for e in (0.5, 0.9)],
}


@pytest.mark.parametrize("family", PAIRS)
def test_constructions_of_other_numbers(family):
    traces = []

    @jax.jit
    def observe(degradation, x0, t):
        traces.append(t)
        omega = draw(degradation, jax.random.key(0), x0)
        xt = degrade(degradation, x0, t, omega)

        def total(xt):
            omega_hat = infer(degradation, xt, t, x0, omega)
            floating = (
                leaf
                for leaf in jax.tree.leaves(omega_hat)
                if jnp.isdtype(leaf.dtype, "real floating")
            )
            return sum(map(jnp.sum, floating), start=jnp.zeros(()))

        return xt, jax.grad(total)(xt)

    x0 = bank(0)[0]
    xts = []
    for degradation in PAIRS[family]:
        for t in (0.0, 0.3, 1.0):
            xt, slope = observe(degradation, x0, jnp.float32(t))
            assert np.all(np.isfinite(slope))
            xts.append(xt)
    assert len(traces) == 1
    assert np.max(np.abs(xts[2] - x0)) > 0.1
    assert np.max(np.abs(xts[2] - xts[5])) > 1e-3 or np.max(np.abs(xts[1] - xts[4])) > 1e-3


# A toy that meets the laws, x_t = x0 + (t p) omega, and one that breaks each.


def draw_noise(params, key, x0):
    # Numbers that look random; jax.random takes a second to compile, for each toy.
    seed = jnp.sum(jax.random.key_data(key) % 1000).astype(x0.dtype)
    return jnp.sin(seed + jnp.arange(x0.size, dtype=x0.dtype).reshape(x0.shape) ** 2)


def add_noise(params, x0, t, omega):
    return x0 + (t * params).astype(x0.dtype) * omega


def infer_noise(params, xt, t, x0_hat, omega):
    return jnp.where(t > 0, (xt - x0_hat) / jnp.where(t > 0, t * params, 1), omega)


def linear_noise(params, t):
    return LinearMap(sigma=t * params)


def toy(**functions):
    whole = {
        "draw_fn": draw_noise,
        "apply_fn": add_noise,
        "infer_fn": infer_noise,
        "linear_fn": linear_noise,
    }
    return Degradation(jnp.float32(0.5), **(whole | functions))


def forget_the_dtype(params, x0, t, omega):
    return x0 + t * params * omega


def sum_the_channels(params, x0, t, omega):
    return jnp.sum(x0, axis=-1, keepdims=True)


def start_at_a_half(params, x0, t, omega):
    return x0 + jnp.asarray(0.5, x0.dtype)


def through_eight_bits(params, x0, t, omega):
    return add_noise(params, jnp.round(x0 * 127.5) / 127.5, t, omega)


def divide_by_the_contrast(params, x0, t, omega):
    return jnp.where(t > 0, x0 / jnp.std(x0), x0)


def draw_hidden(params, key, x0):
    return jnp.asarray(np.random.default_rng().normal(size=x0.shape), x0.dtype)


def add_hidden_noise(params, x0, t, omega):
    return x0 + t.astype(x0.dtype) * draw_hidden(params, None, x0)


def forget_to_divide(params, xt, t, x0_hat, omega):
    return xt - x0_hat


def infer_nan_at_zero(params, xt, t, x0_hat, omega):
    return (xt - x0_hat) / (t * params)


def branch_on_t(params, x0, t, omega):
    return x0 if t < 0.5 else add_noise(params, x0, t, omega)


def know_of_tracers(params, x0, t, omega):
    return add_noise(params, x0, t * (2 if isinstance(x0, jax.core.Tracer) else 1), omega)


@jax.custom_batching.custom_vmap
def halve(x):
    return x / 2


@halve.def_vmap
def halve_wrongly(axis_size, in_batched, x):
    return x / 3, in_batched[0]


def halve_unless_vmapped(params, x0, t, omega):
    return jnp.where(t > 0, halve(x0), x0)


def take_the_root(params, x0, t, omega):
    return jnp.where(t > 0, jnp.sign(x0) * jnp.sqrt(jnp.abs(x0)), x0)


def linear_with_wrong_sigma(params, t):
    return LinearMap(sigma=t)


def linear_with_wrong_rows(params, t):
    return LinearMap(sigma=t * params, rows=jnp.eye(SHAPE[0])[::-1])


@jax.tree_util.register_pytree_node_class
class Restless(NamedTuple):
    """What is static in it never compares equal to that of a copy."""

    value: jax.Array
    static: object

    def tree_flatten(self):
        return (self.value,), self.static

    @classmethod
    def tree_unflatten(cls, static, leaves):
        return cls(*leaves, static)


def apply_restless(params, x0, t, omega):
    return add_noise(params.value, x0, t, omega)


class Adder:
    """A function of no name, unequal to its copies."""

    def __call__(self, params, x0, t, omega):
        return add_noise(params, x0, t, omega)


def draw_one_of_one(params, key, x0):
    return (draw_noise(params, key, x0),)


def add_one_of_one(params, x0, t, omega):
    return add_noise(params, x0, t, omega[0])


def keeping(apply_fn, params=()):
    return Degradation(params, draw_fn=draw_noise, apply_fn=apply_fn)


restless = keeping(apply_restless, Restless(jnp.float32(0.5), object()))

BROKEN = {
    "shape kept": [toy(apply_fn=sum_the_channels)],
    "identity at t=0": [
        toy(apply_fn=start_at_a_half),
        keeping(through_eight_bits, jnp.float32(0.5)),
    ],
    "finite values": [toy(apply_fn=divide_by_the_contrast)],
    "one key, one omega": [toy(draw_fn=draw_hidden)],
    "one omega, one image": [toy(apply_fn=add_hidden_noise)],
    "inferred omega": [toy(infer_fn=forget_to_divide), toy(infer_fn=infer_nan_at_zero)],
    "jit = eager = vmap = pmap": [
        keeping(branch_on_t, jnp.float32(0.5)),
        keeping(know_of_tracers, jnp.float32(0.5)),
        keeping(halve_unless_vmapped),
    ],
    "dtype kept": [toy(apply_fn=forget_the_dtype)],
    "one trace": [toy(apply_fn=Adder()), restless],
    "finite gradient": [keeping(take_the_root)],
    "linear map": [
        toy(linear_fn=linear_with_wrong_sigma),
        toy(linear_fn=linear_with_wrong_rows),
        # omega is not one array, so sigma omega is not defined.
        Degradation(
            jnp.float32(0.5),
            draw_fn=draw_one_of_one,
            apply_fn=add_one_of_one,
            linear_fn=linear_noise,
        ),
    ],
}


def test_the_toy_meets_every_law():
    report = check_degradation(toy(), jax.random.key(0), SHAPE)
    assert list(report) == list(laws.LAWS)
    assert max(report.values()) <= 1e-4


@pytest.mark.parametrize(
    ("law", "degradation"),
    [(law, degradation) for law, toys in BROKEN.items() for degradation in toys],
    ids=[f"{law}-{i}" for law, toys in BROKEN.items() for i in range(len(toys))],
)
def test_a_broken_toy_is_refused_by_the_name_of_its_law(law, degradation):
    with pytest.raises(LawError, match=f"^{re.escape(law)}: "):
        check_degradation(degradation, jax.random.key(0), SHAPE)


def test_no_law_goes_unbroken():
    # These two need a broken degrade and a broken sampler: see below.
    assert {*BROKEN, "severity in [0, 1]", "exact restorer"} == set(laws.LAWS)


@pytest.mark.parametrize(("name", "algorithm"), [("naive", 1), ("improved", 2)])
def test_walk_that_leaves_the_path_is_refused(monkeypatch, name, algorithm):
    sampler = getattr(samplers, name)

    def late_step(process, key, state, xt, t, s, omega):
        return sampler.step(process, key, state, xt, t, s / 2, omega)

    monkeypatch.setattr(samplers, name, sampler._replace(step=late_step))
    # The first step goes from t = 1 to 0.77.
    message = rf"^exact restorer: Algorithm {algorithm} against D\(x0, t\) at t=0.77: "
    with pytest.raises(LawError, match=message):
        check_degradation(toy(), jax.random.key(0), SHAPE)


def test_degrade_without_its_check_of_t_is_refused(monkeypatch):
    monkeypatch.setattr(
        laws,
        "degrade",
        lambda d, x0, t, omega: d.apply_fn(d.params, x0, jnp.asarray(t, jnp.float32), omega),
    )
    with pytest.raises(LawError, match=r"^severity in \[0, 1\]: no ValueError at t=-0.01"):
        check_degradation(toy(), jax.random.key(0), SHAPE)


def test_pmap_is_one_of_the_transformations(monkeypatch):
    def pmap_of_another_image(fn, in_axes):
        return jax.vmap(lambda args: fn((*args[:2], -args[2], args[3])), in_axes=in_axes)

    monkeypatch.setattr(jax, "pmap", pmap_of_another_image)
    with pytest.raises(LawError, match=r"^jit = eager = vmap = pmap: pmap against eager at t=1:"):
        check_degradation(toy(), jax.random.key(0), SHAPE)


def test_the_message_holds_the_numbers():
    # |x0 + 1/2 - x0| = 1/2, relative to 1 since no value of x0 passes 1.
    numbers = r"at t=0: 0.5, but at most 0; images \(9, 7, 3\)$"
    with pytest.raises(LawError, match=numbers):
        check_degradation(toy(apply_fn=start_at_a_half), jax.random.key(0), SHAPE)


def infer_too_much(params, xt, t, x0_hat, omega):
    return omega + 0.02


def test_tolerance():
    # D replays with an error of t p 0.02, at most 0.01 at t = 1, before the division by max |xt|.
    degradation = toy(infer_fn=infer_too_much)
    with pytest.raises(LawError, match=r"^inferred omega: .* but at most 0.001;"):
        check_degradation(degradation, jax.random.key(0), SHAPE, tolerance=1e-3)
    report = check_degradation(degradation, jax.random.key(0), SHAPE, tolerance=0.011)
    assert 1e-3 < report["inferred omega"] <= 0.01


def test_realization_may_hold_keys_integers_and_nothing():
    def draw_several(params, key, x0):
        return key, jnp.int32(7), None

    def from_a_key(params, x0, t, omega):
        return x0 + t.astype(x0.dtype) * draw_noise(params, omega[0], x0)

    degradation = Degradation((), draw_fn=draw_several, apply_fn=from_a_key)
    assert "linear map" not in check_degradation(degradation, jax.random.key(0), SHAPE)


@pytest.mark.parametrize("shape", [(8, 8), (1, 8, 8, 3)])
def test_wrong_shape_raises(shape):
    with pytest.raises(ValueError, match=r"shape must be \(H, W, C\)"):
        check_degradation(toy(), jax.random.key(0), shape)


@pytest.mark.parametrize("severities", [(), (0.0,), (0.0, 0.5), (0.1, 1.0), (0.0, 0.5, 0.5, 1.0)])
def test_wrong_severities_raise(severities):
    with pytest.raises(ValueError, match="severities must increase from 0 to 1"):
        check_degradation(toy(), jax.random.key(0), SHAPE, severities=severities)


def test_default_severities_start_and_end_where_they_must():
    default = check_degradation.__kwdefaults__["severities"]
    assert default[0] == 0
    assert default[-1] == 1
    assert all(a < b for a, b in itertools.pairwise(default))
