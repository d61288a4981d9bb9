"""The loss audit: what is wrong with a diffusion run, found from outside.

    found = audit(state, problem, objective=objective, images=held_out, key=key, ...)
    print(found.verdict)

The network, the training step and the loss may be anybody's: the audit knows them as
functions. Each check holds one number against one limit and says in a sentence what it
means: `measurements` and `step_trial` take the numbers, and each function of `checks` judges
one. Where a check needs something that was not given, it is left out. The verdict is one line:
the likeliest cause, "healthy", or "too early to tell". A run whose loss still falls is not
called broken for what it has not learned yet; without a history none counts as young.

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

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffjax import restorers, schedules, training
from diffjax.auditing import checks, measurements, step_trial
from diffjax.auditing.checks import Check
from diffjax.degradations.base import require
from diffjax.degradations.noise import gaussian_noise

Array = jax.Array


class Audit(NamedTuple):
    status: str  # "healthy", "fail" or "too early"
    verdict: str  # one line: the likeliest cause, "healthy" or "too early to tell"
    checks: list[Check]  # failures first, from the cause to what follows from it
    curves: dict[str, list[float]]  # per severity: "t", x0 errors by name, "gradient share"

    @property
    def failed(self) -> bool:
        return self.status == "fail"


GRADIENTS = 32  # images whose gradients are taken one by one


@functools.cache
def _losses(objective: restorers.Objective) -> Callable[..., dict[str, Array]]:
    """The objective's losses of one example; cached, for it is static under jit."""

    def loss_fn(params, key, example, problem, t):
        density = jnp.ones(())
        found = training.example_loss(objective, params, key, example, problem, t, density)
        return {"weighted": found.weighted, "loss": found.loss}

    return loss_fn


@functools.cache
def _weighted(loss_fn: Callable[..., dict[str, Array]]) -> Callable[..., Array]:
    return lambda *arguments: loss_fn(*arguments)["weighted"]


@functools.cache
def _named(loss_fn: Callable[..., Array]) -> Callable[..., dict[str, Array]]:
    return lambda *arguments: {"weighted": loss_fn(*arguments)}


def _plain(network_fn: Callable[..., Array], steps: int | None) -> Callable[..., Array]:
    """A network of three arguments, or told steps 0..T-1, as `restorers.Objective` takes it."""
    positional = [
        one
        for one in inspect.signature(network_fn).parameters.values()
        if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD, one.VAR_POSITIONAL)
    ]
    labeled = len(positional) > 3 or any(one.kind is one.VAR_POSITIONAL for one in positional)

    def network(params, xt, t, label):
        if steps is not None:
            t = jnp.round(t * steps).astype(jnp.int32) - 1
        return network_fn(params, xt, t, *((label,) if labeled else ()))

    return network_fn if labeled and steps is None else network


def _of_betas(image_shape: Sequence[int], betas: Any) -> restorers.Problem:
    table = schedules.beta_table(betas)
    return restorers.Problem(gaussian_noise(image_shape, schedule="tabulated", table=table))


