"""Several hosts as processes of this machine, over loopback: what they train, how they end.

Oracles: one process with as many devices; the exit statuses that docs/pods.md promises; a numpy
list of the global batches.
"""

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from absl import flags
from absl.testing import flagsaver

from diffjax import data
from experiments.lib import hosts
from experiments.lib.commands import UsageError

ROOT = pathlib.Path(__file__).parents[1]
NETWORK = """
import jax
import jax.numpy as jnp


def network(image_shape, channels_in, channels_out, num_classes, **settings):
    height, width, _ = image_shape

    def init(key):
        shape = (height * width * channels_in + 1, height * width * channels_out)
        return jax.random.normal(key, shape) / 20

    def apply(params, xt, t, label):
        return (jnp.append(xt.ravel(), t) @ params).reshape(height, width, channels_out)

    return init, apply
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where commands run: it holds a network that compiles in no time."""
    path = tmp_path_factory.mktemp("hosts")
    (path / "tiny.py").write_text(NETWORK)
    return path


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def start(folder, *arguments, devices=1, host=None, hosts=None, port=None):
    """The training as one process, or as one of several hosts."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")} | {
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", "experiments.train"]
    command += [f"--config={ROOT}/experiments/configs/digits_deblur.py"]
    command += ["--config.model.network=tiny:network", "--config.train.batch_size=16"]
    command += ["--config.run.log_every=5", "--config.run.checkpoint_every=20", *arguments]
    if hosts is not None:  # one by flags, the others by the environment
        given = {"coordinator_address": f"127.0.0.1:{port}", "num_processes": hosts}
        given["process_id"] = host
        command.append("--distributed")
        if host == 0:
            command += [f"--{name}={value}" for name, value in given.items()]
        else:
            env |= {f"JAX_{name.upper()}": str(value) for name, value in given.items()}
    return subprocess.Popen(
        command, cwd=folder, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def start_two(folder, *arguments):
    port = free_port()
    return [
        start(folder, *arguments, devices=2, host=host, hosts=2, port=port) for host in range(2)
    ]


def finish(processes, seconds=300):
    """[(exit status, stdout, stderr), ...]"""
    try:
        found = [process.communicate(timeout=seconds) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(p.returncode, *text) for p, text in zip(processes, found, strict=True)]


def saved_steps(workdir):
    names = [path.name for path in (workdir / "checkpoints").glob("*")]
    return sorted(int(name) for name in names if name.isdecimal())


def saved(workdir, step):
    tree = ocp.StandardCheckpointer().restore(workdir / "checkpoints" / str(step) / "default")
    return jax.tree.map(np.asarray, tree)


def wait_for_a_checkpoint(processes, workdir):
    while not saved_steps(workdir):
        for process in processes:
            assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def losses(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines}


@pytest.mark.pods
def test_two_hosts_train_as_one_does(folder):
    two, one = folder / "two", folder / "one"
    steps = "--config.train.steps=50"
    for status, _, stderr in finish(start_two(folder, steps, f"--workdir={two}")):
        assert status == 0, stderr
    (ended,) = finish([start(folder, steps, f"--workdir={one}", devices=4)])
    assert ended[0] == 0, ended[2]
    assert list(losses(one)) == list(range(5, 51, 5))
    assert losses(two) == pytest.approx(losses(one), rel=1e-3)
    assert losses(one)[50] < 0.9 * losses(one)[5]
    for path in ("params", "ema_params"):
        np.testing.assert_allclose(saved(two, 50)[path], saved(one, 50)[path], atol=1e-3)


@pytest.mark.pods
@pytest.mark.parametrize("who", [[1], [0, 1]])
def test_sigterm_stops_all_hosts_at_one_step(folder, who):
    workdir = folder / f"stopped{len(who)}"
    arguments = ("--config.train.steps=10000", "--config.run.keep=9", f"--workdir={workdir}")
    processes = start_two(folder, *arguments)
    wait_for_a_checkpoint(processes, workdir)
    for host in who:
        processes[host].send_signal(signal.SIGTERM)
    began = time.monotonic()
    ended = finish(processes)
    assert time.monotonic() - began < 30
    assert [status for status, _, _ in ended] == [143, 143], ended
    said = [re.findall(r"interrupted at step ([\d,]+): the same", text) for _, text, _ in ended]
    assert said[0] == said[1]
    step = int(said[0][0].replace(",", ""))
    assert saved_steps(workdir)[-1] == step < 10000

    # One process, one device, goes on from there.
    process = start(folder, *arguments)
    while saved_steps(workdir)[-1] == step:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    ((status, stdout, stderr),) = finish([process])
    assert status == 143, stderr
    assert f"steps {step:,} to 10,000" in stdout


@pytest.mark.pods
def test_a_worker_that_dies_ends_the_other(folder):
    workdir = folder / "killed"
    processes = start_two(folder, "--config.train.steps=100000", f"--workdir={workdir}")
    wait_for_a_checkpoint(processes, workdir)
    processes[1].kill()
    began = time.monotonic()
    status, _, stderr = finish(processes)[0]
    assert time.monotonic() - began < 120
    assert status == 1
    last_line = stderr.strip().splitlines()[-1]
    assert last_line.startswith("error: host 0 of 2 ends: another host has probably died")
    assert "Traceback" not in stderr
    assert saved_steps(workdir)


def test_a_host_that_never_comes_is_one_line(folder):
    code = (
        "import sys; from experiments.lib import commands, hosts; hosts.JOIN_SECONDS = 2;"
        "commands.run(hosts.joined()(lambda: print('joined')))"
    )
    given = [f"--coordinator_address=127.0.0.1:{free_port()}", "--num_processes=2"]
    arguments = [sys.executable, "-c", code, "--distributed", *given, "--process_id=0"]
    ended = subprocess.run(
        arguments, cwd=ROOT, text=True, capture_output=True, timeout=60, env=os.environ
    )
    assert ended.returncode == 1
    (line,) = ended.stderr.strip().splitlines()
    assert line.startswith("error: host 0 of 2 waited 2 s for the others at 127.0.0.1:")
    assert "joined" not in ended.stdout


ADDRESS = {"coordinator_address": "127.0.0.1:1"}


@pytest.mark.parametrize(
    ("given", "variables", "message"),
    [
        ({"num_processes": 2}, {}, "need --distributed"),
        (
            {"distributed": True, **ADDRESS},
            {},
            "also needs --num_processes or \\$JAX_NUM_PROCESSES",
        ),
        (
            {"distributed": True, **ADDRESS},
            {"JAX_NUM_PROCESSES": "two"},
            r"\$JAX_NUM_PROCESSES must be a whole number; got 'two'",
        ),
        (
            {"distributed": True, **ADDRESS, "process_id": 2},
            {"JAX_NUM_PROCESSES": "2"},
            r"--process_id must lie in 0\.\.1; got 2",
        ),
        (
            {"distributed": True, "coordinator_address": "here", "process_id": 0},
            {"JAX_NUM_PROCESSES": "2"},
            "--coordinator_address must be host:port; got 'here'",
        ),
    ],
)
def test_wrong_flags_are_named(monkeypatch, given, variables, message):
    for name in ("COORDINATOR_ADDRESS", "NUM_PROCESSES", "PROCESS_ID"):
        monkeypatch.delenv(f"JAX_{name}", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    flags.FLAGS.mark_as_parsed()
    joining = pytest.raises(UsageError, match=message)
    with flagsaver.flagsaver(**given), joining, hosts.joined():
        pass


@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_global_batch_does_not_depend_on_the_number_of_hosts(monkeypatch, count):
    images = np.linspace(-1, 1, 40, dtype=np.float32).reshape(10, 2, 2, 1)
    source = data.from_arrays(images)
    alone = [next(data.batches(source, batch_size=8, seed=3, start=n)) for n in range(3)]
    monkeypatch.setattr(jax, "process_count", lambda: count)
    shares = []
    for host in range(count):
        monkeypatch.setattr(jax, "process_index", lambda host=host: host)
        steps = data.batches(source, batch_size=8, seed=3)
        shares.append([next(steps) for _ in range(3)])
    for n, whole in enumerate(alone):
        together = np.concatenate([share[n]["image"] for share in shares])
        positions = np.concatenate([share[n]["position"] for share in shares])
        assert all(len(share[n]["image"]) == 8 // count for share in shares)
        np.testing.assert_array_equal(np.sort(positions), np.arange(8))
        np.testing.assert_array_equal(together[np.argsort(positions)], whole["image"])
