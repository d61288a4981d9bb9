"""Restores your own images, that are degraded already.

python -m experiments.restore --workdir=runs/demo --input=photo.png --output=restored

The input is an image, an array (.npy) or a folder of them, see `diffjax/images.py`.
Writes, into the output folder, one PNG of 8 bits for each image, under the same name. Nothing
is ever overwritten. What cannot be read is named and skipped.

--severity says how degraded the images are, in (0, 1]; without it each image's severity is
estimated (`diffjax/blind.py`) and printed. A run trained at levels takes the nearest.

The realization of the degradation (the noise, which hole, which snowfall) is not known. It is
read off the image and the network's first answer where the degradation has an inverse, as
noise has; else it is the best of 64 drawn ones: what explains the image best. That finds the
place of a hole, not a snowfall. Noise beyond [-1, 1] survives in .npy of floats alone, so
that is what a run with noise does best with.

Any size will do where the degradation can be built for it and the network has no linear
restorer, which exists for the training size alone; --resize brings images to that size. It
changes what a severity means: a blur of 4 pixels is one of 2 at half the size.

--degrade first degrades the images, to try a run on clean ones: NAME_degraded.png.

Exit status: 0 if all was restored, 1 if something was skipped, 2 for a wrong flag.
"""

import functools
import pathlib
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from diffjax import blind, parallel, restorers
from diffjax.degradations.base import Degradation, degrade, draw
from diffjax.images import cover, is_named_as_image, read
from diffjax.samplers import SAMPLERS
from experiments.lib import build, commands, hosts, images, runs
from experiments.lib.commands import UsageError

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
_INPUT = flags.DEFINE_string("input", None, "An image, an array (.npy), or a folder of them.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder of the restored images; made if absent.")
_SEVERITY = flags.DEFINE_float("severity", None, "In (0, 1]; none: estimated for each image.")
_DEGRADE = flags.DEFINE_bool("degrade", False, "Degrade the images first, at --severity or 1.")
_SAMPLER = flags.DEFINE_enum("sampler", None, tuple(SAMPLERS), "None: the config's.")
_STEPS = flags.DEFINE_integer("steps", None, "None: the config's.", lower_bound=1)
_RESIZE = flags.DEFINE_bool("resize", False, "Resize and crop to the run's size.")
_SEED = flags.DEFINE_integer("seed", 0, "Of whatever is drawn.", lower_bound=0)
flags.mark_flags_as_required(["workdir", "input", "output"])
_FITTED = 720  # training images that the estimate of the severity is fitted on


class Item(NamedTuple):
    """One image to restore."""

    name: str
    image: np.ndarray  # [H, W, C]
    note: str  # what was done to it on reading
    output: pathlib.Path
    degraded: pathlib.Path  # where --degrade leaves its picture


def problems(
    experiment: build.Experiment,
    problem: restorers.Problem,
    roots: dict[str, str],
    *,
    told: bool,
) -> Callable[[tuple[int, int, int]], restorers.Problem]:
    """shape -> the run's problem at that size, its degradation built anew where it is another.

    told: whether the severity is given. The function raises ValueError, saying what to do, for a
    size that will not do.
    """
    own = experiment.image_shape

    @functools.cache
    def at(shape):
        if shape == own:
            return problem
        size, own_size = (f"{height} x {width}" for height, width, _ in (shape, own))
        advice = f"add --resize, or crop it to {own_size}"
        if problem.wiener is not None:
            raise ValueError(
                f"it is {size}, and the run's Wiener restorer is for {own_size}: {advice}"
            )
        if not told:
            raise ValueError(
                f"it is {size}, and severities are estimated at {own_size} alone: give "
                f"--severity, or {advice}"
            )
        try:
            degradation = build.build_degradation(experiment.config.degradation, shape, roots)
            jax.eval_shape(
                lambda key, x0: degrade(degradation, x0, 1.0, draw(degradation, key, x0)),
                jax.random.key(0),
                jax.ShapeDtypeStruct(shape, jnp.float32),
            )
        except (ValueError, TypeError, AssertionError) as error:
            reason = f"it is {size}, which the run's degradation cannot be built for: {advice}"
            raise ValueError(reason) from error
        return problem._replace(degradation=degradation)

    return at


