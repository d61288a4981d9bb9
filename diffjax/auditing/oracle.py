"""What a loss asks of its network, seen by a network that knows the answer.

    observe(loss_fn, D, key, x0_BHWC, question, scale=...) -> Observation

calls loss_fn(network_fn, key, x0_BHWC) with an oracle for a network. The oracle knows x0,
so it solves x_t = D(x0, t, omega) for omega at the t that it is told, and answers whatever
`question` says: a kind of target, with an error of our choice added.

What it was asked comes back without a side effect. The answer passes through a function
whose derivative we define: with respect to a probe of zeros, the "gradient" of the loss is
(x_t, t, dloss/danswer), example by example. So all of it survives jit, and a vmap of the
network over single examples: that is turned into one call with the whole batch.

Depends on: jax, chex, diffjax.degradations, diffjax.predictions.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from diffjax import predictions, schedules
from diffjax.degradations.base import (
    Degradation,
    coefficients,
    degrade,
    draw,
    has_coefficients,
    infer,
)

Array = jax.Array
NetworkFn = Callable[[Array, Array], Array]  # (xt_BHWC, t_B) -> output_BHWC
LossFn = Callable[[NetworkFn, Array, Array], Array]  # (network_fn, key, x0_BHWC) -> scalar

EPSILON = 2.0**-22  # relative rounding of what the loss and the oracle compute apart


class CallError(Exception):
    """The network was called with something that is no batch of images and severities."""


class Scale(NamedTuple):
    """What the t that a network is told counts; hashable, static under jit."""

    name: str = "unit"  # "unit", "steps" or "sigma"
    first: int = 0  # the label of severity 1 / levels, with "steps"
    levels: int | None = None  # severities are k / levels; None: continuous


class Question(NamedTuple):
    """What the oracle answers: sign * target + error, each example its own error."""

    kind: ArrayLike  # index into `answers`
    sign: ArrayLike  # scalar
    error_BHWC: ArrayLike
    solve_shift: ArrayLike  # omega is solved at the told t plus this, in its own units
    target_shift: ArrayLike  # and the target made at the told t plus this


class Observation(NamedTuple):
    """One evaluation of the loss, B examples."""

    loss: Array  # scalar
    calls: Array  # of the network, through which a gradient passes; scalar
    told_B: Array  # the t that the network was told, as it was told
    t_B: Array  # the same as a severity of D
    xt_BHWC: Array
    answer_BHWC: Array
    gradient_BHWC: Array  # of the loss in the answer
    rounding_B: Array  # absolute, of the answer
    dtypes: tuple[Array, Array]  # empty arrays, of the dtypes of x_t and of the loss


def severity(degradation: Degradation, scale: Scale, told: Array) -> Array:
    """The t in [0, 1] that a told t stands for: k / T, or where sigma / alpha is as told."""
    if scale.name == "unit":
        return told
    if scale.name == "steps":
        assert scale.levels is not None, "steps are counted"
        return (told - scale.first + 1) / scale.levels
    return schedules.invert(lambda t: coefficients(degradation, t), told)


def told(degradation: Degradation, scale: Scale, t: Array | float) -> Array | float:
    """What a network is told at severity t: the inverse of `severity`."""
    if scale.name == "unit":
        return t
    if scale.name == "steps":
        assert scale.levels is not None, "steps are counted"
        return t * scale.levels + scale.first - 1
    alpha, sigma = coefficients(degradation, t)
    return sigma / jnp.maximum(alpha, predictions.FLOOR)


def scaled(degradation: Degradation, scale: Scale, label: Array) -> tuple[Array, Array]:
    """(alpha, sigma) where the network is told `label`, of a D that has them.

    On the scale "sigma" it is the told sigma that counts, even outside the schedule.
    """
    alpha, sigma = coefficients(degradation, severity(degradation, scale, label))
    return (alpha, label * alpha) if scale.name == "sigma" else (alpha, sigma)


def answers(degradation: Degradation, scale: Scale) -> list[str]:
    """What the oracle can answer, in the order that Question.kind counts."""
    if not has_coefficients(degradation):
        kinds = ["x0", "previous", "x_t", "x_t - x0"]
    else:
        kinds = [*predictions.DIRECTIONS, "x_t", "sigma omega"]
    return [kind for kind in kinds if kind != "previous" or scale.levels is not None]


def _directions(degradation, scale, label):
    """(alpha, sigma), and (b, e) of every answer b x0 + e omega; [K]."""
    alpha, sigma = scaled(degradation, scale, label)
    alpha, sigma = (jnp.maximum(number, predictions.FLOOR) for number in (alpha, sigma))
    extras = {}
    if scale.levels is not None:
        s = jnp.maximum(severity(degradation, scale, label) - 1 / scale.levels, 0)
        extras = dict(zip(("alpha_s", "sigma_s"), coefficients(degradation, s), strict=True))
    zero, one = jnp.zeros(()), jnp.ones(())
    found: dict[str, Sequence[Array]] = {"x_t": (alpha, sigma), "sigma omega": (zero, sigma)}
    for kind in answers(degradation, scale)[:-2]:
        found[kind] = [
            predictions.target(kind, *unit, alpha, sigma, **extras)
            for unit in ((one, zero), (zero, one))
        ]
    pairs = jnp.array([found[kind] for kind in answers(degradation, scale)])
    return alpha, sigma, pairs[:, 0], pairs[:, 1]


def _solve(degradation, scale, question, x0, xt, label):
    """The answer of a kind, and its absolute rounding."""
    kind, solved = question.kind, label + question.solve_shift
    if has_coefficients(degradation):
        alpha, sigma, *_ = _directions(degradation, scale, solved)
        _, _, b, e = _directions(degradation, scale, label + question.target_shift)
        omega = (xt - alpha * x0) / sigma
        answer = b[kind] * x0 + e[kind] * omega
        of_omega = (jnp.max(jnp.abs(xt)) + alpha) / sigma
        rounding = jnp.abs(e[kind]) * of_omega + jnp.max(jnp.abs(answer))
        return answer, EPSILON * rounding
    found = {"x0": x0, "x_t": xt, "x_t - x0": xt - x0}
    if scale.levels is not None:
        # D(x0, s) with the omega that x_t has: of one that is kept, none is known.
        t = severity(degradation, scale, solved)
        omega = infer(degradation, xt, t, x0, draw(degradation, jax.random.key(0), x0))
        s = severity(degradation, scale, label + question.target_shift) - 1 / scale.levels
        found["previous"] = degrade(degradation, x0, jnp.maximum(s, 0), omega)
    answer = jnp.stack([found[name] for name in answers(degradation, scale)])[kind]
    return answer, EPSILON * jnp.max(jnp.abs(answer))


class _World(NamedTuple):
    """All that the oracle knows."""

    degradation: Degradation
    x0_BHWC: Array
    question: Question


def _answer(scale: Scale, world: _World, xt_BHWC: Array, told_B: Array) -> tuple[Array, Array]:
    """The answers, and their rounding [B]."""
    question = world.question

    def one(x0, xt, label, error):
        answer, rounding = _solve(world.degradation, scale, question, x0, xt, label)
        return question.sign * answer + error, rounding

    return jax.vmap(one)(world.x0_BHWC, xt_BHWC, told_B, question.error_BHWC)


@jax.custom_vjp
def _record(probe, answer, xt, told):
    del probe, xt, told
    return answer


def _record_forward(probe, answer, xt, told):
    del probe
    return answer, (answer, xt, told)


def _record_backward(seen, gradient):
    answer, xt, told = seen
    record = {"answer": answer, "xt": xt, "told": told, "gradient": gradient}
    nothing = (jnp.zeros_like(leaf) for leaf in seen)
    return (record | {"calls": jnp.ones(())}, *nothing)


_record.defvjp(_record_forward, _record_backward)


def _ask(scale: Scale, probe, world: _World, xt: Array, told: Array) -> Array:
    """The oracle's answer, of the whole batch or, under vmap, of a part of it."""
    if xt.shape == world.x0_BHWC.shape:
        answer, _ = _answer(scale, world, xt, told)
        return _record(probe, jax.lax.stop_gradient(answer), xt, told)

    @jax.custom_batching.custom_vmap
    def ask_part(probe, world, xt, told):
        return xt  # of the right shape; never used, for a part alone is no batch

    @ask_part.def_vmap
    def ask_parts(axis_size, in_batched, probe, world, xt, told):
        xt, told = (
            array if batched else jnp.broadcast_to(array, (axis_size, *array.shape))
            for array, batched in zip((xt, told), in_batched[2:], strict=True)
        )
        parts = (array.reshape(-1, *array.shape[2:]) for array in (xt, told))
        return _ask(scale, probe, world, *parts).reshape(xt.shape), True

    return ask_part(probe, world, xt, told)


