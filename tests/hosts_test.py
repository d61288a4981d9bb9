"""Several hosts as processes of this machine, over loopback: what they train, how they end.

Oracles: one process with as many devices; the exit statuses that docs/pods.md promises; a numpy
list of the global batches.
"""

import contextlib
import functools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import processes
import pytest
from absl import flags
from absl.testing import flagsaver

from diffjax import data, parallel
from experiments.lib import build, hosts
from experiments.lib.commands import UsageError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return processes.prepare(tmp_path_factory.mktemp("hosts"))


@pytest.mark.pods
def test_two_hosts_train_as_one_does(folder):
    two, one = folder / "two", folder / "one"
    steps = "--config.train.steps=200"
    screen, _ = processes.complete(processes.start_two(folder, steps, f"--workdir={two}"))
    for line in (
        "2 hosts, 4 devices",
        "batch    16 in all, 8 a host, 4 a device",
        "MiB of a device",
    ):
        assert line in screen
    processes.complete([processes.start(folder, steps, f"--workdir={one}", devices=4)])
    assert list(processes.losses(one)) == list(range(5, 201, 5))
    assert processes.losses(two) == pytest.approx(processes.losses(one), rel=1e-3)
    assert processes.losses(one)[200] < 0.9 * processes.losses(one)[5]
    for path in ("params", "ema_params"):
        ends = [processes.saved(workdir, 200)[path] for workdir in (two, one)]
        np.testing.assert_allclose(*ends, atol=1e-3)
    # Before it, moments were summed over the hosts, and the first one's prior was everybody's.
    fits = [processes.restore(workdir / "fitted" / "0") for workdir in (two, one)]
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-6), *fits)


# The U-Net, made small, and realizations that differ from example to example.
UNET = (
    "--config.model.network=unet",
    "--config.model.width=8",
    "--config.train.warmup=5",
    "--config.train.perturbation=0.1",
)


@pytest.mark.pods
@pytest.mark.parametrize("parallel", ["pmap", "jit"])
def test_the_result_does_not_depend_on_the_number_of_devices(folder, parallel):
    arguments = (*UNET, "--config.train.steps=20", "--config.run.log_every=1")
    arguments += (f"--config.parallel={parallel}",)
    ends = []
    for count in (1, 2, 4, "2 x 2"):
        workdir = folder / f"{parallel}_on_{count}"
        everything = (*arguments, f"--workdir={workdir}")
        processes.complete(
            processes.start_two(folder, *everything)
            if count == "2 x 2"
            else [processes.start(folder, *everything, devices=count)]
        )
        losses = np.array(list(processes.losses(workdir).values()))
        leaves = jax.tree.leaves(processes.saved(workdir, 20)["params"])
        ends.append((losses, np.concatenate([leaf.ravel() for leaf in leaves])))
    (losses, params), *others = ends
    assert len(losses) == 19  # of step 1, and so on to those of 19 and 20
    # Adam enlarges the rounding of a gradient that is nearly 0: single parameters may differ more.
    off = [max(abs(other / losses - 1)) for other, _ in others]
    apart = [np.linalg.norm(other - params) / np.linalg.norm(params) for _, other in others]
    print(f"{parallel}: on 2, 4 and 2 x 2 devices losses off by {off}, parameters by {apart}")
    assert max(off) < 1e-6
    assert max(apart) < 1e-5


def stopped(pair, who):
    """Stops two hosts by SIGTERM to some of them; what `processes.finish` says of each."""
    for host in who:
        pair[host].send_signal(signal.SIGTERM)
    began = time.monotonic()
    ended = processes.finish(pair)
    assert time.monotonic() - began < 30
    assert [status for status, _, _ in ended] == [143, 143], ended
    return ended