def reach(degradation: Degradation, clean: np.ndarray) -> float:
    """How far from 0 numbers may lie: 1, or half as far again as xT of clean images does."""
    keys = jax.random.split(jax.random.key(0), len(clean))
    one = parallel.map_examples(lambda D, key, x0: degrade(D, x0, 1.0, draw(D, key, x0)))
    farthest = float(np.abs(one(degradation, keys, clean)).max())
    return 1.0 if farthest <= 1 + 1e-5 else 1.5 * farthest


def find_inputs(source: pathlib.Path) -> list[pathlib.Path]:
    """The files of --input."""
    if not source.exists():
        raise UsageError(f"--input {source} does not exist")
    if not source.is_dir():
        return [source]
    paths = sorted(path for path in source.iterdir() if not path.name.startswith("."))
    if not any(map(is_named_as_image, paths)):
        raise UsageError(f"--input {source} holds no images (PNG, JPEG, .npy, ...)")
    return paths


def read_inputs(
    paths: list[pathlib.Path],
    output: pathlib.Path,
    image_shape: tuple[int, int, int],
    *,
    resize: bool,
    problem_fn: Callable,
    reach_fn: Callable[[], float],
) -> tuple[list[Item], int]:
    """The images of the files, and how many were skipped, each with a line of its own."""
    height, width, channels = image_shape
    items, skipped = [], 0
    for path in paths:
        try:
            if len(paths) > 1 and not is_named_as_image(path):
                raise ValueError("it is no image")
            stack, note = images.to_channels(read(path), channels)
            largest = float(np.abs(stack).max())
            if largest > 1 + 1e-5 and largest > reach_fn():
                low, high = stack.min(), stack.max()
                raise ValueError(f"its numbers lie in [{low:g}, {high:g}]: rescale them to [-1, 1]")
            if resize:
                stack = np.stack([cover(image, height, width) for image in stack])
            problem_fn(stack.shape[1:])
        except ValueError as error:
            print(f"skipped {path}: {error}", file=sys.stderr)
            skipped += 1
            continue
        for i, image in enumerate(stack):
            name = path.stem if len(stack) == 1 else f"{path.stem}_{i:04d}"
            outputs = output / f"{name}.png", output / f"{name}_degraded.png"
            items.append(Item(path.name, image, note, *outputs))
    return items, skipped


def claim_outputs(items: list[Item], output: pathlib.Path, *, degraded: bool) -> None:
    """Makes the output folder, unless two images or a file in it want the same name."""
    taken: dict[pathlib.Path, str] = {}
    for item in items:
        for path in (item.output, item.degraded) if degraded else (item.output,):
            if path.exists():
                raise UsageError(f"{path} exists: choose another --output")
            if path in taken:
                raise UsageError(
                    f"{taken[path]} and {item.name} would both become {path}: rename one of them"
                )
            taken[path] = item.name
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--output {output} cannot be made: {error}") from error


def severities(
    experiment: build.Experiment, roots: dict[str, str], items: list[Item], given: float | None
) -> tuple[list[float], str]:
    """The severity of each image, one that was trained, and where it comes from."""
    levels = experiment.levels
    if given is not None:
        t = given if levels is None else max(1, round(given * levels)) / levels
        how = "given" if t == given else f"the trained level nearest to {given:g}"
        return [t] * len(items), how
    train = build.load_data(experiment.config, "train", roots)
    indices = np.linspace(0, train.size - 1, min(train.size, _FITTED)).astype(int)
    estimator = blind.fit(
        experiment.degradation,
        train.fetch_fn(indices)["image"],
        blind.candidates(levels),
        jax.random.key(experiment.config.seed),
    )
    images = np.stack([item.image for item in items])
    return blind.estimate(estimator, images).tolist(), "estimated"


def batches(items: list[Item], batch_size: int) -> Iterator[tuple[np.ndarray, int]]:
    """(indices, how many count): of one size each; what fills up a last batch does not count."""
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for i, item in enumerate(items):
        by_shape.setdefault(item.image.shape, []).append(i)
    for members in by_shape.values():
        size = min(batch_size, len(members))
        for start in range(0, len(members), size):
            part = np.arange(start, start + size) % len(members)
            yield np.asarray(members)[part], min(size, len(members) - start)


