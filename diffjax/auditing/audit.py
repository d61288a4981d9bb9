"""The loss audit: what is wrong with a diffusion run, found from outside.

    checks = audit(state, problem, objective=objective, images=held_out, key=key, ...)

The network, the training step and the loss may be anybody's: the audit knows them as
functions. Each check holds one number against one limit and says in a sentence what it
means: `measurements` takes the numbers, and each function of `checks` judges one. Where a
check needs something that was not given, it is left out. Read the list from the top: where
one fails, those below it may fail for the same reason.

What it cannot see:

  - an error in the degradation itself, or one that training and audit share: a D other
    than the intended one, a prediction declared as it was wrongly trained, images wrong
    in the same way here and there (swapped channels, upside down, blurred by a resize);
  - a sampler's bugs: nothing is sampled here. A D, a grid of severities or an order of
    steps that differs between training and sampling passes if the audit is given the first;
  - training images among those held out: every number is then too good;
  - too little of a good thing: a small network, a short training, an unlucky learning rate
    may pass, and a weighting that is merely unwise does;
  - more than the objective says: a training step that does something else shows only in
    its results, so in `floor` or `overfit` and not in `weight`; give `example_loss_fn`;
  - labels: those of the images are believed;
  - a bug between severities, or at t = 1 alone where it lies on no audited severity.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffjax import restorers, training
from diffjax.auditing import checks, measurements
from diffjax.auditing.checks import Check
from diffjax.degradations.base import require

Array = jax.Array


class Audit(NamedTuple):
    checks: list[Check]
    curves: dict[str, list[float]]  # per severity: "t", x0 errors by name, "gradient share"

    @property
    def failed(self) -> bool:
        return any(check.status == "fail" for check in self.checks)


GRADIENTS = 32  # images whose gradients are taken one by one


@functools.cache
def _weighted_loss(objective: restorers.Objective) -> Callable[..., Array]:
    """The objective's loss of one example; cached, for it is static under jit."""

    def loss_fn(params, key, example, problem, t):
        density = jnp.ones(())
        return training.example_loss(objective, params, key, example, problem, t, density).weighted

    return loss_fn


def audit(
    state: Any,
    problem: restorers.Problem,
    *,
    objective: restorers.Objective,
    images: Array,
    key: Array,
    labels: Array | None = None,
    example_loss_fn: Callable[..., Array] | None = None,
    step_fn: Callable[..., tuple[Any, Mapping[str, Any]]] | None = None,
    initial_state: Any = None,
    history: Sequence[Mapping[str, Any]] | None = None,
    batch_size: int = 64,
    steps: int = 300,
    handful: int = 8,
) -> Audit:
    """Audits a trained run.

    Args:
      state: anything with `params`, and `ema_params` if an average is kept.
      problem: the degradation, and the Wiener restorer if the network is wrapped in one.
      objective: what the network answers, and how that is compared and weighted. Its
        network_fn (params, xt, t, label) -> output is yours.
      images: held out, [N, H, W, C], a few hundred, as your training step gets them.
      key: of the audit.
      labels: [N], where the network takes them; None: it is told that there is none.
      example_loss_fn: (params, key, example, problem, t) -> the weighted loss of one example
        {"image", "label"}, if it is not the objective's.
      step_fn: (state, batch, key, problem) -> (state, {"loss": ..., ...}), your training step,
        compiled; batch as in `training.train_step`.
      initial_state: what training began with. With step_fn, what `overfit` starts from.
      history: "step" and "loss" of each line of metrics.jsonl.
      batch_size: of the batches that step_fn takes.
      steps: how many to spend on the handful.
      handful: how many images to overfit.
    Returns:
      The checks that the arguments allow, in the order of `checks`, and the curves behind
      them.
    Raises:
      ValueError: if an argument is invalid; the message names it.
    """
    images = jnp.asarray(images, jnp.float32)
    require(
        images.ndim == 4 and len(images) > 1, f"images must be [N, H, W, C]; got {images.shape}"
    )
    require(
        (step_fn is None) == (initial_state is None),
        "step_fn and initial_state must be given together, or neither",
    )
    examples = {"image": images}
    if objective.num_classes is not None:
        known = np.full(len(images), objective.num_classes) if labels is None else labels
        examples["label"] = jnp.asarray(known, jnp.int32)
    ts, levels = measurements.severities(objective, problem)
    restorer = measurements.wiener_restorer(problem, np.asarray(images), levels)

    def measure(params, examples=examples, told=None):
        return measurements.measure(objective, params, problem, restorer, examples, key, ts, told)

    seen = measure(state.params)
    trained = restorers.levels(objective, problem.degradation)
    told = {
        name: measure(state.params, told=times)["loss"].mean(axis=1)
        for name, times in measurements.wrong_times(ts, len(images), trained).items()
    }
    shares = measurements.gradient_shares(
        example_loss_fn or _weighted_loss(objective),
        state.params,
        problem,
        {name: values[:GRADIENTS] for name, values in examples.items()},
        key,
        ts,
        None if objective.importance else problem.histogram,
    )
    found = [
        checks.check_target(seen, objective.prediction),
        checks.check_time(seen, told),
        checks.check_calibration(seen, ts, objective.prediction),
        checks.check_floor(seen, ts),
        checks.check_weight(shares, seen, ts),
        checks.check_scale(np.asarray(images)),
    ]
    moved = None
    if step_fn is not None:
        few = {name: values[:handful] for name, values in examples.items()}
        done = measurements.overfit(
            step_fn, initial_state, problem, few, key, steps=steps, batch_size=batch_size
        )
        # As many as before: one compilation.
        few = {name: values[np.arange(len(images)) % handful] for name, values in examples.items()}
        first, last = (measure(one.params, few) for one in (initial_state, done.state))
        start = min(first[name].mean() for name in ("weighted", "zero_weighted"))
        found.append(checks.check_overfit(start, last["weighted"].mean(), done))
        moved = done.average_moved if done.moved else None
    if getattr(state, "ema_params", None) is not None:
        average = measure(state.ema_params)["weighted"].mean()
        found.append(checks.check_average(seen["weighted"].mean(), average, moved))
    if history is not None:
        found.append(checks.check_convergence(history))
    curves = {"t": ts, **{name: e.mean(axis=1) for name, e in seen["x0_error"].items()}}
    curves["gradient share"] = shares
    return Audit(found, {name: [float(v) for v in values] for name, values in curves.items()})
