"""What the audit measures, per severity; arrays in, numbers out, no verdicts.

Everything here sees a network as a user's own code gives it: a `restorers.Objective` that
says what is predicted and how it is compared, and a `restorers.Problem`.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffjax import metrics, predictions, restorers, training, wiener
from diffjax.degradations.base import degrade, draw, has_coefficients

Array = jax.Array

# What the linear restorer reckons with where it is fitted here: the rounding of 8-bit files.
# A network should not be measured by what only unrounded pixels give away.
FLOOR = 3e-3
FINEST = 100  # levels tabulated for a linear restorer fitted here


def severities(
    objective: restorers.Objective, problem: restorers.Problem
) -> tuple[np.ndarray, int]:
    """ts [K], K <= `training.BINS`, one near the middle of each bin, and the grid k / levels
    that they lie on: the Wiener restorer's, or the one trained on, or a grid of middles.
    """
    levels = 2 * training.BINS
    trained = restorers.levels(objective, problem.degradation)
    if trained is not None and trained <= FINEST:
        levels = trained
    if problem.wiener is not None and len(problem.wiener.factors.rows.singular) > 1:
        levels = len(problem.wiener.factors.rows.singular) - 1
    middles = (np.arange(training.BINS) + 0.5) / training.BINS
    k = np.unique(np.ceil(middles * levels - 1e-6).astype(int))
    # The same expression as in `wiener.fit`: a severity halfway between two steps of
    # D must round to the same one there and here.
    return np.asarray(jnp.arange(levels + 1) / levels)[k], levels


def wiener_restorer(
    problem: restorers.Problem, images_NHWC: np.ndarray, levels: int
) -> wiener.WienerRestorer | None:
    """The problem's own, or one fitted to these images; None where D is not linear."""
    if problem.wiener is not None or problem.degradation.linear_fn is None:
        return problem.wiener
    moments = wiener.measure(images_NHWC)
    if not np.trace(moments.rows) > 0:
        return None
    return wiener.fit(
        restorers.linear_fn(problem.degradation),
        moments,
        levels=None if has_coefficients(problem.degradation) else levels,
        floor=FLOOR,
    )


def readings(
    objective: restorers.Objective, problem: restorers.Problem, output: Array, xt: Array, t: Array
) -> dict[str, Array]:
    """x0_hat as an output of every kind, and its negative, would mean it; one example.

    The first is the declared kind. Where D is no alpha x0 + sigma omega, an output may be
    x0_hat or what is missing, x0 - xt.
    """

    def read(kind, output):
        constant = dataclasses.replace(objective, prediction=kind, network_fn=lambda *_: output)
        return restorers.restore(constant, None, problem._replace(wiener=None), xt, t)

    if not has_coefficients(problem.degradation):
        found = {"x0": output, "x0 - xt": xt + output}
        return found | {"-x0": -output, "-(x0 - xt)": xt - output}
    kinds = [objective.prediction]
    kinds += [kind for kind in predictions.DIRECTIONS if kind not in (*kinds, "previous")]
    found = {kind: read(kind, output) for kind in kinds}
    return found | {f"-{kind}": read(kind, -output) for kind in kinds}


def observe(
    objective: restorers.Objective,
    params: Any,
    key: Array,
    example: Mapping[str, Array],
    problem: restorers.Problem,
    restorer: wiener.WienerRestorer | None,
    t: Array,
    t_network: Array,
) -> dict[str, Any]:
    """What one example says at one severity: scalars, means over its pixels.

    Args:
      objective: see `restorers.Objective`.
      params: of the network.
      key: of omega.
      example: "image" [H, W, C], and "label", integer scalar, if the network takes one.
      problem: see `restorers.Problem`.
      restorer: the linear one to compare with, or None.
      t: severity, scalar in [0, 1]: that of D, of the target and of the preconditioning.
      t_network: what the network is told instead of t; t itself for its own answer.
    Returns:
      "loss" l, "weighted" w(t) l and "error" (prediction - target)^2 as in `training`;
      "zero_loss" and "zero_weighted", of an output of 0; "x0_error", the squared error of
      x0_hat by the name of who made it: "network", "zero" (an output of 0), "identity" (xt)
      and "Wiener"; "unit_error", that of the network for images in [0, 1]; "reading" and
      "zero_reading", that of `readings` of the output and of 0; the means, squares and product
      of output and target; the variance of x0; and the
      squares of output - xt, target - xt, and xt - its mean; "images", xt and x0_hat themselves.
    """

    def told(params, inputs, _, label):
        return objective.network_fn(params, inputs, t_network, label)

    x0, label, degradation = example["image"], example.get("label"), problem.degradation
    omega = draw(degradation, key, x0)
    xt = training.perturb(objective, key, degrade(degradation, x0, t, omega))
    wrapped = dataclasses.replace(objective, network_fn=told)
    output = restorers.predict(wrapped, params, problem, xt, t, label)
    nothing = jnp.zeros_like(output)
    prediction, target = training.compared(objective, problem, output, x0, t, omega)
    zero_prediction, _ = training.compared(objective, problem, nothing, x0, t, omega)
    in_basis = functools.partial(training.in_basis, objective)
    loss = jnp.mean(objective.loss_fn(in_basis(prediction), in_basis(target)))
    zero_loss = jnp.mean(objective.loss_fn(in_basis(zero_prediction), in_basis(target)))
    weight = training.weight(objective, problem, t)
    read = readings(objective, problem, output, xt, t)
    zero = readings(objective, problem, nothing, xt, t)
    made = {"network": next(iter(read.values())), "zero": next(iter(zero.values()))}
    made["identity"] = xt
    if restorer is not None:
        linear_fn = restorers.linear_fn(degradation)
        made["Wiener"] = wiener.estimate(restorer, linear_fn, xt, t)[0]

    def square(x):
        return jnp.mean(jnp.square(x))

    return {
        "loss": loss,
        "weighted": weight * loss,
        "zero_loss": zero_loss,
        "zero_weighted": weight * zero_loss,
        "error": square(prediction - target),
        "x0_error": {name: square(x0_hat - x0) for name, x0_hat in made.items()},
        "unit_error": metrics.mse(metrics.to_unit(made["network"]), metrics.to_unit(x0)),
        "reading": {name: square(x0_hat - x0) for name, x0_hat in read.items()},
        "zero_reading": {name: square(x0_hat - x0) for name, x0_hat in zero.items()},
        "output": jnp.mean(prediction),
        "output_square": square(prediction),
        "target": jnp.mean(target),
        "target_square": square(target),
        "product": jnp.mean(prediction * target),
        "x0_variance": jnp.var(x0),
        "xt_error": square(output - xt),
        "xt_target": square(target - xt),
        "xt_square": square(xt - jnp.mean(xt)),
        "images": {"xt": xt, "x0_hat": made["network"]},
    }


