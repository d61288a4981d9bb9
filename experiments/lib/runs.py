"""The folder of a run: what it holds, who may claim it, how it is read back.

A workdir holds config.json, fitted/ (what was fitted before training), checkpoints/,
metrics.jsonl, tensorboard/, and what the commands draw or tabulate.
"""

import contextlib
import json
import pathlib
from typing import Any, NamedTuple

import jax
import ml_collections

from diffjax import checkpoints, data, parallel, priors, restorers, training, wiener
from experiments.configs import default
from experiments.lib import build, own
from experiments.lib.commands import UsageError

Prior = priors.MixturePrior | priors.BankPrior | None


class Run(NamedTuple):
    """A trained experiment, as its workdir holds it."""

    experiment: build.Experiment
    source: data.Source  # the held-out split
    state: training.TrainState
    problem: restorers.Problem
    prior: Prior
    roots: dict[str, str]  # where each "module:function" of the config is imported from


def known_roots(workdir: pathlib.Path) -> dict[str, str]:
    """Where each "module:function" of a workdir's run is imported from; empty for a new one.

    Raises:
      UsageError: if one of the files has changed or gone.
    """
    path = workdir / "config.json"
    known = json.loads(path.read_text()).get("own", {}) if path.exists() else {}
    own.check(known)
    return {name: found["root"] for name, found in known.items()}


def claim(workdir: pathlib.Path, config: ml_collections.ConfigDict, roots: dict[str, str]) -> None:
    """Writes config.json into a new workdir, or checks that an old one holds the same experiment.

    Raises:
      UsageError: naming the first field that differs; nothing is written.
    """
    path = workdir / "config.json"
    wanted = json.loads(config.to_json())
    names = build.own_names(config)
    if names:
        wanted["own"] = {
            name: own.describe(field, name, roots.get(name), workdir)
            for field, name in names.items()
        }
    if path.exists():
        held = json.loads(path.read_text())
        for field in sorted(_flatten(held).keys() | _flatten(wanted).keys()):
            old, new = _flatten(held).get(field), _flatten(wanted).get(field)
            if old != new and not field.startswith(("run.", "parallel")):
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


def fit_or_load(
    experiment: build.Experiment, source: data.Source, workdir: pathlib.Path
) -> dict[str, Any]:
    """`build.fit`, once for a workdir: kept beside the checkpoints, in fitted/.

    It is read back, so that all hosts of a pod go on with what the first one fitted.
    """
    held = load_fitted(workdir)
    if held is not None:
        return held
    fitted = build.fit(experiment, source)
    with contextlib.closing(checkpoints.open_manager(workdir / "fitted")) as manager:
        checkpoints.save(manager, 0, fitted)
    held = load_fitted(workdir)
    assert held is not None  # just written, and waited for
    return held


def load_fitted(workdir: pathlib.Path) -> dict[str, Any] | None:
    """What `fit_or_load` kept, or None."""
    with contextlib.closing(checkpoints.open_manager(workdir / "fitted")) as manager:
        held = checkpoints.load(manager)
    if held is None:
        return None
    if held["wiener"] is not None:
        factors = held["wiener"].pop("factors")
        factors = wiener.Factors(**{axis: wiener.Factor(**factors[axis]) for axis in factors})
        held["wiener"] = wiener.WienerRestorer(**held["wiener"], factors=factors)
    if held["prior"] is not None:
        kind = priors.BankPrior if "images" in held["prior"] else priors.MixturePrior
        held["prior"] = kind(**held["prior"])
    return held


def read_config(workdir: pathlib.Path) -> tuple[ml_collections.ConfigDict, dict[str, str]]:
    """The config of a workdir, and where each "module:function" in it is imported from.

    Raises:
      UsageError: if there is none, or a file of the user's has changed or gone.
    """
    path = workdir / "config.json"
    if not path.exists():
        raise UsageError(f"{workdir} holds no config.json: train there first")
    held = _tuples(json.loads(path.read_text()))
    held.pop("own", None)
    config = default.get_config()
    # The whole section, not merged: another family has not the default's arguments.
    config.degradation = ml_collections.ConfigDict(held.pop("degradation"))
    with config.unlocked():
        config.update(ml_collections.ConfigDict(held))
    return config, known_roots(workdir)


def load_run(workdir: pathlib.Path) -> Run:
    """The run of a workdir, at its latest checkpoint.

    Raises:
      UsageError: if nothing was trained there, or its data has gone.
    """
    config, roots = read_config(workdir)
    experiment, source = build.build(config, "test", roots)
    with contextlib.closing(checkpoints.open_manager(workdir / "checkpoints")) as manager:
        state = checkpoints.load(manager, jax.eval_shape(experiment.initial_state))
    fitted = load_fitted(workdir)
    if state is None or fitted is None:
        raise UsageError(f"{workdir} holds no checkpoint yet: train there first")
    problem = build.problem(experiment, fitted["wiener"])
    return Run(experiment, source, state, problem, fitted["prior"], roots)


def averaged_params(path: str, experiment: build.Experiment) -> Any:
    """The averaged parameters of the run in a folder, for a network like the experiment's.

    Raises:
      UsageError: if nothing was trained there, or its network is another.
    """
    workdir = pathlib.Path(path)
    if not (workdir / "checkpoints").is_dir():
        raise UsageError(f"--init={path} holds no checkpoint: train there first")
    with contextlib.closing(checkpoints.open_manager(workdir / "checkpoints")) as manager:
        held = checkpoints.load(manager)
    wanted = jax.eval_shape(experiment.init_params, jax.eval_shape(lambda: jax.random.key(0)))
    if held is None or shapes(held["ema_params"]) != shapes(wanted):
        raise UsageError(f"--init={path} holds a network of another shape than this config's")
    leaves = jax.tree.leaves(held["ema_params"])
    return jax.tree.unflatten(jax.tree.structure(wanted), leaves)


def shapes(tree: Any) -> list[tuple[int, ...]]:
    return [leaf.shape for leaf in jax.tree.leaves(tree)]


def _tuples(tree):
    """json has no tuples, and a config field keeps its type."""
    if isinstance(tree, dict):
        return {name: _tuples(value) for name, value in tree.items()}
    return tuple(map(_tuples, tree)) if isinstance(tree, list) else tree


def describe_device() -> str:
    device = jax.devices()[0]
    hosts = f" on {jax.process_count()} hosts" if jax.process_count() > 1 else ""
    return f"{jax.device_count()} x {device.device_kind}{hosts}"


def check_batch_size(config: ml_collections.ConfigDict) -> None:
    try:
        parallel.check_batch_size(config.train.batch_size)
    except ValueError as error:
        raise UsageError(f"config.train.{error}") from error
