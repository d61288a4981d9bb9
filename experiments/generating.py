"""Images from nothing: where x_T comes from, the samplers by their names, how far off they are."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffjax import metrics, priors, samplers, schedules, solvers, training
from diffjax.degradations import Degradation, coefficients, degrade, draw
from diffjax.operators import spectral
from experiments import building, restoring
from experiments.common import UsageError


def sampler(name: str, degradation: Degradation, *, delta: float) -> samplers.Sampler:
    """The sampler of that name, for this degradation; delta is IHDM's."""
    if name == "ihdm":
        return samplers.ihdm(delta)
    if name == "blurring":
        return _blurring(degradation)
    if name in ("euler", "heun"):
        return getattr(solvers, name)()
    if name in ("ddim", "indi"):
        return getattr(samplers, name)()
    return getattr(solvers if name == "dpm_solver_2m" else samplers, name)


def _blurring(degradation: Degradation) -> samplers.Sampler:
    params = degradation.params
    if not hasattr(params, "blur_max"):
        raise UsageError("config.sample.sampler 'blurring' is for blurring_noise alone")

    def coefficients_fn(t):
        alpha, sigma = schedules.shifted_cosine(
            t, logsnr_min=params.logsnr_min, logsnr_max=params.logsnr_max
        )
        std = schedules.sine_squared(t, maximum=params.blur_max)
        frequency = spectral.frequencies(params.rows.shape[0], params.cols.shape[0])
        return alpha * spectral.blurring_gain(frequency, std, params.d_min), sigma

    return solvers.blurring(
        lambda x: spectral.to_basis(x, params.rows, params.cols),
        lambda u: spectral.from_basis(u, params.rows, params.cols),
        coefficients_fn,
    )


def grid(name: str, steps: int, degradation: Degradation) -> jax.Array:
    """ts, [steps + 1], from 1 to 0."""
    if name == "uniform":
        return samplers.uniform_grid(steps)
    try:
        if name == "trailing":
            return schedules.trailing_grid(steps)
        if coefficients(degradation, 1.0) is None:
            raise ValueError("needs x_t = alpha x0 + sigma omega: choose uniform")
        return schedules.karras_grid(lambda t: coefficients(degradation, t), steps)
    except ValueError as error:
        raise UsageError(f"config.sample.grid {name!r}: {error}") from error


def start(
    key, problem: training.Problem, prior, perturbation: float, shape: tuple[int, int, int]
) -> tuple[jax.Array, Any]:
    """(xT, omega) of one image that never was, both from the key."""
    key_prior, key_omega = jax.random.split(key)
    degradation, blank = problem.degradation, jnp.zeros(shape)
    if prior is None:
        omega = draw(degradation, key_omega, blank)
        return degrade(degradation, blank, 1.0, omega), omega
    if isinstance(prior, priors.BankPrior):
        xT = priors.sample_bank(prior, key_prior, perturbation)
    else:
        xT = priors.sample_mixture(prior, key_prior, perturbation)
    return xT, draw(degradation, key_omega, xT)


def generator(
    run: building.Run,
    *,
    sampler_name: str,
    steps: int,
    guidance: float = 1.0,
    clip: bool = False,
    keep_every: int = 0,
) -> Callable:
    """(operand, key, label) -> one image [H, W, C], with its trajectory if it is kept.

    The operand is (params, problem, prior, perturbation); a label of num_classes is none.
    """
    experiment = run.experiment
    config, objective = experiment.config.sample, experiment.objective
    walker = sampler(sampler_name, experiment.degradation, delta=config.delta)
    ts = grid(config.grid, steps, experiment.degradation)

    def generate(operand, key, label):
        params, problem, prior, perturbation = operand
        key_start, key_walk = jax.random.split(key)
        xT, omega = start(key_start, problem, prior, perturbation, experiment.image_shape)
        label = None if objective.num_classes is None else label
        restore_fn, degrade_fn, infer_fn = restoring.callables(objective, params, problem, label)
        if guidance != 1:
            free_fn, _, _ = restoring.callables(objective, params, problem, objective.num_classes)
            restore_fn = samplers.guide(restore_fn, free_fn, guidance)
        if clip:
            restore_fn = samplers.clip(restore_fn)
        return samplers.sample(
            walker, restore_fn, degrade_fn, infer_fn, key_walk, xT, ts, omega,
            trajectory=keep_every,
        )  # fmt: skip

    return generate


def distances(images: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """ "frechet" and "kernel" between two sets [N, H, W, C] in [-1, 1], pixels in [0, 1]."""
    one, other = (np.asarray(metrics.to_unit(x)).reshape(len(x), -1) for x in (images, reference))
    gaussians = []
    for pixels in (one, other):
        moments = metrics.feature_moments(pixels)
        gaussians += [moments.mean, metrics.covariance(moments)]
    return {
        "frechet": float(metrics.frechet_distance(*gaussians)),
        "kernel": float(metrics.kernel_distance(one, other)),
    }
