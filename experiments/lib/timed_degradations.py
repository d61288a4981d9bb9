"""The benchmark's rows of D and of the Wiener restorer: what a call costs, and what it replaces."""

import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_sample_images

from diffjax import restorers, schedules, wiener
from diffjax.degradations.base import Degradation, degrade, draw
from diffjax.degradations.blur import gaussian_blur, gaussian_kernel
from diffjax.degradations.color import decolor
from diffjax.degradations.heat import heat
from diffjax.degradations.mask import fade
from diffjax.degradations.noise import gaussian_noise
from diffjax.degradations.snow import snow
from experiments.lib import opponents
from experiments.lib.timing import Row, clock, missing, ratio, skipped

BATCH, SIZE, TAPS = 32, 32, 27


@jax.jit
def degrade_batch(degradation: Degradation, x0_BHWC, t_B, omega_B=None):
    return jax.vmap(degrade, in_axes=(None, 0, 0, 0))(degradation, x0_BHWC, t_B, omega_B)


def blur(steps: int, size: int = SIZE) -> Degradation:
    """Cold Diffusion's blur for generation, T = steps."""
    stds = schedules.exponential_stds(steps, rate=0.01)
    return gaussian_blur((size, size, 3), stds=stds, kernel_size=TAPS)


FAMILIES = {  # (T, size) -> D
    "blur": blur,
    "heat": lambda steps, size: heat((size, size, 3), sigma_max=size / 2, levels=steps),
    "fade": lambda steps, size: fade((size, size, 3), stds=np.linspace(1, size / 4, steps)),
    "decolor": lambda steps, size: decolor((size, size, 3), steps=steps),
    "snow": lambda steps, size: snow((size, size, 3), steps=steps),
    "noise": lambda steps, size: gaussian_noise((size, size, 3)),  # the same for every T
}


