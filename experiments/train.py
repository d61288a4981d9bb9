"""Trains a restorer; run again in the same workdir, it goes on where it stopped.

python -m experiments.train --config=experiments/configs/digits_deblur.py --workdir=runs/demo

Writes, into the workdir: config.json, run.json, fitted/, checkpoints/, metrics.jsonl, pending.json,
lock and tensorboard/; every run.evaluate_every steps heldout.jsonl and heldout.png; with the
checkpoints, at most every 20 seconds, loss.png and severity.png. --init=OTHER starts from the
averaged parameters of another run: to train a finished run longer, or at another setting. With a
small --config.data.limit it says whether those images were learned by heart.
"""

import contextlib
import functools
import json
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from absl import flags
from ml_collections import config_flags

from diffjax import checkpoints, data, parallel, training
from diffjax.restorers import Problem
from experiments.lib import (
    build,
    commands,
    files,
    hosts,
    lock,
    preflight,
    provenance,
    records,
    replay,
    runs,
    saving,
    watch,
)
from experiments.lib.commands import UsageError
from experiments.lib.config import resolve

FEW = 64  # images that any network learns by heart

_CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment's file.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; made if absent.")
_INIT = flags.DEFINE_string("init", None, "Folder of a run to start from.")
flags.mark_flags_as_required(["config", "workdir"])


@hosts.joined(stops_itself=True)
def main() -> int:
    config = resolve(_CONFIG.value)
    check_devices(config)
    workdir = files.folder(_WORKDIR.value)
    roots = runs.known_roots(workdir)
    experiment, source = build.build(config, "train", roots)
    if jax.process_count() > 1:
        preflight.check(config, source, workdir)
    if experiment.preconditioned and build.all_alike(source):
        if config.model.precondition:
            raise UsageError(
                "config.model.precondition needs training images that differ: these are all alike"
            )
        print("all training images are alike: trained without preconditioning")
        config.model.precondition = False
        experiment, source = build.build(config, "train", roots)
    init = None if _INIT.value is None else runs.averaged_params(_INIT.value, experiment)
    fingerprint = data.fingerprint(source)
    with contextlib.ExitStack() as stack:

        def take():
            runs.claim(workdir, config, roots, fingerprint, write=False)
            stack.enter_context(lock.held(workdir))
            runs.claim(workdir, config, roots, fingerprint)

        hosts.first_on_one(take)
        about = provenance.describe(config, fingerprint)
        with told_if_full(workdir), provenance.recorded(workdir, about) as record:
            record["status"] = fit_and_train(experiment, source, workdir, init, roots)
    return record["status"]


@contextlib.contextmanager
def told_if_full(workdir: pathlib.Path) -> Iterator[None]:
    """Names the workdir where its disk is full, or files may not be so large."""
    try:
        yield
    except (OSError, ValueError) as error:  # ValueError is orbax's
        for reason in ("No space left on device", "File too large"):
            if reason in str(error):
                raise UsageError(f"{workdir}: {reason}; what was saved before is kept") from error
        raise


def fit_and_train(
    experiment: build.Experiment,
    source: data.Source,
    workdir: pathlib.Path,
    init: Any,
    roots: dict[str, str],
) -> int:
    """Fits what is fitted before, and trains, in a workdir that is ours; the exit status."""
    config = experiment.config
    fitted = runs.fit_or_load(experiment, source, workdir)
    problem = build.problem(experiment, fitted["wiener"])
    manager = checkpoints.open_manager(workdir / "checkpoints", keep=config.run.keep)
    try:
        if manager.latest_step() is None:
            foretold = build.foretell(experiment, source)
            if foretold is not None and hosts.is_first():
                print(foretold.summary)
        held_out = _held_out(config, roots) if jax.process_index() == 0 else None
        status = train(experiment, source, held_out, problem, workdir, manager, init)
    except FloatingPointError as error:  # on all hosts alike
        print(f"error: {error}", file=sys.stderr)
        status = 1
    except BaseException:
        if jax.process_count() == 1:  # on several, it would wait for hosts that may be gone
            with contextlib.suppress(ValueError):  # of a save that failed, and was told
                manager.close()
        raise
    manager.close()
    return status


def _held_out(config, roots) -> data.Source | None:
    try:
        return build.load_data(config, "test", roots)
    except UsageError as error:
        print(f"warning: nothing held out to look at: {error}", file=sys.stderr)
        return None


def check_devices(config) -> None:
    """Raises UsageError if the config does not fit the devices of all hosts."""
    try:
        parallel.check_mode(config.parallel)
    except ValueError as error:
        raise UsageError(f"config.{error}") from error
    if config.parallel != "none":
        runs.check_batch_size(config)


def start(experiment: build.Experiment, manager, init: Any) -> training.TrainState:
    """The state to go on from: the latest checkpoint's, or the first."""
    template = jax.eval_shape(experiment.initial_state)
    try:
        state = checkpoints.load(manager, template, set_aside=True)
    except ValueError as error:
        raise UsageError(f"{error}: config.model is not that of the run") from error
    if state is not None:
        return state
    if init is None:
        return experiment.initial_state()
    return training.create_state(init, experiment.optimizer)


