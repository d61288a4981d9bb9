"""Times what diffjax promises, and sets it beside what others take for the same.

python -m experiments.benchmark --output=docs/results/benchmark

Writes OUTPUT.json and OUTPUT.md, a table. Every row is of this one run on this one machine: the
median of several rounds, in which all that are compared take turns, with the first and third
quartile; compilation is left out where the row does not speak of it. A row that needs an absent
package says so. Where other programs kept the machine busy, no time is quoted: neither at a
load above 2 before the start, nor in a row during which they took more than half a CPU.
"""

import contextlib
import functools
import json
import os
import pathlib
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import metadata

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from diffjax import checkpoints, data, restorers, samplers, training
from diffjax.degradations.base import draw
from diffjax.degradations.blur import gaussian_blur
from diffjax.degradations.noise import gaussian_noise
from diffjax.degradations.snow import snow
from diffjax.models import dit, initialize, unet
from experiments.lib import commands, files, opponents, runs
from experiments.lib.timed_degradations import (
    BATCH,
    SIZE,
    TAPS,
    blur,
    chain,
    degrade_batch,
    large,
    one_cost,
)
from experiments.lib.timing import (
    Others,
    Row,
    Times,
    clock,
    markdown,
    missing,
    quoted,
    ratio,
    skipped,
)

_OUTPUT = flags.DEFINE_string(
    "output", None, "Path of the .json and .md to write; none: print only."
)
_ROUNDS = flags.DEFINE_integer("rounds", 7, "Of which the median.", lower_bound=1)
_ONLY = flags.DEFINE_list("only", None, "Groups of rows, by name; none: all.")

UNET = unet.UNet(channels=1, width=64, multipliers=(1, 2), blocks=1, patch=4)
NETWORKS = {  # on 32x32x1, that of the MNIST tasks first
    "U-Net on patches of 4": UNET,
    "DiT on patches of 4": dit.DiT(channels=1, patch=4, width=128, depth=4, heads=4),
}
TRAIN_BATCH, PRODUCT = 64, 4096


def create_step(model, params, x0) -> tuple[Callable, float]:
    """One whole training step of diffjax on MNIST's blur, and its multiply-adds times two."""
    stds = (7.0,) * 20
    problem = restorers.Problem(gaussian_blur(x0.shape[1:], stds=stds, kernel_size=11))
    optimizer = training.create_optimizer(1e-3, clip_norm=1.0)
    step = functools.partial(
        training.train_step,
        objective=restorers.Objective(network_fn=model.apply, levels=20),
        optimizer=optimizer,
        ema_decay=0.995,
    )
    batch = {"image": x0, "position": np.arange(len(x0), dtype=np.int32)}
    state = training.create_state(params, optimizer)
    key = jax.random.key(0)
    compiled = jax.jit(step).lower(state, batch, key, problem).compile()
    return lambda: compiled(state, batch, key, problem), compiled.cost_analysis()["flops"]


def network_alone(model, params, x0, t) -> dict[str, Callable]:
    """What a training step is mostly made of."""

    def loss(params):
        return jnp.mean(jnp.abs(jax.vmap(model.apply, in_axes=(None, 0, 0))(params, x0, t) - x0))

    def twice(params):  # what one dispatch of two steps would take; its values mean nothing
        return jax.lax.scan(lambda at, _: (jax.grad(loss)(at), None), params, length=2)[0]

    return {
        "the network forward alone": functools.partial(jax.jit(loss), params),
        "the network's gradient alone": functools.partial(jax.jit(jax.grad(loss)), params),
        "two of its gradients in one loop": functools.partial(jax.jit(twice), params),
    }


