"""What experiments.export writes, read by the README's snippet as it stands there.

Oracle: R and D of the run itself, walked by the library.
"""

import json
import re
import subprocess
import sys

import jax
import numpy as np
import script_runs

from diffjax import restorers, samplers
from diffjax.degradations.base import degrade
from experiments.lib import runs


def snippet():
    text = (script_runs.ROOT / "README.md").read_text()
    section = text.partition("\n## A trained network, elsewhere\n")[2].partition("\n## ")[0]
    return re.search(r"```python\n(.*?)```", section, re.DOTALL)[1]


def test_the_readme_restores_from_an_export_alone(env, tmp_path):
    workdir = tmp_path / "run"
    status, _, stderr = script_runs.train(workdir, "--config.train.steps=3")
    assert status == 0, stderr
    output = tmp_path / "exported"
    status, stdout, stderr = script_runs.call(
        "export", f"--workdir={workdir}", f"--output={output}"
    )
    assert (status, stdout) == (0, f"wrote model.npz and model.json of step 3 into {output}\n")

    run = runs.load_run(workdir)
    D, image = run.problem.degradation, run.source.fetch_fn([0])["image"][0]
    xT = degrade(D, image, 1.0, None)
    np.save(tmp_path / "degraded.npy", xT)
    code = snippet()
    assert len(code.partition("\n\n")[2].splitlines()) == 10  # beside the imports
    alone = "import sys; sys.modules |= {'experiments': None, 'orbax': None}\n"
    code = f"{alone}{code}\nnp.save('restored.npy', x0)"
    subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=env | {"PYTHONPATH": str(script_runs.ROOT)},
        check=True,
    )

    params, problem = jax.device_put((run.state.ema_params, run.problem))
    R = restorers.restorer(run.experiment.objective, params, problem)
    ts, walked = samplers.uniform_grid(10), restorers.process(D, R)
    walk = jax.jit(lambda xT: samplers.sample(samplers.improved, walked, jax.random.key(0), xT, ts))
    restored = np.load(tmp_path / "restored.npy")
    # L enlarges float32's rounding, 6e-8 of x_t, by up to std(x0) / (2 floor), floor = 1e-3.
    np.testing.assert_allclose(restored, walk(xT), atol=1e-4)
    assert np.abs(restored - xT).max() > 0.1

    # Also D's own tables are there, as they are.
    with np.load(output / "model.npz") as file:
        held = dict(file)
    tables = [held[name] for name in held if name.startswith("degradation/")]
    for table, leaf in zip(tables, jax.tree.leaves(D.params), strict=True):
        np.testing.assert_array_equal(table, leaf)
    assert not [name for name in held if "opt" in name]
    about = json.loads((output / "model.json").read_text())
    assert (about["step"], about["prediction"], about["levels"]) == (3, "x0", 10)

    before = (output / "model.npz").read_bytes()
    status, _, stderr = script_runs.call("export", f"--workdir={workdir}", f"--output={output}")
    message = f"error: {output / 'model.npz'} exists: choose another --output\n"
    assert (status, stderr) == (2, message)
    assert (output / "model.npz").read_bytes() == before
