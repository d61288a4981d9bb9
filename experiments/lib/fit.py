"""Whether an image fits a run: whether it is degraded as the run degrades, and of its kind.

What is usual is not known beforehand, for any degradation: held-out images, degraded by the run's
own D and rounded to 8 bits, go the same way and say it.
"""

from typing import NamedTuple

import jax
import numpy as np

from diffjax import blind, data, metrics
from diffjax.degradations.base import Degradation, degrade, draw
from experiments.lib.images import Item

_JUDGES = 16  # held-out images at every severity
_FITTED = 720  # training images that statistics are taken of
_HALF_STEP = 1 / 255  # of 8 bits


class Job(NamedTuple):
    """An image on its way back."""

    item: Item | None  # None: a held-out image, which says what is usual
    xt: np.ndarray
    t: float
    how: str  # where t comes from
    key: jax.Array


class Fit(NamedTuple):
    """How little an image fits, or the worst of several."""

    unexplained: float  # root mean square of D(x0_hat, t) - x_t
    distance: float  # from the training images' statistics, see `blind.distances`


def estimator(
    degradation: Degradation, source: data.Source, ts: np.ndarray, key: jax.Array
) -> blind.Estimator:
    """Of the statistics of training images at each severity."""
    indices = np.linspace(0, source.size - 1, min(source.size, _FITTED)).astype(int)
    return blind.fit(degradation, source.fetch_fn(indices)["image"], ts, key)


@jax.jit
def degraded(degradation: Degradation, key: jax.Array, x0: jax.Array, t: float) -> jax.Array:
    return degrade(degradation, x0, t, draw(degradation, jax.random.fold_in(key, 1), x0))


def held_out(degradation: Degradation, source: data.Source, ts: set[float]) -> list[Job]:
    """Images of the held-out split at each severity, as files of 8 bits hold them."""
    clean = source.fetch_fn(range(min(_JUDGES, source.size)))["image"]
    keys = jax.random.split(jax.random.key(1), len(clean))

    def as_file(xt):
        return metrics.to_uint8(xt) / np.float32(127.5) - 1

    return [
        Job(None, as_file(degraded(degradation, key, x0, t)), t, "given", key)
        for t in sorted(ts)
        for key, x0 in zip(keys, clean, strict=True)
    ]


def distances(found: blind.Estimator | None, jobs: list[Job]) -> np.ndarray:
    """`blind.distances` of every job at its severity; NaN where the size is another."""
    far = np.full(len(jobs), np.nan)
    if found is None:
        return far
    shape = next(job.xt.shape for job in jobs if job.item is None)
    own = [i for i, job in enumerate(jobs) if job.xt.shape == shape]
    at = [int(np.argmin(np.abs(found.ts - jobs[i].t))) for i in own]
    far[own] = blind.distances(found, np.stack([jobs[i].xt for i in own]))[at, range(len(own))]
    return far


def worse(one: Fit | None, other: Fit) -> Fit:
    return other if one is None else Fit(*map(max, one, other))


def misfit(found: Fit, usual: Fit | None) -> str | None:
    """In words, what does not fit; None where all does, or where nobody knows what is usual.

    usual: the worst of held-out images.
    """
    if usual is None or np.isnan(found.distance):
        return None
    words = []
    if found.unexplained > max(2 * usual.unexplained, _HALF_STEP):
        words.append(
            f"D(x0_hat, t) is {found.unexplained:.2g} away from it, and at most "
            f"{usual.unexplained:.2g} from held-out images"
        )
    if found.distance > 2 * usual.distance:
        words.append(
            "the squared distance of its statistics from the training images' is "
            f"{found.distance / usual.distance:.2g} times any held-out image's"
        )
    if not words:
        return None
    return f"{', and '.join(words)}: it was not degraded like this, or is no image of this kind"
