"""Restores your own images, that are degraded already.

python -m experiments.restore --workdir=runs/demo --input=photo.png --output=restored

The input is an image, an array (.npy) or a folder of them, see `diffjax/images.py`.
Writes, into the output folder, one PNG of 8 bits for each image, under the same name, compare.png
(before, after) and settings.json. No image is ever overwritten; the same command goes on where it
was stopped. What cannot be read is named and skipped.

--severity says how degraded the images are, in (0, 1]; without it each image's severity is
estimated (`diffjax/blind.py`) and printed. A run trained at levels takes the nearest.

An image of the run's size is judged beside held-out images, degraded as the run degrades and
restored in the same way: how far D(x0_hat, t) is from it, and how unlikely its statistics are among
the training images'. Where one is more than twice the worst of theirs, that is said.

The realization of the degradation (the noise, which hole, which snowfall) is not known. It is
read off the image and the network's first answer where the degradation has an inverse, as
noise has; else it is the best of 64 drawn ones: what explains the image best. That finds the
place of a hole, not a snowfall. Noise beyond [-1, 1] survives in .npy of floats alone, so
that is what a run with noise does best with.

Any size will do where the degradation can be built for it and the network has no linear
restorer, which exists for the training size alone; --resize brings images to that size. It
changes what a severity means: a blur of 4 pixels is one of 2 at half the size.

--degrade first degrades the images, to try a run on clean ones: NAME_degraded.png.

Exit status: 0 if all was restored, 1 if something was skipped or does not fit, 2 for a wrong flag.
"""

import functools
import pathlib
import sys
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from diffjax import blind, parallel, restorers
from diffjax.degradations.base import Degradation, degrade, draw
from diffjax.samplers import SAMPLERS
from experiments.lib import build, commands, files, fit, hosts, images, provenance, runs
from experiments.lib.commands import UsageError

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
_STEP = flags.DEFINE_string(
    "step", None, "Of the checkpoint, or best, by its held-out loss; none: the latest."
)
_INPUT = flags.DEFINE_string("input", None, "An image, an array (.npy), or a folder of them.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder of the restored images; made if absent.")
_SEVERITY = flags.DEFINE_float("severity", None, "In (0, 1]; none: estimated for each image.")
_DEGRADE = flags.DEFINE_bool("degrade", False, "Degrade the images first, at --severity or 1.")
_SAMPLER = flags.DEFINE_enum("sampler", None, tuple(SAMPLERS), "None: the config's.")
_STEPS = flags.DEFINE_integer("steps", None, "None: the config's.", lower_bound=1)
_RESIZE = flags.DEFINE_bool("resize", False, "Resize and crop to the run's size.")
_SEED = flags.DEFINE_integer("seed", 0, "Of whatever is drawn.", lower_bound=0)
_DIRECTORY = flags.DEFINE_string(
    "config.data.directory", None, "Where the run's data lies now; none: where it lay."
)
flags.mark_flags_as_required(["workdir", "input", "output"])


