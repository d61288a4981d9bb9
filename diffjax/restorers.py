"""R, whatever the network answers: as x0_hat, preconditioned or not, and ready for a walk.

Objective    how a network is trained: what its output stands for, how that is compared
Problem      the arrays it is trained with: D, and the Wiener restorer of D if it has one
restore      R(xt, t) = x0_hat, read off the output by `predictions`
process      R and D as `samplers.sample` takes them; sampler, grid, start: what else it takes
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from diffjax import losses, predictions, priors, samplers, time_sampling, wiener
from diffjax.degradations import heat
from diffjax.degradations.base import (
    Degradation,
    coefficients,
    degrade,
    draw,
    has_coefficients,
    infer,
)
from diffjax.wiener import WienerRestorer

Array = jax.Array


class Problem(NamedTuple):
    """What a network is trained for: the arrays that stay as they are."""

    degradation: Degradation
    wiener: WienerRestorer | None = None  # None: the network answers alone
    histogram: Array | None = None  # [K], how often each severity; None: uniform


@dataclasses.dataclass(frozen=True)
class Objective:
    """How it is trained: hashable, static under jit.

    Attributes:
      network_fn: (params, xt, t, label) -> output, one example; label may be None.
      prediction: what the output stands for, a key of `predictions.DIRECTIONS`. "previous"
        is IHDM's target, the state one level milder; where D is no alpha x0 + sigma omega
        the output is x0_hat, and it is D(x0_hat, s) and D(x0, s) that are compared.
      loss_fn: unreduced elementwise loss of (output, target).
      weight_fn: (alpha, sigma) -> weight on the error of x0_hat, as in `losses.WEIGHTINGS`;
        None: every severity's own error counts alike.
      degree: of the loss in the error: 2 for l2, 1 for l1. Read by weight_fn only.
      spacing_fn: `time_sampling.uniform` or `time_sampling.stratified`.
      importance: draw severities as often as their running loss is large; unbiased.
      levels: severities are k / levels, k = 1..levels; None: D's own steps, and all of (0, 1]
        where D is continuous in t.
      num_classes: of the labels; None: the network takes none.
      label_dropout: share of examples that are given no label (classifier-free guidance).
      perturbation: q, std of white noise on x_t in training, after D, which stays deterministic.
        A walk that starts with noise of about that std generates, see
        `auditing.generation_laws`. For predictions of x0.
      basis: in which output and target are compared: "pixels", or "dct", their orthonormal DCT
        coefficients. There the median, which l1 learns, is about the mean, which a walk needs;
        for l2 it changes nothing.
    """

    network_fn: Callable[[Any, Array, Array, Array | None], Array]
    prediction: str = "x0"
    loss_fn: Callable[[Array, Array], Array] = losses.l1
    weight_fn: Callable[[Array, Array], Array] | None = None
    degree: int = 2
    spacing_fn: Callable[[Array, Array, int], Array] = time_sampling.uniform
    importance: bool = False
    levels: int | None = None
    num_classes: int | None = None
    label_dropout: float = 0.1
    perturbation: float = 0.0
    basis: str = "pixels"


def levels(objective: Objective, degradation: Degradation) -> int | None:
    """T of the severities k / T that R is trained at; None: all of (0, 1]."""
    return degradation.steps if objective.levels is None else objective.levels


def linear_fn(degradation: Degradation) -> wiener.LinearFn:
    """D as `wiener` takes it: t -> (alpha, sigma, rows, cols, colors).

    Raises:
      ValueError: if D has no linear_fn.
    """
    if degradation.linear_fn is None:
        raise ValueError(
            f"degradation must have a linear_fn, which {degradation.apply_fn.__qualname__} has "
            "not: only a linear one has a best linear restorer"
        )
    return functools.partial(degradation.linear_fn, degradation.params)


def compares_previous(objective: Objective, degradation: Degradation) -> bool:
    """Whether the output is x0_hat, compared one level milder: "previous" where D has matrices."""
    return objective.prediction == "previous" and not has_coefficients(degradation)


def previous(objective: Objective, degradation: Degradation, t: Array) -> Array:
    """s, one level milder than t."""
    count = levels(objective, degradation)
    if count is None:
        raise ValueError("prediction 'previous' needs levels: it is the state one level milder")
    return jnp.maximum(t - 1 / count, 0)


def numbers(objective: Objective, degradation: Degradation, t: Array) -> dict[str, Array]:
    """alpha and sigma at t, and what else the prediction needs, by the names of `predictions`.

    Raises:
      ValueError: if D is no alpha x0 + sigma omega.
    """
    if not has_coefficients(degradation):
        raise ValueError(
            f"prediction {objective.prediction!r} and weightings by SNR need x_t = alpha x0 + "
            f"sigma omega, which {degradation.apply_fn.__qualname__} is not: predict x0, unweighted"
        )
    alpha, sigma = coefficients(degradation, t)
    found = {"alpha": alpha, "sigma": sigma}
    if objective.prediction == "previous":
        s = previous(objective, degradation, t)
        found["alpha_s"], found["sigma_s"] = coefficients(degradation, s)
    return found


def predict(
    objective: Objective, params: Any, problem: Problem, xt: Array, t: Array, label=None
) -> Array:
    """The output for one example, preconditioned where the problem has a Wiener restorer.

    Args:
      objective: how the network is trained.
      params: of the network.
      problem: D, and its Wiener restorer if it has one.
      xt: degraded image, [H, W, C].
      t: severity, scalar in [0, 1].
      label: integer scalar, or None.
    Returns:
      [H, W, C], of the kind that objective.prediction names.
    """

    def network_fn(inputs, t):
        return objective.network_fn(params, inputs, t, label)

    if problem.wiener is None:
        return network_fn(xt, t)
    return wiener.precondition(network_fn, problem.wiener, linear_fn(problem.degradation), xt, t)


def restore(
    objective: Objective, params: Any, problem: Problem, xt: Array, t: Array, label=None
) -> Array:
    """R(xt, t) = x0_hat, whatever the network predicts; arguments as in `predict`."""
    output = predict(objective, params, problem, xt, t, label)
    return read(objective, problem.degradation, output, xt, t)


def read(
    objective: Objective, degradation: Degradation, output: Array, xt: Array, t: Array
) -> Array:
    """The x0_hat that an output means; [H, W, C]."""
    if objective.prediction == "x0" or compares_previous(objective, degradation):
        return output
    found = numbers(objective, degradation, t)
    return predictions.to_x0(objective.prediction, output, xt, **found)


def restorer(
    objective: Objective, params: Any, problem: Problem, label: Array | None = None
) -> samplers.RestoreFn:
    """(xt, t) -> x0_hat; `restore` with all but the image and its severity bound."""
    return lambda xt, t: restore(objective, params, problem, xt, t, label)


def process(degradation: Degradation, restore_fn: samplers.RestoreFn) -> samplers.Process:
    """R and D as `samplers.sample` takes them, omega inferred as D infers it."""
    return samplers.Process(
        restore_fn,
        functools.partial(degrade, degradation),
        functools.partial(infer, degradation),
    )


def sampler(name: str, degradation: Degradation, **settings: Any) -> samplers.Sampler:
    """The sampler of that name, see `samplers.SAMPLERS`; "blurring" takes its frequencies from D.

    Raises:
      ValueError: if there is no such sampler, if it does not take these settings, or if it is
        "blurring" and D is not `heat.blurring_noise`.
    """
    functions: tuple[Callable, ...] = ()
    if name == "blurring":
        if not isinstance(degradation.params, heat.Blurring):
            raise ValueError("sampler 'blurring' is for the degradation blurring_noise alone")
        functions = heat.spectral_functions(degradation.params)
    return samplers.create(name, *functions, **settings)


def grid(name: str, steps: int, degradation: Degradation, *, levels: int | None = None) -> Array:
    """The grid of that name, see `samplers.GRIDS`, on the severities that R was trained at.

    Args:
      name: a key of `samplers.GRIDS`.
      steps: S.
      degradation: D. "karras" needs its alpha and sigma.
      levels: T of the severities k / T, see the function `levels`; None: any severity.
    Returns:
      ts, float32 [S' + 1], down to 0, from 1 but for "leading" and one step of "linspace".
      S' < S where T is less, or where "karras" or "shifted" put two steps on one severity.
    Raises:
      ValueError: if there is no such grid, or D has no place for it.
    """
    if name not in samplers.GRIDS:
        raise ValueError(f"grid must be one of {', '.join(samplers.GRIDS)}; got {name!r}")
    make_fn = samplers.GRIDS[name]
    if name == "karras":
        if not has_coefficients(degradation):
            raise ValueError("grid 'karras' needs x_t = alpha x0 + sigma omega: choose uniform")
        ts = make_fn(lambda t: coefficients(degradation, t), steps)
    elif name in ("trailing", "leading", "linspace") and levels is not None:
        ts = make_fn(min(steps, levels), levels=levels)
    else:
        ts = make_fn(steps)
    return ts if levels is None else samplers.snap_grid(ts, levels)


def start(
    key: Array,
    degradation: Degradation,
    prior: priors.MixturePrior | priors.BankPrior | None,
    perturbation: Array | float,
    image_shape: tuple[int, int, int],
) -> tuple[Array, Any]:
    """(xT, omega), where the generation of one image starts; both from the key.

    Args:
      key: typed PRNG key.
      degradation: D.
      prior: what xT is drawn from; None: D of a blank image, which suits a D that leaves
        nothing of x0 at t = 1.
      perturbation: p, std of the noise added to xT.
      image_shape: (H, W, C).
    Returns:
      xT [H, W, C], and a realization of D.
    """
    key_prior, key_omega = jax.random.split(key)
    blank = jnp.zeros(image_shape)
    if prior is None:
        omega = draw(degradation, key_omega, blank)
        xT = degrade(degradation, blank, 1.0, omega)
        return xT + perturbation * jax.random.normal(key_prior, xT.shape), omega
    if isinstance(prior, priors.BankPrior):
        xT = priors.sample_bank(prior, key_prior, perturbation)
    else:
        xT = priors.sample_mixture(prior, key_prior, perturbation)
    return xT, draw(degradation, key_omega, xT)
