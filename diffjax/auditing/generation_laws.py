"""Can this degradation generate? The walk of the Wiener restorer alone, before any training.

For a linear D, mode i of x_t = A_t x0 + q n has the amplitude a_i(t), and its data the variance
S_i. R trained with white noise of std q on x_t is, on Gaussian data, the Wiener restorer of that
noise. Algorithm 2 from an x_T that carries noise of std p is then one product a mode,

    x_s / x_t = 1 + (a_s - a_t) a_t S / (a_t^2 S + q^2)   ->   d ln x = 1/2 d ln(a^2 S + q^2)

in the limit of many steps: the probability flow of x_t = A_t x0 + q n. What D destroyed is made
out of n: std(x_0) = (p / q) sqrt(S + q^2) where a_T = 0. So D generates where

    perturbation   p is about q, and q is not 0
    jump           a_i(T-1) sqrt(S_i) <= q: before D ends, every mode is below the noise
    steps          the steps are small while a mode crosses the noise

and R is a mean of x0 given x_t, which a restorer that is linear always is. Algorithm 1 forgets n
at each step, and with p = 0 there is none: both make a few images, whatever R is.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from diffjax import restorers, samplers, wiener
from diffjax.degradations.base import Degradation, degrade, draw, require

Array = jax.Array

# p / q: below, modes come out fainter than they are by as much; above, the excess shows as noise.
LEAST, MOST = 0.9, 1.5
VISIBLE = 10.0  # modes of a variance above this many q^2 count
# D's last step over q. At 1 a mode comes at 1 / sqrt(2) of its std, at 1.5 at 0.55, then as its
# mean.
JUMP = 1.5
FAINT, STRONG = 0.8, 1.25  # median std made over std of the data


class Generation(NamedTuple):
    """What a walk of the Wiener restorer makes, per mode of the data; see `check_generation`."""

    data_std: np.ndarray  # [M], decreasing: the std of the data along each mode
    made: dict[str, np.ndarray]  # by the name of the way, [M]: the std made over the data's
    jump: np.ndarray  # [M]: the std of what D's last step takes of each mode
    broken: tuple[str, ...]  # the conditions that are broken, likeliest cause first
    summary: str  # one line


WAYS = ("Algorithm 2", "p = 0", "Algorithm 1")


def _model(moments: wiener.Moments) -> tuple[list[np.ndarray], np.ndarray]:
    """The eigenvectors of S along rows, columns and channels; the std of each mode, [H, W, C]."""
    variances, bases = zip(*map(np.linalg.eigh, wiener.covariances(moments)), strict=True)
    rows, cols, colors = (np.sqrt(np.maximum(values, 0)) for values in variances)
    return list(bases), rows[:, None, None] * cols[None, :, None] * colors[None, None, :]


def _std_of_modes(images_NHWC: Array, bases: list[np.ndarray]) -> np.ndarray:
    """The std of a set of images along each mode, [H, W, C]."""
    x = np.asarray(images_NHWC, np.float64)
    modes = np.einsum("nhwc,hi,wj,ck->nijk", x - x.mean(axis=0), *bases, optimize=True)
    return modes.std(axis=0)


def _ways(restore_fn: Callable, degradation: Degradation, ts: Array) -> Callable:
    """(key, x0, perturbation) -> {way: an image made}, walking from D(x0, 1) and noise."""
    process = restorers.process(degradation, restore_fn)

    def walk(key, x0, perturbation):
        key_omega, key_noise, key_walk = jax.random.split(key, 3)
        omega = draw(degradation, key_omega, x0)
        xT = degrade(degradation, x0, 1.0, omega)
        noisy = xT + perturbation * jax.random.normal(key_noise, xT.shape)
        starts = zip(WAYS, (noisy, xT, noisy), strict=True)
        algorithms = dict(zip(WAYS, (samplers.improved,) * 2 + (samplers.naive,), strict=True))
        return {
            way: samplers.sample(algorithms[way], process, key_walk, start, ts, omega)
            for way, start in starts
        }

    return walk


def check_generation(
    degradation: Degradation,
    moments: wiener.Moments,
    key: Array,
    *,
    perturbation: float,
    start_perturbation: float | None = None,
    ts: Array | None = None,
    floor: float = 1e-5,
    samples: int = 512,
) -> Generation:
    """Whether D, the perturbations and the grid can make images; in a second, untrained.

    >>> from diffjax.degradations.blur import gaussian_blur
    >>> blur = gaussian_blur((4, 4, 1), stds=[0.5] * 3, kernel_size=3, mean_at_end=True)
    >>> images = np.random.default_rng(0).standard_normal((99, 4, 4, 1)) / 3
    >>> found = check_generation(blur, wiener.measure(images), jax.random.key(0), perturbation=0.0)
    >>> found.broken
    ('perturbation',)

    Args:
      degradation: D, linear, with a `linear_fn`, of images [H, W, C]. White noise of its own
        counts with q and with p.
      moments: of the training images in [-1, 1], from `wiener.measure`; their Gaussian is what
        images and starts x_T = D(x0, 1) are drawn from.
      key: typed PRNG key.
      perturbation: q, the std of the white noise on x_t in training.
      start_perturbation: p, the std of the noise on x_T; None: 1.1 q.
      ts: the grid, see `samplers.sample`; None: D's own steps, or 50.
      floor: what the Wiener restorer reckons with beside q; counts with q.
      samples: images made. The std of a mode is known to 1 / sqrt(2 samples) of itself.
    Returns:
      A Generation. Modes are the eigenvectors of the data's covariance, taken as a product over
      rows, columns and channels; those with a variance above 10 q^2 count.
    Raises:
      ValueError: if an argument is invalid; the message names it.
    """
    require(degradation.linear_fn is not None, "degradation must be linear: give it a linear_fn")
    q = float(perturbation)
    p = 1.1 * q if start_perturbation is None else float(start_perturbation)
    require(0 <= q < np.inf, f"perturbation must be finite and not negative; got {perturbation}")
    require(0 <= p < np.inf, f"start_perturbation must be finite and not negative; got {p}")
    steps = degradation.steps
    ts = samplers.uniform_grid(steps or 50) if ts is None else jnp.asarray(ts)
    linear_fn = restorers.linear_fn(degradation)
    levels = (steps or 100) if any(m is not None for m in linear_fn(jnp.ones(()))[2:]) else None
    restorer = wiener.fit(linear_fn, moments, levels=levels, floor=float(np.hypot(floor, q)))
    bases, std = _model(moments)
    # D's own last step, whatever the grid; of a D that is continuous in t, the grid's.
    before_last = jnp.float32(1 - 1 / steps) if steps else ts[1]

    def restore_fn(xt, t):
        return wiener.estimate(restorer, linear_fn, xt, t)[0]

    def without_noise(x, t):
        alpha, _, *matrices = linear_fn(t)
        return alpha * wiener.multiply(x, *matrices)

    def one(key, perturbation):
        key_image, key_walk = jax.random.split(key)
        scaled = jax.random.normal(key_image, std.shape) * jnp.asarray(std, jnp.float32)
        x = wiener.multiply(scaled, *(jnp.asarray(basis, jnp.float32) for basis in bases))
        x0 = x + restorer.mean
        made = _ways(restore_fn, degradation, ts)(key_walk, x0, perturbation)
        return made, without_noise(x, before_last) - without_noise(x, jnp.ones(()))

    keys = jax.random.split(key, samples)
    made, last = jax.jit(jax.vmap(one, in_axes=(0, None)))(keys, jnp.float32(p))
    own = float(linear_fn(jnp.ones(()))[1])
    known, start = float(np.hypot(q, own)), float(np.hypot(p, own))
    if known > 0:
        known = float(np.hypot(known, floor))
    visible = np.square(std) > max(VISIBLE * known**2, 1e-8 * np.max(std) ** 2)
    order = np.argsort(-std[visible])
    pick = lambda values: values[visible][order]  # noqa: E731
    data_std = pick(std)
    ratios = {way: pick(_std_of_modes(made[way], bases)) / data_std for way in WAYS}
    jump = pick(_std_of_modes(last, bases))
    broken, summary = _judge(known, start, ratios["Algorithm 2"], jump, len(ts) - 1)
    return Generation(data_std, ratios, jump, broken, summary)


def _judge(
    q: float, p: float, made: np.ndarray, jump: np.ndarray, steps: int
) -> tuple[tuple[str, ...], str]:
    """The broken conditions, and one line."""
    median = float(np.median(made)) if len(made) else 0.0
    carried = f"xT carries noise of {p:.3g} and R was trained with {q:.3g}"
    reasons = {}
    if q == 0:
        reasons["perturbation"] = "R was trained without noise (q = 0): nothing bounds its growth"
    elif not len(made):
        reasons["perturbation"] = f"no mode of the data stands out of the noise q = {q:.3g}"
    elif not LEAST <= p / q <= MOST:
        reasons["perturbation"] = f"{carried}: want 1.1 of it"
    jumps = int(np.sum(jump > JUMP * q)) if q > 0 else 0
    if jumps:
        reasons["jump"] = (
            f"D's last step takes {jumps} of {len(jump)} modes out of view at once, the largest "
            f"{jump.max():.3g} against q = {q:.3g}: they come as their mean"
        )
    if q > 0 and len(made) and median < FAINT * min(p / q, 1):
        reasons["steps"] = f"{steps} steps are too few, or too large where modes cross the noise"
    if not reasons and median > STRONG:
        reasons["perturbation"] = f"{carried}: too much for {steps} steps, want 1.1 of it"
    share = f"the Wiener restorer alone makes {100 * median:.0f}% of the data's std (median mode)"
    if not reasons:
        return (), f"can generate: {share}"
    return tuple(reasons), f"cannot generate: {share}; {'; '.join(reasons.values())}"
