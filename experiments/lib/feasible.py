"""Whether a config can be built: what contradicts itself, is too large, or answers something else.

All raise UsageError, in one line that names the field and the fix.
"""

import math
import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections

from diffjax.degradations import base
from experiments.lib import commands
from experiments.lib.commands import UsageError

_ALIKE = {"unet": "blocks", "dit": "depth"}  # how many blocks of a network of ours are alike
_SOON_TRACED = 32  # of them, in seconds


def check_prediction(config: ml_collections.ConfigDict, degradation: base.Degradation) -> None:
    """Whether a degradation has what the prediction and the weighting are made of."""
    train, family = config.train, config.degradation.family
    if train.weighting is not None and train.loss not in ("l1", "l2"):
        raise UsageError("config.train.weighting needs train.loss to be l1 or l2")
    needs = train.prediction not in ("x0", "previous") or train.weighting is not None
    if needs and not base.has_coefficients(degradation):
        raise UsageError(
            f"config.train.prediction {train.prediction!r} and weighting {train.weighting!r} need "
            f"x_t = alpha x0 + sigma omega, which {family} is not: choose x0, no weighting"
        )
    if (
        train.prediction in ("noise", "score")
        and float(base.coefficients(degradation, 1.0)[0]) == 0
    ):
        raise UsageError(
            f"config.train.prediction {train.prediction!r} cannot tell x0 at t = 1, where "
            f"config.degradation ({family}) leaves nothing of it (alpha = 0): "
            "choose prediction v or x0, or a degradation.schedule that ends above 0"
        )
    if train.prediction == "previous" and train.levels is None and degradation.steps is None:
        raise UsageError("config.train.levels must be given: 'previous' is one level milder")


def check_perturbation(config: ml_collections.ConfigDict, start: float, noise: float) -> None:
    """Whether the numbers of a generation agree.

    start: p, the std of the noise on x_T.
    noise: sigma of D at t = 1, which R has seen.
    """
    q, floor = config.train.perturbation, config.model.precondition_floor
    if q > 0 and config.train.prediction != "x0":
        raise UsageError(
            f"config.train.perturbation = {q:g} is for train.prediction x0; got "
            f"{config.train.prediction!r}"
        )
    if start == 0:
        return
    numbers = (
        f"config.prior.perturbation = {start:g}, train.perturbation = {q:g}, "
        f"model.precondition_floor = {floor:g}"
    )
    if q == 0 and noise == 0:
        raise UsageError(f"{numbers}: R never sees such noise; set train.perturbation")
    if start > 1.5 * math.hypot(floor, q, noise):
        raise UsageError(f"{numbers}: the first exceeds 1.5 times the others: it would grow")


def check_fits(what: str, floats: int) -> None:
    """Whether so many float32, the least that something needs, fit into this machine's memory."""
    held = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if 4 * floats > held:
        raise UsageError(
            f"{what} needs {4 * floats / 2**30:,.0f} GiB at least, and this machine has "
            f"{held / 2**30:,.0f}"
        )


def check_image_size(config: ml_collections.ConfigDict) -> None:
    """Whether a batch of the size that images are brought to fits into memory."""
    size = config.data.image_size or 0
    check_fits(f"config.data.image_size = {size:,}", config.train.batch_size * size**2)


def check_data(config: ml_collections.ConfigDict, image_shape: tuple[int, int, int]) -> None:
    """Whether a batch and the Wiener restorer's tables fit into memory."""
    height, width, channels = image_shape
    size, levels = config.train.batch_size, config.train.levels or 0
    check_fits(f"config.train.batch_size = {size:,}", size * height * width * channels)
    tables = 3 * (height**2 + width**2 + channels**2)
    check_fits(f"config.train.levels = {levels:,}", levels * tables)


def check_network(
    config: ml_collections.ConfigDict,
    network_fn: Callable,
    settings: dict[str, Any],
    image_shape: tuple[int, int, int],
    channels_in: int,
    num_classes: int | None,
) -> None:
    """Whether a network can be made, answers an image, and fits into memory.

    network_fn: as of `build.NETWORKS`.
    """
    label = None if num_classes is None else jax.ShapeDtypeStruct((), jnp.int32)
    xt = jax.ShapeDtypeStruct((*image_shape[:2], channels_in), jnp.float32)
    t = jax.ShapeDtypeStruct((), jnp.float32)
    name = config.model.network

    def held(**changed):
        """Floats of the parameters, their average and two moments of Adam."""
        try:
            init_fn, apply_fn = network_fn(
                image_shape, channels_in, image_shape[-1], num_classes, **settings | changed
            )
        except (TypeError, ValueError) as error:
            raise UsageError(f"config.model ({name}): {error}") from error
        try:
            params = jax.eval_shape(init_fn, jax.eval_shape(lambda: jax.random.key(0)))
            output = jax.eval_shape(apply_fn, params, xt, t, label)
        except Exception as error:  # a user's network may raise anything
            reason = (str(error).strip().splitlines() or [""])[0]
            raise UsageError(
                f"config.model.network {name!r} fails on an image {list(xt.shape)}: "
                f"{type(error).__name__}: {reason}"
            ) from error
        if output.shape != tuple(image_shape):
            raise UsageError(
                f"config.model.network {name!r} must answer one image {list(image_shape)}; it "
                f"answers {list(output.shape)}"
            )
        return 4 * sum(leaf.size for leaf in jax.tree.leaves(params))

    field = _ALIKE.get(name)
    count = settings[field] if field else 0
    if count > _SOON_TRACED:  # to trace a million takes hours
        one, two = held(**{field: 1}), held(**{field: 2})
        check_fits(f"config.model.{field} = {count:,}", one + (count - 1) * (two - one))
    with commands.told_if_slow(f"config.model.network {name!r} is being traced"):
        floats = held()
    chosen = ", ".join(f"{field} {value}" for field, value in settings.items())
    check_fits(f"config.model ({name}: {chosen})", floats)
