"""Saving and restoring a TrainState: the only file that imports orbax.

What is on disk carries no device axis and no mode of parallelism: a run saved
on eight devices goes on on one. Saves are asynchronous: close the manager before
the process ends.
"""

import contextlib
import math
import os
import pathlib
import warnings
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp


class _Manager(ocp.CheckpointManager):
    def metrics(self, step: int) -> dict[str, float] | None:
        """What lies in a checkpoint, whole as it is; of one that is damaged, nothing."""
        try:
            return _metrics(super().metrics(step)["loss"])
        except Exception:  # whatever a damaged file makes of the reader
            return None

    def reached_preemption(self, step: int) -> bool:
        """Never. Whether to stop the trainer asks; JAX answers only to numbers without gaps."""
        return False


def _metrics(loss: float | None) -> dict[str, float] | None:
    return {"loss": float(loss)} if loss is not None and math.isfinite(loss) else None


def _loss(metrics: dict[str, float]) -> float:
    return metrics["loss"]


def open_manager(directory: str | os.PathLike, *, keep: int | None = None) -> ocp.CheckpointManager:
    """A manager of `directory`/<step> that keeps the newest `keep` checkpoints and the best.

    The best one, its `best_step()`, was saved with the least loss; of equal ones, the newest. It
    is None where none was saved with a loss.
    """
    newest = ocp.checkpoint_managers.LatestN(keep)
    best = ocp.checkpoint_managers.BestN(
        get_metric_fn=_loss, reverse=True, n=1, keep_checkpoints_without_metrics=False
    )
    options = ocp.CheckpointManagerOptions(
        preservation_policy=ocp.checkpoint_managers.AnyPreservationPolicy([newest, best]),
        best_fn=_loss,
        best_mode="min",
        enable_async_checkpointing=True,
    )
    place = os.fspath(directory)
    return _Manager(place if "://" in place else os.path.abspath(place), options=options)


def save(manager: ocp.CheckpointManager, step: int, state: Any, loss: float | None = None) -> None:
    """Starts writing an unreplicated state; every host of a pod must call it, with the same.

    What is written is the first host's copy, and the loss is in it: a checkpoint is there with its
    loss or not at all. One that is not finite is no loss.
    """
    if manager.latest_step() != step:
        # As numpy: of a pod's hosts orbax refuses arrays that lie on one host's devices.
        args = ocp.args.StandardSave(jax.device_get(state))
        manager.save(step, metrics=_metrics(loss), args=args)


def load(
    manager: ocp.CheckpointManager,
    template: Any = None,
    step: int | None = None,
    *,
    set_aside: bool = False,
) -> Any:
    """The state saved at `step` (None: the latest that is whole), with the template's structure.

    A checkpoint that cannot be read is named in a warning, and the one before is taken.

    Args:
      manager: from `open_manager`.
      template: a state of the same shapes and dtypes; its values are not read. None: tuples
        with names come back as dicts, arrays as numpy's.
      step: which checkpoint.
      set_aside: rename one that cannot be read to <step>.damaged, so that its step can be saved
        again: for who writes here.
    Returns:
      The state, or None where there is none.
    Raises:
      ValueError: if what was saved has another structure or other shapes than the template.
    """
    reader = ocp.StandardCheckpointer()  # a damaged step can spoil a manager for all others
    for at in sorted(manager.all_steps(), reverse=True) if step is None else [step]:
        path = manager.directory / str(at)
        try:
            held = reader.restore(path / "default")
        except Exception as error:  # whatever a damaged file makes of the reader
            _pass_over(manager, path, error, set_aside)
            continue
        if template is None:
            return held
        zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), template)
        try:
            state = reader.restore(path / "default", zeros)
        except Exception as error:  # it is whole, so it is the structure
            raise ValueError(f"{path} holds a state of another structure than wanted") from error
        named = zip(jax.tree_util.tree_leaves_with_path(zeros), jax.tree.leaves(state), strict=True)
        for (where, wanted), found in named:
            if np.shape(found) != wanted.shape:
                raise ValueError(
                    f"{path} holds a state of another shape: {jax.tree_util.keystr(where)} is "
                    f"{list(np.shape(found))} there, and {list(wanted.shape)} is wanted"
                )
        return state
    return None


def _pass_over(manager, path: pathlib.Path, error: Exception, set_aside: bool) -> None:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
    moved = ""
    if set_aside and jax.process_index() == 0:
        with contextlib.suppress(OSError):
            path.rename(path.with_name(f"{path.name}.damaged"))
            moved = f", is now {path.name}.damaged"
            manager.reload()
    warnings.warn(
        f"checkpoint {path} cannot be read{moved}, and the one before is taken: {reason}",
        stacklevel=3,
    )
