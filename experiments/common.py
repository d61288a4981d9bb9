"""What the scripts share: configs and their errors, the pieces of a run, its folder.

A workdir holds config.json, checkpoints/, metrics.jsonl, tensorboard/, and what
the scripts draw or tabulate.
"""

import contextlib
import dataclasses
import json
import logging
import pathlib
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax
from absl import flags
from absl import logging as absl_logging

from diffjax import checkpoints, cold, data, degradations, losses, parallel, training
from diffjax.models import unet
from experiments.configs import default

FAMILIES = {constructor.__name__: constructor for constructor in (cold.gaussian_blur,)}
LOSSES = {"l1": losses.l1, "l2": losses.l2}


class UsageError(ValueError):
    """A wrong flag, config or workdir; reported in one line, exit status 2."""


def run(main: Callable[[], int | None]) -> None:
    """Parses the flags and runs main; what the user got wrong ends in one line and status 2."""
    absl_logging.set_verbosity(absl_logging.ERROR)
    logging.getLogger("jax").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=UserWarning, module="orbax")
    with usage_errors(Exception):
        rest = flags.FLAGS(sys.argv)
        if len(rest) > 1:
            raise UsageError(f"unexpected argument {rest[1]!r}: flags are written --name=value")
    with usage_errors():
        sys.exit(main() or 0)


@contextlib.contextmanager
def usage_errors(*kinds: type[Exception]) -> Iterator[None]:
    """Turns UsageError, and the kinds given, into one line on stderr and exit status 2."""
    try:
        yield
    except (UsageError, *kinds) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        print(f"error: {lines[0]}", file=sys.stderr)
        sys.exit(2)