def train(
    experiment: build.Experiment,
    source: data.Source,
    held_out: data.Source | None,
    problem: Problem,
    workdir: pathlib.Path,
    manager,
    init: Any = None,
) -> int:
    """Runs the steps that are left, looking at held-out images; returns the exit status."""
    config = experiment.config
    state = start(experiment, manager, init)
    first, steps = int(state.step), config.train.steps
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    say = print if jax.process_index() == 0 else (lambda *_: None)
    say(
        f"{runs.describe_device()} | {config.data.name}: {source.size:,} images "
        f"{'x'.join(map(str, source.image_shape))} | {config.degradation.family} | "
        f"{count:,} parameters | steps {first:,} to {steps:,}"
    )
    if first >= steps:
        say(f"complete: {workdir} holds all {steps:,} steps")
        return 0

    mode = parallel.SHARDED if config.shard_optimizer else parallel.MODES[config.parallel]
    step_fn = mode.step(
        functools.partial(
            training.train_step,
            objective=experiment.objective,
            optimizer=experiment.optimizer,
            ema_decay=config.train.ema_decay,
        )
    )
    key = jax.random.key(config.seed + 1)
    replay_fn = functools.partial(replay.find, experiment, source, problem)
    watching = None
    if held_out is not None:
        watching = watch.Watch(experiment, problem, source, held_out, workdir, first)
    state, problem = mode.replicate(state), mode.replicate(problem)
    batches = data.batches(
        source, batch_size=config.train.batch_size, seed=config.seed, start=first
    )
    if jax.process_count() > 1:
        batch = next(data.batches(source, batch_size=config.train.batch_size, seed=config.seed))
        taken = parallel.memory(step_fn, state, mode.shard(batch), key, problem)
        if taken is not None:
            say(f"a step takes {taken / 2**20:,.1f} MiB of a device")
    stop = hosts.Stop()
    with records.Log(workdir, first, steps, config.train.batch_size) as log:
        log.describe(runs.flatten(json.loads(config.to_json())))
        saver = saving.Saver(workdir, manager, log)
        for step in range(first + 1, steps + 1):
            try:
                batch = next(batches)
            except ValueError as error:  # a file that has changed or gone
                raise UsageError(f"{error}; what was saved before step {step:,} is kept") from error
            state, metrics = step_fn(state, mode.shard(batch), key, problem)
            log.add(step, metrics)
            stopping = stop.asked()  # once: a later signal must wait for the next save
            last = step == steps
            saves = step % config.run.checkpoint_every == 0 or last or stopping > 0
            logs, looks = (
                step % every == 0 or last
                for every in (config.run.log_every, config.run.evaluate_every)
            )
            if saves or logs:
                # The step just dispatched runs on while the ones before it are read.
                bad = log.read(config.train.max_skipped, wait=saves)
                if bad is not None:
                    where = ""
                    if config.debug_nans:
                        where = f"; {replay_fn(mode.unreplicate(state), bad)}"
                    raise FloatingPointError(_diverged(bad, log, experiment, manager) + where)
            if logs:
                log.write(step, last=last)
            held, loss = mode.unreplicate(state) if saves or looks else None, None
            if looks and watching is not None:
                loss = log.show(*watching.look(step, held.ema_params))
            # Amid updates that are skipped the last good checkpoint must not be pushed out.
            if saves and (log.row == 0 or last or stopping):
                saver.save(step, held, loss, last=last or stopping > 0)
            if stopping:
                break
    if step < steps:
        print(f"interrupted at step {step:,}: the same command goes on from there")
        return 128 + stopping
    if config.data.limit is not None and source.size <= FEW:
        say(records.memorized(files.read_lines(workdir / "metrics.jsonl")))
    return 0


def _diverged(step: int, log: records.Log, experiment: build.Experiment, manager) -> str:
    """What is not finite, when, at which severities, and what is kept, in one line."""
    manager.wait_until_finished()
    kept = manager.latest_step()
    kept = "there is no checkpoint" if kept is None else f"the checkpoint of step {kept:,} is kept"
    params = jax.eval_shape(experiment.initial_state).params
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    culprit, severity = int(log.skipped["culprit"]), log.skipped["severity"]
    what = "the loss" if culprit < 0 else f"the gradient of {names[culprit]}"
    bad = ~np.isfinite(severity["loss"])
    bad = bad if bad.any() else severity["count"] > 0  # the loss is finite: those of the batch
    bins = ", ".join(f"({k / len(bad):.1f}, {(k + 1) / len(bad):.1f}]" for k in np.flatnonzero(bad))
    before = f", as in the {log.row - 1} steps before" if log.row > 1 else ""
    return (
        f"{what} is not finite at step {step:,}, at severities in {bins}{before} "
        "(config.train.max_skipped): start in another workdir with a lower "
        f"train.learning_rate or train.clip_norm, or ask config.debug_nans where; {kept}"
    )


if __name__ == "__main__":
    commands.run(
        main,
        again="the same command goes on from the last checkpoint",
        buckets={"workdir", "init"},
    )
