"""What a training run writes while it goes on."""

import math
import pathlib
import time
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np
import tensorboardX
import tqdm

from diffjax import training
from experiments.lib import files

_BROKEN = "remove it; a few lines of metrics.jsonl will then be made of fewer steps"


class Log:
    """Progress bar, metrics.jsonl and TensorBoard, fed with metrics that may still be computed.

    A line tells the mean over the steps since the line before, those whose update was skipped left
    out. What was read and is not yet in a line is kept in pending.json with every save, so
    that a run that goes on from there writes the lines of one that never stopped.
    """

    def __init__(self, workdir: pathlib.Path, start: int, steps: int, batch_size: int):
        self._main = jax.process_index() == 0
        self._batch_size = batch_size
        self._coming: list[tuple[int, dict]] = []  # may still be computed
        self._pending: list[tuple[int, dict]] = []  # read, and in no line yet
        self.row = 0  # updates skipped one after another, of those read
        self.skipped: dict[str, Any] = {}  # the metrics of the last one
        self._bar = tqdm.tqdm(
            total=steps, initial=start, unit="step", disable=not self._main, mininterval=0.5
        )
        self._kept = workdir / "pending.json"
        held = files.read_json(self._kept, _BROKEN).get(str(start)) if self._kept.exists() else None
        if held is not None:
            self.row = held["row"]
            self._pending = [(one["step"], _arrays(one)) for one in held["metrics"]]
        if self._main:
            self._lines = files.Lines(workdir / "metrics.jsonl", start)
            kept = self._lines.kept
            spent = held or (kept[-1] if kept else {"seconds": 0.0, "cpu_seconds": 0.0})
            self._started = time.monotonic() - spent["seconds"]
            self._cpu_started = time.process_time() - spent["cpu_seconds"]
            self._curves = tensorboardX.SummaryWriter(
                str(workdir / "tensorboard"), purge_step=start
            )

    def add(self, step: int, metrics: dict[str, Any]) -> None:
        self._coming.append((step, metrics))
        self._bar.update()

    def read(self, most: int, *, wait: bool) -> int | None:
        """Takes what has been computed; the step that was the `most`-th skipped in a row, or None.

        wait: for the step just dispatched, too.
        """
        ready = self._coming if wait else self._coming[:-1]
        self._coming = self._coming[len(ready) :]
        for (step, _), one in zip(ready, jax.device_get([m for _, m in ready]), strict=True):
            self._pending.append((step, one))
            self.row = self.row + 1 if one["skipped"] else 0
            if one["skipped"]:
                self.skipped = one
            if self.row >= most:
                return step
        return None

    def write(self, step: int, *, last: bool) -> None:
        """One line, of the steps before this one; of this one too where it is the last.

        Always the same steps, whether or not this one has been read for a save.
        """
        ready = [one for at, one in self._pending if at < step or last]
        self._pending = self._pending[len(ready) :]
        good = [one for one in ready if not one["skipped"]]
        if not ready or not self._main:
            return
        line: dict[str, Any] = {"step": step} | self._spent()
        for name in ("loss", "grad_norm"):
            line[name] = float(np.mean([one[name] for one in good])) if good else None
        line["skipped"] = len(ready) - len(good)
        severities = [one["severity"] for one in good]
        severities = severities or [jax.tree.map(np.zeros_like, ready[0]["severity"])]
        sums = jax.tree.map(lambda *leaves: np.sum(leaves, axis=0), *severities)
        line["severity"] = training.severity_curves(sums)
        line = files.finite(line)
        self._lines.append(line)
        self._draw(step, line)

    def keep(self, step: int, others: Iterable[int]) -> None:
        """Keeps what is in no line yet, beside what was kept at the other saved steps."""
        if not self._main:
            return
        held = files.read_json(self._kept, _BROKEN) if self._kept.exists() else {}
        held = {name: held[name] for name in map(str, others) if name in held}
        mine = [
            {"step": at} | jax.tree.map(lambda leaf: np.asarray(leaf).tolist(), one)
            for at, one in self._pending
        ]
        held[str(step)] = {"row": self.row, "metrics": mine} | self._spent()
        files.write_json(self._kept, held)

    def _spent(self) -> dict[str, float]:
        """Seconds since the first step, and those of all CPUs in this process."""
        return {
            "seconds": round(time.monotonic() - self._started, 2),
            "cpu_seconds": round(time.process_time() - self._cpu_started, 2),
        }

    def _draw(self, step: int, line: dict[str, Any]) -> None:
        for name in ("loss", "grad_norm", "skipped"):
            if line[name] is not None:
                self._curves.add_scalar(name, line[name], step)
        for name, values in line["severity"].items():
            for k, value in enumerate(values):
                if value is not None:
                    self._curves.add_scalar(_tag(name, (k + 1) / len(values)), value, step)
        rate = self._bar.format_dict["rate"] or math.nan
        loss = math.nan if line["loss"] is None else line["loss"]
        self._bar.set_postfix_str(f"loss {loss:.4f}, {rate * self._batch_size:,.0f} images/s")

    def describe(self, config: dict[str, Any]) -> None:
        """The hyperparameters, in the place where TensorBoard compares runs by them."""
        if self._main:
            shown = {name: value for name, value in config.items() if value is not None}
            shown = {
                name: value if isinstance(value, bool | int | float | str) else str(value)
                for name, value in shown.items()
            }
            for summary in tensorboardX.summary.hparams(shown, {"heldout/rmse": 0, "loss": 0}):
                self._curves.file_writer.add_summary(summary)

    def show(
        self, line: dict[str, Any], picture: np.ndarray, turned: Sequence[str]
    ) -> float | None:
        """What `watch.Watch.look` saw, in TensorBoard; what has turned, above the bar; the loss."""
        step, severity = line["step"], line["severity"]
        for name in ("loss", "rmse"):
            if line[name] is not None:
                self._curves.add_scalar(f"heldout/{name}", line[name], step)
            for t, value in zip(severity["t"], severity[name], strict=True):
                if value is not None:
                    self._curves.add_scalar(_tag(f"heldout_{name}", t), value, step)
        self._curves.add_image("heldout/images", picture, step, dataformats="HWC")
        for text in turned:
            self._bar.write(text)
        return line["loss"]

    def flush(self) -> None:
        """Puts where it belongs what is still in memory; to be called before a save."""
        if self._main:
            self._lines.flush()
            self._curves.flush()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._bar.close()
        if self._main:
            self._lines.flush()
            self._curves.close()


