"""What a training run writes while it goes on."""

import json
import math
import pathlib
import time

import jax
import numpy as np
import tensorboardX
import tqdm

from diffjax import training


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
            spent = json.loads(kept[-1])["seconds"] if kept else 0.0
            self._started = time.monotonic() - spent
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
        means = {
            name: float(np.mean([one[name] for one in values])) for name in ("loss", "grad_norm")
        }
        if self._main:
            sums = jax.tree.map(
                lambda *leaves: np.sum(leaves, axis=0), *(v["severity"] for v in values)
            )
            line = {"step": step, "seconds": round(time.monotonic() - self._started, 2), **means}
            line["severity"] = training.severity_curves(sums)
            with self._path.open("a") as file:
                file.write(json.dumps(line) + "\n")
            self._draw(step, means, line["severity"])
        return all(map(math.isfinite, means.values()))

    def _draw(self, step, means, curves) -> None:
        for name, value in means.items():
            self._curves.add_scalar(name, value, step)
        for name, values in curves.items():
            for k, value in enumerate(values):
                if value is not None:
                    self._curves.add_scalar(f"{name}/t<={(k + 1) / len(values):.1f}", value, step)
        rate = self._bar.format_dict["rate"] or math.nan
        self._bar.set_postfix_str(
            f"loss {means['loss']:.4f}, {rate * self._batch_size:,.0f} images/s"
        )

    def finite(self) -> bool:
        """Whether the metrics not yet written are finite; waits for them."""
        pending = jax.device_get(self._pending)
        return all(np.isfinite([one["loss"], one["grad_norm"]]).all() for one in pending)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._bar.close()
        if self._main:
            self._curves.close()
