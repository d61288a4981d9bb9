"""The folder of a run: what it holds, who may claim it, how it is read back.

A workdir holds config.json, fitted/ (what was fitted before training), checkpoints/,
metrics.jsonl, heldout.jsonl, tensorboard/, run.json (every start: see `provenance`), and what the
commands draw or tabulate. Whoever trains there holds it, see `lock`.
"""

import contextlib
import json
import pathlib
import sys
from typing import Any, NamedTuple

import jax
import ml_collections

from diffjax import checkpoints, data, parallel, priors, restorers, training, wiener
from experiments.configs import default
from experiments.lib import build, files, own, provenance
from experiments.lib.commands import UsageError
from experiments.lib.config import absolute

_RESTORE = "restore it, or choose another --workdir"
Prior = priors.MixturePrior | priors.BankPrior | None


class Run(NamedTuple):
    """A trained experiment, as its workdir holds it."""

    experiment: build.Experiment
    source: data.Source  # the held-out split
    state: training.TrainState
    problem: restorers.Problem
    prior: Prior
    roots: dict[str, str]  # where each "module:function" of the config is imported from
    fingerprint: str | None  # of the training data, if it is known


def known_roots(workdir: pathlib.Path) -> dict[str, str]:
    """Where each "module:function" of a workdir's run is imported from; empty for a new one.

    Raises:
      UsageError: if one of the files has changed or gone.
    """
    path = workdir / "config.json"
    known = files.read_json(path, _RESTORE).get("own", {}) if path.exists() else {}
    own.check(known)
    return {name: found["root"] for name, found in known.items()}


def is_started(workdir: pathlib.Path) -> bool:
    """Whether there is a checkpoint: whole, damaged or empty."""
    names = (path.name for path in (workdir / "checkpoints").glob("*"))
    return any(name.removesuffix(".damaged").isdecimal() for name in names)


def claim(
    workdir: pathlib.Path,
    config: ml_collections.ConfigDict,
    roots: dict[str, str],
    fingerprint: str | None = None,
    *,
    write: bool = True,
) -> None:
    """Writes config.json into a new workdir, or checks that an old one holds the same experiment.

    A workdir without a checkpoint holds nothing worth keeping: its config is replaced, and what
    was fitted for it removed. A field that an older one lacks has its default there. The data may
    lie elsewhere now, if its fingerprint is that of the run's. write=False checks alone.

    Raises:
      UsageError: naming the first field that differs; nothing is written.
    """
    path = workdir / "config.json"
    if workdir.exists() and not workdir.is_dir():
        raise UsageError(f"--workdir={workdir} is a file: choose another one")
    wanted = json.loads(config.to_json())
    names = build.own_names(config)
    if names:
        wanted["own"] = {
            name: own.describe(field, name, roots.get(name), workdir)
            for field, name in names.items()
        }
    if path.exists():
        held = files.read_json(path, _RESTORE)
        if held != wanted and not is_started(workdir):
            if write and jax.process_index() == 0:
                files.remove_tree(workdir / "fitted")
                files.write_json(path, wanted)
            return
        here, there = flatten(wanted), _defaults() | flatten(held)
        for field in sorted(there.keys() | here.keys()):
            old, new = there.get(field), here.get(field)
            if old != new and not field.startswith(MAY_CHANGE):
                raise UsageError(
                    f"{workdir} holds another experiment: config.{field} is {old!r} there and "
                    f"{new!r} here; choose another --workdir"
                )
        moved = there["data.directory"] != here["data.directory"]
        known = provenance.trained_on(workdir)
        if moved:
            check_same_data(workdir, wanted["data"]["directory"], known, fingerprint)
        elif None not in (known, fingerprint) and known != fingerprint and not write:
            print(
                f"warning: the training images have changed since {workdir} was trained on them: "
                f"they were {known} and are {fingerprint}",
                file=sys.stderr,
            )
        if moved and write and jax.process_index() == 0:
            held["data"]["directory"] = wanted["data"]["directory"]
            files.write_json(path, held)
    elif workdir.exists() and {path.name for path in workdir.iterdir()} - {"lock", "owner"}:
        raise UsageError(f"{workdir} is not empty and holds no config.json: choose another one")
    elif write and jax.process_index() == 0:
        workdir.mkdir(parents=True, exist_ok=True)
        files.write_json(path, wanted)


MAY_CHANGE = ("run.", "parallel", "shard_optimizer", "debug_nans", "data.directory")


def check_same_data(
    workdir: pathlib.Path, directory: str | None, known: str | None, found: str | None
) -> None:
    """Raises UsageError unless the data in a directory is what a run was trained on."""
    if known is None or known != found:
        known = known or "nobody knows which (run.json does not say)"
        raise UsageError(
            f"config.data.directory={directory} holds images {found}, and {workdir} was trained "
            f"on {known}: name the folder that those lie in now"
        )


