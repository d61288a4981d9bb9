"""From a config to the pieces of an experiment: data, degradation, network, objective, fits."""

import dataclasses
import functools
import inspect
import math
import pickle
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import tqdm

from diffjax import (
    data,
    losses,
    parallel,
    priors,
    restorers,
    samplers,
    time_sampling,
    training,
    wiener,
)
from diffjax.auditing import generation_laws
from diffjax.degradations import base
from diffjax.degradations.families import FAMILIES
from diffjax.images import cover
from diffjax.models import dit, initialize, unet
from experiments.lib import commands, feasible, own
from experiments.lib.commands import UsageError
from experiments.lib.config import STEPS, get, is_own

_BANK = 1024  # images that animorph chooses its other end from
# Of config.model; the others are the network's.
_OURS = ("network", "class_conditional", "precondition", "precondition_floor", "stationary")


def _of(model_class: type, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those settings that a flax module has as fields."""
    names = {field.name for field in dataclasses.fields(model_class)}
    return {name: value for name, value in settings.items() if name in names}


def flax_network(model_class, image_shape, channels_in, channels_out, num_classes, **settings):
    """A flax module as a pair of pure functions, see `initialize.as_functions`."""
    settings = _of(model_class, settings) | {"dtype": jnp.dtype(settings["dtype"])}
    model = model_class(channels=channels_out, num_classes=num_classes, **settings)
    return initialize.as_functions(model, (*image_shape[:2], channels_in))


MODELS = {"unet": unet.UNet, "dit": dit.DiT}
NETWORKS = {name: functools.partial(flax_network, model) for name, model in MODELS.items()}


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The pieces that a config names."""

    config: ml_collections.ConfigDict
    degradation: base.Degradation
    objective: restorers.Objective
    optimizer: optax.GradientTransformation
    init_params: Callable[[jax.Array], Any]  # key -> the network's parameters
    image_shape: tuple[int, int, int]
    preconditioned: bool

    @property
    def levels(self) -> int | None:
        """T of the severities k / T that R is trained at; None: all of (0, 1]."""
        return restorers.levels(self.objective, self.degradation)

    def initial_state(self) -> training.TrainState:
        params = self.init_params(jax.random.key(self.config.seed))
        # In one program: leaf by leaf, every shape is compiled by itself.
        return jax.jit(functools.partial(training.create_state, optimizer=self.optimizer))(params)


def named(field: str, name: str, known: Mapping[str, Any], roots: Mapping[str, str]) -> Any:
    """What config.`field` names: one of ours, or a "module:function" of the user's."""
    if is_own(name):
        return own.load(field, name, roots.get(name))
    if name not in known:
        raise UsageError(
            f"config.{field} must be one of {', '.join(known)}, or module:function; got {name!r}"
        )
    return known[name]


def own_names(config: ml_collections.ConfigDict) -> dict[str, str]:
    """{field: "module:function"} of everything in a config that is the user's."""
    fields = ("degradation.family", "model.network", "data.name")
    return {field: get(config, field) for field in fields if is_own(get(config, field))}


def load_data(config: ml_collections.ConfigDict, split: str, roots: Mapping[str, str]):
    """One split of a config's data.

    Raises:
      UsageError: naming the field and the fix.
    """
    name = config.data.name
    feasible.check_image_size(config)
    try:
        with commands.told_if_slow("config.data is being read"):
            return data.load(
                own.load("data.name", name, roots.get(name)) if is_own(name) else name,
                split,
                directory=config.data.directory,
                image_size=config.data.image_size,
                limit=config.data.limit,
            )
    except MemoryError as error:
        raise UsageError("config.data does not fit into memory: lower image_size") from error
    except (ValueError, OSError) as error:
        raise UsageError(str(error)) from error


def build_degradation(
    config: ml_collections.ConfigDict,
    image_shape: tuple[int, int, int],
    roots: Mapping[str, str] | None = None,
) -> base.Degradation:
    """The degradation that a config section names, with those that it is made of."""
    arguments = dict(config)
    family = arguments.pop("family")
    constructor = named("degradation.family", family, FAMILIES, roots or {})
    for name, value in arguments.items():
        if isinstance(value, ml_collections.ConfigDict) and "family" in value:
            arguments[name] = build_degradation(value, image_shape, roots)
    try:
        if family == "compose":
            return constructor(**arguments)
        if family == "animorph":
            arguments["images"] = _bank(arguments["images"], image_shape)
        degradation = constructor(image_shape, **arguments)
    except (TypeError, KeyError, ValueError, OverflowError, MemoryError) as error:
        raise UsageError(f"config.degradation ({family}): {error}") from error
    if not isinstance(degradation, base.Degradation):
        raise UsageError(
            f"config.degradation.family {family!r} must return a Degradation; got "
            f"{type(degradation).__name__}"
        )
    return degradation


def _bank(config, image_shape) -> np.ndarray:
    """The images that a config section of name and directory names, for animorph."""
    height, width, channels = image_shape
    square = height if height == width else None
    source = data.load(
        config["name"], "train", directory=config.get("directory"), image_size=square
    )
    if source.image_shape[-1] != channels:
        raise ValueError(f"images have {source.image_shape[-1]} channels, the data's {channels}")
    bank = source.fetch_fn(range(min(_BANK, source.size)))["image"]
    return np.stack([cover(image, height, width) for image in bank])


def _objective(config, degradation, network_fn, num_classes) -> restorers.Objective:
    train = config.train
    loss_fn = losses.LOSSES[train.loss]
    if train.loss in ("huber", "pseudo_huber"):
        name = "delta" if train.loss == "huber" else "c"
        loss_fn = functools.partial(loss_fn, **{name: train.loss_delta})
    return restorers.Objective(
        network_fn=network_fn,
        prediction=train.prediction,
        loss_fn=loss_fn,
        weight_fn=None if train.weighting is None else losses.WEIGHTINGS[train.weighting],
        degree=1 if train.loss == "l1" else 2,
        spacing_fn=(
            time_sampling.stratified if train.times == "stratified" else time_sampling.uniform
        ),
        importance=train.times == "importance",
        levels=train.levels,
        num_classes=num_classes,
        label_dropout=train.label_dropout,
        perturbation=train.perturbation,
        basis=train.basis,
    )


def _histogram(config, degradation) -> jax.Array | None:
    """The histogram of severities of a law that the config names, or None for a flat one."""
    bins = 1000
    if config.train.times == "logit_normal":
        return jnp.asarray(time_sampling.logit_normal_histogram(bins), jnp.float32)
    if config.train.times != "log_normal":
        return None
    ts = jnp.linspace(0, 1, bins + 1)
    if not base.has_coefficients(degradation):
        raise UsageError(
            f"config.train.times 'log_normal' is a law of sigma / alpha, which "
            f"{config.degradation.family} has not: choose another law"
        )
    alpha, sigma = jax.vmap(lambda t: base.coefficients(degradation, t))(ts)
    with np.errstate(divide="ignore"):
        log_sigmas = np.log(np.asarray(sigma, np.float64)) - np.log(np.asarray(alpha, np.float64))
    return jnp.asarray(time_sampling.log_normal_histogram(log_sigmas), jnp.float32)


def _network(config, image_shape, preconditioned, num_classes, roots) -> tuple[Callable, Callable]:
    """(init, apply) of the network that a config names."""
    network_fn = named("model.network", config.model.network, NETWORKS, roots)
    channels = image_shape[-1]
    settings = {name: value for name, value in config.model.items() if name not in _OURS}
    if is_own(config.model.network):
        # The default's fields are the U-Net's: a network of the user's gets those it names.
        known = inspect.signature(network_fn).parameters.values()
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in known):
            names = {parameter.name for parameter in known}
            settings = {name: value for name, value in settings.items() if name in names}
    channels_in = 2 * channels if preconditioned else channels
    feasible.check_network(config, network_fn, settings, image_shape, channels_in, num_classes)
    return network_fn(image_shape, channels_in, channels, num_classes, **settings)


