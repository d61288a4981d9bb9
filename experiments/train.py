"""Trains a restorer; run again in the same workdir, it goes on where it stopped.

python -m experiments.train --config=experiments/configs/digits_deblur.py --workdir=runs/demo
"""

import functools
import json
import math
import pathlib
import signal
import sys

import jax
import numpy as np
import tensorboardX
import tqdm
from absl import flags
from ml_collections import config_flags

from diffjax import checkpoints, data, parallel, training
from experiments import common, pictures

_CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; made if absent.")
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Join the other hosts of a pod first.")
flags.mark_flags_as_required(["config", "workdir"])


def main() -> int:
    if _DISTRIBUTED.value:
        jax.distributed.initialize()
    config = common.resolve(_CONFIG.value)
    common.check_batch_size(config)
    experiment, source = common.build(config, "train")
    workdir = pathlib.Path(_WORKDIR.value)
    common.claim_workdir(workdir, config)
    manager = checkpoints.open_manager(workdir / "checkpoints", keep=config.run.keep)
    try:
        return train(experiment, source, workdir, manager)
    finally:
        manager.close()


def train(experiment: common.Experiment, source: data.Source, workdir, manager) -> int:
    """Runs the steps that are left; returns the exit status."""
    config = experiment.config
    state = checkpoints.restore(manager, jax.eval_shape(experiment.initial_state))
    state = experiment.initial_state() if state is None else state
    start, steps = int(state.step), config.train.steps
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    say = print if jax.process_index() == 0 else (lambda *_: None)
    say(
        f"{common.describe_device()} | {config.data.name}: {source.size:,} images "
        f"{'x'.join(map(str, source.image_shape))} | {config.degradation.family} | "
        f"{count:,} parameters | steps {start:,} to {steps:,}"
    )
    if start >= steps:
        say(f"complete: {workdir} holds all {steps:,} steps")
        return 0

    step_fn = parallel.pmap_step(
        functools.partial(
            training.train_step,
            network_fn=experiment.network_fn,
            optimizer=experiment.optimizer,
            loss_fn=common.LOSSES[config.train.loss],
            ema_decay=config.train.ema_decay,
            levels=config.train.levels,
        )
    )
    key = jax.random.key(config.seed + 1)
    state = parallel.replicate(state)
    degradation = parallel.replicate(experiment.degradation)
    batches = data.batches(
        source, batch_size=config.train.batch_size, seed=config.seed, start=start
    )
    stop = _StopSignal()
    with Log(workdir, start, steps, config.train.batch_size) as log:
        for step in range(start + 1, steps + 1):
            state, metrics = step_fn(state, parallel.shard(next(batches)), key, degradation)
            log.add(metrics)
            stopping = stop.received  # read once: a later signal must wait for the next save
            last = step == steps or stopping
            if step % config.run.log_every == 0 or last:
                # The step just dispatched runs on while the ones before it are read.
                if not log.write(step, flush=last):
                    return _diverged(step, workdir)
            if step % config.run.checkpoint_every == 0 or last:
                if not log.finite():
                    return _diverged(step, workdir)
                checkpoints.save(manager, step, parallel.unreplicate(state))
            if stopping and step < steps:
                say(f"interrupted at step {step:,}: the same command goes on from there")
                return 128 + stopping
    if jax.process_index() == 0:
        pictures.draw_loss(workdir)
    return 0


def _diverged(step, workdir):
    print(
        f"error: the loss or its gradient is not finite near step {step:,}; lower "
        f"train.learning_rate or train.clip_norm (the last good checkpoint is kept in {workdir})",
        file=sys.stderr,
    )
    return 1


class _StopSignal:
    """Remembers a SIGTERM or SIGINT, so that the loop ends between two steps, with a save."""

    def __init__(self):
        self.received = 0
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._receive)

    def _receive(self, number, frame):
        del frame
        self.received = number
        signal.signal(number, signal.SIG_DFL)


class Log:
    """Progress bar, metrics.jsonl and TensorBoard, fed with metrics that may still be computed."""

    def __init__(self, workdir: pathlib.Path, start: int, steps: int, batch_size: int):
        self._main = jax.process_index() == 0
        self._pending, self._batch_size = [], batch_size
        self._bar = tqdm.tqdm(
            total=steps, initial=start, unit="step", disable=not self._main, mininterval=0.5
        )
        if self._main:
            self._path = workdir / "metrics.jsonl"
            lines = self._path.read_text().splitlines() if self._path.exists() else []
            kept = [line for line in lines if json.loads(line)["step"] <= start]
            self._path.write_text("".join(f"{line}\n" for line in kept))
            self._curves = tensorboardX.SummaryWriter(
                str(workdir / "tensorboard"), purge_step=start
            )

    def add(self, metrics) -> None:
        self._pending.append(metrics)
        self._bar.update()

    def write(self, step: int, flush: bool) -> bool:
        """Averages what has been computed; False if something was not finite."""
        ready = self._pending if flush else self._pending[:-1]
        if not ready:
            return True
        values = jax.device_get(ready)
        self._pending = self._pending[len(ready) :]
        means = {name: float(np.mean([one[name] for one in values])) for name in values[0]}
        if self._main:
            with self._path.open("a") as file:
                file.write(json.dumps({"step": step, **means}) + "\n")
            for name, value in means.items():
                self._curves.add_scalar(name, value, step)
            rate = self._bar.format_dict["rate"] or math.nan
            self._bar.set_postfix_str(
                f"loss {means['loss']:.4f}, {rate * self._batch_size:,.0f} images/s"
            )
        return all(map(math.isfinite, means.values()))

    def finite(self) -> bool:
        """Whether the metrics not yet written are finite; waits for them."""
        return all(np.isfinite(leaf) for leaf in jax.tree.leaves(jax.device_get(self._pending)))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._bar.close()
        if self._main:
            self._curves.close()


if __name__ == "__main__":
    common.run(main)