@pytest.mark.pods
@pytest.mark.parametrize("who", [[1], [0, 1], [0, 0, 1, 1]])
def test_sigterm_stops_all_hosts_at_one_step(folder, who):
    workdir = folder / f"stopped{len(who)}"  # four: a second one corrupts nothing
    arguments = ("--config.train.steps=10000", "--config.run.keep=9", f"--workdir={workdir}")
    pair = processes.start_two(folder, *arguments)
    processes.wait_for_a_checkpoint(pair, workdir)
    ended = stopped(pair, who)
    said = [re.findall(r"interrupted at step ([\d,]+): the same", text) for _, text, _ in ended]
    assert said[0] == said[1]
    step = int(said[0][0].replace(",", ""))
    assert processes.saved_steps(workdir)[-1] == step < 10000

    # One process, one device, goes on from there.
    process = processes.start(folder, *arguments)
    while processes.saved_steps(workdir)[-1] == step:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    ((status, stdout, stderr),) = processes.finish([process])
    assert status == 143, stderr
    assert f"steps {step:,} to 10,000" in stdout


@pytest.fixture(scope="module")
def trained(folder):
    """A run of 40 steps on 4 devices, its optimizer in pieces; 20 and 40 are saved."""
    workdir = folder / "trained"
    arguments = (
        "--config.train.steps=40",
        "--config.parallel=jit",
        "--config.shard_optimizer=True",
    )
    arguments += ("--config.sample.batch_size=32", f"--workdir={workdir}")
    processes.complete([processes.start(folder, *arguments, devices=4)])
    return workdir


@pytest.mark.pods
def test_two_hosts_judge_and_generate_as_one_does(folder, trained):
    judge = {"script": "evaluate"}
    arguments = (f"--workdir={trained}", "--images=100")  # three batches of 32, and a rest
    processes.complete([processes.start(folder, *arguments, **judge)])
    one = json.loads((trained / "evaluation.json").read_text())["methods"]
    processes.complete(processes.start_two(folder, *arguments, **judge))
    two = json.loads((trained / "evaluation.json").read_text())["methods"]
    assert list(two) == list(one)
    for name in one:
        assert two[name] == pytest.approx(one[name], rel=1e-6)

    made = []
    for count in (1, 2):
        output = folder / f"made_by_{count}"
        arguments = (f"--workdir={trained}", "--num=80", f"--output={output}")
        start = processes.start_two if count == 2 else lambda *a, **k: [processes.start(*a, **k)]
        processes.complete(start(folder, *arguments, script="sample"))
        batches = sorted(output.glob("batch_*.npz"))
        assert len(batches) == 3
        made.append(np.concatenate([np.load(path)["image"] for path in batches]))
    assert len(made[0]) == 80
    # Rounding to 8 bits may fall on either side.
    np.testing.assert_allclose(*(images.astype(int) for images in made), atol=1)


@pytest.fixture(scope="module")
def slow(folder):
    """A run whose network takes its time, so that a signal meets it at work."""
    workdir = folder / "slow"
    arguments = ("--config.model.network=tiny:slow", "--config.train.steps=1")
    arguments += ("--config.sample.batch_size=8", f"--workdir={workdir}")
    processes.complete([processes.start(folder, *arguments, devices=4)])
    return workdir


def wait_for_text(process, text):
    """Until it has said so on stderr; what it says later is read, too."""
    said = ""
    while text not in said:
        said += process.stderr.read(1)
        assert process.poll() is None, said


WHO = [[0], [1], [0, 1]]


@pytest.mark.pods
@pytest.mark.parametrize("who", WHO)
def test_sigterm_stops_sampling_on_all_hosts(folder, slow, who):
    outputs = [folder / f"sampled_{name}" for name in ("straight", "".join(map(str, who)))]
    arguments = [(f"--workdir={slow}", "--num=400", f"--output={output}") for output in outputs]
    pair = processes.start_two(folder, *arguments[1], script="sample")
    while not list(outputs[1].glob("batch_????????.npz")):
        assert all(process.poll() is None for process in pair)
        time.sleep(0.01)
    for host, (_, _, said) in enumerate(stopped(pair, who)):
        line = f"host {host} of 2 was stopped by SIGTERM: the same command goes on where it stopped"
        assert said.splitlines()[-1] == line
    assert len(list(outputs[1].glob("batch_????????.npz"))) < 50
    if len(who) < 2:
        return
    before = {path: path.stat().st_mtime_ns for path in outputs[1].glob("batch_????????.npz")}
    processes.complete(processes.start_two(folder, *arguments[1], script="sample"))
    assert {path: path.stat().st_mtime_ns for path in before} == before
    processes.complete([processes.start(folder, *arguments[0], script="sample", devices=4)])
    straight, gone_on = (
        np.concatenate([np.load(path)["image"] for path in sorted(folder.glob("batch_*[0-9].npz"))])
        for folder in outputs
    )
    assert len(straight) == len(gone_on) == 400
    np.testing.assert_allclose(gone_on.astype(int), straight.astype(int), atol=1)