def resolve(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """A checked copy of the config, shrunk if it asks for smoke.

    Raises:
      UsageError: naming the field and what it may be.
    """
    config = config.copy_and_resolve_references()
    if config.smoke:
        config.model.update(width=8, multipliers=config.model.multipliers[:2], blocks=1)
        config.model.attention = tuple(level for level in config.model.attention if level < 2)
        config.train.update(steps=6, batch_size=8, warmup=2, accumulate=1)
        config.sample.update(steps=2, batch_size=8, images=16)
        config.run.update(log_every=2, checkpoint_every=3)

    def check(ok, field, wanted):
        if not ok:
            raise UsageError(f"config.{field} must be {wanted}; got {_get(config, field)!r}")

    for field in (
        "train.steps train.batch_size train.accumulate sample.steps sample.batch_size "
        "run.log_every run.checkpoint_every run.keep model.blocks"
    ).split():
        check(_get(config, field) > 0, field, "positive")
    for field in ("train.levels", "sample.images", "data.image_size"):
        check(_get(config, field) is None or _get(config, field) > 0, field, "positive, or None")
    check(0 <= config.seed < 2**31, "seed", "in [0, 2^31)")
    check(config.train.warmup >= 0, "train.warmup", "0 or more")
    check(config.train.learning_rate >= 0, "train.learning_rate", "0 or more")
    check(config.train.clip_norm > 0, "train.clip_norm", "positive")
    check(0 <= config.train.ema_decay < 1, "train.ema_decay", "in [0, 1)")
    check(config.train.loss in LOSSES, "train.loss", f"one of {', '.join(LOSSES)}")
    check(config.model.dtype in ("float32", "bfloat16"), "model.dtype", "float32 or bfloat16")
    check(config.model.width > 0 and config.model.width % 8 == 0, "model.width", "a multiple of 8")
    multipliers = config.model.multipliers
    check(multipliers and min(multipliers) > 0, "model.multipliers", "positive, one a level")
    levels = range(len(config.model.multipliers))
    check(set(config.model.attention) <= set(levels), "model.attention", f"in {list(levels)}")
    check(
        config.degradation.family in FAMILIES, "degradation.family", f"one of {', '.join(FAMILIES)}"
    )
    return config


def _get(config, field):
    for name in field.split("."):
        config = config[name]
    return config


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The pieces that a config names."""

    config: ml_collections.ConfigDict
    degradation: degradations.Degradation
    network_fn: Callable[[Any, jax.Array, jax.Array], jax.Array]
    optimizer: optax.GradientTransformation
    image_shape: tuple[int, int, int]

    def initial_state(self) -> training.TrainState:
        model = _model(self.config, self.image_shape)
        params = unet.init_unet(model, jax.random.key(self.config.seed), self.image_shape)
        return training.create_state(params, self.optimizer)


def _model(config, image_shape):
    return unet.UNet(
        channels=image_shape[-1],
        width=config.model.width,
        multipliers=tuple(config.model.multipliers),
        blocks=config.model.blocks,
        attention=tuple(config.model.attention),
        dtype=jnp.dtype(config.model.dtype),
    )


def build(config: ml_collections.ConfigDict, split: str) -> tuple[Experiment, data.Source]:
    """The experiment of a resolved config, and one split of its data.

    Raises:
      UsageError: naming the field and the fix.
    """
    try:
        source = data.load(
            config.data.name,
            split,
            directory=config.data.directory,
            image_size=config.data.image_size,
        )
    except (ValueError, OSError) as error:
        raise UsageError(str(error)) from error
    arguments = dict(config.degradation)
    family = arguments.pop("family")
    try:
        degradation = FAMILIES[family](source.image_shape, **arguments)
    except (TypeError, ValueError) as error:
        raise UsageError(f"config.degradation ({family}): {error}") from error
    updates = max(1, config.train.steps // config.train.accumulate)
    schedule = optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=config.train.learning_rate,
        warmup_steps=min(config.train.warmup // config.train.accumulate, updates - 1),
        decay_steps=updates,
    )
    optimizer = training.create_optimizer(
        schedule, clip_norm=config.train.clip_norm, accumulate=config.train.accumulate
    )
    experiment = Experiment(
        config, degradation, _model(config, source.image_shape).apply, optimizer, source.image_shape
    )
    return experiment, source


def claim_workdir(workdir: pathlib.Path, config: ml_collections.ConfigDict) -> None:
    """Writes config.json into a new workdir, or checks that an old one holds the same experiment.

    Raises:
      UsageError: naming the first field that differs; nothing is written.
    """
    path = workdir / "config.json"
    wanted = json.loads(config.to_json())
    if path.exists():
        held = json.loads(path.read_text())
        for field in sorted(_flatten(held).keys() | _flatten(wanted).keys()):
            old, new = _flatten(held).get(field), _flatten(wanted).get(field)
            if old != new and not field.startswith("run."):
                raise UsageError(
                    f"{workdir} holds another experiment: config.{field} is {old!r} there and "
                    f"{new!r} here; choose another --workdir"
                )
    elif workdir.exists() and any(workdir.iterdir()):
        raise UsageError(f"{workdir} is not empty and holds no config.json: choose another one")
    elif jax.process_index() == 0:
        workdir.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(wanted, indent=2) + "\n")


def _flatten(tree, prefix=""):
    if not isinstance(tree, dict):
        return {prefix[:-1]: tree}
    return {k: v for name in tree for k, v in _flatten(tree[name], f"{prefix}{name}.").items()}


def load_run(workdir: pathlib.Path) -> tuple[Experiment, data.Source, training.TrainState]:
    """The experiment of a workdir, its held-out split, and its latest state.

    Raises:
      UsageError: if nothing was trained there, or its data has gone.
    """
    path = workdir / "config.json"
    if not path.exists():
        raise UsageError(f"{workdir} holds no config.json: train there first")
    held = json.loads(path.read_text())
    config = default.get_config()
    with config.unlocked():
        config.update(ml_collections.ConfigDict(_tuples(held)))
    experiment, source = build(config, "test")
    with contextlib.closing(checkpoints.open_manager(workdir / "checkpoints")) as manager:
        state = checkpoints.restore(manager, jax.eval_shape(experiment.initial_state))
    if state is None:
        raise UsageError(f"{workdir} holds no checkpoint yet: train there first")
    return experiment, source, state


def _tuples(tree):
    """json has no tuples, and a config field keeps its type."""
    if isinstance(tree, dict):
        return {name: _tuples(value) for name, value in tree.items()}
    return tuple(tree) if isinstance(tree, list) else tree


def describe_device() -> str:
    device = jax.devices()[0]
    hosts = f" on {jax.process_count()} hosts" if jax.process_count() > 1 else ""
    return f"{jax.device_count()} x {device.device_kind}{hosts}"


def check_batch_size(config: ml_collections.ConfigDict) -> None:
    try:
        parallel.check_batch_size(config.train.batch_size)
    except ValueError as error:
        raise UsageError(f"config.train.{error}") from error
