"""Reading a severity off x_t: is the t that a network is told the t of its image?

Where D adds white noise, x_t = m(t) + s(t) omega, the told t gives (x_t - m) / s, which must
look like N(0, 1): its mean square, its mean and its product with m are three standard
normal scores for each image. Where nothing in D is random, x_t must be D(x0, t). Where D is
random in another way (a mask's place, snow), the distance |x_t - x0| is compared with that
of D's own draws at the told t.

`misfit` is one number: 1 is the limit. `cause` tries what usually goes wrong, one after
another, and says in words which of them would make it fit.

Depends on: jax, numpy, diffjax.degradations, the oracle's scales.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from diffjax.auditing import oracle
from diffjax.degradations.base import Degradation, degrade, draw, has_coefficients

Array = jax.Array

DRAWS = 16  # of D at each told t, where only the distance can be compared
SINGLE, TOGETHER = 7.0, 6.0  # limits of a standard normal score, and of the sum of many
RESOLUTION = 256  # severities tried where D has no steps of its own


class Records(NamedTuple):
    """What one network was given over several batches; n images of one x0."""

    degradation: Degradation
    scale: oracle.Scale
    nature: str  # "noise", "fixed" or "drawn", see `nature`
    x0_HWC: np.ndarray
    xt_nHWC: np.ndarray
    told_n: np.ndarray
    batch_size: int


@functools.partial(jax.jit, compiler_options=oracle.QUICK)
def _draws(degradation, x0):
    """Eight realizations."""
    keys = jax.random.split(jax.random.key(7), 8)
    return jax.vmap(lambda key: draw(degradation, key, x0))(keys)


def nature(degradation: Degradation, x0: np.ndarray) -> str:
    """How x_t can be read: "noise" (m + s omega, omega white), "fixed" (no omega), "drawn"."""
    leaves = jax.tree.leaves(_draws(degradation, x0))
    if not leaves:
        return "fixed"
    if len(leaves) > 1 or leaves[0].shape[1:] != x0.shape:
        return "drawn"
    omega = np.asarray(leaves[0], np.float64).reshape(8, -1)
    clean = np.asarray(x0, np.float64).ravel()
    count = omega.size
    scores = [
        np.mean(omega) * np.sqrt(count),
        (np.mean(omega**2) - 1) * np.sqrt(count / 2),
        np.sum(omega @ clean) / np.sqrt(8 * np.sum(clean**2)),
        np.mean(omega[:, 1:] * omega[:, :-1]) * np.sqrt(count),
    ]
    return "noise" if np.max(np.abs(scores)) < TOGETHER else "drawn"


@functools.partial(jax.jit, static_argnames=("scale", "nature"), compiler_options=oracle.QUICK)
def _expected(degradation, x0, told_n, *, scale, nature):
    """(m(t), s(t)) at each told t; where D is alpha, sigma, those two in their place."""

    def one(label):
        if has_coefficients(degradation):
            return oracle.scaled(degradation, scale, label)
        t = oracle.severity(degradation, scale, label)
        if nature == "fixed":
            return degrade(degradation, x0, t, None), jnp.zeros(())
        clean = degrade(degradation, x0, t, jnp.zeros_like(x0))
        return clean, jnp.mean(degrade(degradation, x0, t, jnp.ones_like(x0)) - clean)

    return jax.vmap(one)(told_n)


@functools.partial(jax.jit, static_argnames="scale", compiler_options=oracle.QUICK)
def _distances(degradation, x0, told_n, *, scale):
    """Mean and std over D's draws of |x_t - x0| at each told t; [n] each."""
    keys = jax.random.split(jax.random.key(11), DRAWS)

    def one(label, key):
        t = oracle.severity(degradation, scale, label)
        xt = degrade(degradation, x0, t, draw(degradation, key, x0))
        return jnp.mean(jnp.abs(xt - x0))

    by_key = jax.vmap(lambda label: jax.vmap(lambda key: one(label, key))(keys))(told_n)
    return jnp.mean(by_key, 1), jnp.std(by_key, 1)


def _flat(images):
    return np.asarray(images, np.float64).reshape(len(images), -1)


def expected(records: Records, told_n: ArrayLike, powers=(1, 1)) -> tuple[np.ndarray, np.ndarray]:
    """m [n, HWC] and s [n] at each told t, float64; powers: those of alpha and of sigma."""
    clean, std = _expected(
        records.degradation,
        records.x0_HWC,
        jnp.asarray(told_n, jnp.float32),
        scale=records.scale,
        nature=records.nature,
    )
    clean, std = np.asarray(clean, np.float64), np.asarray(std, np.float64)
    if clean.ndim == 1:
        clean = clean[:, None] ** powers[0] * records.x0_HWC.ravel()
    return clean.reshape(len(clean), -1), std ** powers[1]


