"""What is too large for a machine, told before it is tried.

Oracle: the same network, traced whole.
"""

import signal
import time

import jax
import pytest
import script_runs

from experiments.configs import default
from experiments.lib import build, commands, feasible
from experiments.lib.commands import UsageError
from experiments.lib.config import resolve


@pytest.mark.parametrize(("network", "field"), [("unet", "blocks"), ("dit", "depth")])
def test_many_blocks_are_counted_from_one_and_two(monkeypatch, network, field):
    config = default.get_config()
    config.model.update(network=network, width=8, multipliers=(1, 2))
    config.model[field] = 5
    monkeypatch.setattr(feasible, "_SOON_TRACED", 4)
    told = []
    monkeypatch.setattr(feasible, "check_fits", lambda what, floats: told.append((what, floats)))
    experiment, _ = build.build(resolve(config), "train")
    params = jax.eval_shape(experiment.initial_state).params
    held = 4 * sum(leaf.size for leaf in jax.tree.leaves(params))
    assert (f"config.model.{field} = 5", held) in told
    assert told[-1][1] == held


@pytest.fixture
def clock():
    """Ends what takes a minute of this process's own time."""

    def ring(number, frame):
        raise TimeoutError("it took a minute")

    before = signal.signal(signal.SIGVTALRM, ring)
    signal.setitimer(signal.ITIMER_VIRTUAL, 60)
    yield
    signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    signal.signal(signal.SIGVTALRM, before)


def test_a_million_blocks_are_refused_at_once(tmp_path, clock):
    for flags in (["model.blocks=1000000"], ["model.network=dit", "model.depth=1000000"]):
        status, out, err = script_runs.call(
            "train",
            script_runs.CONFIG,
            f"--workdir={tmp_path}/run",
            *(f"--config.{flag}" for flag in flags),
        )
        assert (status, out) == (2, "")
        (line,) = err.splitlines()
        field = flags[-1].partition("=")[0]
        assert line.startswith(f"error: config.{field} = 1,000,000 needs ")
        assert "GiB at least, and this machine has " in line
        assert not list(tmp_path.iterdir())


def test_more_steps_than_memory_are_refused():
    config = default.get_config()
    config.model.update(width=8, multipliers=(1,))
    experiment, _ = build.build(resolve(config), "train")
    with pytest.raises(
        UsageError, match=r"^config\.sample\.steps, or --steps, = 100,000,000,000,0"
    ):
        build.grid(experiment, 10**14)
    assert len(build.grid(experiment, 3)) == 4


def test_a_full_device_is_one_line(capsys):
    with pytest.raises(SystemExit) as end, commands.usage_errors():
        jax.numpy.zeros(10**15)
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: a device is out of memory: lower train.batch_size or ")
    # What is no lack of memory stays what it is.
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"), commands.usage_errors():
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")


def test_what_takes_long_is_told(capsys):
    with commands.told_if_slow("this is done", seconds=0.01):
        time.sleep(0.2)
    assert capsys.readouterr().err == "this is done; this takes long\n"
    with commands.told_if_slow("this is done", seconds=0.2):
        pass
    time.sleep(0.3)
    assert capsys.readouterr().err == ""
