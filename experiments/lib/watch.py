"""A run watched while it trains: always the same held-out images, degraded in the same way.

Each look is one line of heldout.jsonl: the loss and the RMSE of x0_hat at each severity, images in
[0, 1], as `experiments.evaluate` counts, and the audit's cheap checks. The averaged parameters
are looked at, as they are in evaluation; x_t has the noise of `train.perturbation`, as in training.
"""

import functools
import pathlib
from typing import Any

import jax
import numpy as np

from diffjax import data, restorers
from diffjax.auditing import checks, measurements
from experiments.lib import build, files, pictures

IMAGES = 32  # held-out ones
SHOWN = 8  # of them in the picture
FITTED = 1000  # training images that a Wiener restorer is fitted to, where the run has none


class Watch:
    """Looks at parameters, and says when a check turns."""

    def __init__(
        self,
        experiment: build.Experiment,
        problem: restorers.Problem,
        train: data.Source,
        held_out: data.Source,
        workdir: pathlib.Path,
        start: int,
    ):
        """start: the step that a run goes on from; later lines are written again."""
        self._objective, self._problem = experiment.objective, problem
        self._ts, levels = measurements.severities(experiment.objective, problem)
        some = train.fetch_fn(range(min(FITTED, train.size)))["image"]
        self._restorer = measurements.wiener_restorer(problem, some, levels)
        examples = held_out.fetch_fn(range(min(IMAGES, held_out.size)))
        names = {"image", "label"} if experiment.objective.num_classes is not None else {"image"}
        self._examples = {name: examples[name] for name in names}
        self._key = jax.random.key(experiment.config.seed + 6)
        self._workdir = workdir
        self._lines = files.Lines(workdir / "heldout.jsonl", start)
        self._statuses = self._lines.kept[-1]["checks"] if self._lines.kept else {}

    def look(self, step: int, params: Any) -> tuple[dict[str, Any], np.ndarray, list[str]]:
        """(line of heldout.jsonl, picture, what has turned); all but the last are kept."""
        count = len(self._examples["image"])
        told = measurements.wrong_times(self._ts, count, None)
        measure = functools.partial(
            measurements.measure, self._objective, params, self._problem, self._restorer,
            self._examples, self._key, self._ts, shown=SHOWN,
        )  # fmt: skip
        seen = measure()
        shuffled = measure(told["shuffled"])["loss"].mean(axis=1)
        found = self._judge(seen, {"shuffled": shuffled})
        rmses = np.sqrt(seen["unit_error"].mean(axis=1))
        line = {
            "step": step,
            "loss": seen["weighted"].mean(),
            "rmse": np.sqrt(np.mean(rmses**2)),
            "severity": {"t": self._ts, "loss": seen["loss"].mean(axis=1), "rmse": rmses},
            "checks": {check.name: check.status for check in found},
        }
        line = files.finite(
            jax.tree.map(lambda x: x if isinstance(x, int | str) else np.asarray(x).tolist(), line)
        )
        picture = self._picture(seen["images"])
        self._lines.append(line)
        self._lines.flush()
        with files.whole(self._workdir / "heldout.png") as file:
            pictures.to_pil(picture, 3).save(file, format="PNG")
        turned = [
            f"step {step:,}: {one.name} turns from {self._statuses[one.name]} to {one.status}: "
            f"{one.advice}"
            for one in found
            if self._statuses.get(one.name, one.status) != one.status
        ]
        self._statuses = line["checks"]
        return line, picture, turned

    def _judge(self, seen, told):
        floor = checks.check_floor(seen, self._ts)
        return [
            checks.check_target(seen, self._objective.prediction),
            checks.check_time(seen, told, floor.status == "fail"),
            checks.check_calibration(seen, self._ts, self._objective.prediction),
            floor,
        ]

    def _picture(self, images):
        """Rows: clean, and x_t and x0_hat at a mild, a middle and the last severity."""
        clean = np.asarray(self._examples["image"][:SHOWN])
        last = len(self._ts) - 1
        rows = [clean]
        for k in sorted({last // 4, last // 2, last}):
            rows += [images["xt"][k], images["x0_hat"][k]]
        return pictures.tile(np.concatenate(rows).astype(np.float32), len(clean))
