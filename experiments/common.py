"""What the scripts share: flags, configs and their errors, the folder of a run.

A workdir holds config.json, checkpoints/, metrics.jsonl, tensorboard/, and what
the scripts draw or tabulate.
"""

import contextlib
import json
import logging
import pathlib
import sys
import warnings
from collections.abc import Callable, Iterator

import jax
import ml_collections
from absl import flags
from absl import logging as absl_logging

from diffjax import losses, parallel, predictions

LOSSES = ("l1", "l2", "huber", "pseudo_huber")
TIMES = ("uniform", "stratified", "importance", "log_normal", "logit_normal")
SAMPLERS = (
    *("naive", "cold", "ddim", "ddpm", "euler", "heun", "dpm_solver_2m", "flow_euler"),
    *("ihdm", "indi", "blurring"),
)
GRIDS = ("uniform", "trailing", "karras")


class UsageError(ValueError):
    """A wrong flag, config or workdir; reported in one line, exit status 2."""


def run(main: Callable[[], int | None]) -> None:
    """Parses the flags and runs main; what the user got wrong ends in one line and status 2."""
    absl_logging.set_verbosity(absl_logging.ERROR)
    logging.getLogger("jax").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=UserWarning, module="orbax")
    with usage_errors(Exception):
        try:
            rest = flags.FLAGS(sys.argv)
        except (AttributeError, KeyError) as error:
            message = error.args[0]
            if isinstance(message, KeyError):  # its str would be a repr
                message = message.args[0]
            raise UsageError(f"no config field {' '.join(str(message).split())}") from error
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
    try:
        config = config.copy_and_resolve_references()
    except OSError as error:  # ml_collections waits until now to say that there is no such file
        raise UsageError(f"--config: {str(error).strip().splitlines()[-1].strip()}") from error
    if config.smoke:
        config.model.update(width=8, multipliers=config.model.multipliers[:2], blocks=1)
        config.model.attention = tuple(level for level in config.model.attention if level < 2)
        config.train.update(steps=6, batch_size=8, warmup=2, accumulate=1)
        config.sample.update(steps=2, batch_size=8, images=16)
        config.prior.update(components=1, images=64)
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
    weightings = (None, *losses.WEIGHTINGS)
    for field, choices in (
        ("train.loss", LOSSES),
        ("train.prediction", tuple(predictions.DIRECTIONS)),
        ("train.weighting", weightings),
        ("train.times", TIMES),
        ("prior.kind", ("mixture", "bank")),
        ("sample.sampler", SAMPLERS),
        ("sample.grid", GRIDS),
        ("model.dtype", ("float32", "bfloat16")),
    ):
        check(_get(config, field) in choices, field, f"one of {', '.join(map(str, choices))}")
    check(0 <= config.train.label_dropout <= 1, "train.label_dropout", "in [0, 1]")
    check(config.train.loss_delta > 0, "train.loss_delta", "positive")
    check(config.model.precondition_floor > 0, "model.precondition_floor", "positive")
    check(config.sample.delta >= 0, "sample.delta", "0 or more")
    check(config.prior.components > 0, "prior.components", "positive")
    check(config.prior.images > 1, "prior.images", "2 or more")
    check(config.prior.perturbation >= 0, "prior.perturbation", "0 or more")
    check(config.model.width > 0 and config.model.width % 8 == 0, "model.width", "a multiple of 8")
    multipliers = config.model.multipliers
    check(multipliers and min(multipliers) > 0, "model.multipliers", "positive, one a level")
    levels = range(len(config.model.multipliers))
    check(set(config.model.attention) <= set(levels), "model.attention", f"in {list(levels)}")
    return config


def _get(config, field):
    for name in field.split("."):
        config = config[name]
    return config


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


def describe_device() -> str:
    device = jax.devices()[0]
    hosts = f" on {jax.process_count()} hosts" if jax.process_count() > 1 else ""
    return f"{jax.device_count()} x {device.device_kind}{hosts}"


def check_batch_size(config: ml_collections.ConfigDict) -> None:
    try:
        parallel.check_batch_size(config.train.batch_size)
    except ValueError as error:
        raise UsageError(f"config.train.{error}") from error
