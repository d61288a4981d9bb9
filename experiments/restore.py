"""Restores your own images, that are degraded already.

python -m experiments.restore --workdir=runs/demo --input=photo.png --output=restored

The input is an image, an array (.npy) or a folder of them, see `experiments/images.py`; the
output is a folder, that gets one PNG of 8 bits for each image, under the same name. Nothing
is ever overwritten. What cannot be read is named and skipped.

--severity says how degraded the images are, in (0, 1]; without it each image's severity is
estimated (`experiments/severity.py`) and printed. A run trained at levels takes the nearest.

The realisation of the degradation (the noise, which hole, which snowfall) is not known. It is
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
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from diffjax import parallel, training
from diffjax.degradations import degrade, draw
from experiments import building, common, generating, images, severity

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
_INPUT = flags.DEFINE_string("input", None, "An image, an array (.npy), or a folder of them.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder of the restored images; made if absent.")
_SEVERITY = flags.DEFINE_float("severity", None, "In (0, 1]; none: estimated for each image.")
_DEGRADE = flags.DEFINE_bool("degrade", False, "Degrade the images first, at --severity or 1.")
_SAMPLER = flags.DEFINE_enum("sampler", None, common.SAMPLERS, "None: the config's.")
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


def problems(run: building.Run) -> Callable[[tuple[int, int, int]], training.Problem]:
    """shape -> the run's problem at that size, its degradation built anew where it is another.

    The function raises ValueError, saying what to do, for a size that will not do.
    """
    own, config = run.experiment.image_shape, run.experiment.config

    @functools.cache
    def problem(shape):
        if shape == own:
            return run.problem
        size, own_size = (f"{height} x {width}" for height, width, _ in (shape, own))
        advice = f"add --resize, or crop it to {own_size}"
        if run.problem.linear is not None:
            raise ValueError(
                f"it is {size}, and the run's linear restorer is for {own_size}: {advice}"
            )
        if _SEVERITY.value is None and not _DEGRADE.value:
            raise ValueError(
                f"it is {size}, and severities are estimated at {own_size} alone: give "
                f"--severity, or {advice}"
            )
        try:
            degradation = building.build_degradation(config.degradation, shape)
            jax.eval_shape(
                lambda key, x0: degrade(degradation, x0, 1.0, draw(degradation, key, x0)),
                jax.random.key(0),
                jax.ShapeDtypeStruct(shape, jnp.float32),
            )
        except (ValueError, TypeError, AssertionError) as error:
            reason = f"it is {size}, which the run's degradation cannot be built for: {advice}"
            raise ValueError(reason) from error
        return run.problem._replace(degradation=degradation)

    return problem


def reach(run: building.Run) -> float:
    """How far from 0 numbers may lie: 1, or half as far again as the run's own xT do."""
    degradation = run.experiment.degradation
    clean = run.source.fetch_fn(range(min(64, run.source.size)))["image"]
    keys = jax.random.split(jax.random.key(0), len(clean))
    one = parallel.map_examples(lambda D, key, x0: degrade(D, x0, 1.0, draw(D, key, x0)))
    farthest = float(np.abs(one(degradation, keys, clean)).max())
    return 1.0 if _DEGRADE.value or farthest <= 1 + 1e-5 else 1.5 * farthest


def read_inputs(run: building.Run, problem_fn: Callable) -> tuple[list[Item], int]:
    """The images of --input, and how many files were skipped, each with a line of its own."""
    source, output = pathlib.Path(_INPUT.value), pathlib.Path(_OUTPUT.value)
    if not source.exists():
        raise common.UsageError(f"--input {source} does not exist")
    paths = [source]
    if source.is_dir():
        paths = sorted(path for path in source.iterdir() if not path.name.startswith("."))
        if not any(map(images.is_named_as_image, paths)):
            raise common.UsageError(f"--input {source} holds no images (PNG, JPEG, .npy, ...)")
    height, width, channels = run.experiment.image_shape
    allowed = functools.cache(lambda: reach(run))
    items, skipped = [], 0
    for path in paths:
        try:
            if source.is_dir() and not images.is_named_as_image(path):
                raise ValueError("it is no image")
            stack, note = images.to_channels(images.read(path), channels)
            largest = float(np.abs(stack).max())
            if largest > 1 + 1e-5 and largest > allowed():
                low, high = stack.min(), stack.max()
                raise ValueError(f"its numbers lie in [{low:g}, {high:g}]: rescale them to [-1, 1]")
            if _RESIZE.value:
                stack = np.stack([images.cover(image, height, width) for image in stack])
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


