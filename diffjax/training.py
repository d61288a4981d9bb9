"""One pure training step, the same on one device and on a pod.

    t, omega drawn;   x_t = D(x_0, t, omega);   loss = w(t) mean l(output, target)

The state is a NamedTuple; the step is a function of (state, batch, key, problem)
and of static functions. Randomness is fold_in(key, step), then
fold_in(.., global example index): never the device's index, so the same run on
another topology sees the same severities and realizations.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from diffjax import metrics, predictions, restorers, time_sampling
from diffjax.degradations import heat
from diffjax.degradations.base import degrade, draw, transform
from diffjax.restorers import Objective, Problem

Array = jax.Array

BINS = 10  # of severity, in the curves and in importance sampling


class TrainState(NamedTuple):
    step: Array  # int32 scalar: steps done
    params: Any
    ema_params: Any
    opt_state: optax.OptState
    importance: time_sampling.Importance  # the running loss per severity


def create_state(params: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step; the average starts at the parameters themselves."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema_params=jax.tree.map(jnp.copy, params),
        opt_state=optimizer.init(params),
        importance=time_sampling.create_importance(BINS),
    )


def create_optimizer(
    learning_rate: optax.ScalarOrSchedule,
    *,
    clip_norm: float | None = None,
    accumulate: int = 1,
) -> optax.GradientTransformation:
    """Adam; gradients clipped to a global norm, averaged over `accumulate` batches."""
    clip = optax.identity() if clip_norm is None else optax.clip_by_global_norm(clip_norm)
    optimizer = optax.chain(clip, optax.adam(learning_rate))
    if accumulate == 1:
        return optimizer
    return optax.MultiSteps(optimizer, every_k_schedule=accumulate).gradient_transformation()


def compared(
    objective: Objective, problem: Problem, output: Array, x0: Array, t: Array, omega: Any
) -> tuple[Array, Array]:
    """(prediction, target), the pair that the loss compares; both [H, W, C]."""
    if objective.prediction == "x0":
        return output, x0
    if restorers.compares_previous(objective, problem.degradation):
        s = restorers.previous(objective, problem.degradation, t)
        output_s, x0_s = (degrade(problem.degradation, x, s, omega) for x in (output, x0))
        return output_s, x0_s
    numbers = restorers.numbers(objective, problem.degradation, t)
    return output, predictions.target(objective.prediction, x0, omega, **numbers)


def perturb(objective: Objective, key: Array, xt: Array) -> Array:
    """x_t + q n, n white noise of the example's key, q the objective's perturbation."""
    if objective.perturbation == 0:
        return xt
    # Of the split in `example_loss` the children are 0 and 1.
    noise = jax.random.normal(jax.random.fold_in(key, 2), xt.shape, xt.dtype)
    return xt + objective.perturbation * noise


def in_basis(objective: Objective, x: Array) -> Array:
    """[H, W, C] in the basis in which the objective compares: pixels, or the DCT."""
    if objective.basis == "pixels":
        return x
    rows, cols = (jnp.asarray(heat.dct_matrix(size), x.dtype) for size in x.shape[:2])
    return transform(x, rows, cols)


def weight(objective: Objective, problem: Problem, t: Array) -> Array:
    """What multiplies the loss at t, given on the error of x0_hat and read on the output's."""
    if objective.weight_fn is None:
        return jnp.ones(())
    numbers = restorers.numbers(objective, problem.degradation, t)
    factor = predictions.x0_error_factor(objective.prediction, **numbers)
    on_x0 = objective.weight_fn(numbers["alpha"], numbers["sigma"])
    return on_x0 / factor ** (objective.degree / 2)


class ExampleLoss(NamedTuple):
    """What one example says; scalars, means over its pixels and channels."""

    t: Array
    density: Array  # of t, relative to the uniform one
    weighted: Array  # w(t) l, what is minimized, not divided by the density
    loss: Array  # l
    error: Array  # (output - target)^2
    target: Array
    target_square: Array
    restored: Array  # (x0_hat - x0)^2, of images in [0, 1]


