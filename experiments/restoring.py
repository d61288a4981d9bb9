"""The ways back from a degraded image that the scripts compare."""

from collections.abc import Callable, Iterator

import jax
import numpy as np

from diffjax import parallel, samplers, training
from diffjax.degradations import degrade, draw, infer
from experiments import building

METHODS = ("degraded", "direct", "Algorithm 1", "Algorithm 2")


def callables(objective: training.Objective, params, problem: training.Problem, label=None):
    """(restore_fn, degrade_fn, infer_fn) as the samplers take them."""
    degradation = problem.degradation

    def restore_fn(xt, t):
        return training.restore(objective, params, problem, xt, t, label)

    def degrade_fn(x0, t, omega):
        return degrade(degradation, x0, t, omega)

    def infer_fn(xt, t, x0_hat, omega):
        return infer(degradation, xt, t, x0_hat, omega)

    return restore_fn, degrade_fn, infer_fn


def restore_all(
    objective: training.Objective, steps: int, operand, key, x0
) -> dict[str, jax.Array]:
    """Degrades one image to t = 1 and brings it back in every way; one [H, W, C] a method."""
    params, problem = operand
    key_omega, key_sample = jax.random.split(key)
    omega = draw(problem.degradation, key_omega, x0)
    ts = samplers.uniform_grid(steps)
    xT = degrade(problem.degradation, x0, ts[0], omega)
    functions = callables(objective, params, problem)
    ways = [xT, functions[0](xT, ts[0])]
    for sampler in (samplers.naive, samplers.cold):
        ways.append(samplers.sample(sampler, *functions, key_sample, xT, ts, omega))
    return dict(zip(METHODS, ways, strict=True))


def restorations(
    run: building.Run, count: int | None = None
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Yields (clean batch, its restorations) over the first `count` held-out images."""
    config, source = run.experiment.config, run.source

    def one(operand, key, x0):
        return restore_all(run.experiment.objective, config.sample.steps, operand, key, x0)

    restore_fn: Callable = parallel.map_examples(one)
    operand = (run.state.ema_params, run.problem)
    key = jax.random.key(config.seed + 2)
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
    count = min(count or source.size, source.size)
    for start in range(0, count, config.sample.batch_size):
        # A short last batch is filled up, so that there is one shape and one compilation.
        indices = np.arange(start, start + config.sample.batch_size)
        clean = source.fetch_fn(indices % source.size)["image"]
        outputs = restore_fn(operand, keys(key, indices), clean)
        left = count - start
        yield clean[:left], {name: images[:left] for name, images in outputs.items()}
