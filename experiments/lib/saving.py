"""What a training run puts on disk at a checkpoint."""

import math
import pathlib
import time
from typing import Any

import numpy as np

from diffjax import checkpoints, parallel
from experiments.lib import hosts, pictures, records

PAUSE = 20  # seconds between two pictures of the curves, which take half a second


class Saver:
    """Saves a run's state, what its log has not told yet, and now and then its curves."""

    def __init__(self, workdir: pathlib.Path, manager: Any, log: records.Log):
        """manager: from `checkpoints.open_manager`."""
        self._workdir, self._manager, self._log = workdir, manager, log
        self._drawn = -math.inf

    def save(self, step: int, state: Any, loss: float | None, *, last: bool) -> None:
        """Starts saving; every host must call it, with the same state.

        loss: the held-out one that the first host saw, by which the best is kept. last: of this
        process, after which the curves are drawn in any case.
        """
        self._log.keep(step, self._manager.all_steps())
        self._log.flush()
        loss = float(parallel.from_first_host(np.float32(loss)))  # None is NaN, which is no loss
        checkpoints.save(self._manager, step, state, loss)
        if hosts.is_first() and (last or time.monotonic() > self._drawn + PAUSE):
            pictures.draw_curves(self._workdir)
            self._drawn = time.monotonic()
