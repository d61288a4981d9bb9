"""Many devices: the only file that names pmap, shard_map and hosts.

`train_step` is wrapped, never changed. MODES says how:

    none    one device, whatever there is
    pmap    all devices; replicated trees carry one leading device axis
    jit     all devices, by `jax.shard_map` over a mesh; no such axis

and SHARDED is jit with optimizer and average in pieces, one a device.

What leaves this file for a checkpoint or a metric carries no device axis.

Depends on: jax, numpy.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

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


def check_mode(mode: str) -> None:
    """Raises ValueError if a mode of MODES cannot serve so many hosts."""
    if mode == "none" and jax.process_count() > 1:
        raise ValueError(f"parallel 'none' is for one host, not {jax.process_count()}: use pmap")


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


class Mode(NamedTuple):
    """How a training step is spread over devices.

    Attributes:
      step: step_fn(state, batch, key, problem, axis_name=...) -> (state, metrics) as it is
        called, with a donated state; the metrics are the same on all devices.
      replicate: a tree of the host's, for the state and the problem.
      shard: this host's share of the global batch.
      unreplicate: what `replicate` gave, as numpy arrays.
    """

    step: Callable[[Callable], Callable]
    replicate: Callable[[Any], Any]
    shard: Callable[[Any], Any]
    unreplicate: Callable[[Any], Any]


def _single_step(step_fn: Callable) -> Callable:
    return jax.jit(step_fn, donate_argnums=0)


def _copied(tree: Any) -> Any:
    """A copy on one device: a donated state must not be the caller's."""
    return jax.tree.map(jnp.array, tree)


def _mesh() -> Mesh:
    return jax.make_mesh((jax.device_count(),), (AXIS,), axis_types=(AxisType.Auto,))


def _sharding(spec: PartitionSpec) -> NamedSharding:
    return NamedSharding(_mesh(), spec)


def shard_map_step(step_fn: Callable) -> Callable:
    """As `pmap_step`, by `jax.jit(jax.shard_map(...))`."""
    everywhere = PartitionSpec()

    def with_key(state, batch, key_data, problem):
        key = jax.random.wrap_key_data(key_data)
        return step_fn(state, batch, key, problem, axis_name=AXIS)

    mapped = jax.shard_map(
        with_key,
        mesh=_mesh(),
        in_specs=(everywhere, PartitionSpec(AXIS), everywhere, everywhere),
        out_specs=(everywhere, everywhere),
        # With the check, differentiating sums the gradients over the devices by itself, and
        # the step's own mean would then leave them too large by their number.
        check_vma=False,
    )
    return _with_key_data(jax.jit(mapped, donate_argnums=0))


def _with_key_data(compiled: Any) -> Callable:
    def placed(key):
        with jax.ensure_compile_time_eval():  # a key of one host's device would not do on several
            return _on_mesh(jax.random.key_data(key))

    def step(state, batch, key, problem):
        return compiled(state, batch, placed(key), problem)

    def lower(state, batch, key, problem):
        return compiled.lower(state, batch, placed(key), problem)

    step.lower = lower  # type: ignore[attr-defined]  # as every other compiled function
    return step


def memory(step: Any, state: Any, batch: Any, key: jax.Array, problem: Any) -> int | None:
    """Bytes of a device that a step of MODES takes, compiled ahead of time; None: unknown.

    Its first call does not compile again.
    """
    found = step.lower(state, batch, key, problem).compile().memory_analysis()
    if found is None:
        return None
    held = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
    return held + found.temp_size_in_bytes


def sharded_step(step_fn: Callable) -> Callable:
    """As `shard_map_step`, the optimizer and the average in pieces: stage 1 of ZeRO.

    Each device updates its piece, then the parameters are gathered. See "ZeRO: Memory
    Optimizations Toward Training Trillion Parameter Models" by Rajbhandari et al.
    (https://arxiv.org/abs/1910.02054).

    Args:
      step_fn: as `training.train_step`, which takes a map_fn.
    """
    everywhere = PartitionSpec()

    def map_fn(gradients_fn):
        return jax.shard_map(
            gradients_fn,
            mesh=_mesh(),
            in_specs=(everywhere, PartitionSpec(AXIS), everywhere, everywhere),
            out_specs=everywhere,
            check_vma=False,  # see above
        )

    def whole(state, batch, key_data, problem):
        key = jax.random.wrap_key_data(key_data)
        after, metrics = step_fn(state, batch, key, problem, axis_name=AXIS, map_fn=map_fn)
        return jax.lax.with_sharding_constraint(after, _shardings(after)), metrics

    return _with_key_data(jax.jit(whole, donate_argnums=0))


def _piece(leaf: Any) -> NamedSharding:
    """Cut along the first axis that the number of devices divides, if there is one."""
    divisible = [size > 0 and size % jax.device_count() == 0 for size in leaf.shape]
    if not any(divisible):
        return _sharding(PartitionSpec())
    return _sharding(PartitionSpec(*[None] * divisible.index(True), AXIS))


