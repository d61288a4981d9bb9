"""The ways back from a degraded image that the commands compare, and images from nothing."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from diffjax import data, parallel, restorers, samplers
from diffjax.degradations.base import degrade, draw
from experiments.lib import build

METHODS = ("degraded", "direct", "Algorithm 1", "Algorithm 2")


def every_way(
    objective: restorers.Objective, params: Any, problem: restorers.Problem, ts, key, x0
) -> dict[str, jax.Array]:
    """Degrades one image to t = 1 and brings it back in every way; one [H, W, C] a method."""
    key_omega, key_sample = jax.random.split(key)
    omega = draw(problem.degradation, key_omega, x0)
    xT = degrade(problem.degradation, x0, ts[0], omega)
    restore_fn = jax.jit(restorers.restorer(objective, params, problem))  # traced once for all
    process = restorers.process(problem.degradation, restore_fn)
    ways = [xT, restore_fn(xT, ts[0])]
    for sampler in (samplers.naive, samplers.improved):
        ways.append(samplers.sample(sampler, process, key_sample, xT, ts, omega))
    return dict(zip(METHODS, ways, strict=True))


def restorations(
    experiment: build.Experiment,
    params: Any,
    problem: restorers.Problem,
    source: data.Source,
    count: int,
    *,
    shared: bool = False,
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Yields (clean batch, its restorations) over the first `count` images of a source.

    shared: this host's share of the batches alone.
    """
    ts = build.grid(experiment, name="uniform")

    def one(operand, key, x0):
        return every_way(experiment.objective, *operand, ts, key, x0)

    return _over(experiment.config, one, (params, problem), source, count, shared)


def degraded(
    experiment: build.Experiment, source: data.Source, count: int
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """As `restorations`, of the first method alone: it needs no network."""

    def one(degradation, key, x0):
        key_omega, _ = jax.random.split(key)
        omega = draw(degradation, key_omega, x0)
        return {METHODS[0]: degrade(degradation, x0, 1.0, omega)}

    return _over(experiment.config, one, experiment.degradation, source, count)


def _over(config, one, operand, source, count, shared=False):
    """Yields (clean batch, one(operand, key, x0) of each) over the first `count` images."""
    restore_fn = parallel.map_examples(one)
    key = jax.random.key(config.seed + 2)
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))
    count = min(count, source.size)
    size = config.sample.batch_size
    host, hosts = (jax.process_index(), jax.process_count()) if shared else (0, 1)
    for start in range(size * host, count, size * hosts):
        # A short last batch is filled up, so that there is one shape and one compilation.
        indices = np.arange(start, start + size)
        clean = source.fetch_fn(indices % source.size)["image"]
        outputs = restore_fn(operand, keys(key, indices), clean)
        left = count - start
        # JAX gives a dict back sorted.
        yield clean[:left], {name: outputs[name][:left] for name in METHODS if name in outputs}


def generator(
    experiment: build.Experiment,
    *,
    sampler_name: str | None = None,
    steps: int | None = None,
    guidance: float = 1.0,
    clip: bool = False,
    keep_every: int = 0,
) -> Callable:
    """(operand, key, label) -> one image [H, W, C], with its trajectory if it is kept.

    The operand is (params, problem, prior, perturbation); a label of num_classes is none.
    """
    config, objective = experiment.config.sample, experiment.objective
    sampler, ts = build.sampler(experiment, sampler_name), build.grid(experiment, steps)

    def generate(operand, key, label):
        params, problem, prior, perturbation = operand
        key_start, key_walk = jax.random.split(key)
        xT, omega = restorers.start(
            key_start, problem.degradation, prior, perturbation, experiment.image_shape
        )
        label = None if objective.num_classes is None else label
        restore_fn = restorers.restorer(objective, params, problem, label)
        if guidance != 1:
            free_fn = restorers.restorer(objective, params, problem, objective.num_classes)
            interval = tuple(config.guidance_interval)
            restore_fn = samplers.guide(restore_fn, free_fn, guidance, interval)
        if config.dynamic_threshold is not None:
            restore_fn = samplers.dynamic_threshold(restore_fn, config.dynamic_threshold)
        if clip:
            restore_fn = samplers.clip(restore_fn)
        process = restorers.process(problem.degradation, restore_fn)
        return samplers.sample(sampler, process, key_walk, xT, ts, omega, keep_every=keep_every)

    return generate