def audit(
    state: Any,
    problem: restorers.Problem | None = None,
    *,
    objective: restorers.Objective,
    images: Array,
    key: Array,
    betas: Sequence[float] | None = None,
    labels: Array | None = None,
    example_loss_fn: Callable[..., Array] | None = None,
    step_fn: Callable[..., tuple[Any, Mapping[str, Any]]] | None = None,
    initial_state: Any = None,
    history: Sequence[Mapping[str, Any]] | None = None,
    batch_size: int = 64,
    steps: int = 300,
    handful: int = 8,
    progress_fn: Callable[[str], None] = lambda _: None,
) -> Audit:
    """Audits a trained run.

        objective = diffjax.Objective(network_fn, prediction="noise", loss_fn=losses.l2)
        print(diffjax.audit(params, objective=objective, betas=betas, images=x, key=key).verdict)

    Args:
      state: anything with `params`, and `ema_params` if an average is kept; or the parameters
        themselves, a tree of arrays.
      problem: the degradation, and the Wiener restorer if the network is wrapped in one.
      objective: what the network answers, and how that is compared and weighted. Its
        network_fn (params, xt, t, label) -> output is yours; without labels (params, xt, t).
      images: held out, [N, H, W, C], a few hundred, as your training step gets them.
      key: of the audit.
      betas: [T], in place of a problem: Gaussian noise of these variances, as in DDPM, and a
        network that is told the integers 0..T-1.
      labels: [N], where the network takes them; None: it is told that there is none.
      example_loss_fn: (params, key, example, problem, t) -> the weighted loss of one example
        {"image", "label"}, if it is not the objective's.
      step_fn: (state, batch, key, problem) -> (state, {"loss": ..., ...}), your training step,
        compiled; batch as in `training.train_step`. It takes `state`, too.
      initial_state: what training began with. With step_fn, what `overfit` starts from.
      history: "step" and "loss" of each line of metrics.jsonl.
      batch_size: of the batches that step_fn takes.
      steps: how many to spend on the handful.
      handful: how many images to overfit.
      progress_fn: is told, before each part, what it is.
    Returns:
      The verdict, the checks that the arguments allow, and the curves behind them.
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
    require((problem is None) != (betas is None), "problem or betas must be given, and not both")
    problem = problem or _of_betas(images.shape[1:], betas)
    network_fn = _plain(objective.network_fn, None if betas is None else len(betas))
    objective = dataclasses.replace(objective, network_fn=network_fn)
    params = getattr(state, "params", state)
    examples = {"image": images}
    if objective.num_classes is not None:
        known = np.full(len(images), objective.num_classes) if labels is None else labels
        examples["label"] = jnp.asarray(known, jnp.int32)
    ts, levels = measurements.severities(objective, problem)
    restorer = measurements.wiener_restorer(problem, np.asarray(images), levels)

    def measure(params, examples=examples, told=None):
        return measurements.measure(objective, params, problem, restorer, examples, key, ts, told)

    progress_fn(f"the errors at {len(ts)} severities")
    seen = measure(params)
    trained = restorers.levels(objective, problem.degradation)
    told = {}
    for name, times in measurements.wrong_times(ts, len(images), trained).items():
        progress_fn(f"the network told another t: {name}")
        told[name] = measure(params, told=times)["loss"].mean(axis=1)
    progress_fn("the gradients")
    losses_fn = _losses(objective) if example_loss_fn is None else _named(example_loss_fn)
    shares = measurements.gradient_shares(
        example_loss_fn or _weighted(losses_fn),
        params,
        problem,
        {name: values[:GRADIENTS] for name, values in examples.items()},
        key,
        ts,
        None if objective.importance else problem.histogram,
    )
    floor = checks.check_floor(seen, ts)
    found = [
        checks.check_target(seen, objective.prediction),
        checks.check_time(seen, told, floor.status == "fail"),
        checks.check_calibration(seen, ts, objective.prediction),
        floor,
        checks.check_weight(shares, seen, ts),
        checks.check_scale(np.asarray(images)),
    ]
    moved = trained_on = None
    if step_fn is not None:
        progress_fn(f"{steps} steps on {handful} images")
        few = {name: values[:handful] for name, values in examples.items()}
        done = step_trial.overfit(
            step_fn, initial_state, problem, few, key, steps=steps, batch_size=batch_size
        )
        # As many as before: one compilation.
        few = {name: values[np.arange(len(images)) % handful] for name, values in examples.items()}
        first, last = (measure(one.params, few) for one in (initial_state, done.state))
        start = min(first[name].mean() for name in ("weighted", "zero_weighted"))
        progress_fn("what the training step reports")
        losses_due = step_trial.due(losses_fn, objective, params, problem, examples, key)
        probe = step_trial.probe(step_fn, state, problem, examples, key, losses_due, batch_size)
        found.append(checks.check_step(done))
        found.append(checks.check_overfit(start, last["weighted"].mean(), done))
        found.append(checks.check_loss(probe, done.reported))
        moved, trained_on = done.average_moved if done.moved else None, probe.averaged
    if getattr(state, "ema_params", None) is not None:
        progress_fn("the average of the parameters")
        average = measure(state.ema_params)["weighted"].mean()
        weighted = seen["weighted"].mean()
        found.append(checks.check_average(weighted, average, moved, trained_on))
    if history is not None:
        found.append(checks.check_convergence(history))
    young = history is not None and checks.still_falls(history)
    curves = {"t": ts, **{name: e.mean(axis=1) for name, e in seen["x0_error"].items()}}
    curves["gradient share"] = shares
    lists = {name: [float(v) for v in values] for name, values in curves.items()}
    return Audit(*checks.conclude(found, young), lists)
