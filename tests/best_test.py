"""The checkpoint of the least held-out loss: it stays, and every command finds it as --step=best.

Oracle: the losses that were put in the place of those that a look sees.
"""

import json

import pytest
import script_runs

from experiments.lib import runs, watch
from experiments.lib.commands import UsageError

LOSSES = {3: 3.0, 6: 1.0, 9: None, 12: 2.0, 15: 2.5}


@pytest.fixture
def trained(monkeypatch, tmp_path):
    """A run whose looks at held-out images saw LOSSES, and of which one is saved without."""
    look = watch.Watch.look

    def chosen(self, step, params):
        line, *others = look(self, step, params)
        return line | {"loss": LOSSES[step]}, *others

    monkeypatch.setattr(watch.Watch, "look", chosen)
    options = ("--config.train.steps=15", "--config.run.checkpoint_every=3", "--config.run.keep=1")
    status, _, err = script_runs.train(tmp_path / "run", *options, "--config.run.evaluate_every=3")
    assert status == 0, err
    return tmp_path / "run"


def test_the_best_stays_and_is_found(trained, tmp_path):
    assert sorted(path.name for path in (trained / "checkpoints").iterdir()) == ["15", "6"]
    for step, found in (("best", 6), ("6", 6), ("15", 15)):
        output = tmp_path / step
        status, _, err = script_runs.call(
            "export", f"--workdir={trained}", f"--output={output}", f"--step={step}"
        )
        assert status == 0, err
        assert json.loads((output / "model.json").read_text())["step"] == found
    for step in ("7", "first", "0"):
        status, _, err = script_runs.call("evaluate", f"--workdir={trained}", f"--step={step}")
        said = f"--step must be best or one that {trained} holds, 6, 15; got '{step}'"
        assert (status, err) == (2, f"error: {said}\n")
    for name in ("6", "15"):
        (trained / "checkpoints" / name / "metrics" / "metrics").unlink()
    status, _, err = script_runs.call("evaluate", f"--workdir={trained}", "--step=best")
    assert (status, err.count("\n")) == (2, 1)
    assert "train with run.checkpoint_every a multiple of run.evaluate_every" in err


@pytest.mark.parametrize("script", ["sample", "evaluate", "restore", "audit", "export"])
def test_every_command_takes_a_step(monkeypatch, script):
    def load_run(workdir, step, directory):
        raise UsageError(f"asked for {workdir}, {step}")

    monkeypatch.setattr(runs, "load_run", load_run)
    arguments = ["--workdir=there", "--step=best"]
    arguments += ["--output=a"] * (script in ("restore", "export"))
    arguments += ["--input=b"] * (script == "restore")
    assert script_runs.call(script, *arguments) == (2, "", "error: asked for there, best\n")
