"""Writes what a trained R needs, and nothing else: numpy arrays and a JSON, for other programs.

python -m experiments.export --workdir=runs/demo --output=exported

Writes, into --output: model.npz, with the averaged parameters (params/...), the tables of D
(degradation/...) and, if R is preconditioned, those of its Wiener restorer (wiener/...); and
model.json, with D's family and its arguments, the network's, and what it predicts. README.md shows
how to restore an image from them without this command and without checkpoints.
"""

import json
import pathlib
from typing import Any

import jax
import numpy as np
from absl import flags

from experiments.lib import build, commands, files, provenance, runs

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
_STEP = flags.DEFINE_string(
    "step", None, "Of the checkpoint, or best, by its held-out loss; none: the latest."
)
_OUTPUT = flags.DEFINE_string("output", None, "Folder of the two files; made if absent.")
_DIRECTORY = flags.DEFINE_string(
    "config.data.directory", None, "Where the run's data lies now; none: where it lay."
)
flags.mark_flags_as_required(["workdir", "output"])


def arrays(run: runs.Run) -> dict[str, np.ndarray]:
    """{"params/...": array, ...}: the leaves of what R is made of, by their paths."""
    parts = {
        "params": run.state.ema_params,
        "degradation": run.problem.degradation.params,
        "wiener": run.problem.wiener,
    }
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(parts)
    }


def about(run: runs.Run) -> dict[str, Any]:
    """What the arrays mean: every argument that D and the network are constructed with."""
    config = json.loads(run.experiment.config.to_json())
    return {
        "step": int(run.state.step),
        "image_shape": run.experiment.image_shape,
        "degradation": {
            "name": config["degradation"].pop("family"),
            "arguments": config["degradation"],
        },
        "network": build.describe_network(run.experiment),
        "preconditioned": run.problem.wiener is not None,
        "prediction": config["train"]["prediction"],
        "levels": run.experiment.levels,
        "data": config["data"]["name"],
        **provenance.commit(pathlib.Path(__file__).parent),
    }


def main() -> None:
    output = files.folder(_OUTPUT.value)
    for path in (output / "model.npz", output / "model.json"):
        if path.exists():
            raise commands.UsageError(f"{path} exists: choose another --output")
    run = runs.load_run(files.folder(_WORKDIR.value), _STEP.value, directory=_DIRECTORY.value)
    output.mkdir(parents=True, exist_ok=True)
    with files.whole(output / "model.npz") as file:
        np.savez(file, **arrays(run))
    files.write_json(output / "model.json", about(run))
    print(f"wrote model.npz and model.json of step {int(run.state.step):,} into {output}")


if __name__ == "__main__":
    commands.run(main, buckets={"workdir", "output"})
