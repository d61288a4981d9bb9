"""From a config to the pieces of an experiment: degradation, objective, optimiser, fits."""

import contextlib
import dataclasses
import functools
import json
import pathlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import tqdm

from diffjax import (
    checkpoints,
    cold,
    data,
    degradations,
    hot,
    linear,
    losses,
    occlusions,
    preconditioning,
    priors,
    times,
    training,
)
from diffjax.models import initialize, unet
from diffjax.operators import noise
from experiments.common import UsageError
from experiments.configs import default

FAMILIES = {
    constructor.__name__: constructor
    for constructor in (
        cold.decolor,
        cold.downsample,
        cold.gaussian_blur,
        cold.heat,
        degradations.compose,
        hot.animorph,
        hot.blurring_noise,
        hot.gaussian_noise,
        hot.interpolate,
        occlusions.fade,
        occlusions.mask,
        occlusions.snow,
    )
}
_BANK = 1024  # images that animorph chooses its other end from


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The pieces that a config names."""

    config: ml_collections.ConfigDict
    degradation: degradations.Degradation
    objective: training.Objective
    optimizer: optax.GradientTransformation
    model: unet.UNet
    image_shape: tuple[int, int, int]
    preconditioned: bool

    def init_params(self, key):
        height, width, channels = self.image_shape
        shape = (height, width, 2 * channels if self.preconditioned else channels)
        return initialize.init(self.model, key, shape)

    def initial_state(self) -> training.TrainState:
        params = self.init_params(jax.random.key(self.config.seed))
        return training.create_state(params, self.optimizer)


def build_degradation(config, image_shape) -> degradations.Degradation:
    """The degradation that a config section names, with those that it is made of."""
    arguments = dict(config)
    family = arguments.pop("family")
    if family not in FAMILIES:
        raise UsageError(
            f"config.degradation.family must be one of {', '.join(FAMILIES)}; got {family!r}"
        )
    for name, value in arguments.items():
        if isinstance(value, ml_collections.ConfigDict) and "family" in value:
            arguments[name] = build_degradation(value, image_shape)
    try:
        if family == "compose":
            return FAMILIES[family](**arguments)
        if family == "animorph":
            arguments["images"] = _bank(arguments["images"], image_shape)
        return FAMILIES[family](image_shape, **arguments)
    except (TypeError, KeyError, ValueError) as error:
        raise UsageError(f"config.degradation ({family}): {error}") from error


def _bank(config, image_shape) -> np.ndarray:
    """The images that a config section of name and directory names, for animorph."""
    source = data.load(
        config["name"], "train", directory=config.get("directory"), image_size=image_shape[0]
    )
    return source.fetch_fn(range(min(_BANK, source.size)))["image"]


def _objective(config, degradation, network_fn, num_classes) -> training.Objective:
    train = config.train
    loss_fn = getattr(losses, train.loss)
    if train.loss in ("huber", "pseudo_huber"):
        name = "delta" if train.loss == "huber" else "c"
        loss_fn = functools.partial(loss_fn, **{name: train.loss_delta})
    if train.weighting is not None and train.loss not in ("l1", "l2"):
        raise UsageError("config.train.weighting needs train.loss to be l1 or l2")
    needs = train.prediction not in ("x0", "previous") or train.weighting is not None
    if needs and degradations.coefficients(degradation, 1.0) is None:
        raise UsageError(
            f"config.train.prediction {train.prediction!r} and weighting {train.weighting!r} need "
            f"x_t = alpha x0 + sigma omega, which {config.degradation.family} is not: choose x0, "
            "no weighting"
        )
    if train.prediction == "previous" and train.levels is None:
        raise UsageError("config.train.levels must be given: 'previous' is one level milder")
    return training.Objective(
        network_fn=network_fn,
        prediction=train.prediction,
        loss_fn=loss_fn,
        weight_fn=None if train.weighting is None else losses.WEIGHTINGS[train.weighting],
        degree=1 if train.loss == "l1" else 2,
        spread_fn=times.stratified if train.times == "stratified" else times.uniform,
        importance=train.times == "importance",
        levels=train.levels,
        num_classes=num_classes,
        label_dropout=train.label_dropout,
    )


def _masses(config, degradation) -> jax.Array | None:
    """The histogram of severities of a law that the config names, or None for a flat one."""
    bins = 1000
    if config.train.times == "logit_normal":
        return jnp.asarray(times.logit_normal_masses(bins), jnp.float32)
    if config.train.times != "log_normal":
        return None
    ts = jnp.linspace(0, 1, bins + 1)
    if degradations.coefficients(degradation, 1.0) is None:
        raise UsageError(
            f"config.train.times 'log_normal' is a law of sigma / alpha, which "
            f"{config.degradation.family} has not: choose another law"
        )
    alpha, sigma = jax.vmap(lambda t: degradations.coefficients(degradation, t))(ts)
    with np.errstate(divide="ignore"):
        log_sigmas = np.log(np.asarray(sigma, np.float64)) - np.log(np.asarray(alpha, np.float64))
    return jnp.asarray(times.log_normal_masses(log_sigmas), jnp.float32)


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
    degradation = build_degradation(config.degradation, source.image_shape)
    num_classes = source.num_classes if config.model.class_conditional else None
    if config.model.class_conditional and num_classes is None:
        raise UsageError(
            f"config.model.class_conditional: {config.data.name} has no labels; set it False"
        )
    model = unet.UNet(
        channels=source.image_shape[-1],
        width=config.model.width,
        multipliers=tuple(config.model.multipliers),
        blocks=config.model.blocks,
        attention=tuple(config.model.attention),
        num_classes=num_classes,
        dtype=jnp.dtype(config.model.dtype),
    )
    updates = max(1, config.train.steps // config.train.accumulate)
    schedule = optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=config.train.learning_rate,
        warmup_steps=min(config.train.warmup // config.train.accumulate, updates - 1),
        decay_steps=updates,
    )
    experiment = Experiment(
        config=config,
        degradation=degradation,
        objective=_objective(config, degradation, model.apply, num_classes),
        optimizer=training.create_optimizer(
            schedule, clip_norm=config.train.clip_norm, accumulate=config.train.accumulate
        ),
        model=model,
        image_shape=source.image_shape,
        preconditioned=_preconditioned(config, degradation),
    )
    return experiment, source


def _preconditioned(config, degradation) -> bool:
    """Whether the network is wrapped: by default wherever the best linear restorer is known."""
    answers_x0 = config.train.prediction == "x0" or (
        config.train.prediction == "previous"
        and degradations.coefficients(degradation, 1.0) is None
    )
    # Another image as omega is no white noise, which the linear restorer takes it for.
    white = degradation.draw_fn in (degradations.no_realisation, noise.draw_noise)
    possible = answers_x0 and degradation.linear_fn is not None and white
    if config.model.precondition and not possible:
        raise UsageError(
            "config.model.precondition needs a linear degradation, its noise white, and "
            f"train.prediction x0; got {config.degradation.family} and {config.train.prediction}"
        )
    return possible if config.model.precondition is None else config.model.precondition


def _tables(experiment: Experiment) -> int | None:
    """How many severities the linear restorer is tabulated at; None where none is needed."""
    if degradations.coefficients(experiment.degradation, 1.0) is not None:
        return None
    return experiment.config.train.levels or 100


def fit(experiment: Experiment, source: data.Source) -> dict:
    """{"linear": the linear restorer or None, "prior": where x_T comes from, None if drawn}.

    One pass over the training images for the first, and up to prior.images of them, fully
    degraded, for the second.
    """
    config = experiment.config
    fitted = {"linear": None, "prior": None}
    if experiment.preconditioned:
        moments = None
        starts = range(0, source.size, 1000)
        for start in tqdm.tqdm(starts, desc="moments", leave=False, disable=len(starts) < 10):
            indices = range(start, min(start + 1000, source.size))
            batch = linear.measure(source.fetch_fn(indices)["image"])
            moments = batch if moments is None else linear.merge(moments, batch)
        fitted["linear"] = preconditioning.fit(
            experiment.degradation,
            moments,
            levels=_tables(experiment),
            floor=config.model.precondition_floor,
        )
    count = min(config.prior.images, source.size)
    indices = np.random.default_rng(config.seed).choice(source.size, count, replace=False)
    clean = source.fetch_fn(np.sort(indices))["image"]
    keys = jax.random.split(jax.random.key(config.seed + 3), count)

    def fully(key, x0):
        omega = degradations.draw(experiment.degradation, key, x0)
        return degradations.degrade(experiment.degradation, x0, 1.0, omega)

    # With one key for all, what still differs between two xT comes from x0.
    if priors.depends_on_x0(lambda x0, t, omega: fully(keys[0], x0), clean[:64], None):
        xT = np.asarray(jax.jit(jax.vmap(fully))(keys, clean))
        if config.prior.kind == "bank":
            fitted["prior"] = priors.BankPrior(jnp.asarray(xT))
        else:
            try:
                fitted["prior"] = priors.fit_mixture(
                    xT, components=config.prior.components, seed=config.seed
                )
            except ValueError as error:
                raise UsageError(f"config.prior: {error}") from error
    return fitted


def fit_or_load(experiment: Experiment, source: data.Source, workdir: pathlib.Path) -> dict:
    """`fit`, once for a workdir: kept beside the checkpoints, in fitted/."""
    held = load_fitted(workdir)
    if held is not None:
        return held
    fitted = fit(experiment, source)
    with contextlib.closing(checkpoints.open_manager(workdir / "fitted")) as manager:
        checkpoints.save(manager, 0, fitted)
    return fitted


def load_fitted(workdir: pathlib.Path) -> dict | None:
    """What `fit_or_load` kept, or None."""
    with contextlib.closing(checkpoints.open_manager(workdir / "fitted")) as manager:
        held = checkpoints.restore(manager)
    if held is None:
        return None
    if held["linear"] is not None:
        factors = held["linear"].pop("factors")
        factors = linear.Factors(**{axis: linear.Factor(**factors[axis]) for axis in factors})
        held["linear"] = preconditioning.LinearRestorer(**held["linear"], factors=factors)
    if held["prior"] is not None:
        kind = priors.BankPrior if "images" in held["prior"] else priors.MixturePrior
        held["prior"] = kind(**held["prior"])
    return held


def problem(experiment: Experiment, fitted: dict) -> training.Problem:
    """The arrays that a step and a sampler take beside the parameters."""
    return training.Problem(
        degradation=experiment.degradation,
        linear=fitted["linear"],
        masses=_masses(experiment.config, experiment.degradation),
    )


class Run(NamedTuple):
    """A trained experiment, as its workdir holds it."""

    experiment: Experiment
    source: data.Source  # the held-out split
    state: training.TrainState
    problem: training.Problem
    prior: priors.MixturePrior | priors.BankPrior | None


def load_run(workdir: pathlib.Path) -> Run:
    """The run of a workdir, at its latest checkpoint.

    Raises:
      UsageError: if nothing was trained there, or its data has gone.
    """
    path = workdir / "config.json"
    if not path.exists():
        raise UsageError(f"{workdir} holds no config.json: train there first")
    config = default.get_config()
    with config.unlocked():
        config.update(ml_collections.ConfigDict(_tuples(json.loads(path.read_text()))))
    experiment, source = build(config, "test")
    with contextlib.closing(checkpoints.open_manager(workdir / "checkpoints")) as manager:
        state = checkpoints.restore(manager, jax.eval_shape(experiment.initial_state))
    fitted = load_fitted(workdir)
    if state is None or fitted is None:
        raise UsageError(f"{workdir} holds no checkpoint yet: train there first")
    return Run(experiment, source, state, problem(experiment, fitted), fitted["prior"])


def _tuples(tree):
    """json has no tuples, and a config field keeps its type."""
    if isinstance(tree, dict):
        return {name: _tuples(value) for name, value in tree.items()}
    return tuple(map(_tuples, tree)) if isinstance(tree, list) else tree