def train(rounds: int) -> Iterator[Row]:
    """The training step of each network, against its twin in PyTorch.

    Ours degrades the images as well and sums up each severity; the twin is given xt.
    """
    x0 = np.random.default_rng(0).uniform(-1, 1, (TRAIN_BATCH, 32, 32, 1)).astype(np.float32)
    t = np.linspace(0, 1, TRAIN_BATCH, dtype=np.float32)
    square = jnp.ones((PRODUCT, PRODUCT))
    product = clock({"": functools.partial(jax.jit(jnp.matmul), square, square)}, rounds)[""]
    rate = 2 * PRODUCT**3 / product.median  # per ms
    yield Row(f"product of two matrices, {PRODUCT}x{PRODUCT}", rate / 1e6, "GFLOP/s")
    source = data.from_arrays(np.zeros((60_000, 32, 32, 1), np.uint8))
    batches = data.batches(source, batch_size=TRAIN_BATCH, seed=0)
    pipeline = clock({"": lambda: next(batches)["image"]}, rounds, calls=50)[""]
    yield pipeline.row(f"a batch of {TRAIN_BATCH} of 60,000 images 32x32x1 in memory")
    for name, model in NETWORKS.items():
        params = initialize.init(model, jax.random.key(0), x0.shape[1:])
        step, flops = create_step(model, params, x0)
        calls = {"diffjax": step}
        if not missing("torch"):
            calls |= opponents.twin_steps(model, params, x0, 0.5 * x0, t)
        times = clock(calls, rounds)
        what = f"training step, {name}, {TRAIN_BATCH} images 32x32x1"
        for way, one in times.items():
            yield one.row(f"{what}: {way}")
        ours = times.pop("diffjax").median
        yield ratio(
            f"{what}: diffjax over the making of its batch", ours / pipeline.median, at_least=20
        )
        yield Row(f"{what}: share of the product's rate", flops / ours / rate, "")
        for part, one in clock(network_alone(model, params, x0, t), rounds).items():
            yield one.row(f"{what}: {part}")
            yield Row(f"{what}: {part}, share of the step", one.median / ours, "")
        if not times:
            yield skipped(f"{what}: PyTorch", "torch")
            continue
        eager = min(one.median for way, one in times.items() if way.startswith("PyTorch"))
        yield ratio(f"{what}: PyTorch, the better, over diffjax", eager / ours, at_least=1)
        yield ratio(f"{what}: the best of all over diffjax", min(times.values()).median / ours)
    what = f"training step of denoising-diffusion-pytorch, {TRAIN_BATCH} images 32x32x1"
    if missing("torch", "denoising_diffusion_pytorch"):
        yield skipped(what, *missing("torch", "denoising_diffusion_pytorch"))
    else:
        times = clock(opponents.ddpm_steps(TRAIN_BATCH), rounds)
        yield min(times.values()).row(what)


def walk(sampler: samplers.Sampler, steps: int, restore_fn: Callable):
    """(params, D, xT_BHWC, omega_BHWC) -> a batch walked to t = 0; R takes params first."""
    ts = samplers.uniform_grid(steps)

    def one(params, degradation, xT, omega):
        process = restorers.process(degradation, functools.partial(restore_fn, params))
        return samplers.sample(sampler, process, jax.random.key(0), xT, ts, omega)

    return jax.jit(jax.vmap(one, in_axes=(None, None, 0, 0)))


def calls_alone(steps: int, restore_fn: Callable):
    """(params, xT_BHWC) -> R(.., t) of R(.., t'), of ..: as many calls as a walk has steps."""

    def one(params, xT):
        def body(x, t):
            return restore_fn(params, x, t), None

        return jax.lax.scan(body, xT, samplers.uniform_grid(steps)[:-1])[0]

    return jax.jit(jax.vmap(one, in_axes=(None, 0)))


def stub(params, xt, t):
    """In a network's place, so that what surrounds it can be timed."""
    return 0.5 * xt


def walks(rounds: int) -> Iterator[Row]:
    """Algorithm 2 and DDIM: what they add to the network's calls."""
    steps, shape = 50, (SIZE, SIZE, 3)
    xT = jax.random.normal(jax.random.key(0), (16, *shape))
    model = UNET.clone(channels=3)
    params = initialize.init(model, jax.random.key(0), shape)
    improved = functools.partial(walk, samplers.improved, steps)
    times = clock(
        {
            "a stub": functools.partial(improved(stub), None, blur(steps), xT, None),
            "the network": functools.partial(improved(model.apply), params, blur(steps), xT, None),
            "the calls alone": functools.partial(calls_alone(steps, model.apply), params, xT),
        },
        rounds,
    )
    what = f"Algorithm 2, 16 images {SIZE}x{SIZE}x3, {steps} steps"
    for name, one in times.items():
        yield one.row(f"{what}: {name}")
    over = times["the network"].median / times["the calls alone"].median
    yield ratio(f"{what}: the network over the calls alone", over, at_most=1.05)

    ddim = walk(samplers.ddim(), steps, stub)
    calls = {"diffjax": functools.partial(ddim, None, gaussian_noise(shape), xT, xT)}
    what = f"DDIM, 16 images {SIZE}x{SIZE}x3, {steps} steps, a stub"
    if missing("torch", "diffusers"):
        yield skipped(f"{what}: diffusers", *missing("torch", "diffusers"))
    else:
        calls["diffusers"] = opponents.ddim_diffusers(np.moveaxis(np.array(xT), 3, 1), steps)
    times = clock(calls, rounds, calls=5)
    for name, one in times.items():
        yield one.row(f"{what}: {name}")
    if "diffusers" in times:
        over = times["diffusers"].median / times["diffjax"].median
        yield ratio(f"{what}: diffusers over diffjax", over)


DEMO = "--config=experiments/configs/digits_deblur.py"


