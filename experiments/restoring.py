"""The ways back from a degraded image that the scripts compare."""

from collections.abc import Callable, Iterator

import jax
import numpy as np

from diffjax import data, parallel, samplers
from diffjax.degradations import degrade, draw, infer
from experiments import common

METHODS = ("degraded", "direct", "Algorithm 1", "Algorithm 2")


def restore_all(network_fn, steps: int, operand, key, x0) -> dict[str, jax.Array]:
    """Degrades one image to t = 1 and brings it back in every way; one [H, W, C] a method."""
    params, degradation = operand
    key_omega, key_sample = jax.random.split(key)
    omega = draw(degradation, key_omega, x0)
    ts = samplers.uniform_grid(steps)
    xT = degrade(degradation, x0, ts[0], omega)

    def restore_fn(xt, t):
        return network_fn(params, xt, t)

    def degrade_fn(x0, t, omega):
        return degrade(degradation, x0, t, omega)

    def infer_fn(xt, t, x0_hat, omega):
        return infer(degradation, xt, t, x0_hat, omega)

    def walk(sampler):
        return samplers.sample(sampler, restore_fn, degrade_fn, infer_fn, key_sample, xT, ts, omega)

    ways = (xT, restore_fn(xT, ts[0]), walk(samplers.naive), walk(samplers.cold))
    return dict(zip(METHODS, ways, strict=True))


def restorations(
    experiment: common.Experiment, source: data.Source, params, count: int | None = None
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Yields (clean batch, its restorations) over the first `count` images of the source."""
    config = experiment.config.sample

    def one(operand, key, x0):
        return restore_all(experiment.network_fn, config.steps, operand, key, x0)

    restore_fn: Callable = parallel.map_examples(one)
    key = jax.random.key(experiment.config.seed + 2)
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
    count = min(count or source.size, source.size)
    for start in range(0, count, config.batch_size):
        # A short last batch is filled up, so that there is one shape and one compilation.
        indices = np.arange(start, start + config.batch_size)
        clean = source.fetch_fn(indices % source.size)["image"]
        outputs = restore_fn((params, experiment.degradation), keys(key, indices), clean)
        left = count - start
        yield clean[:left], {name: images[:left] for name, images in outputs.items()}