@pytest.mark.pods
@pytest.mark.parametrize("who", WHO)
def test_sigterm_stops_evaluation_on_all_hosts(folder, slow, who):
    arguments, report = (f"--workdir={slow}", "--images=96"), slow / "evaluation.json"
    report.unlink(missing_ok=True)
    pair = processes.start_two(folder, *arguments, script="evaluate")
    wait_for_text(pair[0], "restoring")
    for host, (_, _, said) in enumerate(stopped(pair, who)):
        line = f"host {host} of 2 was stopped by SIGTERM: the same command starts anew"
        assert said.splitlines()[-1] == line
    assert not report.exists()
    if len(who) == 2:
        processes.complete(processes.start_two(folder, *arguments, script="evaluate"))
        two = json.loads(report.read_text())["methods"]
        processes.complete([processes.start(folder, *arguments, script="evaluate", devices=4)])
        one = json.loads(report.read_text())["methods"]
        for name in one:
            assert two[name] == pytest.approx(one[name], rel=1e-6)


# Restoring, auditing and judging: the first host works, the others wait and end as it does.


def on_one_and_two(folder, status, script, *arguments):
    """Yields how many hosts there were and how each ended, with that status and what it said."""
    for count in (1, 2):
        given = [argument.format(count=count) for argument in arguments]
        if count == 1:
            started = [processes.start(folder, *given, script=script)]
        else:
            started = processes.start_two(folder, *given, script=script)
        ended = processes.finish(started)
        assert [found for found, _, _ in ended] == [status] * count, ended
        yield count, ended


@pytest.mark.pods
def test_two_hosts_restore_as_one_does(folder, trained):
    images = np.linspace(-1, 1, 3 * 64, dtype=np.float32).reshape(3, 8, 8, 1)
    np.save(folder / "stack.npy", images)
    given = (f"--workdir={trained}", f"--input={folder / 'stack.npy'}", "--severity=0.5")
    output = str(folder / "restored_{count}")
    # What so short a run restores does not fit its images: status 1.
    list(on_one_and_two(folder, 1, "restore", *given, f"--output={output}"))
    for i in range(3):
        one, two = (folder / f"restored_{count}" / f"stack_{i:04d}.png" for count in (1, 2))
        assert one.read_bytes() == two.read_bytes()


@pytest.mark.pods
def test_two_hosts_audit_as_one_does(folder, trained):
    given = (f"--workdir={trained}", "--images=32", "--steps=20")
    found = []
    for _, ended in on_one_and_two(folder, 1, "audit", *given):
        found.append(json.loads((trained / "audit.json").read_text()))
        assert found[-1]["verdict"] in ended[0][1]
    for name in ("verdict", "checks", "severities"):
        assert found[0][name] == found[1][name]


@pytest.mark.pods
def test_two_hosts_judge_what_was_generated_as_one_does(folder):
    # Without labels: the classifier, which is trained for a minute, is left out.
    pixels = np.random.default_rng(0).integers(0, 256, (100, 8, 8, 1), np.uint8)
    np.save(folder / "train.npy", pixels[:60])
    np.save(folder / "test.npy", pixels[60:])
    data_is = ("--config.data.name=arrays", f"--config.data.directory={folder}")
    workdir, output = folder / "unlabeled", folder / "judged"
    train = (*data_is, "--config.train.steps=1", f"--workdir={workdir}")
    processes.complete([processes.start(folder, *train)])
    sample = (f"--workdir={workdir}", "--num=20", f"--output={output}")
    processes.complete([processes.start(folder, *sample, script="sample")])
    given = (f"--workdir={workdir}", f"--generated={output}")
    found = []
    for _ in on_one_and_two(folder, 0, "evaluate", *given):
        found.append(json.loads((output / "distances.json").read_text()))
    for name in ("generated", "held-out"):
        assert found[0][name] == found[1][name]