def _shardings(state: Any) -> Any:
    """Where each leaf of a TrainState lies between two calls of `sharded_step`."""
    whole = jax.tree.map(lambda _: _sharding(PartitionSpec()), state)
    pieces = jax.tree.map(_piece, state)
    return whole._replace(opt_state=pieces.opt_state, ema_params=pieces.ema_params)


def _in_pieces(tree: Any) -> Any:
    """A TrainState, the same on all hosts, as `sharded_step` takes it; any other tree, whole."""
    if not hasattr(tree, "opt_state"):
        return _on_mesh(tree)
    return jax.tree.map(
        lambda leaf, sharding: jax.make_array_from_callback(
            np.shape(leaf), sharding, np.asarray(leaf).__getitem__
        ),
        tree,
        _shardings(tree),
    )


def _on_mesh(tree: Any) -> Any:
    """The same copy of every leaf on all devices of all hosts."""
    sharding = _sharding(PartitionSpec())
    return jax.tree.map(
        lambda leaf: jax.make_array_from_process_local_data(sharding, np.asarray(leaf)), tree
    )


def _shard_on_mesh(batch: Any) -> Any:
    sharding = _sharding(PartitionSpec(AXIS))
    return jax.tree.map(
        lambda leaf: jax.make_array_from_process_local_data(sharding, np.asarray(leaf)), batch
    )


def _gathered(tree: Any) -> Any:
    """Every leaf, whole, on the host; in pieces: leaf by leaf from all hosts."""

    def one(leaf):
        if leaf.is_fully_replicated:
            return np.asarray(leaf.addressable_shards[0].data)
        return np.asarray(multihost_utils.process_allgather(leaf, tiled=True))

    return jax.tree.map(one, tree)


MODES = {
    "none": Mode(_single_step, _copied, lambda batch: batch, jax.device_get),
    "pmap": Mode(pmap_step, replicate, shard, unreplicate),
    "jit": Mode(shard_map_step, _on_mesh, _shard_on_mesh, _gathered),
}
SHARDED = Mode(sharded_step, _in_pieces, _shard_on_mesh, _gathered)


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
        lambda args: jax.vmap(lambda one: fn(args[0], *one))(args[1]),
        in_axes=((None, 0),),
        devices=jax.local_devices(),  # hosts of a pod may call it at different times
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


# Hosts. With one host alone these do nothing.


def from_first_host(value: Any) -> Any:
    """The first host's value, on every host; all must call it, with trees of one structure."""
    return multihost_utils.broadcast_one_to_all(value)


def bytes_from_first_host(content: bytes) -> bytes:
    """The first host's bytes, on every host; all must call it."""
    if jax.process_count() == 1:
        return content
    size = int(from_first_host(np.int32(len(content))))
    mine = (
        np.frombuffer(content, np.uint8) if jax.process_index() == 0 else np.zeros(size, np.uint8)
    )
    return np.asarray(from_first_host(mine)).tobytes()


def from_all_hosts(tree: Any) -> list[Any]:
    """Every host's tree of numpy arrays, in the order of the hosts; all must call it.

    Bit for bit, also where JAX has no such type (float64); structure, shapes and dtypes are alike.
    """
    if jax.process_count() == 1:
        return [tree]
    leaves, structure = jax.tree.flatten(tree)
    leaves = [np.asarray(leaf) for leaf in leaves]
    held = multihost_utils.process_allgather(
        [np.frombuffer(leaf.tobytes(), np.uint8) for leaf in leaves]
    )
    return [
        jax.tree.unflatten(
            structure,
            [
                np.asarray(bytes_of_all[host]).view(leaf.dtype).reshape(leaf.shape)
                for bytes_of_all, leaf in zip(held, leaves, strict=True)
            ],
        )
        for host in range(jax.process_count())
    ]


def bytes_from_all_hosts(content: bytes) -> list[bytes]:
    """Every host's bytes, of any length, in the order of the hosts; all must call it."""
    sizes = [int(size) for size in from_all_hosts(np.int32(len(content)))]
    padded = np.frombuffer(content.ljust(max(sizes), b"\0"), np.uint8)
    held = from_all_hosts(padded)
    return [one[:size].tobytes() for one, size in zip(held, sizes, strict=True)]


def on_any_host(flag: bool) -> bool:
    """Whether the flag is set on a host; all must call it."""
    if jax.process_count() == 1:
        return bool(flag)
    return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))


def wait_for_all(name: str) -> None:
    """Returns when every host has called it with this name."""
    multihost_utils.sync_global_devices(name)


def reached_sync_point(calls: int) -> bool:
    """Whether all hosts are to stop now, since one of them received SIGTERM.

    Args:
      calls: how often this process has asked before: 0, 1, 2, ... It is true for one number
        alone, the same on all hosts.
    """
    return bool(multihost_utils.reached_preemption_sync_point(calls))
