"""Saving and restoring a TrainState: the only file that imports orbax.

What is on disk carries no device axis and no mode of parallelism: a run saved
on eight devices goes on on one. Saves are asynchronous: close the manager before
the process ends.
"""

import os
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp


def open_manager(directory: str | os.PathLike, *, keep: int | None = None) -> ocp.CheckpointManager:
    """A manager of `directory`/<step> that keeps the newest `keep` checkpoints."""
    options = ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
    return ocp.CheckpointManager(os.path.abspath(directory), options=options)


def save(manager: ocp.CheckpointManager, step: int, state: Any) -> None:
    """Starts writing an unreplicated state; every host of a pod must call it, with the same state.

    What is written is the first host's copy.
    """
    if manager.latest_step() != step:
        # As numpy: of a pod's hosts orbax refuses arrays that lie on one host's devices.
        manager.save(step, args=ocp.args.StandardSave(jax.device_get(state)))


def load(manager: ocp.CheckpointManager, template: Any = None, step: int | None = None) -> Any:
    """The state saved at `step` (None: the latest), with the template's structure.

    Args:
      manager: from `open_manager`.
      template: a state of the same shapes and dtypes; its values are not read. None: tuples
        with names come back as dicts, arrays as numpy's.
      step: which checkpoint.
    Returns:
      The state, or None where nothing has been saved.
    """
    step = manager.latest_step() if step is None else step
    if step is None:
        return None
    if template is None:
        return manager.restore(step, args=ocp.args.StandardRestore())
    template = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), template)
    return manager.restore(step, args=ocp.args.StandardRestore(template))
