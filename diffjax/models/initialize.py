"""Parameters of a flax network from one draw, so that nothing is compiled leaf by leaf.

`jax.jit(model.init)` compiles one random kernel a leaf: 7 to 17 CPU seconds for a small U-Net.
But nearly all leaves are zeros, ones, or flax's default kernel,

    kernel = n / sqrt(fan_in),   n standard normal numbers cut off on both sides, of variance 1,

and all kernels together can be cut from one vector n.

Depends on: jax, flax, numpy.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


def init(model: nn.Module, key: Array, shape: Sequence[int]) -> Any:
    """What `model.init` draws, in distribution: other numbers, a tenth of the time.

    The kernels' law is section 4.6 of "Efficient BackProp" by LeCun et al. (1998).

    Args:
      model: called as model(xt, t) with xt [H, W, C] and a scalar t; its fields are hashable.
      key: of the draw.
      shape: of xt, [H, W, C].
    Returns:
      The parameters, float32, in the tree that `model.init` returns.
    Note: a leaf of another law, as an embedding's, is drawn by `model.init`. Layers stacked by
      nn.scan or nn.vmap are not for this function: it would take the stack for a larger fan_in.
    """
    leaves, tree = _leaves(model, tuple(shape))
    kernels: list[Any] = []
    others: list[Any] = []
    values: dict[Any, Any] = {}
    for path, leaf, law, features in leaves:
        if law in (nn.initializers.zeros, nn.initializers.ones):
            one = np.asarray(law is nn.initializers.ones, leaf.dtype)
            values[path] = np.broadcast_to(one, leaf.shape)  # where shapes are asked for: no memory
        elif law is nn.Dense.kernel_init:
            kernels.append((path, leaf, leaf.size / np.prod(features)))
        else:
            others.append(path)

    ends = np.cumsum([0, *(leaf.size for _, leaf, _ in kernels)])
    # Drawn as one kernel whose fan_in is 1, which makes the variance 1.
    n = nn.Dense.kernel_init(key, (1, ends[-1]), jnp.float32)[0]
    if not isinstance(n, jax.core.Tracer):
        n = np.asarray(n)  # numpy compiles nothing to cut it
    for (path, leaf, fan_in), start, end in zip(kernels, ends[:-1], ends[1:], strict=True):
        values[path] = (n[start:end] / math.sqrt(fan_in)).reshape(leaf.shape).astype(leaf.dtype)
    if others:
        # What is not returned is not compiled either.
        @jax.jit
        def draw_others(*example):
            drawn = jax.tree.leaves_with_path(model.init(*example))
            return [leaf for path, leaf in drawn if path in others]

        values |= zip(others, draw_others(key, *_example(shape)), strict=True)
    return jax.device_put(jax.tree.unflatten(tree, [values[path] for path, *_ in leaves]))


@functools.lru_cache(maxsize=8)  # a command asks several times, and each traces the network
def _leaves(model: nn.Module, shape: tuple[int, ...]) -> tuple[list[tuple], Any]:
    """([(path, its shape and dtype, its law, its module's features), ...], the tree)"""
    modules = {}

    def note(call, args, kwargs, context):
        modules[context.module.path] = context.module
        return call(*args, **kwargs)

    with nn.intercept_methods(note):
        tree = jax.eval_shape(model.init, jax.random.key(0), *_example(shape))
    found = []
    for path, leaf in jax.tree.leaves_with_path(tree):
        _, *names, name = (part.key for part in path)
        module: Any = modules.get(tuple(names))
        law = getattr(module, f"{name}_init", None)
        found.append((path, leaf, law, getattr(module, "features", None)))
    return found, jax.tree.structure(tree)


def _example(shape: Sequence[int]) -> tuple[Array, Array]:
    return jnp.zeros(shape), jnp.zeros(())


def as_functions(
    model: nn.Module, shape: Sequence[int]
) -> tuple[Callable[[Array], Any], Callable[..., Any]]:
    """(init(key) -> params, apply(params, xt, t, label) -> output): a model as pure functions.

    Args:
      model: as in `init`.
      shape: of xt, [H, W, C].
    """

    def init_fn(key):
        return init(model, key, shape)

    return init_fn, model.apply
