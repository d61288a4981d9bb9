"""Studies: variants of one config, trained alike over several seeds and held side by side.

A study is a file of a config, `get_config()`, that all variants share, with

    VARIANTS = {"L1": {}, "L2, faster": {"train.loss": "l2", "train.learning_rate": 3e-3}}

what each changes of it, by the fields' dotted names; a whole section may be replaced. It may have
`score(trained) -> {name: number}`, columns of its own, of a finished run (`Trained`). Every run is
judged on held-out images at ten of its steps: the RMSE of x0_hat, averaged over ten severities and
at t = 1, where SSIM is taken too; images in [0, 1].
"""

import contextlib
import functools
import importlib.util
import json
import pathlib
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import tqdm

from diffjax import data, metrics, restorers, training
from diffjax.degradations.base import degrade, draw
from experiments.configs import default
from experiments.lib import build, files, pictures, runs
from experiments.lib.commands import UsageError
from experiments.lib.config import resolve

Results = dict[str, dict[str, Any]]
CURVES = {"rmse": "RMSE over all t", "rmse1": "RMSE at t = 1", "ssim1": "SSIM at t = 1"}
POINTS = 10  # steps at which a run is judged


class Trained(NamedTuple):
    """A finished run of a study, for `score` of its file."""

    experiment: build.Experiment
    fitted: Mapping[str, Any]  # see `build.fit`
    problem: restorers.Problem
    params: Any  # the averaged ones
    train: data.Source
    images: np.ndarray  # those judged on, held out; [N, H, W, C] in [-1, 1]


class Study(NamedTuple):
    path: pathlib.Path
    configs: dict[str, ml_collections.ConfigDict]  # of the variants, resolved
    score_fn: Callable[[Trained], dict[str, float]] | None


def load(path: pathlib.Path, directory: str | None = None) -> Study:
    """The study of a file; directory: where its data lies now, None: where the config says.

    Raises:
      UsageError: naming the file, and what in it is missing, or is no field or value of a config.
    """
    module = _module(path)
    variants, score_fn = getattr(module, "VARIANTS", None), getattr(module, "score", None)
    if not callable(getattr(module, "get_config", None)):
        raise UsageError(f"{path} must define get_config(): the config that all variants share")
    if not isinstance(variants, dict) or not variants:
        raise UsageError(f"{path}: VARIANTS must be {{name: {{field: value}}}}; got {variants!r}")
    if score_fn is not None and not callable(score_fn):
        raise UsageError(f"{path}: score must be a function; got {score_fn!r}")
    configs = {}
    for name, changes in variants.items():
        with _told(path, name):
            configs[name] = _changed(module, changes)
            if directory is not None:
                configs[name].data.directory = directory
            configs[name] = resolve(configs[name])
    return Study(path, configs, score_fn)


