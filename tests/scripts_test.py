"""The scripts as a user runs them: what they leave, and how they end.

Oracles: an uninterrupted run, bit for bit, for one that was killed; the exit statuses and
messages that the documentation promises; the folder before, for a folder left alone.
"""

import importlib
import json
import math
import pathlib
import re
import signal
import subprocess
import sys
import time

import chex
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from PIL import Image

from experiments.lib import runs
from experiments.lib.config import resolve

ROOT = pathlib.Path(__file__).parents[1]
CONFIG = "--config=experiments/configs/digits_deblur.py"
CONFIGS = [path.stem for path in ROOT.glob("experiments/configs/*.py") if path.stem != "__init__"]
METHODS = ["degraded", "direct", "Algorithm 1", "Algorithm 2"]
# The smallest network, so that what is tested is the script.
TINY = ["--config.model.width=8", "--config.model.multipliers=(1,)", "--config.train.batch_size=16"]


def start(env, script, *arguments):
    return subprocess.Popen(
        [sys.executable, "-m", f"experiments.{script}", *map(str, arguments)],
        cwd=ROOT,
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def finish(process):
    """(exit status, stdout, stderr)"""
    try:
        stdout, stderr = process.communicate(timeout=300)
    finally:
        process.kill()
    return process.returncode, stdout, stderr


def run(env, script, *arguments):
    status, stdout, stderr = finish(start(env, script, *arguments))
    assert status == 0, stderr
    return stdout


def snapshot(folder):
    """Everything in a folder; None if there is none."""
    if not folder.exists():
        return None
    return {
        str(path): (path.stat().st_mtime_ns, path.is_file() and path.read_bytes())
        for path in folder.rglob("*")
    }


def saved_steps(workdir):
    """The steps whose checkpoints are whole: orbax renames their folders last."""
    names = [path.name for path in (workdir / "checkpoints").glob("*")]
    return sorted(int(name) for name in names if name.isdecimal())


def saved_state(workdir, step):
    tree = ocp.StandardCheckpointer().restore(workdir / "checkpoints" / str(step) / "default")
    return jax.tree.map(np.asarray, tree)


# From end to end


def test_smoke_trains_samples_and_evaluates(env, tmp_path):
    workdir = tmp_path / "run"
    train = ("train", CONFIG, *TINY, "--config.smoke=True", f"--workdir={workdir}")
    first_line = run(env, *train).splitlines()[0]
    for part in ("1 x cpu", "digits: 1,437 images 8x8x1", "parameters", "steps 0 to 6"):
        assert part in first_line
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4, 6]
    assert all(math.isfinite(line["loss"]) for line in lines)
    assert list((workdir / "tensorboard").iterdir())
    assert saved_steps(workdir) == [3, 6]

    def held():  # run.json and lock say that it was started again
        names = [str(workdir / name) for name in ("run.json", "lock")]
        return {path: facts for path, facts in snapshot(workdir).items() if path not in names}

    before = held()
    assert "complete" in run(env, *train)
    assert held() == before

    run(env, "sample", f"--workdir={workdir}")
    for name in ("samples.png", "loss.png"):
        with Image.open(workdir / name) as image:
            assert min(image.size) > 100

    table = run(env, "evaluate", f"--workdir={workdir}").strip().split("\n\n")[-1]
    head, rule, *rows = ([cell.strip() for cell in line.split("|")] for line in table.splitlines())
    assert head[2:5] == ["RMSE", "PSNR (dB)", "SSIM"]
    assert set(rule) <= {"", "---"}
    assert [row[1] for row in rows if row[1] in METHODS] == METHODS
    report = json.loads((workdir / "evaluation.json").read_text())
    assert report["step"] == 6
    for row in rows:
        for name, cell in zip(("rmse", "psnr", "ssim"), row[2:5], strict=True):
            assert float(cell) == pytest.approx(report["methods"][row[1]][name], abs=0.006)
    # 16 images of values in [0, 1]: the PSNR cannot be below that of the largest error.
    assert all(0 < row["rmse"] < 1 for row in report["methods"].values())