def cpu_seconds(command: list[str], variables: dict[str, str]) -> float:
    """Of a command run to its end."""
    before = sum(os.times()[2:4])
    subprocess.run(
        [sys.executable, "-m", *command],
        check=True,
        capture_output=True,
        env=os.environ | variables,
    )
    return sum(os.times()[2:4]) - before


LEVEL_3 = "LLVM's level 3, XLA's own"
SETTINGS = {  # environment variables beside which the commands' own settings stand
    "as the commands set it": {},
    "two CPU devices": {"JAX_NUM_CPU_DEVICES": "2"},
    "fusions with YNNPACK, XLA's own": {
        "XLA_FLAGS": "--xla_cpu_experimental_ynn_fusion_type=+reduce"
    },
    LEVEL_3: {"XLA_FLAGS": "--xla_backend_optimization_level=3"},
}


def until_first_step(workdir: pathlib.Path, variables: dict[str, str]) -> tuple[float, int]:
    """CPU seconds of the demo's training until it has told of a step, and its peak of memory in
    bytes; then it is ended. Where /proc is not, the peak is 0.
    """
    command = [sys.executable, "-m", "experiments.train", f"--workdir={workdir}", DEMO]
    before, quiet = sum(os.times()[2:4]), subprocess.DEVNULL
    with subprocess.Popen(
        [*command, "--config.run.log_every=1"],
        stdout=quiet,
        stderr=quiet,
        env=os.environ | variables,
    ) as process:
        while not files.read_lines(workdir / "metrics.jsonl"):
            if process.poll() is not None:
                raise RuntimeError(f"{' '.join(command)} ended with status {process.returncode}")
            time.sleep(0.05)
        status = pathlib.Path("/proc", str(process.pid), "status")
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text() if status.exists() else "")
        process.kill()
    return sum(os.times()[2:4]) - before, 1024 * int(found[1]) if found else 0


def first_step(rounds: int) -> Iterator[Row]:
    """CPU seconds to the demo's first step, and of judging it, each twice: what the first compiles
    is kept for the second.
    """
    del rounds
    with tempfile.TemporaryDirectory() as folder:
        kept = {"DIFFJAX_CACHE": f"{folder}/cache"}
        for name, at_most in (("cold", 15), ("warm", 8)):
            seconds, peak = until_first_step(pathlib.Path(folder, name), kept)
            what = f"the demo's first step, {name}"
            bound = {"target": f"<= {at_most}", "met": seconds <= at_most}
            yield Row(f"{what}: CPU time", seconds, "s", **bound)
            yield Row(f"{what}: peak memory", peak, "bytes")
        kept_apart = {"DIFFJAX_CACHE": f"{folder}/cache of another", **SETTINGS[LEVEL_3]}
        seconds, _ = until_first_step(pathlib.Path(folder, "other"), kept_apart)
        yield Row(f"the demo's first step, cold, {LEVEL_3}: CPU time", seconds, "s")
        workdir = f"--workdir={folder}/run"
        cpu_seconds(["experiments.train", DEMO, "--config.train.steps=1", workdir], kept)
        for name, at_most in (("cold", None), ("warm", 5)):
            seconds = cpu_seconds(["experiments.evaluate", workdir], kept)
            row = Row(f"evaluate of the demo, {name}: CPU time", seconds, "s")
            bound = {"target": f"<= {at_most}", "met": seconds <= at_most} if at_most else {}
            yield row._replace(**bound)


def settings(rounds: int) -> Iterator[Row]:
    """The steps of a whole training under each: digits at 32x32, the network of the MNIST tasks."""
    steps, every = 10 * (rounds + 2), 10
    run = ["experiments.train", "--config=experiments/configs/mnist_deblur.py"]
    run += ["--config.data.name=digits", f"--config.train.steps={steps}"]
    run += [f"--config.run.log_every={every}"]
    medians = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, variables in SETTINGS.items():
            workdir = pathlib.Path(folder, name)
            cpu_seconds([*run, f"--workdir={workdir}"], variables)
            lines = files.read_lines(workdir / "metrics.jsonl")[1:]  # the first one compiles
            for field, kind in (("seconds", "time"), ("cpu_seconds", "CPU time")):
                ms = 1e3 * np.diff([line[field] for line in lines]) / every
                one = Times(*map(float, np.quantile(ms, (0.5, 0.25, 0.75))))
                yield one.row(f"training step, {name}: {kind}")
                medians[name, kind] = one.median
    ours, *others = SETTINGS
    for other in others:
        over = medians[other, "time"] / medians[ours, "time"]
        yield ratio(f"training step, {other} over {ours}: time", over)


