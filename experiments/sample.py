"""Draws held-out images beside their restorations: clean, degraded, direct, both algorithms.

python -m experiments.sample --workdir=runs/demo
"""

import pathlib

import numpy as np
from absl import flags

from experiments import building, common, pictures, restoring

_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run.")
_COLUMNS = flags.DEFINE_integer("columns", 16, "How many images.", lower_bound=1)
flags.mark_flag_as_required("workdir")


def main() -> None:
    workdir = pathlib.Path(_WORKDIR.value)
    run = building.load_run(workdir)
    batches = list(restoring.restorations(run, _COLUMNS.value))
    rows = {"clean": np.concatenate([clean for clean, _ in batches])}
    for name in restoring.METHODS:
        rows[name] = np.concatenate([outputs[name] for _, outputs in batches])
    path = workdir / "samples.png"
    pictures.draw_grid(path, list(rows.values()), names=list(rows))
    print(f"wrote {path}")


if __name__ == "__main__":
    common.run(main)