def restorer(experiment: build.Experiment, sampler_name: str | None) -> Callable:
    """(operand, key, xt, ts) -> x0 of one image; the operand is (params, problem)."""
    sampler, objective = build.sampler(experiment, sampler_name), experiment.objective

    def restore(operand, key, xt, ts):
        params, problem = operand
        restore_fn = restorers.restorer(objective, params, problem, objective.num_classes)
        return blind.restore(sampler, problem.degradation, restore_fn, key, xt, ts)

    return restore


class Walk(NamedTuple):
    """How all images are restored."""

    restore_fn: Callable  # from `restorer`, over examples
    problem_fn: Callable  # from `problems`
    params: Any
    grid: np.ndarray
    levels: int | None
    seed: int
    degraded: bool  # whether to degrade them first


def restore_all(walk: Walk, items: list[Item], from_t: list[float], how: str, size: int) -> int:
    """Writes every image and says so; returns how many had to be skipped after all.

    size: images at a time.
    """
    ts = np.stack([blind.grid_from(t, walk.grid, walk.levels) for t in from_t])
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(
        jax.random.key(walk.seed), np.arange(len(items))
    )
    degrade_fn = parallel.map_examples(
        lambda D, key, x0, t: degrade(D, x0, t, draw(D, jax.random.fold_in(key, 1), x0))
    )
    skipped = 0
    for indices, count in batches(items, size):
        xt = np.stack([items[i].image for i in indices])
        problem = walk.problem_fn(xt.shape[1:])
        if walk.degraded:
            xt = degrade_fn(problem.degradation, keys[indices], xt, ts[indices, 0])
        x0 = walk.restore_fn((walk.params, problem), keys[indices], xt, ts[indices])
        for i, before, restored in zip(indices[:count], xt, x0, strict=False):
            item = items[i]
            if not np.all(np.isfinite(restored)):
                print(f"skipped {item.name}: its restoration is not finite", file=sys.stderr)
                skipped += 1
                continue
            if walk.degraded:
                images.write(item.degraded, before)
            images.write(item.output, restored)
            shape = "x".join(map(str, item.image.shape))
            note = f", {item.note}" if item.note else ""
            print(f"{item.name}: {shape}{note}, severity {from_t[i]:.3g} ({how}) -> {item.output}")
    return skipped


@hosts.joined()
def main() -> int:
    given, degraded = _SEVERITY.value, _DEGRADE.value
    if given is not None and not 0 < given <= 1:
        raise UsageError(f"--severity must lie in (0, 1]; got {given}")
    given = 1.0 if degraded and given is None else given
    run = runs.load_run(pathlib.Path(_WORKDIR.value))
    if not hosts.is_first():
        return 0
    paths, output = find_inputs(pathlib.Path(_INPUT.value)), pathlib.Path(_OUTPUT.value)
    experiment, source = run.experiment, run.source
    if experiment.image_shape[-1] not in (1, 3):
        raise UsageError(
            f"images are written with 1 or 3 channels; the run's have {experiment.image_shape[-1]}"
        )

    @functools.cache
    def reach_fn():
        clean = source.fetch_fn(range(min(64, source.size)))["image"]
        return 1.0 if degraded else reach(experiment.degradation, clean)

    problem_fn = problems(experiment, run.problem, run.roots, told=given is not None)
    items, skipped = read_inputs(
        paths,
        output,
        experiment.image_shape,
        resize=_RESIZE.value,
        problem_fn=problem_fn,
        reach_fn=reach_fn,
    )
    if not items:
        print(f"restored nothing, skipped {skipped}")
        return 1
    claim_outputs(items, output, degraded=degraded)
    walk = Walk(
        parallel.map_examples(restorer(experiment, _SAMPLER.value)),
        problem_fn,
        run.state.ema_params,
        np.asarray(build.grid(experiment, _STEPS.value)),
        experiment.levels,
        _SEED.value,
        degraded,
    )
    from_t, how = severities(experiment, run.roots, items, given)
    lost = restore_all(walk, items, from_t, how, experiment.config.sample.batch_size)
    print(f"restored {len(items) - lost} images, skipped {skipped + lost}")
    return int(skipped + lost > 0)


if __name__ == "__main__":
    commands.run(main, again="what is written stays; start again with another --output")
