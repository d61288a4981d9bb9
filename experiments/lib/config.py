"""Configs: resolved, shrunk for a smoke run, checked field by field."""

import math
import os
from typing import Any

import ml_collections
import numpy as np
from absl import flags
from ml_collections import config_flags

from diffjax import losses, parallel, predictions, samplers
from experiments.configs import default
from experiments.lib.commands import UsageError

TIMES = ("uniform", "stratified", "importance", "log_normal", "logit_normal")
STEPS = 50  # of a walk, where neither the config nor the degradation says how many


def _or_none(parser_class: type[flags.ArgumentParser]) -> flags.ArgumentParser:
    class OrNone(parser_class):
        def parse(self, argument):
            return None if argument == "None" else super().parse(argument)

    return OrNone()


# --config.FIELD=None unsets a field; `resolve` refuses it where there must be a value.
for _type, _parser_class in {
    int: flags.IntegerParser,
    float: flags.FloatParser,
    bool: flags.BooleanParser,
    str: flags.ArgumentParser,
}.items():
    config_flags.register_flag_parser_for_type(_type, _or_none(_parser_class))


def resolve(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """A checked copy of the config, its paths absolute, shrunk if it asks for smoke.

    Raises:
      UsageError: naming the field and what it may be.
    """
    try:
        copy_fn = config.copy_and_resolve_references
    except OSError as error:  # ml_collections waits until now to say that there is no such file
        raise UsageError(f"--config: {str(error).strip().splitlines()[-1].strip()}") from error
    except AttributeError as error:
        raise UsageError(
            f"--config: get_config() must return a ConfigDict; got {type(config).__name__}"
        ) from error
    config = copy_fn()
    _check_fields(config, default.get_config())
    if config.smoke:
        _shrink(config)
    _check(config)
    for section in (config.data, config.degradation.get("images")):
        if section and section.get("directory"):  # as the run must find it from any folder
            section.directory = absolute(section.directory)
    return config


def float32(value: float) -> float:
    """A number as it will be computed with: 1e39 is infinite, 1e-50 is 0."""
    with np.errstate(over="ignore", under="ignore"):
        return float(np.float32(value))


def absolute(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path))


def _check_fields(config, defaults, prefix="config.") -> None:
    """Raises UsageError for a field that is missing, or is None where it has a value by default."""
    for name, value in defaults.items():
        is_section = isinstance(value, ml_collections.ConfigDict)
        if name not in config:
            what = "section" if is_section else "field"
            raise UsageError(
                f"{prefix}{name}: there is no such {what}; start from configs/default.py"
            )
        if is_section and not isinstance(config[name], ml_collections.ConfigDict):
            raise UsageError(f"{prefix}{name} must be a section; got {config[name]!r}")
        if value is not None and config[name] is None:
            raise UsageError(f"{prefix}{name} must have a value, such as {value!r}; got None")
        if is_section and name != "degradation":
            _check_fields(config[name], value, f"{prefix}{name}.")


def _shrink(config: ml_collections.ConfigDict) -> None:
    config.model.update(width=8, multipliers=config.model.multipliers[:2], blocks=1)
    config.model.attention = tuple(level for level in config.model.attention if level < 2)
    config.train.update(steps=6, batch_size=8, warmup=2, accumulate=1)
    config.sample.update(steps=2, batch_size=8, images=16)
    config.prior.update(components=1, images=64)
    config.run.update(log_every=2, evaluate_every=3, checkpoint_every=3)


def get(config: ml_collections.ConfigDict, field: str) -> Any:
    """The value of a field by its dotted name."""
    for name in field.split("."):
        config = config[name]
    return config


def is_own(name: Any) -> bool:
    """Whether a config names something of the user's, "module:function"."""
    return isinstance(name, str) and ":" in name


def _check(config: ml_collections.ConfigDict) -> None:
    def check(ok, field, wanted):
        if not ok:
            raise UsageError(f"config.{field} must be {wanted}; got {get(config, field)!r}")

    for field in (
        "train.steps train.batch_size train.accumulate train.max_skipped sample.batch_size "
        "run.log_every run.evaluate_every run.checkpoint_every run.keep model.blocks"
    ).split():
        check(get(config, field) > 0, field, "positive")
    for field in ("train.levels", "sample.steps", "sample.images", "data.image_size", "data.limit"):
        check(get(config, field) is None or get(config, field) > 0, field, "positive, or None")
    check(0 <= config.seed < 2**31, "seed", "in [0, 2^31)")
    check(config.train.warmup >= 0, "train.warmup", "0 or more")
    rate = float32(config.train.learning_rate)
    check(0 <= rate < math.inf, "train.learning_rate", "0 or more, and finite")
    check(config.train.clip_norm > 0, "train.clip_norm", "positive")
    check(0 <= config.train.ema_decay < 1, "train.ema_decay", "in [0, 1)")
    for field, choices in (
        ("parallel", tuple(parallel.MODES)),
        ("train.loss", tuple(losses.LOSSES)),
        ("train.prediction", tuple(predictions.DIRECTIONS)),
        ("train.weighting", (None, *losses.WEIGHTINGS)),
        ("train.times", TIMES),
        ("train.basis", ("pixels", "dct")),
        ("prior.kind", ("mixture", "bank")),
        ("sample.sampler", tuple(samplers.SAMPLERS)),
        ("sample.grid", tuple(samplers.GRIDS)),
        ("model.dtype", ("float32", "bfloat16")),
    ):
        check(get(config, field) in choices, field, f"one of {', '.join(map(str, choices))}")
    sharded = config.shard_optimizer
    check(not sharded or config.parallel == "jit", "parallel", "jit with config.shard_optimizer")
    check(0 <= config.train.label_dropout <= 1, "train.label_dropout", "in [0, 1]")
    check(
        0 < float32(config.train.loss_delta) < math.inf, "train.loss_delta", "positive and finite"
    )
    floor = float32(config.model.precondition_floor)
    check(0 < floor < math.inf, "model.precondition_floor", "positive and finite")
    check(config.prior.components > 0, "prior.components", "positive")
    check(config.prior.images > 1, "prior.images", "2 or more")
    given = config.prior.perturbation
    fine = given is None or 0 <= float32(given) < math.inf
    check(fine, "prior.perturbation", "0 or more and finite, or None")
    fine = 0 <= float32(config.train.perturbation) < math.inf
    check(fine, "train.perturbation", "0 or more, and finite")
    check(config.model.width > 0 and config.model.width % 8 == 0, "model.width", "a multiple of 8")
    multipliers = config.model.multipliers
    positive = multipliers and all(isinstance(one, int) and one > 0 for one in multipliers)
    check(positive, "model.multipliers", "positive, one a level")
    levels = range(len(config.model.multipliers))
    check(set(config.model.attention) <= set(levels), "model.attention", f"in {list(levels)}")
    interval = config.sample.guidance_interval
    ordered = len(interval) == 2 and None not in interval and 0 <= interval[0] <= interval[1] <= 1
    check(ordered, "sample.guidance_interval", "(low, high), 0 <= low <= high <= 1")
    quantile = config.sample.dynamic_threshold
    check(quantile is None or 0 < quantile <= 1, "sample.dynamic_threshold", "in (0, 1], or None")