def wait_for_a_checkpoint(process, workdir, after=0):
    while not any(step > after for step in saved_steps(workdir)):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def test_a_stopped_training_goes_on_to_the_same_parameters(env, tmp_path):
    steps = 120
    options = [f"--config.train.steps={steps}", "--config.run.checkpoint_every=7", *TINY]
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    run(env, "train", CONFIG, *options, f"--workdir={straight}")
    again = ("train", CONFIG, *options, f"--workdir={stopped}")

    process = start(env, *again)
    wait_for_a_checkpoint(process, stopped)
    process.send_signal(signal.SIGKILL)
    assert finish(process)[0] == -signal.SIGKILL
    killed_at = saved_steps(stopped)[-1]
    assert 0 < killed_at < steps

    process = start(env, *again)
    wait_for_a_checkpoint(process, stopped, after=killed_at)
    process.send_signal(signal.SIGTERM)
    status, stdout, _ = finish(process)
    assert status == 128 + signal.SIGTERM == 143
    assert f"steps {killed_at} to {steps}" in stdout
    (interrupted_at,) = re.findall(r"interrupted at step (\d+)", stdout)
    assert saved_steps(stopped)[-1] == int(interrupted_at) < steps

    assert f"steps {interrupted_at} to {steps}" in run(env, *again)
    assert saved_steps(stopped)[-1] == steps
    chex.assert_trees_all_equal(saved_state(stopped, steps), saved_state(straight, steps))
    lines = (stopped / "metrics.jsonl").read_text().splitlines()
    logged = [json.loads(line)["step"] for line in lines]
    assert logged == sorted(set(logged))
    assert logged[-1] == steps


def test_a_loss_that_is_not_finite_stops_the_run(env, tmp_path):
    # Shorter than its warm-up, which begins at 0: the first step changes nothing.
    options = ["--config.train.steps=20", "--config.run.checkpoint_every=1", *TINY]
    options += ["--config.train.learning_rate=1e38", "--config.run.keep=20"]
    options += ["--config.debug_nans=True"]
    status, _, stderr = finish(start(env, "train", CONFIG, *options, f"--workdir={tmp_path}"))
    assert status == 1
    last_line = stderr.splitlines()[-1]
    assert re.match(r"error: the (loss|gradient of .*) is not finite at step \d+, ", last_line)
    assert "learning_rate" in last_line
    last_good = saved_steps(tmp_path)[-1]
    assert f"; the checkpoint of step {last_good} is kept" in last_line
    (bins,) = re.findall(r"at severities in ((?:\(\d\.\d, \d\.\d\](?:, )?)+) ?as in", last_line)
    assert bins
    assert re.search(
        r"; replayed, invalid value \((nan|inf)\) encountered in .*\.py:\d+ \(", last_line
    )
    assert 1 <= last_good < 20
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(saved_state(tmp_path, 1)))


# What bad input gets

# Imports once what takes long, and forks for each case: (script, arguments, environment).
RUN_CASES = """
import json, os, runpy, signal, sys
import experiments.lib.pictures, experiments.lib.walks
import matplotlib.pyplot, sklearn.datasets, tensorboardX, tensorflow_datasets

for i, (script, arguments, variables) in enumerate(json.load(sys.stdin)):
    child = os.fork()
    if child == 0:
        signal.alarm(60)  # nothing here may take long
        for stream, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(f"{sys.argv[1]}/{i}.{name}", os.O_WRONLY | os.O_CREAT), stream)
        os.environ.update(variables)
        sys.argv = [script, *arguments]
        runpy.run_module(f"experiments.{script}", run_name="__main__", alter_sys=True)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(status, file=open(f"{sys.argv[1]}/{i}.status", "w"))
"""