@functools.partial(jax.jit, static_argnames=("objective", "shown"))
def _observe_batch(params, problem, restorer, examples, key, t, t_network_N, *, objective, shown):
    def one(example, position, t_network):
        key_omega = jax.random.fold_in(key, position)
        return observe(objective, params, key_omega, example, problem, restorer, t, t_network)

    found = jax.vmap(one)(examples, jnp.arange(len(t_network_N)), t_network_N)
    return found | {"images": jax.tree.map(lambda image: image[:shown], found["images"])}


def measure(
    objective: restorers.Objective,
    params: Any,
    problem: restorers.Problem,
    restorer: wiener.WienerRestorer | None,
    examples: Mapping[str, Array],
    key: Array,
    ts: np.ndarray,
    told_KN: np.ndarray | None = None,
    shown: int = 0,
) -> dict[str, Any]:
    """`observe` on every example at every severity, the k-th with realizations of its own.

    Args:
      ts: severities, float32 [K].
      told_KN: what the network is told in place of them; None: the truth.
      shown: of how many examples "images" holds x_t and x0_hat.
      Others: as in `observe`, batched.
    Returns:
      The same tree, of float64 [K, N].
    """
    rows = []
    for k, t in enumerate(ts):
        told = np.full(len(examples["image"]), t, np.float32) if told_KN is None else told_KN[k]
        key_k = jax.random.fold_in(key, k)
        row = _observe_batch(
            params, problem, restorer, examples, key_k, t, told, objective=objective, shown=shown
        )
        rows.append(jax.device_get(row))
    return jax.tree.map(lambda *leaves: np.stack(leaves).astype(np.float64), *rows)


def wrong_times(ts: np.ndarray, count: int, levels: int | None) -> dict[str, np.ndarray]:
    """What to tell the network in place of t: {name: [K, count]}.

    "shuffled": each image at each severity is told another of the severities, all of them
    equally often; "held": their mean; the others are t in other units, or the other way round.
    """
    size = len(ts)
    shift = 1 + np.arange(count) % max(size - 1, 1)
    shuffled = ts[(np.arange(size)[:, None] + shift[None]) % size]
    truth = np.broadcast_to(ts[:, None], (size, count))
    scales = {"1000 t": 1000.0, "t / 1000": 1e-3}
    if levels not in (None, 1, 1000):
        scales |= {f"{levels} t": float(levels), f"t / {levels}": 1 / levels}
    return {
        "shuffled": shuffled,
        "held at its mean": np.full_like(truth, np.mean(ts)),
        "1 - t": 1 - truth,
        **{name: truth * np.float32(scale) for name, scale in scales.items()},
    }


@functools.partial(jax.jit, static_argnames="loss_fn")
def _gradient_norms(params, problem, examples, key, t, *, loss_fn):
    def norm(item):
        position, example = item
        key_i = jax.random.fold_in(key, position)
        grads = jax.grad(loss_fn)(params, key_i, example, problem, t)
        return jnp.sqrt(sum(jnp.sum(jnp.square(g)) for g in jax.tree.leaves(grads)))

    count = len(examples["image"])
    return jnp.mean(jax.lax.map(norm, (jnp.arange(count), examples)))


def gradient_shares(
    loss_fn: Callable[..., Array],
    params: Any,
    problem: restorers.Problem,
    examples: Mapping[str, Array],
    key: Array,
    ts: np.ndarray,
    histogram: Array | None = None,
) -> np.ndarray:
    """Which severities move the parameters: mean |grad loss| of single examples at each t,
    times how often t is drawn, over the sum.

    The norm of single examples, not of their mean: near an optimum the mean vanishes at
    every severity, and what is left of it is chance.

    Args:
      loss_fn: (params, key, example, problem, t) -> the weighted loss of one example.
      examples: "image" [n, H, W, C], and "label" [n].
      histogram: how often each severity is drawn, see `time_sampling.warp`; None: uniform.
    Returns:
      [K], of sum 1; zeros if no gradient is left anywhere.
    """
    norms = np.array(
        [
            _gradient_norms(
                params, problem, examples, jax.random.fold_in(key, k), t, loss_fn=loss_fn
            )
            for k, t in enumerate(ts)
        ],
        np.float64,
    )
    if histogram is not None:
        bins = np.ceil(ts * len(histogram) - 1e-3).astype(int) - 1
        norms *= np.asarray(histogram)[np.clip(bins, 0, len(histogram) - 1)]
    return norms / norms.sum() if norms.sum() > 0 else norms
