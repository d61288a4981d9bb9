"""Times what diffjax promises of D: one cost for every t and T, and what that saves.

python -m experiments.benchmark --output=docs/results/benchmark.json

Writes OUTPUT, and prints it as a table. Medians of several rounds, compilation left out. Without
PyTorch its row says so.
"""

import functools
import importlib.util
import json
import os
import pathlib
import platform
import sys
import time
from collections.abc import Callable
from importlib import metadata
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from diffjax import schedules
from diffjax.degradations.base import Degradation, degrade, draw
from diffjax.degradations.blur import gaussian_blur, gaussian_kernel
from diffjax.degradations.snow import snow
from experiments.lib import commands, runs

_OUTPUT = flags.DEFINE_string("output", None, "JSON file to write; none: print only.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Of which the median.", lower_bound=1)

BATCH, SIZE, TAPS = 32, 32, 27


class Row(NamedTuple):
    """One line of the table: a value, and what was promised of it."""

    what: str
    value: float | None
    unit: str
    target: str = ""
    met: bool | None = None


def medians_ms(contenders: dict[str, Callable], rounds: int, calls: int = 1) -> dict[str, float]:
    """The median time of each over the rounds, in every one of which all have their turn.

    A turn of several calls counts as their mean. Each must have been called before.
    """
    seconds = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, call in contenders.items():
            start = time.perf_counter()
            for _ in range(calls):
                jax.block_until_ready(call())
            seconds[name].append((time.perf_counter() - start) / calls)
    return {name: 1e3 * float(np.median(values)) for name, values in seconds.items()}


@jax.jit
def degrade_batch(degradation: Degradation, x0_BHWC, t_B, omega_B=None):
    return jax.vmap(degrade, in_axes=(None, 0, 0, 0))(degradation, x0_BHWC, t_B, omega_B)


def blur(steps: int, size: int = SIZE) -> Degradation:
    """Cold Diffusion's blur for generation, T = steps."""
    stds = schedules.exponential_stds(steps, rate=0.01)
    return gaussian_blur((size, size, 3), stds=stds, kernel_size=TAPS)