def _scores(xt, clean, std):
    """Three scores of each image, standard normal where x_t = m + s omega; [3, n], and chi2."""
    pixels = xt.shape[1]
    floor = 1e-6 * max(1.0, np.max(np.abs(xt)))  # the rounding of x_t, where s vanishes
    s = np.hypot(std, floor)[:, None]
    omega = (xt - clean) / s
    chi = np.mean(omega**2, 1) + (floor / s[:, 0]) ** 2
    # Wilson and Hilferty: the cube root of a chi square is nearly normal.
    spread = 2 / (9 * pixels)
    square = (np.cbrt(chi) - (1 - spread)) / np.sqrt(spread)
    length = np.sqrt(np.sum(clean**2, 1)) + 1e-12
    return np.stack(
        [square, np.sum(omega * clean, 1) / length, np.sqrt(pixels) * np.mean(omega, 1)]
    ), pixels * (np.log(s[:, 0]) + chi / 2)


def misfit(records: Records, told_n: np.ndarray | None = None, powers=(1, 1)) -> float:
    """How badly the images fit the told t, or these instead; 1 is the limit."""
    told_n = records.told_n if told_n is None else told_n
    if records.nature == "drawn":
        distance = np.mean(np.abs(_flat(records.xt_nHWC) - records.x0_HWC.ravel()), 1)
        mean, std = _distances(
            records.degradation,
            records.x0_HWC,
            jnp.asarray(told_n, jnp.float32),
            scale=records.scale,
        )
        due = np.mean(np.square(std)) * (1 + 1 / DRAWS) + 1e-6
        return float(np.sqrt(np.mean((distance - mean) ** 2) / due) / 1.5)
    clean, std = expected(records, told_n, powers)
    xt = _flat(records.xt_nHWC)
    if records.nature == "fixed":
        return float(np.max(np.abs(xt - clean)) / (1e-3 * max(1.0, np.max(np.abs(clean)))))
    scores, _ = _scores(xt, clean, std)
    together = np.abs(np.sum(scores, 1)) / np.sqrt(scores.shape[1])
    worst = max(np.max(np.abs(scores)) / SINGLE, np.max(together) / TOGETHER)
    return float(np.nan_to_num(worst, nan=np.inf))


def gain(records: Records, told_n: np.ndarray) -> float:
    """Twice the log likelihood that these t's have over the told ones; noise alone."""
    xt = _flat(records.xt_nHWC)
    costs = (np.sum(_scores(xt, *expected(records, t))[1]) for t in (records.told_n, told_n))
    told, other = costs
    return float(2 * (told - other))


def off_by_one(records: Records) -> dict[int, np.ndarray]:
    """The told t's one step later and one earlier, kept within the scale; {} without steps."""
    scale = records.scale
    if scale.levels is None or scale.name == "sigma":
        return {}
    step = 1 if scale.name == "steps" else 1 / scale.levels
    low, high = (float(oracle.told(records.degradation, scale, t)) for t in (1 / scale.levels, 1.0))
    return {k: np.clip(records.told_n + k * step, low, high) for k in (1, -1)}


def _costs(records, labels_m):
    """[B, m]: how badly each image of the first batch fits each label; least is best."""
    xt = _flat(records.xt_nHWC[: records.batch_size])
    if records.nature == "drawn":
        mean, _ = _distances(
            records.degradation, records.x0_HWC, jnp.asarray(labels_m), scale=records.scale
        )
        distance = np.mean(np.abs(xt - records.x0_HWC.ravel()), 1)
        return np.abs(distance[:, None] - np.asarray(mean))
    clean, std = expected(records, labels_m)
    s = np.maximum(std, 1e-4)
    square = np.sum(xt**2, 1)[:, None] - 2 * xt @ clean.T + np.sum(clean**2, 1)
    return xt.shape[1] * np.log(s) + square / (2 * s**2)


def _read(records):
    """(label told, label read off the image) of the first batch, as severities."""
    count = records.scale.levels or RESOLUTION
    grid = np.arange(1, count + 1, dtype=np.float32) / count
    to_label = jax.vmap(functools.partial(oracle.told, records.degradation, records.scale))
    to_t = jax.vmap(functools.partial(oracle.severity, records.degradation, records.scale))
    # sigma / alpha diverges where alpha vanishes.
    labels = np.minimum(to_label(jnp.asarray(grid)), 1e9)
    read = grid[np.argmin(_costs(records, labels), 1)]
    told = np.asarray(to_t(jnp.asarray(records.told_n[: records.batch_size], jnp.float32)))
    return told, read