def _require_batch(xt_BHWC: Array, t_B: Array, image_shape: tuple[int, ...]) -> None:
    if xt_BHWC.ndim != 4 or xt_BHWC.shape[1:] != image_shape:
        raise CallError(f"the network is given x_t {xt_BHWC.shape}, images being {image_shape}")
    if t_B.shape != xt_BHWC.shape[:1]:
        raise CallError(f"the network is told t {t_B.shape} beside x_t {xt_BHWC.shape}, not [B]")


# Compiled once a loss and run a few dozen times: compiling is what takes the time.
QUICK = {"xla_backend_optimization_level": 0}


@functools.partial(jax.jit, static_argnames="scale", compiler_options=QUICK)
def observe(
    loss_fn: LossFn,
    degradation: Degradation,
    key: Array,
    x0_BHWC: Array,
    question: Question,
    *,
    scale: Scale,
) -> Observation:
    """One evaluation of the loss on an oracle.

    Args:
      loss_fn: a `jax.tree_util.Partial`: losses that differ in its leaves share one trace.
      degradation: D.
      key: the loss's.
      x0_BHWC: the batch, in [-1, 1].
      question: what the oracle answers.
      scale: of the t that the network is told.
    Returns:
      See `Observation`.
    """
    world = _World(degradation, x0_BHWC.astype(jnp.float32), question)
    zeros = jnp.zeros_like(world.x0_BHWC)
    probe = {"answer": zeros, "xt": zeros, "gradient": zeros}
    probe |= {"told": zeros[:, 0, 0, 0], "calls": jnp.zeros(())}

    dtypes = []

    def loss(probe):
        def network_fn(xt_BHWC, t_B):
            xt_BHWC, t_B = jnp.asarray(xt_BHWC), jnp.asarray(t_B)
            _require_batch(xt_BHWC, t_B, x0_BHWC.shape[1:])
            dtypes.append(xt_BHWC.dtype)
            xt, label = (array.astype(jnp.float32) for array in (xt_BHWC, t_B))
            return _ask(scale, probe, world, xt, label).astype(xt_BHWC.dtype)

        value = jnp.asarray(loss_fn(network_fn, key, x0_BHWC))
        if value.shape != ():
            raise CallError(f"the loss has shape {value.shape}, not ()")
        dtypes.append(value.dtype)
        return value.astype(jnp.float32)

    value, seen = jax.value_and_grad(loss)(probe)
    _, rounding_B = _answer(scale, world, seen["xt"], seen["told"])
    t_B = jax.vmap(functools.partial(severity, degradation, scale))(seen["told"])
    return Observation(
        value,
        seen["calls"],
        seen["told"],
        t_B,
        seen["xt"],
        seen["answer"],
        seen["gradient"],
        rounding_B,
        (jnp.zeros(0, dtypes[0]), jnp.zeros(0, dtypes[-1])),
    )