def describe_network(experiment: Experiment) -> dict[str, Any]:
    """{"name", "arguments"}: what constructs a model of ours; of a user's, config.model."""
    settings, name = experiment.config.model.to_dict(), experiment.config.model.network
    if name not in MODELS:
        return {"name": name, "arguments": settings}
    num_classes = experiment.objective.num_classes
    ours = {"channels": experiment.image_shape[-1], "num_classes": num_classes}
    return {"name": name, "arguments": ours | _of(MODELS[name], settings)}


def _optimizer(train: ml_collections.ConfigDict) -> optax.GradientTransformation:
    updates = max(1, train.steps // train.accumulate)
    schedule = optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=train.learning_rate,
        warmup_steps=min(train.warmup // train.accumulate, updates - 1),
        decay_steps=updates,
    )
    return training.create_optimizer(
        schedule, clip_norm=train.clip_norm, accumulate=train.accumulate
    )


def build(
    config: ml_collections.ConfigDict, split: str, roots: Mapping[str, str] | None = None
) -> tuple[Experiment, data.Source]:
    """The experiment of a resolved config, and one split of its data.

    Args:
      config: from `resolve`.
      split: "train" or "test".
      roots: where each "module:function" is imported from; what is not in it: from the
        current folder.
    Raises:
      UsageError: naming the field and the fix.
    """
    roots = roots or {}
    source = load_data(config, split, roots)
    with commands.told_if_slow("config.degradation is being built"):
        degradation = build_degradation(config.degradation, source.image_shape, roots)
    num_classes = source.num_classes if config.model.class_conditional else None
    if config.model.class_conditional and num_classes is None:
        raise UsageError(
            f"config.model.class_conditional: {config.data.name} has no labels; set it False"
        )
    feasible.check_prediction(config, degradation)
    feasible.check_perturbation(config, start_perturbation(config), own_noise(degradation))
    feasible.check_data(config, source.image_shape)
    preconditioned = _preconditioned(config, degradation, source.image_shape)
    init_fn, apply_fn = _network(config, source.image_shape, preconditioned, num_classes, roots)
    experiment = Experiment(
        config=config,
        degradation=degradation,
        objective=_objective(config, degradation, apply_fn, num_classes),
        optimizer=_optimizer(config.train),
        init_params=init_fn,
        image_shape=source.image_shape,
        preconditioned=preconditioned,
    )
    return experiment, source


def _preconditioned(config, degradation, image_shape) -> bool:
    """Whether the network is wrapped: by default wherever the Wiener restorer is known."""
    answers_x0 = config.train.prediction == "x0" or (
        config.train.prediction == "previous" and not base.has_coefficients(degradation)
    )
    # Another image as omega is no white noise, which the Wiener restorer takes it for.
    white = degradation.draw_fn in (base.no_realization, base.draw_noise)
    possible = answers_x0 and degradation.linear_fn is not None and white
    if config.model.precondition and not possible:
        raise UsageError(
            "config.model.precondition needs a linear degradation, its noise white, and "
            f"train.prediction x0; got {config.degradation.family} and {config.train.prediction}"
        )
    wrapped = possible if config.model.precondition is None else config.model.precondition
    if config.model.stationary and not wrapped:
        raise UsageError("config.model.stationary is of model.precondition, which is off here")
    if config.model.stationary:
        _, _, rows, cols, _ = restorers.linear_fn(degradation)(jnp.ones(()))
        try:
            for size, matrix in zip(image_shape, (rows, cols), strict=False):
                wiener.stationary_factor(np.eye(size), matrix)
        except ValueError as error:
            raise UsageError(f"config.model.stationary: {error}") from error
    return wrapped


def total_floor(config: ml_collections.ConfigDict) -> float:
    """How uncertain x_t is for the Wiener restorer: hypot(model.precondition_floor, q)."""
    return math.hypot(config.model.precondition_floor, config.train.perturbation)


def start_perturbation(config: ml_collections.ConfigDict) -> float:
    """p, the std of the noise on x_T: the config's, or 1.1 q."""
    given = config.prior.perturbation
    return 1.1 * config.train.perturbation if given is None else given


def own_noise(degradation: base.Degradation) -> float:
    """sigma of a linear D at t = 1: the noise that R saw without train.perturbation."""
    if degradation.linear_fn is None:
        return 0.0
    # One small program in place of one an operation.
    return float(jax.jit(lambda t: restorers.linear_fn(degradation)(t)[1])(jnp.ones(())))


def fit_wiener(experiment: Experiment, source: data.Source) -> wiener.WienerRestorer | None:
    """The Wiener restorer of the training images, in one pass; None where none is used."""
    if not experiment.preconditioned:
        return None
    tabulated = not base.has_coefficients(experiment.degradation)
    return wiener.fit(
        restorers.linear_fn(experiment.degradation),
        measure(source),
        levels=(experiment.levels or 100) if tabulated else None,
        floor=total_floor(experiment.config),
        stationary=experiment.config.model.stationary,
    )


def _in_batches(source: data.Source, size: int = 1000) -> Iterator[np.ndarray]:
    """This host's share of all images of a source, once, a bounded number at a time.

    With a bar where it takes long.
    """
    starts = range(size * jax.process_index(), source.size, size * jax.process_count())
    for start in tqdm.tqdm(starts, desc="images", leave=False, disable=len(starts) < 10):
        yield source.fetch_fn(range(start, min(start + size, source.size)))["image"]


def all_alike(source: data.Source) -> bool:
    """Whether a source holds one image alone, as often as it likes: it has no covariance.

    All hosts must call it.
    """
    first = source.fetch_fn([0])["image"]
    mine = all(np.array_equal(x, np.broadcast_to(first, x.shape)) for x in _in_batches(source))
    return not parallel.on_any_host(not mine)


def measure(source: data.Source) -> wiener.Moments:
    """The moments of all images of a source, summed over the hosts' shares; all must call it."""
    shape = source.image_shape
    none = wiener.Moments(np.zeros(()), np.zeros(shape), *(np.zeros((n, n)) for n in shape))
    mine = functools.reduce(wiener.merge, map(wiener.measure, _in_batches(source)), none)
    shares = [one for one in parallel.from_all_hosts(mine) if one.count > 0]
    return functools.reduce(wiener.merge, shares)


def foretell(experiment: Experiment, source: data.Source) -> generation_laws.Generation | None:
    """Whether a config that is to generate can; None for one that restores; all hosts call it."""
    config, degradation = experiment.config, experiment.degradation
    if start_perturbation(config) == 0 or degradation.linear_fn is None:
        return None
    return generation_laws.check_generation(
        degradation,
        measure(source),
        jax.random.key(config.seed + 5),
        perturbation=config.train.perturbation,
        start_perturbation=start_perturbation(config),
        ts=grid(experiment),
        floor=config.model.precondition_floor,
        samples=min(512, max(32, 2**19 // math.prod(experiment.image_shape))),
    )


def fit_prior(
    experiment: Experiment, source: data.Source
) -> priors.MixturePrior | priors.BankPrior | None:
    """What x_T is drawn from, fitted on up to prior.images training images, fully degraded; None
    where D of a blank image will do.
    """
    config, degradation = experiment.config, experiment.degradation
    count = min(config.prior.images, source.size)
    indices = np.random.default_rng(config.seed).choice(source.size, count, replace=False)
    clean = source.fetch_fn(np.sort(indices))["image"]
    keys = jax.random.split(jax.random.key(config.seed + 3), count)

    def fully(key, x0):
        return base.degrade(degradation, x0, 1.0, base.draw(degradation, key, x0))

    # With one key for all, what still differs between two xT comes from x0.
    if count == 1 or not priors.depends_on_x0(
        lambda x0, t, omega: fully(keys[0], x0), clean[:64], None
    ):
        return None
    xT = np.asarray(jax.jit(jax.vmap(fully))(keys, clean))
    if config.prior.kind == "bank":
        return priors.BankPrior(jnp.asarray(xT))
    try:
        return priors.fit_mixture(xT, components=config.prior.components, seed=config.seed)
    except ValueError as error:
        raise UsageError(f"config.prior: {error}") from error


def fit(experiment: Experiment, source: data.Source) -> dict[str, Any]:
    """{"wiener": ..., "prior": ...}: what is fitted to the training images before training.

    On several hosts all call it: the moments are summed over them, the prior is the first's.
    """
    wiener_restorer = fit_wiener(experiment, source)
    prior = fit_prior(experiment, source) if jax.process_index() == 0 else None
    held = parallel.bytes_from_first_host(pickle.dumps(jax.device_get(prior)))
    return {"wiener": wiener_restorer, "prior": jax.device_put(pickle.loads(held))}


def problem(experiment: Experiment, wiener_restorer) -> restorers.Problem:
    """The arrays that a step and a sampler take beside the parameters."""
    histogram = _histogram(experiment.config, experiment.degradation)
    return restorers.Problem(experiment.degradation, wiener_restorer, histogram)


def sampler(experiment: Experiment, name: str | None = None):
    """The sampler of that name, with the config's settings; None: the config's."""
    chosen = experiment.config.sample
    settings = {key: value for key, value in chosen.settings.items() if value is not None}
    if name not in (None, chosen.sampler):
        # Another than the config's takes those of the config's settings that it has.
        known = samplers.settings(name)
        settings = {key: value for key, value in settings.items() if key in known}
    try:
        return restorers.sampler(name or chosen.sampler, experiment.degradation, **settings)
    except ValueError as error:
        raise UsageError(f"config.sample.sampler: {error}") from error


def grid(experiment: Experiment, steps: int | None = None, name: str | None = None) -> jax.Array:
    """ts, see `restorers.grid`; None: the config's steps or name, or the degradation's own."""
    chosen = experiment.config.sample
    steps = steps or chosen.steps or experiment.levels or STEPS
    name = name or chosen.grid
    what = f"config.sample.steps, or --steps, = {steps:,}"
    feasible.check_fits(what, 2 * steps)  # the grid, in float64
    try:
        return restorers.grid(name, steps, experiment.degradation, levels=experiment.levels)
    except ValueError as error:
        raise UsageError(f"config.sample.grid: {error}") from error