def memorized(lines: Sequence[dict[str, Any]]) -> str:
    """In a sentence, whether a few images were learned by heart, and at which severities not.

    lines: of metrics.jsonl, of a run on a few images.
    """
    first, last = lines[0], lines[-1]
    if None in (first["loss"], last["loss"]):
        return "not learned by heart: the loss is not finite; lower train.learning_rate"
    share = last["loss"] / max(first["loss"], 1e-30)
    said = f"the loss went from {first['loss']:.3g} to {last['loss']:.3g}, {share:.1%} of it"
    if share <= 0.01:
        return f"learned by heart: {said}"
    pairs = list(zip(first["severity"]["loss"], last["severity"]["loss"], strict=True))
    seen = [k for k, pair in enumerate(pairs) if None not in pair]
    stuck = [k for k in seen if pairs[k][1] > 0.5 * pairs[k][0]]
    if not stuck:
        why = "it falls at every severity: give it more train.steps, then a larger network"
    elif stuck == seen:
        why = "no severity is learned: look at the learning rate, the target, what the step updates"
    else:
        where = ", ".join(f"{(k + 1) / len(pairs):.1f}" for k in stuck)
        why = f"it hardly falls in the severities up to {where}: look at the weight by time"
    return f"not learned by heart: {said}, where a hundredth was due; {why}"


def _tag(name: str, t: float) -> str:
    """severity/loss_0.1: of the bin of severities that ends there."""
    return f"severity/{name}_{math.ceil(round(t * training.BINS, 6)) / training.BINS:.1f}"


def _arrays(one: dict[str, Any]) -> dict[str, Any]:
    """Metrics as `keep` wrote them; null was a number that is not finite."""

    def array(value: Sequence | float | None) -> np.ndarray:
        return np.asarray(value, np.float32)

    severity = {name: array(values) for name, values in one["severity"].items()}
    scalars = {name: array(one[name]) for name in ("loss", "grad_norm")}
    return scalars | {name: one[name] for name in ("skipped", "culprit")} | {"severity": severity}