def one_cost(rounds: int) -> Iterator[Row]:
    """D of each family: at every size and T, the same for all t."""
    for family, build in FAMILIES.items():
        for size in (32, 128, 256):
            x0 = jnp.zeros((BATCH, size, size, 3))
            calls = {}
            for steps in (50, 300, 1000):
                degradation = build(steps, size)
                keys = jax.random.split(jax.random.key(0), BATCH)
                omega = jax.jit(jax.vmap(draw, in_axes=(None, 0, 0)))(degradation, keys, x0)
                for t in (1 / steps, 1.0):
                    t_B = jnp.full(BATCH, t)
                    calls[steps, t] = functools.partial(degrade_batch, degradation, x0, t_B, omega)
            times = clock(calls, rounds, calls=max(1, 1024 // size))
            what = f"{family} of {BATCH} images {size}x{size}x3"
            for steps in (50, 300, 1000):
                yield times[steps, 1.0].row(f"{what}, T = {steps}, t = 1")
                over = times[steps, 1.0].median / times[steps, 1 / steps].median
                yield ratio(f"{what}, T = {steps}: t = 1 over t = 1/T", over, at_most=1.1)


CHAINS = {  # label: the least that the tables are promised to be faster
    "convolved t times in PyTorch": 2000,
    "the same chain in jitted JAX": 200,
    "the same, by rows and columns": None,
}


def chain(rounds: int) -> Iterator[Row]:
    """Tables against convolving k times, at random t with T = 300."""
    rng = np.random.default_rng(0)
    steps = 300
    x0 = rng.uniform(-1, 1, (BATCH, SIZE, SIZE, 3)).astype(np.float32)
    k_B = rng.integers(1, steps + 1, BATCH)
    stds = schedules.exponential_stds(steps, rate=0.01)
    lines = np.stack([gaussian_kernel(TAPS, std) for std in stds]).astype(np.float32)
    squares = lines[:, :, None] * lines[:, None]
    degradation = blur(steps)
    x0_jax, lines_jax, squares_jax = (jnp.asarray(array) for array in (x0, lines, squares))

    def tables(k_B):
        return degrade_batch(degradation, x0_jax, jnp.asarray(k_B / steps, jnp.float32))

    convolving = (
        lambda k_B: opponents.chain_torch(squares, x0, k_B),
        lambda k_B: opponents.chain_jax(opponents.convolve, squares_jax, x0_jax, k_B),
        lambda k_B: opponents.chain_jax(opponents.convolve_separably, lines_jax, x0_jax, k_B),
    )
    chains = dict(zip(CHAINS, convolving, strict=True))
    few, in_torch = np.minimum(k_B, 5), next(iter(CHAINS))
    if missing("torch"):
        chains.pop(in_torch)
    for label, call in chains.items():
        np.testing.assert_allclose(call(few), tables(few), atol=1e-5, err_msg=label)

    calls = {(label, 0): functools.partial(call, k_B) for label, call in chains.items()}
    if in_torch in chains:
        call = calls.pop((in_torch, 0))
        calls |= {(in_torch, n): each for n, each in opponents.on_threads(call).items()}
    ours = clock({"": lambda: tables(k_B)}, rounds, calls=50)[""]
    times = clock(calls, max(1, rounds // 2))
    what = f"{BATCH} images {SIZE}x{SIZE}x3, random t, T = {steps}, {TAPS}x{TAPS} blur"
    yield ours.row(f"{what}: tables")
    for label, at_least in CHAINS.items():
        if label not in chains:
            yield skipped(label, "torch")
            continue
        best = min(one for (name, _), one in times.items() if name == label)
        yield best.row(label)
        yield ratio(f"{label}, over tables", best.median / ours.median, at_least=at_least)


def photographs(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Crops of scikit-learn's two photographs, of their left two thirds and of the rest."""
    crops: tuple[list, list] = ([], [])
    for photo in load_sample_images().images:
        border = 2 * photo.shape[1] // 3
        for part, found in zip((photo[:, :border], photo[:, border:]), crops, strict=True):
            for row in range(0, part.shape[0] - size + 1, size // 4):
                for col in range(0, part.shape[1] - size + 1, size // 4):
                    found.append(part[row : row + size, col : col + size])
    fitted, judged = (np.stack(found) / np.float32(127.5) - 1 for found in crops)
    return fitted, judged


def _batched(function: Callable) -> Callable:
    """Jitted (restorer, D, xt_BHWC, t_B) of a function of one image."""

    def one(restorer, degradation, xt, t):
        return function(restorer, restorers.linear_fn(degradation), xt, t)

    return jax.jit(jax.vmap(one, in_axes=(None, None, 0, 0)))


estimates = _batched(lambda *arguments: wiener.estimate(*arguments)[0])
around_stub = _batched(functools.partial(wiener.precondition, lambda inputs, t: inputs[..., :3]))


def large(rounds: int) -> Iterator[Row]:
    """The Wiener restorer of large images: what it holds, what it takes, and what is lost where
    the covariance is taken as stationary.
    """
    steps, few = 20, 4
    ts = jnp.linspace(0.1, 1, few)
    for size in (128, 256, 512):
        shape = (size, size, 3)
        degradation = gaussian_blur(shape, stds=(2.0,) * steps, boundary="symmetric")
        linear_fn = restorers.linear_fn(degradation)
        noise = np.random.default_rng(0).normal(size=(few, *shape)).astype(np.float32)
        fitted, judged = photographs(size) if size == 128 else (noise, None)
        moments = wiener.measure(fitted)
        calls, what = {}, f"Wiener restorer, {size}x{size}x3, T = {steps}"
        for name, stationary in (("any covariance", False), ("stationary", True)):
            restorer = wiener.fit(
                linear_fn, moments, levels=steps, floor=1e-3, stationary=stationary
            )
            held = sum(leaf.nbytes for leaf in jax.tree.leaves(restorer.factors))
            yield Row(f"{what}, {name}: held", held, "bytes")

            calls[name] = functools.partial(around_stub, restorer, degradation, noise, ts)
            for t in (0.5, 1.0) if judged is not None else ():
                t_B = jnp.full(len(judged), t)
                xt = degrade_batch(degradation, judged, t_B)
                x0_hat = estimates(restorer, degradation, xt, t_B)
                rmse = float(jnp.sqrt(jnp.mean(jnp.square(x0_hat - judged)))) / 2
                yield Row(f"{what}, {name}: RMSE of photographs in [0, 1], t = {t:g}", rmse, "")
        for name, one in clock(calls, rounds).items():
            yield one.row(f"{what}, {name}: R around a stub, {few} images")
