"""One training step again, operation by operation, to find where it stops being finite."""

import functools
import pathlib
import traceback

import jax

from diffjax import data, restorers, training
from experiments.lib import build

_PACKAGES = pathlib.Path(jax.__file__).parents[1]  # where others' code lies


def find(
    experiment: build.Experiment,
    source: data.Source,
    problem: restorers.Problem,
    state: training.TrainState,
    step: int,
) -> str:
    """In words, which operation of a step makes the first NaN, or else the first infinity.

    Args:
      experiment, source, problem: the run's.
      state: after updates that were skipped up to this step, which left all but its number alone.
      step: the step; its batch is made anew, all of it.
    """
    config = experiment.config
    size, seed = config.train.batch_size, config.seed
    batch = next(data.batches(source, batch_size=size, seed=seed, start=step - 1, shared=False))
    step_fn = functools.partial(
        training.train_step,
        objective=experiment.objective,
        optimizer=experiment.optimizer,
        ema_decay=config.train.ema_decay,
    )
    # Outside jit a table of numpy's cannot be indexed by a traced t.
    state, batch, problem = jax.device_put((state, batch, problem))
    state = state._replace(step=jax.numpy.int32(step - 1))
    for watch in (jax.debug_nans, jax.debug_infs):
        try:
            with jax.disable_jit(), watch(True):
                step_fn(state, batch, jax.random.key(config.seed + 1), problem)
        except FloatingPointError as error:
            first = str(error).splitlines()[0].rstrip(".")
            return f"replayed, {first}, in {_place(error)}"
    return "replayed operation by operation, all of it is finite"


def _place(error: FloatingPointError) -> str:
    """The innermost line that is ours or the user's: of a gradient, where it was asked for."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not pathlib.Path(frame.filename).is_relative_to(_PACKAGES)
    ]
    frame = frames[-1]
    return f"{frame.filename}:{frame.lineno} ({frame.line})"