def claim_outputs(items: list[Item]) -> None:
    """Makes the output folder, unless two images or a file in it want the same name."""
    taken = {}
    for item in items:
        for path in (item.output, item.degraded) if _DEGRADE.value else (item.output,):
            if path.exists():
                raise common.UsageError(f"{path} exists: choose another --output")
            if path in taken:
                raise common.UsageError(
                    f"{taken[path]} and {item.name} would both become {path}: rename one of them"
                )
            taken[path] = item.name
    try:
        pathlib.Path(_OUTPUT.value).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise common.UsageError(f"--output {_OUTPUT.value} cannot be made: {error}") from error


def severities(run: building.Run, items: list[Item]) -> list[float]:
    """The severity of each image: given, or estimated; one that was trained."""
    levels = run.experiment.objective.levels
    if _SEVERITY.value is not None or _DEGRADE.value:
        t = 1.0 if _SEVERITY.value is None else _SEVERITY.value
        if levels is not None:
            t = max(1, round(t * levels)) / levels
        return [t] * len(items)
    _, train = building.build(run.experiment.config, "train")
    indices = np.linspace(0, train.size - 1, min(train.size, _FITTED)).astype(int)
    estimator = severity.fit(
        run.experiment.degradation,
        train.fetch_fn(indices)["image"],
        severity.candidates(levels),
        jax.random.key(run.experiment.config.seed),
    )
    return severity.estimate(estimator, np.stack([item.image for item in items])).tolist()


def batches(items: list[Item], batch_size: int) -> Iterator[tuple[np.ndarray, int]]:
    """(indices, how many count): of one size each; what fills up a last batch does not count."""
    by_shape = {}
    for i, item in enumerate(items):
        by_shape.setdefault(item.image.shape, []).append(i)
    for members in by_shape.values():
        size = min(batch_size, len(members))
        for start in range(0, len(members), size):
            part = np.arange(start, start + size) % len(members)
            yield np.asarray(members)[part], min(size, len(members) - start)


def restore_all(
    run: building.Run, problem_fn: Callable, items: list[Item], grid: np.ndarray
) -> int:
    """Writes every image and says so; returns how many had to be skipped after all."""
    how = "estimated" if _SEVERITY.value is None and not _DEGRADE.value else "given"
    from_t = severities(run, items)
    if _SEVERITY.value is not None and from_t[0] != _SEVERITY.value:
        how = f"the trained level nearest to {_SEVERITY.value:g}"
    ts = np.stack([severity.grid_from(t, grid, run.experiment.objective.levels) for t in from_t])
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(
        jax.random.key(_SEED.value), np.arange(len(items))
    )
    sampler_name = _SAMPLER.value or run.experiment.config.sample.sampler
    restore_fn = parallel.map_examples(severity.restorer(run, sampler_name))
    degrade_fn = parallel.map_examples(
        lambda D, key, x0, t: degrade(D, x0, t, draw(D, jax.random.fold_in(key, 1), x0))
    )
    skipped = 0
    for indices, count in batches(items, run.experiment.config.sample.batch_size):
        xt = np.stack([items[i].image for i in indices])
        problem = problem_fn(xt.shape[1:])
        if _DEGRADE.value:
            xt = degrade_fn(problem.degradation, keys[indices], xt, ts[indices, 0])
        x0 = restore_fn((run.state.ema_params, problem), keys[indices], xt, ts[indices])
        for i, degraded, restored in zip(indices[:count], xt, x0, strict=False):
            item = items[i]
            if not np.all(np.isfinite(restored)):
                print(f"skipped {item.name}: its restoration is not finite", file=sys.stderr)
                skipped += 1
                continue
            if _DEGRADE.value:
                images.write(item.degraded, degraded)
            images.write(item.output, restored)
            size = "x".join(map(str, item.image.shape))
            note = f", {item.note}" if item.note else ""
            print(f"{item.name}: {size}{note}, severity {from_t[i]:.3g} ({how}) -> {item.output}")
    return skipped


def main() -> int:
    if _SEVERITY.value is not None and not 0 < _SEVERITY.value <= 1:
        raise common.UsageError(f"--severity must lie in (0, 1]; got {_SEVERITY.value}")
    run = building.load_run(pathlib.Path(_WORKDIR.value))
    if run.experiment.image_shape[-1] not in (1, 3):
        raise common.UsageError(
            f"images are written with 1 or 3 channels; the run's have "
            f"{run.experiment.image_shape[-1]}"
        )
    problem_fn, config = problems(run), run.experiment.config.sample
    items, skipped = read_inputs(run, problem_fn)
    if items:
        claim_outputs(items)
        steps = _STEPS.value or config.steps
        grid = np.asarray(generating.grid(config.grid, steps, run.experiment.degradation))
        lost = restore_all(run, problem_fn, items, grid)
        print(f"restored {len(items) - lost} images, skipped {skipped + lost}")
        skipped += lost
    else:
        print(f"restored nothing, skipped {skipped}")
    return int(skipped > 0)


if __name__ == "__main__":
    common.run(main)