def _module(path: pathlib.Path) -> types.ModuleType:
    if not path.is_file() or path.suffix != ".py":
        raise UsageError(f"--study={path} must be a file of Python, such as those in {_HOME}")
    spec = importlib.util.spec_from_file_location("study", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # a user's file may raise anything
        reason = (str(error).strip().splitlines() or [""])[0]
        raise UsageError(f"{path} cannot be loaded: {type(error).__name__}: {reason}") from error
    return module


_HOME = "experiments/studies"


@contextlib.contextmanager
def _told(path: pathlib.Path, name: str) -> Iterator[None]:
    try:
        yield
    except UsageError as error:
        raise UsageError(f"{path}, variant {name!r}: {error}") from error


def _changed(module: types.ModuleType, changes: Any) -> ml_collections.ConfigDict:
    """A fresh config with the changes of a variant."""
    try:
        config = module.get_config()
    except Exception as error:  # a user's function may raise anything
        raise UsageError(f"get_config() fails: {type(error).__name__}: {error}") from error
    if not isinstance(config, ml_collections.ConfigDict):
        raise UsageError(f"get_config() must return a ConfigDict; got {type(config).__name__}")
    if not isinstance(changes, dict):
        raise UsageError(f"it must be {{field: value}}; got {changes!r}")
    for field, value in changes.items():
        section, names = config, str(field).split(".")
        for name in names:
            if not isinstance(section, ml_collections.ConfigDict) or name not in section:
                raise UsageError(f"config.{field}: there is no such field")
            parent, section = section, section[name]
        try:
            parent[name] = value
        except (TypeError, ValueError) as error:
            raise UsageError(f"config.{field} cannot be {value!r}: {error}") from error
    return config


def describe(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """{field: value} of what differs from configs/default.py, but for what may change."""
    here, there = (
        runs.flatten(json.loads(one.to_json())) for one in (config, default.get_config())
    )
    differing = {f: value for f, value in here.items() if value != there.get(f)}
    return files.finite(
        {f: value for f, value in differing.items() if not f.startswith(runs.MAY_CHANGE)}
    )


def run(study: Study, seeds: int, images: int, output: pathlib.Path) -> Results:
    """Trains what is not yet in OUTPUT.json, keeps it there after every run, draws OUTPUT.png.

    Returns:
      {variant: {"config": what it changes of default.py, "step": [E], curves: [E, seeds], the
      study's own scores: [seeds]}}.
    Raises:
      UsageError: if OUTPUT.json holds another study, or a variant that was another.
    """
    path = output.with_suffix(".json")
    settings = {
        "study": study.path.stem, "held_out_images": images, "device": runs.describe_device()
    }  # fmt: skip
    held = _held(path, settings, study)
    built = {}
    for name, config in study.configs.items():
        held.setdefault(name, {"config": describe(config)})
        left = range(len(held[name].get("rmse", [[]])[0]), seeds)
        if left:
            with _told(study.path, name):
                built[name] = left, build.build(config, "train"), build.build(config, "test")[1]
    path.parent.mkdir(parents=True, exist_ok=True)
    for name, (left, (experiment, train), test) in built.items():
        clean = test.fetch_fn(range(min(images, test.size)))["image"]
        for found in _train(name, experiment, train, clean, left, study.score_fn):
            _append(held[name], found)
            files.write_json(path, {"settings": settings, "results": held})
    results = {name: held[name] for name in study.configs}
    draw_curves(output.with_suffix(".png"), results)
    return results


def _held(path: pathlib.Path, settings: dict[str, Any], study: Study) -> Results:
    another = "choose another --output"
    held = files.read_json(path, f"remove it, or {another}") if path.exists() else {}
    for name in settings if held else ():
        if held.get("settings", {}).get(name) != settings[name]:
            raise UsageError(
                f"{path} is of another {name}, {held.get('settings', {}).get(name)!r} and not "
                f"{settings[name]!r}: {another}"
            )
    results = held.get("results", {})
    for name in results.keys() & study.configs.keys():
        there, here = results[name]["config"], describe(study.configs[name])
        for field in sorted(there.keys() | here.keys()):
            if there.get(field) != here.get(field):
                old, new = (one.get(field, "the default") for one in (there, here))
                raise UsageError(
                    f"{path} holds {name!r} with config.{field} = {old!r}, and {study.path} says "
                    f"{new!r}: {another}"
                )
    return results


def _append(result: dict[str, Any], found: Mapping[str, Any]) -> None:
    """Adds a run to those of its variant: a column to the curves, a number to the scores."""
    result["step"] = found["step"]
    for name, found_there in found.items():
        if name in CURVES:
            rows = result.setdefault(name, [[] for _ in found["step"]])
            for row, value in zip(rows, found_there, strict=True):
                row.append(value)
        elif name != "step":
            result.setdefault(name, []).append(found_there)


def scores(experiment: build.Experiment, problem, key, params, clean_BHWC) -> dict:
    """{curve: value} of one network, see CURVES."""

    def restored(key, x0, t):
        omega = draw(problem.degradation, key, x0)
        xt = degrade(problem.degradation, x0, t, omega)
        return metrics.to_unit(restorers.restore(experiment.objective, params, problem, xt, t))

    keys = jax.random.split(key, len(clean_BHWC))
    unit_BHWC = metrics.to_unit(clean_BHWC)

    def rmse(t):
        x0_hat = jax.vmap(restored, in_axes=(0, 0, None))(keys, clean_BHWC, t)
        return jnp.sqrt(jnp.mean(jnp.square(x0_hat - unit_BHWC))), x0_hat

    rmses, _ = jax.lax.map(lambda t: (rmse(t)[0], 0), jnp.arange(1, 11) / 10)
    rmse1, x0_hat = rmse(jnp.float32(1))
    return {
        "rmse": jnp.mean(rmses),
        "rmse1": rmse1,
        "ssim1": jnp.mean(jax.vmap(metrics.ssim)(x0_hat, unit_BHWC)),
    }


def _train(
    name: str,
    experiment: build.Experiment,
    source: data.Source,
    clean: np.ndarray,
    seeds: range,
    score_fn: Callable[[Trained], dict[str, float]] | None,
) -> Iterator[dict[str, Any]]:
    """One run a seed: {"step": [E], curves: [E], the study's own scores}."""
    config = experiment.config
    fitted = build.fit(experiment, source)
    problem = build.problem(experiment, fitted["wiener"])
    init_fn = jax.jit(
        lambda key: training.create_state(experiment.init_params(key), experiment.optimizer)
    )
    step_fn = jax.jit(
        functools.partial(
            training.train_step,
            objective=experiment.objective,
            optimizer=experiment.optimizer,
            ema_decay=config.train.ema_decay,
        ),
        donate_argnums=0,
    )
    curves_fn = jax.jit(functools.partial(scores, experiment))
    steps = config.train.steps
    every = max(1, steps // POINTS)
    points = [*range(every, steps, every), steps]
    for seed in seeds:
        key = jax.random.key(seed)
        state = init_fn(key)
        batches = data.batches(source, batch_size=config.train.batch_size, seed=seed)
        found: dict[str, Any] = {"step": points} | {curve: [] for curve in CURVES}
        for step in tqdm.trange(1, steps + 1, desc=f"{name}, seed {seed}", mininterval=1):
            state, _ = step_fn(state, next(batches), key, problem)
            if step in points:
                judged = curves_fn(problem, jax.random.key(1), state.ema_params, clean)
                for curve, value in jax.device_get(judged).items():
                    found[curve].append(float(value))
        if score_fn is not None:
            trained = Trained(experiment, fitted, problem, state.ema_params, source, clean)
            found |= score_fn(trained)
        yield found


def markdown(results: Results) -> str:
    """The last step's, mean and standard deviation over the seeds."""
    names = dict.fromkeys(name for result in results.values() for name in result)
    shown = [*CURVES, *(name for name in names if name not in {"config", "step", *CURVES})]
    lines = [
        "| | " + " | ".join(CURVES.get(name, name) for name in shown) + " |",
        "|---" * (len(shown) + 1) + "|",
    ]
    for variant, result in results.items():
        cells = [variant]
        for name in shown:
            values = np.array(result[name][-1] if name in CURVES else result[name], float)
            spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
            cells.append(f"{np.mean(values):.3f}{spread}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw_curves(path: pathlib.Path, results: Results) -> None:
    """Means over the seeds, and their range, over the steps."""
    figure = pictures.new_figure((13, 4))
    figure.set_layout_engine("constrained")
    axes = figure.subplots(1, 3)
    for axis, (name, label) in zip(axes, CURVES.items(), strict=True):
        for variant, result in results.items():
            values = np.array(result[name], float)
            (line,) = axis.plot(result["step"], values.mean(1), lw=1.2, label=variant)
            low, high = values.min(1), values.max(1)
            axis.fill_between(result["step"], low, high, color=line.get_color(), alpha=0.2)
        axis.set(xlabel="step", ylabel=f"held-out {label}")
        axis.grid(alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    figure.savefig(path, dpi=110)