def run_cases(env, cases, results):
    """Yields (case, exit status, stdout, stderr); a case is (script, arguments, environment)."""
    results.mkdir()
    subprocess.run(
        [sys.executable, "-c", RUN_CASES, str(results)],
        cwd=ROOT,
        env=env,
        input=json.dumps([case[:3] for case in cases]),
        text=True,
        check=True,
        stderr=subprocess.PIPE,
        timeout=300,
    )
    for i, case in enumerate(cases):
        names = ("status", "stdout", "stderr")
        status, *written = ((results / f"{i}.{name}").read_text() for name in names)
        yield case, int(status), *written


def test_bad_input_is_one_line_that_names_the_field(env, tmp_path):
    folders = {name: tmp_path / name for name in ("new", "empty", "other", "foreign", "sizes")}
    for name in ("empty", "other", "foreign", "sizes"):
        folders[name].mkdir()
    (folders["foreign"] / "notes.txt").write_text("mine")
    for width in (8, 9, 8):
        count = len(list(folders["sizes"].iterdir()))
        Image.fromarray(np.zeros((8, width), np.uint8)).save(folders["sizes"] / f"{count}.png")
    other = importlib.import_module("experiments.configs.digits_deblur").get_config()
    other.seed = 1
    runs.claim(folders["other"], resolve(other), {})
    (folders["other"] / "checkpoints" / "1").mkdir(parents=True)

    two_devices = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    new = f"--workdir={folders['new']}"
    # What is wrong with `train --config=...`, and what its message must hold.
    wrong = {
        "--config.train.stepz=3": "no config field 'stepz'",
        "--config.train.steps=many": "train.steps",
        "--config.train.steps=0": "config.train.steps must be positive; got 0",
        "--config.train.learning_rate=-1": "config.train.learning_rate",
        "--config.train.warmup=-1": "config.train.warmup",
        "--config.seed=-1": "config.seed",
        "--config.train.loss=l3": "config.train.loss must be one of l1, l2",
        "--config.train.loss=2": "config.train.loss",
        "--config.model.width=12": "config.model.width must be a multiple of 8; got 12",
        "--config.model.multipliers=(1, 0)": "config.model.multipliers",
        "--config.model.attention=(5,)": "config.model.attention",
        "--config.model.dtype=float8": "config.model.dtype",
        "--config.degradation.family=melting": "config.degradation.family",
        "--config.degradation.kernel_size=4": "kernel_size must be odd",
        "--config.degradation.boundary=wrap": "boundary must be one of",
        "--config.data.name=nosuchset": "data.name 'nosuchset'",
        f"--config.data.name=mnist --config.data.directory={folders['empty']}": (
            "make prepare DATASET=mnist"
        ),
        "--config.data.name=folder": "data.directory",
        "--config.data.name=folder --config.data.directory=/nowhere": "data.directory '/nowhere'",
        f"--config.data.name=folder --config.data.directory={folders['empty']}": "no train images",
        f"--config.data.name=folder --config.data.directory={folders['sizes']}": "data.image_size",
        "stray": "unexpected argument 'stray'",
        "--unknown=1": "unknown",
    }
    cases = [("train", [CONFIG, new, *flags.split(" --")], {}, m) for flags, m in wrong.items()]
    for _, arguments, _, _ in cases:
        arguments[3:] = [f"--{argument}" for argument in arguments[3:]]
    batch = "config.train.batch_size 7 does not divide among 2 devices; choose a multiple of 2"
    cases += [
        ("train", [CONFIG, new, "--config.train.batch_size=7"], two_devices, batch),
        ("train", [new], {}, "--config"),
        ("train", ["--config=nowhere.py", new], {}, "nowhere.py"),
        ("train", [CONFIG], {}, "--workdir"),
        (
            "train",
            [CONFIG, f"--workdir={folders['other']}"],
            {},
            f"{folders['other']} holds another experiment: config.seed is 1 there and 0 here",
        ),
        ("train", [CONFIG, f"--workdir={folders['foreign']}"], {}, "holds no config.json"),
    ]
    for script in ("sample", "evaluate"):
        cases += [
            (script, [f"--workdir={folders[name]}"], {}, f"{folders[name]} holds no config.json")
            for name in ("new", "empty", "foreign")
        ]
        cases.append((script, [], {}, "--workdir"))

    before = snapshot(tmp_path)
    results = tmp_path.parent / f"{tmp_path.name}_results"
    faults = []
    for (script, arguments, _, message), status, _, stderr in run_cases(env, cases, results):
        lines = stderr.splitlines()
        good = len(lines) == 1 and lines[0].startswith("error: ") and message in lines[0]
        if not good or status != 2:
            faults.append(f"{script} {arguments}: status {status}, wants {message!r}; {stderr}")
    assert snapshot(tmp_path) == before
    assert not faults, "\n".join(faults)