def example_loss(
    objective: Objective,
    params: Any,
    key: Array,
    example: Mapping[str, Array],
    problem: Problem,
    t: Array,
    density: Array,
) -> ExampleLoss:
    """w(t) mean l(output, target) for one example, omega drawn from the key.

    With the defaults, mean |R(D(x0, t, omega), t) - x0|: Equation 2 of "Cold Diffusion" by
    Bansal et al. (https://arxiv.org/abs/2208.09392).

    Args:
      objective: see `Objective`.
      params: of the network.
      key: this example's key.
      example: "image" [H, W, C] in [-1, 1], and "label", integer scalar, if there are any.
      problem: see `Problem`.
      t: severity, scalar in (0, 1].
      density: of t, from `time_sampling.draw`; carried through.
    Returns:
      Scalars.
    """
    key_omega, key_label = jax.random.split(key)
    x0, label = example["image"], None
    if objective.num_classes is not None:
        dropped = jax.random.bernoulli(key_label, objective.label_dropout)
        label = jnp.where(dropped, objective.num_classes, example["label"])
    omega = draw(problem.degradation, key_omega, x0)
    xt = perturb(objective, key, degrade(problem.degradation, x0, t, omega))
    output = restorers.predict(objective, params, problem, xt, t, label)
    x0_hat = restorers.read(objective, problem.degradation, output, xt, t)
    prediction, target = compared(objective, problem, output, x0, t, omega)
    compared_in = (in_basis(objective, x) for x in (prediction, target))
    loss = jnp.mean(objective.loss_fn(*compared_in))
    return ExampleLoss(
        t=t,
        density=density,
        weighted=weight(objective, problem, t) * loss,
        loss=loss,
        error=jnp.mean(jnp.square(prediction - target)),
        target=jnp.mean(target),
        target_square=jnp.mean(jnp.square(target)),
        restored=metrics.mse(metrics.to_unit(x0_hat), metrics.to_unit(x0)),
    )


def severity_sums(examples: ExampleLoss, axis_name: str | None) -> dict[str, Array]:
    """Sums per bin of severity ((k - 1) / BINS, k / BINS], over all devices; each [BINS].

    "count", and the sums of "loss", "error", "target", "target_square" and "restored" of the
    batch's examples: what the curves of loss, RMSE and explained variance are made of.
    """
    bin_B = time_sampling.bin_index(examples.t, BINS)
    values = {name: getattr(examples, name) for name in ExampleLoss._fields[3:]}
    values["count"] = jnp.ones_like(examples.t)
    sums = {name: jnp.zeros(BINS).at[bin_B].add(value) for name, value in values.items()}
    return sums if axis_name is None else jax.lax.psum(sums, axis_name)


