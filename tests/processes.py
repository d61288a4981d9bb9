"""Commands as processes of this machine, alone or as hosts of one run, and what they leave behind.

They run in a folder that holds a network which compiles in no time, and what was compiled.
"""

import json
import os
import pathlib
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp

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


def slow(image_shape, channels_in, channels_out, num_classes, **settings):
    init, apply = network(image_shape, channels_in, channels_out, num_classes)

    def late(params, xt, t, label):
        spent = jax.lax.fori_loop(0, 20_000, lambda i, x: jnp.cos(x), jnp.ones((100,)) * t)
        return apply(params, xt + 1e-9 * spent.mean(), t, label)

    return init, late
"""
TRAIN = [
    f"--config={ROOT}/experiments/configs/digits_deblur.py",
    "--config.model.network=tiny:network",
    "--config.train.batch_size=16",
    "--config.run.log_every=5",
    "--config.run.checkpoint_every=20",
]


def prepare(folder):
    (folder / "tiny.py").write_text(NETWORK)
    return folder


def environment(folder, devices=1):
    return {k: v for k, v in os.environ.items() if not k.startswith("JAX_")} | {
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COMPILATION_CACHE_DIR": str(folder / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": str(ROOT),
    }


def start(folder, *arguments, script="train", devices=1, host=None, hosts=None, port=None):
    """One process: alone, or one of several hosts; of "train" with the tiny network."""
    env = environment(folder, devices)
    command = [sys.executable, "-m", f"experiments.{script}"]
    command += [*(TRAIN if script == "train" else []), *arguments]
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


def start_two(folder, *arguments, script="train", devices=2):
    port = free_port()
    where = {"script": script, "devices": devices, "hosts": 2, "port": port}
    return [start(folder, *arguments, host=host, **where) for host in range(2)]


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def finish(processes, seconds=300):
    """[(exit status, stdout, stderr), ...]"""
    try:
        found = [process.communicate(timeout=seconds) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(p.returncode, *text) for p, text in zip(processes, found, strict=True)]


def complete(processes):
    """The outputs of processes that all must end well."""
    ended = finish(processes)
    for status, _, stderr in ended:
        assert status == 0, stderr
    return [stdout for _, stdout, _ in ended]


def saved_steps(workdir):
    names = [path.name for path in (workdir / "checkpoints").glob("*")]
    return sorted(int(name) for name in names if name.isdecimal())


def restore(folder):
    return jax.tree.map(np.asarray, ocp.StandardCheckpointer().restore(folder / "default"))


def saved(workdir, step):
    return restore(workdir / "checkpoints" / str(step))


def wait_for_a_checkpoint(processes, workdir):
    while not saved_steps(workdir):
        for process in processes:
            assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def lines(workdir, name="metrics.jsonl"):
    """What a run tells of its steps, without the times."""
    found = [json.loads(line) for line in (workdir / name).read_text().splitlines()]
    return [{name: line[name] for name in line if "seconds" not in name} for line in found]


def losses(workdir):
    return {line["step"]: line["loss"] for line in lines(workdir)}
