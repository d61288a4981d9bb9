"""How often a command compiles what takes long: once, however many steps and batches there are.

Oracle: JAX's own events. A program over all devices is called _fun, whatever it does.
"""

from collections import Counter

import jax
import pytest
from script_runs import call, train


@pytest.fixture
def compiled():
    """Programs compiled, by name."""
    jax.clear_caches()  # another test of this process may have compiled the same program
    found = Counter()

    def note(event, _, **about):
        if event.endswith("backend_compile_duration"):
            found[about["fun_name"]] += 1

    jax.monitoring.register_event_duration_secs_listener(note)
    yield found
    jax.monitoring.clear_event_listeners()


def test_each_program_is_compiled_once(compiled, tmp_path):
    workdir = tmp_path / "run"
    options = ["--config.train.steps=5", "--config.run.checkpoint_every=2"]
    status, _, stderr = train(workdir, *options, "--config.run.log_every=2")
    assert status == 0, stderr
    assert compiled["jit(_fun)"] == 3  # two trees copied to the devices, and the step

    compiled.clear()
    # Three batches of 8, the last one of 4.
    status, _, stderr = call("evaluate", f"--workdir={workdir}", "--images=20")
    assert status == 0, stderr
    assert compiled["jit(_fun)"] == 1
    assert compiled["jit(_score)"] == 1