def problems(
    experiment: build.Experiment,
    problem: restorers.Problem,
    params: Any,
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
        what, x0 = "degradation", jax.ShapeDtypeStruct(shape, jnp.float32)
        try:
            degradation = build.build_degradation(experiment.config.degradation, shape, roots)
            jax.eval_shape(
                lambda key, x0: degrade(degradation, x0, 1.0, draw(degradation, key, x0)),
                jax.random.key(0),
                x0,
            )
            found, what = problem._replace(degradation=degradation), "network"
            answer_fn = functools.partial(restorers.restore, experiment.objective)
            jax.eval_shape(answer_fn, params, found, x0, jax.ShapeDtypeStruct((), jnp.float32))
        except Exception as error:  # a user's network may raise anything
            reason = f"it is {size}, which the run's {what} cannot take: {advice}"
            raise ValueError(reason) from error
        return found

    return at


def reach(degradation: Degradation, clean: np.ndarray) -> float:
    """How far from 0 numbers may lie: 1, or half as far again as xT of clean images does."""
    keys = jax.random.split(jax.random.key(0), len(clean))
    one = parallel.map_examples(lambda D, key, x0: degrade(D, x0, 1.0, draw(D, key, x0)))
    farthest = float(np.abs(one(degradation, keys, clean)).max())
    return 1.0 if farthest <= 1 + 1e-5 else 1.5 * farthest


def trained_severity(given: float, levels: int | None) -> tuple[float, str]:
    """The severity nearest to the one given at which the run was trained, and how it came."""
    t = given if levels is None else max(1, round(given * levels)) / levels
    return t, "given" if t == given else f"the trained level nearest to {given:g}"


def batches(jobs: list[fit.Job], batch_size: int) -> Iterator[tuple[np.ndarray, int]]:
    """(indices, how many count): of one size each; what fills up a last batch does not count."""
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for i, job in enumerate(jobs):
        by_shape.setdefault(job.xt.shape, []).append(i)
    for members in by_shape.values():
        size = min(batch_size, len(members))
        for start in range(0, len(members), size):
            part = np.arange(start, start + size) % len(members)
            yield np.asarray(members)[part], min(size, len(members) - start)


def restorer(experiment: build.Experiment, sampler_name: str | None) -> Callable:
    """(operand, key, xt, ts) -> x0 of one image, and what it leaves unexplained, see `blind`.

    The operand is (params, problem).
    """
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
    batch_size: int


def restored(walk: Walk, jobs: list[fit.Job]) -> Iterator[list[tuple[int, np.ndarray, float]]]:
    """Batch by batch: (index, x0, what it leaves unexplained) of the jobs."""
    for indices, count in batches(jobs, walk.batch_size):
        members = [jobs[i] for i in indices]
        xt = np.stack([job.xt for job in members])
        ts = np.stack([blind.grid_from(job.t, walk.grid, walk.levels) for job in members])
        keys = jax.numpy.stack([job.key for job in members])
        problem = walk.problem_fn(xt.shape[1:])
        x0, unexplained = walk.restore_fn((walk.params, problem), keys, xt, ts)
        yield list(zip(indices[:count].tolist(), x0, unexplained.tolist(), strict=False))


def restore_all(
    walk: Walk,
    jobs: list[fit.Job],
    estimator: blind.Estimator | None,
    keep: Callable[[dict[str, dict]], None],
) -> int:
    """Writes every image and says so; returns how many had to be skipped after all.

    Args:
      walk: how.
      jobs: the held-out ones first.
      estimator: of the images' statistics; None where there are no held-out ones.
      keep: takes what is to be remembered of the images that were just written.
    """
    far = fit.distances(estimator, jobs)
    usual: dict[float, fit.Fit] = {}
    skipped = 0
    for batch in restored(walk, jobs):
        written = {}
        for i, x0, unexplained in batch:
            item, found = jobs[i].item, fit.Fit(unexplained, far[i])
            if item is None:
                usual[jobs[i].t] = fit.worse(usual.get(jobs[i].t), found)
                continue
            if not np.all(np.isfinite(x0)):
                print(f"skipped {item.name}: its restoration is not finite", file=sys.stderr)
                skipped += 1
                continue
            if jobs[i].xt is not item.image:
                images.write(item.degraded, jobs[i].xt)
            images.write(item.output, x0)
            shape = "x".join(map(str, item.image.shape))
            note = f", {item.note}" if item.note else ""
            print(
                f"{item.name}: {shape}{note}, severity {jobs[i].t:.3g} ({jobs[i].how}), "
                f"unexplained {unexplained:.2g} -> {item.output}"
            )
            words = fit.misfit(found, usual.get(jobs[i].t))
            if words is not None:
                print(f"misfit {item.name}: {words}", file=sys.stderr)
            written[item.output.stem] = {
                "image": item.digest,
                "severity": jobs[i].t,
                "unexplained": unexplained,
                "misfit": words,
            }
        keep(written)
    return skipped


def plan(
    run: runs.Run, items: list[images.Item], walk: Walk, given: float | None, chosen: dict
) -> tuple[list[fit.Job], blind.Estimator | None]:
    """What is to be restored, from which severity, and the images that say what is usual."""
    experiment, estimator = run.experiment, None
    levels, own = experiment.levels, experiment.image_shape
    told = None if given is None else trained_severity(given, levels)
    if any(item.image.shape == own for item in items):
        estimator = fit.estimator(
            experiment.degradation,
            build.load_data(experiment.config, "train", run.roots),
            blind.candidates(levels) if told is None else np.array(told[:1]),
            jax.random.key(experiment.config.seed),
        )
    jobs = []
    for item in items:
        # Of the name, so that an image does not depend on which others there are.
        name = zlib.crc32(item.output.stem.encode())
        key, xt = jax.random.fold_in(jax.random.key(chosen["seed"]), name), item.image
        t, how = told or (float(blind.estimate(estimator, xt[None])[0]), "estimated")
        if chosen["degrade"]:
            degradation = walk.problem_fn(xt.shape).degradation
            xt = np.asarray(fit.degraded(degradation, key, xt, t))
        jobs.append(fit.Job(item, xt, t, how, key))
    ts = {job.t for job in jobs if job.xt.shape == own}
    return fit.held_out(experiment.degradation, run.source, ts) + jobs, estimator


def restore_inputs(run: runs.Run, given: float | None) -> int:
    """Restores what --input names, from the severity given or found; the exit status."""
    degrades = _DEGRADE.value
    paths, output = images.find_inputs(pathlib.Path(_INPUT.value)), pathlib.Path(_OUTPUT.value)
    experiment, source = run.experiment, run.source
    own = experiment.image_shape
    if own[-1] not in (1, 3):
        raise UsageError(f"images are written with 1 or 3 channels; the run's have {own[-1]}")

    @functools.cache
    def reach_fn():
        clean = source.fetch_fn(range(min(64, source.size)))["image"]
        return 1.0 if degrades else reach(experiment.degradation, clean)

    params = run.state.ema_params
    problem_fn = problems(experiment, run.problem, params, run.roots, told=given is not None)
    items, skipped = images.read_inputs(
        paths,
        output,
        own,
        resize=_RESIZE.value,
        problem_fn=problem_fn,
        reach_fn=reach_fn,
    )
    if not items:
        print(f"restored nothing, skipped {skipped}")
        return 1
    walk = Walk(
        parallel.map_examples(restorer(experiment, _SAMPLER.value)),
        problem_fn,
        params,
        np.asarray(build.grid(experiment, _STEPS.value)),
        experiment.levels,
        experiment.config.sample.batch_size,
    )
    chosen = {
        "step": int(run.state.step),
        "severity": given,
        "degrade": degrades,
        "sampler": _SAMPLER.value or experiment.config.sample.sampler,
        "steps": len(walk.grid) - 1,
        "resize": _RESIZE.value,
        "seed": _SEED.value,
    }
    about = provenance.brief(run.fingerprint) | chosen
    about |= images.claim_outputs(items, output, chosen)
    done = about["restored"]

    def keep(written):
        done.update(written)
        files.write_json(output / "settings.json", about)

    keep({})
    left = [item for item in items if item.output.stem not in done]
    lost = restore_all(walk, *plan(run, left, walk, given, chosen), keep) if left else 0
    images.draw_comparison(output / "compare.png", items)
    kept = [done[item.output.stem] for item in items if item.output.stem in done]
    bad = sum(one["misfit"] is not None for one in kept)
    before = f", {len(items) - len(left)} of them before" if len(left) < len(items) else ""
    unfit = f", of which {bad} do not fit" if bad else ""
    print(f"restored {len(kept)} images{before}{unfit}, skipped {skipped + lost}")
    return int(skipped + lost + bad > 0)


@hosts.joined()
def main() -> int:
    given = _SEVERITY.value
    if given is not None and not 0 < given <= 1:
        raise UsageError(f"--severity must lie in (0, 1]; got {given}")
    given = 1.0 if _DEGRADE.value and given is None else given
    run = runs.load_run(files.folder(_WORKDIR.value), _STEP.value, directory=_DIRECTORY.value)
    return hosts.on_first(lambda: restore_inputs(run, given))


if __name__ == "__main__":
    commands.run(main, again="the same command goes on where it stopped", buckets={"workdir"})