def severity_curves(sums: dict[str, np.ndarray]) -> dict[str, list[float | None]]:
    """Loss, RMSE and explained variance per bin from `severity_sums`; None where empty.

    The RMSE is that of x0_hat in images of [0, 1], whatever the output stands for; the explained
    variance is 1 - mean error^2 / var target, over the bin's pixels.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        loss, error, target, square, restored = (
            sums[name] / sums["count"]
            for name in ("loss", "error", "target", "target_square", "restored")
        )
        curves = {
            "loss": loss,
            "rmse": np.sqrt(restored),
            "explained_variance": 1 - error / (square - target**2),
        }
    return {
        name: [float(value) if np.isfinite(value) else None for value in values]
        for name, values in curves.items()
    }


def gradients(
    state: TrainState,
    batch: Mapping[str, Array],
    key: Array,
    problem: Problem,
    *,
    objective: Objective,
    axis_name: str | None = None,
) -> tuple[Any, time_sampling.Importance, dict[str, Any]]:
    """(gradients, next importance, metrics) of a batch, averaged over the axis.

    Arguments and metrics as in `train_step`; of the state it reads step, params and importance.
    """
    key_times, key_examples = jax.random.split(jax.random.fold_in(key, state.step))
    histogram = problem.histogram
    if objective.importance:
        histogram = time_sampling.importance_histogram(state.importance)
    size = len(batch["position"]) * (1 if axis_name is None else jax.lax.axis_size(axis_name))

    def batch_loss(params):
        def one(example):
            t, density = time_sampling.draw(
                key_times,
                example["position"],
                size,
                histogram,
                spacing_fn=objective.spacing_fn,
                levels=restorers.levels(objective, problem.degradation),
            )
            key = jax.random.fold_in(key_examples, example["position"])
            return example_loss(objective, params, key, example, problem, t, density)

        examples = jax.vmap(one)(dict(batch))
        # A law of t that somebody chose is a weighting; one that follows the loss is not.
        density = examples.density if objective.importance else 1
        return jnp.mean(examples.weighted / density), examples

    (loss, examples), grads = jax.value_and_grad(batch_loss, has_aux=True)(state.params)
    if axis_name is not None:
        loss, grads = jax.lax.pmean((loss, grads), axis_name)
    # As squares, of which the norm is made as well: half of the reductions to compile.
    squares = [optax.tree.norm(leaf, squared=True) for leaf in jax.tree.leaves(grads)]
    finite_leaves = jnp.isfinite(jnp.stack(squares))
    finite = jnp.isfinite(loss) & jnp.all(finite_leaves)
    importance = time_sampling.update_importance(
        state.importance, examples.t, examples.weighted, axis_name=axis_name
    )
    metrics = {
        "loss": loss,
        "grad_norm": optax.tree.norm(grads),
        "severity": severity_sums(examples, axis_name),
        "skipped": ~finite,
        "culprit": jnp.where(jnp.all(finite_leaves), -1, jnp.argmin(finite_leaves)),
    }
    return grads, importance, metrics


def update(
    state: TrainState,
    grads: Any,
    importance: time_sampling.Importance,
    skipped: Array,
    *,
    optimizer: optax.GradientTransformation,
    ema_decay: float,
) -> TrainState:
    """The state after these gradients; where skipped, one step later and otherwise as it was."""
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
    after = TrainState(
        step=state.step + 1,
        params=params,
        ema_params=optax.incremental_update(params, state.ema_params, 1 - decay),
        opt_state=opt_state,
        importance=importance,
    )
    before = state._replace(step=after.step)
    return jax.tree.map(lambda new, old: jnp.where(skipped, old, new), after, before)


def train_step(
    state: TrainState,
    batch: Mapping[str, Array],
    key: Array,
    problem: Problem,
    *,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    ema_decay: float,
    axis_name: str | None = None,
    map_fn: Callable[[Callable], Callable] | None = None,
) -> tuple[TrainState, dict[str, Any]]:
    """One optimizer step on this device's share of the batch.

    Where the loss or a gradient is not finite, after the average over the axis, the step is
    skipped: it is counted, and parameters, average, optimizer and importance stay as they were.

    Args:
      state: replicated over the devices.
      batch: "image" [B, H, W, C] in [-1, 1], "position" [B] int32, each example's index in
        the global batch, and "label" [B] where the network takes one.
      key: the run's key, the same at every step and on every device.
      problem: see `Problem`.
      objective: see `Objective`.
      optimizer: an optax transformation.
      ema_decay: d of ema <- d' ema + (1 - d') params with d' = min(d, (1 + n)/(10 + n))
        at step n, so that a short run is not averaged with its initialization.
      axis_name: the mapped axis to average gradients over; None on one device.
      map_fn: maps `gradients` over that axis, and the update stays outside, as
        `parallel.sharded_step` wants it; None: who maps, maps the whole step.
    Returns:
      The next state, and metrics: scalars "loss" and "grad_norm", averaged over the axis, and
      "severity", the sums of `severity_sums`; "skipped", whether the update was; "culprit", the
      place among the leaves of params of the first gradient that is not finite, -1 if all are.
    """
    gradients_fn: Callable = functools.partial(gradients, objective=objective, axis_name=axis_name)
    if map_fn is not None:
        gradients_fn = map_fn(gradients_fn)
    read = state._replace(ema_params=None, opt_state=None)
    grads, importance, metrics = gradients_fn(read, batch, key, problem)
    after = update(
        state, grads, importance, metrics["skipped"], optimizer=optimizer, ema_decay=ema_decay
    )
    return after, metrics