def _defaults() -> dict[str, Any]:
    """The fields that a config.json may lack: all but those of the degradation's own family."""
    defaults = json.loads(default.get_config().to_json())
    del defaults["degradation"]
    return flatten(defaults)


def flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    """{"section.field": value} of a config as JSON."""
    if not isinstance(tree, dict):
        return {prefix[:-1]: tree}
    return {k: v for name in tree for k, v in flatten(tree[name], f"{prefix}{name}.").items()}


def fit_or_load(
    experiment: build.Experiment, source: data.Source, workdir: pathlib.Path
) -> dict[str, Any]:
    """`build.fit`, once for a workdir: kept beside the checkpoints, in fitted/.

    It is read back, so that all hosts of a pod go on with what the first one fitted.
    """
    held = load_fitted(workdir, set_aside=True)
    if held is not None:
        return held
    fitted = build.fit(experiment, source)
    with contextlib.closing(checkpoints.open_manager(workdir / "fitted")) as manager:
        checkpoints.save(manager, 0, fitted)
    held = load_fitted(workdir)
    assert held is not None  # just written, and waited for
    return held


def load_fitted(workdir: pathlib.Path, *, set_aside: bool = False) -> dict[str, Any] | None:
    """What `fit_or_load` kept, or None."""
    if not (workdir / "fitted").is_dir():
        return None
    with contextlib.closing(checkpoints.open_manager(workdir / "fitted")) as manager:
        held = checkpoints.load(manager, set_aside=set_aside)
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
    held = _tuples(files.read_json(path, "restore it, or train in another --workdir"))
    held.pop("own", None)
    config = default.get_config()
    try:
        # The whole section, not merged: another family has not the default's arguments.
        config.degradation = ml_collections.ConfigDict(held.pop("degradation"))
        with config.unlocked():
            config.update(ml_collections.ConfigDict(held))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UsageError(f"{path} is no config of an experiment: {reason}") from error
    return config, known_roots(workdir)


def load_run(
    workdir: pathlib.Path, step: str | None = None, *, directory: str | None = None
) -> Run:
    """The run of a workdir, at one of its checkpoints.

    Args:
      workdir: its folder.
      step: of the checkpoint, or "best", that of the least held-out loss; None: the latest.
      directory: where its data lies now; None: where it lay.
    Raises:
      UsageError: if nothing was trained there, or its data has gone or is another.
    """
    config, roots = read_config(workdir)
    trained_on = provenance.trained_on(workdir)
    if directory is not None:
        config.data.directory = absolute(directory)
        found = data.fingerprint(build.load_data(config, "train", roots))
        check_same_data(workdir, config.data.directory, trained_on, found)
    experiment, source = build.build(config, "test", roots)
    state = load_state(workdir, jax.eval_shape(experiment.initial_state), step)
    fitted = load_fitted(workdir)
    if state is None or fitted is None:
        which = "" if step is None else f" of step {step}"
        raise UsageError(f"{workdir} holds no whole checkpoint{which}: train there first")
    problem = build.problem(experiment, fitted["wiener"])
    return Run(experiment, source, state, problem, fitted["prior"], roots, trained_on)


def load_state(workdir: pathlib.Path, template: Any = None, step: str | None = None) -> Any:
    """The newest whole checkpoint of a workdir, or that of a step, or None; see `load_run`.

    Raises:
      UsageError: if it is of another network, or there is no such step.
    """
    if not (workdir / "checkpoints").is_dir():
        return None
    with contextlib.closing(checkpoints.open_manager(workdir / "checkpoints")) as manager:
        if not manager.all_steps():
            return None
        chosen = None if step is None else _chosen(workdir, manager, step)
        try:
            return checkpoints.load(manager, template, chosen)
        except ValueError as error:
            raise UsageError(f"{error}: config.model is not that of the run") from error


def _chosen(workdir, manager, step: str) -> int:
    held, best = manager.all_steps(), manager.best_step()
    if step.isdecimal() and int(step) in held:
        return int(step)
    if step != "best":
        known = ", ".join(map(str, held))
        raise UsageError(f"--step must be best or one that {workdir} holds, {known}; got {step!r}")
    if best is None:
        raise UsageError(
            f"--step=best: no checkpoint of {workdir} was saved where held-out images were looked "
            "at; train with run.checkpoint_every a multiple of run.evaluate_every"
        )
    return best


def averaged_params(path: str, experiment: build.Experiment) -> Any:
    """The averaged parameters of the run in a folder, for a network like the experiment's.

    Raises:
      UsageError: if nothing was trained there, or its network is another.
    """
    workdir = files.folder(path)
    if not (workdir / "checkpoints").is_dir():
        raise UsageError(f"--init={path} holds no checkpoint: train there first")
    held = load_state(workdir)
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
