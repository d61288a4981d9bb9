"""Many devices: the only file that names pmap and hosts.

`train_step` is wrapped, never changed. Replicated trees carry one leading
device axis; what leaves this file for a checkpoint or a metric carries none.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

AXIS = "batch"


def pmap_step(step_fn: Callable) -> Callable:
    """step_fn(state, batch, key, problem, axis_name=...) over all devices.

    The state is donated. state and problem are replicated (`replicate`), the
    batch is sharded (`shard`), the key is one key; the returned metrics are not
    replicated.
    """
    return jax.pmap(
        functools.partial(step_fn, axis_name=AXIS),
        axis_name=AXIS,
        in_axes=(0, 0, None, 0),
        out_axes=(0, None),
        donate_argnums=0,
    )


def replicate(tree: Any) -> Any:
    """One copy of every leaf on each local device, stacked along a new leading axis."""
    count = jax.local_device_count()
    copy = jax.pmap(lambda _, leaves: leaves, axis_name=AXIS, in_axes=(0, None))
    return copy(np.arange(count), tree)


def unreplicate(tree: Any) -> Any:
    """The first local copy, as numpy arrays on the host."""
    return jax.tree.map(lambda leaf: np.asarray(leaf.addressable_shards[0].data)[0], tree)


def check_batch_size(batch_size: int) -> None:
    """Raises ValueError unless the global batch divides among all devices of all hosts."""
    if batch_size <= 0 or batch_size % jax.device_count():
        raise ValueError(
            f"batch_size {batch_size} does not divide among {jax.device_count()} devices; "
            f"choose a multiple of {jax.device_count()}"
        )


def shard(batch: Any) -> Any:
    """[B, ...] -> [local devices, B / local devices, ...], for every leaf."""
    count = jax.local_device_count()
    return jax.tree.map(lambda leaf: np.reshape(leaf, (count, -1, *leaf.shape[1:])), batch)


def map_examples(fn: Callable) -> Callable:
    """vmaps fn(operand, *examples) over examples and spreads them over the local devices.

    Args:
      fn: a function of one broadcast pytree and of single examples.
    Returns:
      A function of the same pytree and of arrays with a leading example axis of any
      length (short ones are padded and cut again), returning stacked numpy arrays.
    """
    # One argument, its axes as a tree: as a flat tuple of axes, JAX 0.10 would apply them leaf
    # by leaf wherever there happen to be as many leaves as arguments.
    mapped = jax.pmap(
        lambda args: jax.vmap(lambda one: fn(args[0], *one))(args[1]), in_axes=((None, 0),)
    )

    def over_examples(operand, *examples):
        count, total = jax.local_device_count(), len(examples[0])
        padded = jax.tree.map(
            lambda leaf: leaf[np.minimum(np.arange(total + -total % count), total - 1)],
            examples,
        )
        outputs = mapped((operand, shard(padded)))
        return jax.tree.map(
            lambda leaf: np.asarray(leaf).reshape(-1, *leaf.shape[2:])[:total], outputs
        )

    return over_examples