COMMANDS = [
    path.stem
    for path in sorted(ROOT.glob("experiments/*.py"))
    if re.search(r"commands\.run\(\s*main", path.read_text())
]


def test_help_says_what_a_command_writes_and_names_its_flags(env, tmp_path):
    assert {"train", "sample", "restore", "evaluate", "audit"} <= set(COMMANDS)
    cases = [(script, ["--help"], {}) for script in COMMANDS]
    for (script, _, _), status, stdout, stderr in run_cases(env, cases, tmp_path / "results"):
        assert (status, stderr) == (0, ""), script
        source = (ROOT / "experiments" / f"{script}.py").read_text()
        files = [source, (ROOT / "experiments" / "lib" / "commands.py").read_text()]
        if "@hosts.joined(" in source:
            files.append((ROOT / "experiments" / "lib" / "hosts.py").read_text())
        own = set(re.findall(r"DEFINE_\w+\(\s*\"([\w.]+)\"", "".join(files)))
        assert own
        # Its own alone: not absl's or another command's.
        shown = set(re.findall(r"^  --([\w.]+)[:=]", stdout, re.MULTILINE))
        assert shown - {"config.FIELD"} == own, script
        assert ("config.FIELD" in shown) == ("config" in own), script
        assert any(line.startswith("Write") for line in stdout.splitlines()), script
        assert f"python -m experiments.{script}" in stdout


# Configs and imports


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("smoke", [False, True])
def test_every_config_resolves(name, smoke):
    config = importlib.import_module(f"experiments.configs.{name}").get_config()
    config.smoke = smoke
    resolved = resolve(config)
    assert resolved.smoke == smoke
    # It is written to a workdir as json, and is itself after the smoke test has shrunk it.
    assert json.loads(resolved.to_json()) == json.loads(resolve(resolved).to_json())
    assert set(resolved) == set(importlib.import_module("experiments.configs.default").get_config())


IMPORT_ALL = """
import importlib, pathlib, sys
from absl import flags

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name in ("tensorflow", "torch"):
            print("import of", name, file=sys.stderr)

sys.meta_path.insert(0, Watch())
import diffjax
for folder in ("diffjax", "experiments"):
    for path in sorted(pathlib.Path(folder).rglob("*.py")):
        # The twins are for those who have torch, which nothing here imports by itself.
        if path.name not in ("__init__.py", "torch_twins.py"):
            flags.FLAGS.remove_flag_values(list(flags.FLAGS))  # two scripts may share a flag
            importlib.import_module(".".join(path.with_suffix("").parts))
print(len([name for name in sys.modules if name.startswith("experiments.")]))
print([name for name in sys.modules if name.split(".")[0] in ("tensorflow", "torch")])
"""


def test_no_module_imports_tensorflow_or_torch(env):
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL], cwd=ROOT, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    count, found = done.stdout.splitlines()
    sources = [path.stem for path in (ROOT / "experiments").rglob("*.py")]
    assert int(count) >= len(sources) - sources.count("__init__") - 1
    assert found == "[]"
    # Nor does anything try, which would show only where TensorFlow is installed.
    assert "import of tensorflow" not in done.stderr