def convolve(x_BHWC, kernel):
    """One square kernel [h, w] on every channel, circular. The channels are taken for images: on
    a CPU that is faster than a convolution in groups.
    """
    batch, height, width, channels = x_BHWC.shape
    planes = jnp.moveaxis(x_BHWC, 3, 1).reshape(-1, height, width, 1)
    pads = ((0, 0), *((n // 2, n // 2) for n in kernel.shape), (0, 0))
    planes = jax.lax.conv_general_dilated(
        jnp.pad(planes, pads, mode="wrap"),
        kernel[:, :, None, None],
        window_strides=(1, 1),
        padding="VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return jnp.moveaxis(planes.reshape(batch, channels, height, width), 1, 3)


def convolve_separably(x_BHWC, taps):
    """The same, the kernel being the outer square of taps [n]: 2 n shifted images, added."""
    for axis in (1, 2):
        shifted = (jnp.roll(x_BHWC, len(taps) // 2 - j, axis) for j in range(len(taps)))
        x_BHWC = sum(tap * image for tap, image in zip(taps, shifted, strict=True))
    return x_BHWC


@functools.partial(jax.jit, static_argnums=0)
def chain_jax(convolve_fn, kernels, x0_BHWC, k_B):
    """k convolutions of each image, in max(k) of the batch."""

    def body(i, x_BHWC):
        return jnp.where((i < k_B)[:, None, None, None], convolve_fn(x_BHWC, kernels[i]), x_BHWC)

    return jax.lax.fori_loop(0, jnp.max(k_B), body, x0_BHWC)


def chain_torch(kernels_TNN, x0_BHWC, k_B):
    """As Cold Diffusion's code does it: the whole batch convolved max(k) times, every state
    kept, each image's own one picked.
    """
    import torch

    with torch.no_grad():
        states = [torch.from_numpy(np.moveaxis(x0_BHWC, 3, 1).copy())]
        channels, pad = states[0].shape[1], (TAPS // 2,) * 4
        for kernel in torch.from_numpy(kernels_TNN[: k_B.max()]):
            padded = torch.nn.functional.pad(states[-1], pad, mode="circular")
            weight = kernel.expand(channels, 1, TAPS, TAPS)
            states.append(torch.nn.functional.conv2d(padded, weight, groups=channels))
        picked = torch.stack(states)[torch.from_numpy(k_B.astype(np.int64)), range(len(k_B))]
    return np.moveaxis(picked.numpy(), 1, 3)


def choose_torch_threads(call: Callable) -> None:
    """One, or as many as PyTorch would take: on a busy machine many wait for one another."""
    import torch

    medians = {}
    for threads in (1, torch.get_num_threads()):
        torch.set_num_threads(threads)
        medians[threads] = medians_ms({"": call}, 3)[""]
    torch.set_num_threads(min(medians, key=medians.get))


CHAINS = {  # label: the least that the tables are promised to be faster
    "convolved t times in PyTorch": 2000,
    "the same chain in jitted JAX": 200,
    "the same, by rows and columns": None,
}


def against_the_chain(rounds: int) -> list[Row]:
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
        lambda k_B: chain_torch(squares, x0, k_B),
        lambda k_B: chain_jax(convolve, squares_jax, x0_jax, k_B),
        lambda k_B: chain_jax(convolve_separably, lines_jax, x0_jax, k_B),
    )
    chains = dict(zip(CHAINS, convolving, strict=True))
    few, in_torch = np.minimum(k_B, 5), next(iter(CHAINS))
    if importlib.util.find_spec("torch") is None:
        chains.pop(in_torch)
    else:
        choose_torch_threads(lambda: chains[in_torch](few))
    for label, call in chains.items():
        np.testing.assert_allclose(call(few), tables(few), atol=1e-5, err_msg=label)

    bound_k = {label: functools.partial(call, k_B) for label, call in chains.items()}
    jax.block_until_ready(tables(k_B))
    ours = medians_ms({"tables": lambda: tables(k_B)}, rounds, calls=50)["tables"]
    medians = medians_ms(bound_k, rounds)
    what = f"{BATCH} images {SIZE}x{SIZE}x3, random t, T = {steps}, {TAPS}x{TAPS} blur"
    rows = [Row(f"{what}: tables", ours, "ms")]
    for label, target in CHAINS.items():
        if label not in medians:
            rows.append(Row(label, None, "skipped: torch is not installed"))
            continue
        ratio = medians[label] / ours
        rows.append(Row(label, medians[label], "ms"))
        promise = ("", None) if target is None else (f">= {target:,}", ratio >= target)
        rows.append(Row(f"{label}, over tables", ratio, "x", *promise))
    return rows


def flat_in_t_and_steps(rounds: int) -> list[Row]:
    """One cost at t = 0.01 and t = 1, with T = 50 and T = 300."""
    x0 = jnp.zeros((BATCH, SIZE, SIZE, 3))
    contenders = {
        (steps, t): functools.partial(degrade_batch, blur(steps), x0, jnp.full(BATCH, t))
        for steps in (50, 300)
        for t in (0.01, 1.0)
    }
    for call in contenders.values():
        jax.block_until_ready(call())
    medians = medians_ms(contenders, 10 * rounds, calls=20)
    in_t = medians[300, 1.0] / medians[300, 0.01]
    in_steps = medians[300, 1.0] / medians[50, 1.0]
    return [
        Row("degrade at t = 1 over t = 0.01, T = 300", in_t, "x", "about 1", in_t < 1.5),
        Row("degrade with T = 300 over T = 50, t = 1", in_steps, "x", "about 1", in_steps < 1.5),
    ]


def snowfall(rounds: int) -> list[Row]:
    """A batch of new snowfalls, drawn and laid over the images."""
    degradation = snow((SIZE, SIZE, 3), steps=200, level=3)
    x0 = jnp.zeros((BATCH, SIZE, SIZE, 3))
    t_B = jnp.linspace(0, 1, BATCH)

    @jax.jit
    def one(degradation, key):
        keys = jax.random.split(key, BATCH)
        omega_B = jax.vmap(draw, in_axes=(None, 0, 0))(degradation, keys, x0)
        return degrade_batch(degradation, x0, t_B, omega_B)

    call = functools.partial(one, degradation, jax.random.key(0))
    jax.block_until_ready(call())
    value = medians_ms({"snow": call}, 10 * rounds, calls=10)["snow"]
    what = f"snow drawn and laid over {BATCH} images {SIZE}x{SIZE}x3, T = 200"
    return [Row(what, value, "ms", "< 10", value < 10)]


def tables(rounds: int) -> list[Row]:
    """Building the largest published blur: T = 300 at 128x128."""
    steps, size = 300, 128
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(blur(steps, size)))
    call = functools.partial(blur, steps, size)
    seconds = medians_ms({"tables": call}, rounds)["tables"] / 1e3
    bound = 4 * steps * size**2
    what = f"tables of {TAPS}x{TAPS} blur, T = {steps}, {size}x{size}"
    return [
        Row(f"{what}: built", seconds, "s", "< 2", seconds < 2),
        Row(f"{what}: held", held, "bytes", f"<= {bound:,}", held <= bound),
    ]


def environment() -> dict:
    versions = {"python": platform.python_version()}
    for name in ("jax", "jaxlib", "numpy", "torch"):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = None
    torch = sys.modules.get("torch")
    return {
        "device": runs.describe_device(),
        "processor": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "torch_threads": torch and torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "versions": versions,
    }


def markdown(rows: list[Row]) -> str:
    lines = ["| | median | target | met |", "|---|---|---|---|"]
    for row in rows:
        value = row.unit if row.value is None else f"{row.value:,.4g} {row.unit}"
        met = "" if row.met is None else ("yes" if row.met else "NO")
        lines.append(f"| {row.what} | {value} | {row.target} | {met} |")
    return "\n".join(lines)


def main() -> None:
    rows = []
    for measure in (against_the_chain, flat_in_t_and_steps, snowfall, tables):
        rows += measure(_ROUNDS.value)
    report = environment() | {"rounds": _ROUNDS.value, "rows": [row._asdict() for row in rows]}
    print(markdown(rows))
    if _OUTPUT.value:
        path = pathlib.Path(_OUTPUT.value)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report, indent=2) + "\n")
        print(f"\nwrote {path}")


if __name__ == "__main__":
    commands.run(main)