@pytest.mark.pods
def test_what_the_first_host_refuses_all_refuse(folder, trained):
    given = (f"--workdir={trained}", "--input=nowhere.png", f"--output={folder / 'none'}")
    for count, ended in on_one_and_two(folder, 2, "restore", *given):
        assert re.fullmatch("error: .*nowhere.png.*\n", ended[0][2])
        if count == 2:
            assert ended[1][2] == "error: the first host refuses: see its message\n"


@pytest.mark.pods
@pytest.mark.parametrize("count", [1, 2, "2 x 2"])
def test_what_four_devices_saved_goes_on_elsewhere(folder, trained, count):
    workdir = folder / f"on_{count}"
    shutil.copytree(trained, workdir)
    shutil.rmtree(workdir / "checkpoints" / "40")
    arguments = ("--config.train.steps=40", "--config.sample.batch_size=32", f"--workdir={workdir}")
    screen, *_ = processes.complete(
        processes.start_two(folder, *arguments)
        if count == "2 x 2"
        else [processes.start(folder, *arguments, devices=count)]
    )
    assert "steps 20 to 40" in screen
    whole, parted = (processes.saved(run, 40) for run in (trained, workdir))
    for part in ("params", "ema_params"):
        np.testing.assert_allclose(parted[part], whole[part], atol=1e-3)
    assert processes.losses(workdir) == pytest.approx(processes.losses(trained), rel=1e-5)


@pytest.mark.pods
def test_hosts_that_differ_do_not_start(folder):
    port, began = processes.free_port(), time.monotonic()
    pair = [
        processes.start(
            folder,
            f"--workdir={folder / 'differing'}",
            f"--config.train.warmup={host}",
            host=host,
            hosts=2,
            port=port,
        )
        for host in range(2)
    ]
    for status, _, stderr in processes.finish(pair):
        assert status == 2
        assert "error: the hosts differ: config.train.warmup is 0 on host 0" in stderr
    assert time.monotonic() - began < 60
    assert not (folder / "differing").exists()


@pytest.mark.pods
@pytest.mark.parametrize("dead", [1, 0])
@pytest.mark.parametrize("how", ["SIGKILL", "SIGSTOP"])  # stopped, it lives and is silent
def test_a_host_that_dies_ends_the_other(folder, how, dead):
    workdir = folder / f"{how}{dead}"
    pair = processes.start_two(folder, "--config.train.steps=100000", f"--workdir={workdir}")
    processes.wait_for_a_checkpoint(pair, workdir)
    pair[dead].send_signal(signal.Signals[how])
    began = time.monotonic()
    ((status, _, stderr),) = processes.finish([pair[1 - dead]])
    pair[dead].kill()
    pair[dead].communicate()
    assert time.monotonic() - began < 120
    assert status != 0
    assert processes.saved_steps(workdir)
    # Without the first host, which coordinates, and of a silent one, JAX's C++ has the last word.
    if dead == 1 and how == "SIGKILL":
        assert status == 1
        last_line = stderr.strip().splitlines()[-1]
        assert last_line.startswith("error: host 0 of 2 ends: another host has probably died")
        assert "Traceback" not in stderr


# In the place of SLURM's: two tasks on this machine, with the variables that JAX reads.
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
export SLURM_NTASKS=2 SLURM_STEP_NUM_NODES=2 SLURM_STEP_NODELIST=127.0.0.1,127.0.0.1
for i in 0 1; do
    SLURM_PROCID=$i SLURM_LOCALID=0 "$@" &
    tasks+=($!)