def save_call(rounds: int) -> Row:
    """How long training waits for a checkpoint: the call, the state ready and nothing pending."""
    params = [np.ones((1000, 1000), np.float32) for _ in range(10)]
    optimizer = training.create_optimizer(1e-3)
    state = jax.device_get(training.create_state(params, optimizer))
    steps = iter(range(1, 1000))
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.closing(checkpoints.open_manager(folder, keep=1)) as manager,
    ):
        turns = {
            "call": lambda: checkpoints.save(manager, next(steps), state),
            "rest": manager.wait_until_finished,
        }
        found = clock(turns, rounds)["call"]
    row = found.row("checkpoint of 10,000,000 parameters, with Adam and average: the call")
    return row._replace(target="< 50", met=found.median < 50)


def around_the_step(rounds: int) -> Iterator[Row]:
    """A checkpoint, a batch of new snowfalls, the largest published table."""
    params = initialize.init(UNET, jax.random.key(0), (32, 32, 1))
    state = training.create_state(params, training.create_optimizer(1e-3))
    with tempfile.TemporaryDirectory() as folder:
        with contextlib.closing(checkpoints.open_manager(folder)) as manager:
            steps = iter(range(1, 1000))

            def save():
                checkpoints.save(manager, next(steps), state)
                manager.wait_until_finished()

            times = clock(
                {"saved": save, "loaded": lambda: checkpoints.load(manager, state)}, rounds
            )
    for name, one in times.items():
        yield one.row(f"checkpoint of the U-Net on patches of 4: {name}")
    yield save_call(max(10, rounds))

    degradation = snow((SIZE, SIZE, 3), steps=200, level=3)
    x0, t_B = jnp.zeros((BATCH, SIZE, SIZE, 3)), jnp.linspace(0, 1, BATCH)

    @jax.jit
    def snowfall(degradation, key):
        keys = jax.random.split(key, BATCH)
        omega_B = jax.vmap(draw, in_axes=(None, 0, 0))(degradation, keys, x0)
        return degrade_batch(degradation, x0, t_B, omega_B)

    call = functools.partial(snowfall, degradation, jax.random.key(0))
    drawn = clock({"": call}, rounds, calls=100)[""]
    what = f"snow drawn and laid over {BATCH} images {SIZE}x{SIZE}x3, T = 200"
    yield drawn.row(what)._replace(target="< 10", met=drawn.median < 10)

    steps, size = 300, 128
    what = f"tables of {TAPS}x{TAPS} blur, T = {steps}, {size}x{size}"
    built = clock({"": functools.partial(blur, steps, size)}, rounds)[""]
    yield built.row(f"{what}: built")._replace(target="< 2,000", met=built.median < 2000)
    held, bound = sum(x.nbytes for x in jax.tree.leaves(blur(steps, size))), 4 * steps * size**2
    yield Row(f"{what}: held", held, "bytes", target=f"<= {bound:,}", met=held <= bound)


GROUPS = {
    "chain": chain,
    "one_cost": one_cost,
    "train": train,
    "walks": walks,
    "first_step": first_step,
    "settings": settings,
    "around_the_step": around_the_step,
    "large": large,
}


def environment() -> dict:
    versions = {"python": platform.python_version()}
    for name in ("jax", "jaxlib", "numpy", "torch", "diffusers", "denoising-diffusion-pytorch"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {
        "date": time.strftime("%Y-%m-%d"),
        "device": runs.describe_device(),
        "processor": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[0],
        "versions": versions,
    }


def main() -> None:
    groups = _ONLY.value or list(GROUPS)
    for name in groups:
        if name not in GROUPS:
            raise commands.UsageError(f"--only must name some of {', '.join(GROUPS)}; got {name!r}")
    report = environment()
    if report["load"] > 2:
        raise commands.UsageError(
            f"the load is {report['load']:.1f}, and no time taken above 2 is quoted: wait until "
            "other programs have ended"
        )
    rows = []
    for name in groups:
        others = Others()
        found = list(GROUPS[name](_ROUNDS.value))
        found = quoted(found, others.busy())
        print(markdown(found), flush=True)
        rows += found
    report |= {"rounds": _ROUNDS.value, "rows": [row._asdict() for row in rows]}
    if _OUTPUT.value:
        path = pathlib.Path(_OUTPUT.value)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".json").write_text(json.dumps(report, indent=2) + "\n")
        about = f"{report['device']}, {report['processor']}, {report['cores']} cores, load "
        about += f"{report['load']:.1f} before, {report['date']}; "
        about += ", ".join(f"{name} {version}" for name, version in report["versions"].items())
        path.with_suffix(".md").write_text(f"{about}\n\n{markdown(rows)}\n")
        print(f"\nwrote {path}.json and .md")


if __name__ == "__main__":
    commands.run(main)