def _wrong_images(records):
    """The clean part of the mildest images as a x0 + b, where that is another image."""
    clean, std = expected(records, records.told_n)
    mild = np.argsort(std)[: max(8, len(std) // 20)]
    residual = _flat(records.xt_nHWC)[mild]
    slopes, offsets = zip(
        *(np.polyfit(m, x, 1) for m, x in zip(clean[mild], residual, strict=True)), strict=True
    )
    slope, offset = np.median(slopes), np.median(offsets)
    doubt = 5 * np.median(std[mild]) / np.sqrt(clean.shape[1])
    if abs(slope - 1) > 0.05 + 2 * doubt or abs(offset) > 0.05 + doubt:
        return (
            f"the loss rescales its images: x0 arrives as {slope:.2f} x0 + {offset:.2f}; "
            "hand it the images it expects"
        )
    return None


def _wrong_noise(records):
    clean, std = expected(records, records.told_n)
    strong = std > 0.1
    if not np.any(strong):
        return None
    omega = (_flat(records.xt_nHWC) - clean)[strong] / std[strong, None]
    mean, spread = np.mean(omega, 1), np.std(omega, 1)
    steady = np.std(spread) < 0.2 * np.mean(spread) and np.std(mean) < 0.2
    if steady and (abs(np.mean(mean)) > 0.1 or abs(np.mean(spread) - 1) > 0.1):
        return (
            f"the noise has mean {np.mean(mean):.2f} and std {np.mean(spread):.2f}, not N(0, 1): "
            "uniform numbers in place of normal ones, or a scale"
        )
    return None


ROOTS = {
    (1, 2): "sigma^2 stands where sigma belongs: a forgotten square root",
    (2, 1): "alpha^2 stands where alpha belongs: a forgotten square root",
    (2, 2): "alpha^2 and sigma^2 stand where alpha and sigma belong: forgotten square roots",
}


def _shuffled(records, told, read):
    """Whether the t's of the first batch fit its images in another order."""
    size = records.batch_size
    first = records._replace(xt_nHWC=records.xt_nHWC[:size], told_n=records.told_n[:size])
    others = np.argmin(_costs(records, first.told_n), 1)
    same = np.mean(np.abs(np.sort(read) - np.sort(told))) < 0.03
    return same and misfit(first, first.told_n[others]) <= 1


def cause(records: Records) -> str:
    """The likeliest reason why the told t does not fit, in words."""
    told, read = _read(records)
    if np.ptp(records.told_n) == 0 and np.ptp(read) > 0.1:
        return f"every example is told t = {records.told_n[0]:g}: hand each its own t"
    for k, labels in off_by_one(records).items():
        if misfit(records, labels) <= 1:
            return f"off by one: x_t is one step {'later' if k > 0 else 'earlier'} than the told t"
    if np.std(read + told) < 0.1 and np.std(told) > 0.15:
        return "time runs the other way: the network is told 1 - t"
    middle = oracle.told(records.degradation, records.scale, jnp.float32(np.median(read)))
    if np.std(told) > 0.15 and misfit(records, np.full_like(records.told_n, middle)) <= 3:
        return f"every x_t has the severity {np.median(read):.2f}, whatever t is drawn"
    if _shuffled(records, told, read):
        return "each example is told the t of another one of the batch: a wrong order or axis"
    if has_coefficients(records.degradation):
        for powers, text in ROOTS.items():
            if misfit(records, powers=powers) <= 1:
                return text
    if records.nature == "noise":
        found = _wrong_images(records) or _wrong_noise(records)
        if found:
            return found
    inner = (read > 0.02) & (read < 0.98) & (told > 0)
    if records.scale.name == "unit" and np.any(inner):
        ratio = float(np.median(read[inner] / told[inner]))
        for factor in (round(ratio), 1 / max(1, round(1 / ratio))):
            labels = np.clip(records.told_n * factor, 0, 1)
            if factor not in (0, 1) and misfit(records, labels) <= 1:
                return f"the told t is on another scale: x_t has {factor:.3g} times it"
    middle = np.argsort(told)[len(told) // 2]
    return (
        "the loss degrades by another schedule, or another D, than the one given: told "
        f"t = {told[middle]:.2f}, x_t looks most like t = {read[middle]:.2f}"
    )