done
for task in "${tasks[@]}"; do wait "$task" || status=$?; done
exit "${status:-0}"
"""


@pytest.mark.pods
def test_the_slurm_script_starts_a_task_a_node(folder):
    (folder / "bin").mkdir()
    (folder / "bin" / "srun").write_text(SRUN)
    (folder / "bin" / "srun").chmod(0o755)
    environment = processes.environment(folder, devices=2) | {
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        "SLURM_JOB_ID": str(os.getpid()),  # which JAX makes the port from
        "PYTHON": sys.executable,
    }
    script = processes.ROOT / "experiments" / "launch" / "slurm.sh"
    arguments = [*processes.TRAIN, "--config.train.steps=20", f"--workdir={folder / 'slurm'}"]
    done = subprocess.run(
        ["bash", script, *arguments], cwd=folder, env=environment, text=True, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    assert "2 hosts, 4 devices" in done.stdout
    assert processes.saved_steps(folder / "slurm")[-1] == 20


def start_alone(host, seconds):
    """One host of two, which waits so long for the other; and the port of the first."""
    code = (
        f"import sys; from experiments.lib import commands, hosts; hosts.JOIN_SECONDS = {seconds};"
        "commands.run(hosts.joined()(lambda: print('joined')))"
    )
    port = processes.free_port()
    given = [f"--coordinator_address=127.0.0.1:{port}", "--num_processes=2"]
    arguments = [sys.executable, "-c", code, "--distributed", *given, f"--process_id={host}"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(arguments, cwd=processes.ROOT, **pipes), port


def test_a_host_that_never_comes_is_one_line():
    process, _ = start_alone(0, 2)
    ((status, stdout, stderr),) = processes.finish([process], 60)
    assert status == 1
    (line,) = stderr.strip().splitlines()
    assert line.startswith("error: host 0 of 2 waited 2 s for the others at 127.0.0.1:")
    assert "joined" not in stdout


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_host_that_waits_for_the_others(number):
    process, port = start_alone(0, 300)
    while True:  # until it listens
        assert process.poll() is None, process.communicate()
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            break
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(number)
    began = time.monotonic()
    ((status, stdout, stderr),) = processes.finish([process], 60)
    assert time.monotonic() - began < 10
    assert status == 128 + number
    assert stderr == f"stopped by {number.name}: the same command starts anew\n"
    assert "joined" not in stdout


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


def counting(images):
    """A source of images, and a list of what was asked for, call by call."""
    source, asked = data.from_arrays(images), []

    def fetch(indices):
        asked.append(np.asarray(indices).tolist())
        return source.fetch_fn(indices)

    return source._replace(fetch_fn=fetch), asked


@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_global_batch_does_not_depend_on_the_number_of_hosts(monkeypatch, count):
    images = np.linspace(-1, 1, 40, dtype=np.float32).reshape(10, 2, 2, 1)
    alone = [
        next(data.batches(data.from_arrays(images), batch_size=8, seed=3, start=n))
        for n in range(3)
    ]
    monkeypatch.setattr(jax, "process_count", lambda: count)
    shares = []
    for host in range(count):
        monkeypatch.setattr(jax, "process_index", lambda host=host: host)
        source, asked = counting(images)
        steps = data.batches(source, batch_size=8, seed=3)
        shares.append([next(steps) for _ in range(3)])
        assert {len(one) for one in asked} == {8 // count}  # it reads nothing of the others'
        whole = next(data.batches(data.from_arrays(images), batch_size=8, seed=3, shared=False))
        np.testing.assert_array_equal(whole["image"], alone[0]["image"])
    for n, whole in enumerate(alone):
        together = np.concatenate([share[n]["image"] for share in shares])
        positions = np.concatenate([share[n]["position"] for share in shares])
        assert all(len(share[n]["image"]) == 8 // count for share in shares)
        np.testing.assert_array_equal(np.sort(positions), np.arange(8))
        np.testing.assert_array_equal(together[np.argsort(positions)], whole["image"])


@pytest.mark.parametrize("count", [1, 2, 4])
def test_moments_are_summed_over_the_hosts(monkeypatch, count):
    images = np.random.default_rng(0).uniform(-1, 1, (2500, 2, 3, 1)).astype(np.float32)
    monkeypatch.setattr(jax, "process_count", lambda: count)
    shares, read = [], []
    monkeypatch.setattr(parallel, "from_all_hosts", lambda mine: shares.append(mine) or shares)
    for host in range(count):  # of four, the last one finds nothing left to read
        monkeypatch.setattr(jax, "process_index", lambda host=host: host)
        source, asked = counting(images)
        moments = build.measure(source)
        read += [index for one in asked for index in one]
    assert sorted(read) == list(range(len(images)))  # each by one host
    assert moments.count == len(images)
    np.testing.assert_allclose(moments.mean, images.mean(axis=0, dtype=np.float64), atol=1e-6)
    far = images - images.mean(axis=0, dtype=np.float64)
    scatter = np.einsum("bhwc,bgwc->hg", far, far)
    np.testing.assert_allclose(moments.rows, scatter, rtol=1e-6, atol=1e-6)
