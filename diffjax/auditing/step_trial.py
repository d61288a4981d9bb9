"""A training step on trial: what it reports, and what that depends on; numbers out, no verdicts.

The step is the user's, compiled, and is only ever called: (state, batch, key, problem) ->
(state, {"loss": ..., ...}), with `batch` as in `training.train_step`.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffjax import restorers, time_sampling

Array = jax.Array
StepFn = Callable[..., tuple[Any, Mapping[str, Any]]]

CALLS = 8  # of the step, for the mean of what it reports
ROUNDS = 2  # over the images, for the mean that is due


class Probe(NamedTuple):
    """What a step reports, unless noted relative to that, and the loss that is due."""

    reported: np.ndarray  # losses of CALLS batches, [CALLS]
    due: dict[str, np.ndarray]  # of single examples: "weighted", and "loss" if it is known; [n]
    batch_size: int
    image_size: int  # H W C
    coupled: float  # by how much an example's share depends on the others in its batch
    averaged: float | None  # by how much ema_params decide; None: there are none of their own


@functools.partial(jax.jit, static_argnames="loss_fn")
def _losses(params, problem, examples, key, t_N, *, loss_fn):
    def one(example, position, t):
        return loss_fn(params, jax.random.fold_in(key, position), example, problem, t)

    return jax.vmap(one)(examples, jnp.arange(len(t_N)), t_N)


def due(
    loss_fn: Callable[..., Any],
    objective: restorers.Objective,
    params: Any,
    problem: restorers.Problem,
    examples: Mapping[str, Array],
    key: Array,
) -> dict[str, np.ndarray]:
    """The losses of single examples, at severities drawn as the objective draws them.

    Args:
      loss_fn: (params, key, example, problem, t) -> {name: scalar}.
      examples: "image" [N, H, W, C], and "label" [N].
    Returns:
      {name: [ROUNDS * N]}.
    """
    count = len(examples["image"])
    draw_fn = functools.partial(
        time_sampling.draw,
        histogram=None if objective.importance else problem.histogram,
        spacing_fn=time_sampling.stratified,  # the least chance
        levels=restorers.levels(objective, problem.degradation),
    )
    rows = []
    for key_r in jax.random.split(key, ROUNDS):
        key_t, key_omega = jax.random.split(key_r)
        t_N, _ = jax.vmap(draw_fn, in_axes=(None, 0, None))(key_t, jnp.arange(count), count)
        found = _losses(params, problem, examples, key_omega, t_N, loss_fn=loss_fn)
        rows.append(jax.device_get(found))
    return jax.tree.map(lambda *parts: np.concatenate(parts).astype(np.float64), *rows)


def _batch(examples, indices):
    batch = {name: np.asarray(values)[indices] for name, values in examples.items()}
    return batch | {"position": np.arange(len(indices), dtype=np.int32)}


def probe(
    step_fn: StepFn,
    state: Any,
    problem: restorers.Problem,
    examples: Mapping[str, Array],
    key: Array,
    due_losses: dict[str, np.ndarray],
    batch_size: int,
) -> Probe:
    """Calls a step again and again from the same state, and follows none of its updates.

    The loss of a batch is the mean of what its examples cost alone. So L(a, b) + L(c, d) =
    L(a, d) + L(c, b) under the same key, whatever the halves of the four batches hold; the
    difference is `coupled`.
    """

    def report(batch, key, state=state):
        # A step may donate what it is given.
        return float(step_fn(jax.tree.map(jnp.copy, state), batch, key, problem)[1]["loss"])

    count = len(examples["image"])
    chosen = np.arange(CALLS * batch_size) % count
    reported = [
        report(_batch(examples, indices), jax.random.fold_in(key, i))
        for i, indices in enumerate(chosen.reshape(CALLS, batch_size))
    ]
    batch, other = _batch(examples, chosen[:batch_size]), _batch(examples, chosen[:batch_size])
    other["image"] = -other["image"]
    first = np.arange(batch_size)[:, None, None, None] < batch_size // 2

    def mixed(front, back):
        image = np.where(first, front["image"], back["image"])
        return report(front | {"image": image}, key, moved)

    # A network whose answer is a constant would couple nothing.
    moved = _replaced(state, state.params, _jolted)
    same = mixed(batch, batch) + mixed(other, other)
    crossed = mixed(batch, other) + mixed(other, batch)
    averaged = None
    if not _leaves(getattr(state, "ema_params", None)) <= _leaves(state.params):
        halved = _replaced(state, state.ema_params, lambda leaf: leaf / 2)
        averaged = abs(report(batch, key, halved) / max(report(batch, key), 1e-30) - 1)
    return Probe(
        reported=np.array(reported, np.float64),
        due=due_losses,
        batch_size=batch_size,
        image_size=int(np.prod(examples["image"].shape[1:])),
        coupled=abs(same - crossed) / max(abs(same), 1e-30),
        averaged=averaged,
    )


def _leaves(tree: Any) -> set[int]:
    return {id(leaf) for leaf in jax.tree.leaves(tree)}


def _replaced(state: Any, part: Any, change_fn: Callable[[Array], Array]) -> Any:
    """The state, whatever its type, with those of its arrays changed that are also in `part`."""
    ours = _leaves(part)
    return jax.tree.map(lambda leaf: change_fn(leaf) if id(leaf) in ours else leaf, state)


def _jolted(leaf: Array) -> Array:
    # Drawn by numpy: JAX would compile for every shape, which takes longer than all else here.
    drawn = np.random.default_rng(leaf.size).normal(0, 0.1, leaf.shape)
    return leaf + jnp.asarray(drawn, leaf.dtype)


class Overfitted(NamedTuple):
    """What a few hundred steps on a handful of images did."""

    state: Any  # the last one
    reported: np.ndarray  # the losses that the steps gave, [steps]
    moved: float  # share of the parameters' arrays that changed
    average_moved: bool | None  # whether ema_params changed; None: there are none


def overfit(
    step_fn: StepFn,
    state: Any,
    problem: restorers.Problem,
    examples: Mapping[str, Array],
    key: Array,
    *,
    steps: int,
    batch_size: int,
) -> Overfitted:
    """Runs the user's own step on the same few examples, repeated to fill a batch."""
    batch = _batch(examples, np.arange(batch_size) % len(examples["image"]))
    start, state = state, jax.tree.map(jnp.copy, state)  # a step may donate what it is given
    reported = []
    for _ in range(steps):
        state, metrics = step_fn(state, batch, key, problem)
        reported.append(metrics["loss"])

    def changed(name):
        pairs = (jax.tree.leaves(jax.device_get(getattr(one, name))) for one in (start, state))
        return [bool(np.any(before != after)) for before, after in zip(*pairs, strict=True)]

    average = getattr(state, "ema_params", None)
    return Overfitted(
        state=state,
        reported=np.asarray(jax.device_get(reported), np.float64),
        moved=float(np.mean(changed("params"))),
        average_moved=None if average is None else any(changed("ema_params")),
    )
