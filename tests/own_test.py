"""A user's own degradation, network and images, from a folder that is not the repository's.

Oracles: the files themselves, changed and taken away; for --init, what another run's checkpoint
holds, bit for bit, since a learning rate of 0 changes nothing; the degradation's own number of
steps for the length of every walk.
"""

import inspect
import json
import pathlib
import subprocess
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from diffjax import data

ROOT = pathlib.Path(__file__).parents[1]
DATA = "arrays"  # "arrays", once diffjax.data reads them: the one constant to switch
STEPS, T = 3, 10  # of training; of the degradation

DEGRADATION = f"""
import jax.numpy as jnp
from diffjax import Degradation


def smear(params, x0, t, omega):
    return ((1 - t) * x0 + t * jnp.einsum("ij,hjc->hic", params, x0)).astype(x0.dtype)


def rows(image_shape, strength=1.0):
    width = image_shape[1]
    mean = jnp.full((width, width), 1 / width)
    params = strength * mean + (1 - strength) * jnp.eye(width)
    return Degradation(params, apply_fn=smear, steps={T})
"""
NETWORK = """
import jax
import jax.numpy as jnp


def perceptron(image_shape, channels_in, channels_out, num_classes, width=8):
    size = image_shape[0] * image_shape[1]

    def init(key):
        one, two = jax.random.split(key)
        first = jax.random.normal(one, (size * channels_in + 1, width)) / 8
        return {"first": first, "last": jax.random.normal(two, (width, size * channels_out)) / 8}

    def apply(params, xt, t, label):
        hidden = jnp.tanh(jnp.append(xt.ravel(), t) @ params["first"])
        return (hidden @ params["last"]).reshape(*xt.shape[:2], channels_out)

    return init, apply


def flat(*arguments):
    init, apply = perceptron(*arguments)
    return init, lambda params, xt, t, label: apply(params, xt, t, label).ravel()
"""
IMAGES = """
import numpy as np


def halves(split, *, directory=None, image_size=None):
    ramp = np.linspace(-1, 1, 40 * 64, dtype=np.float32).reshape(40, 8, 8, 1)
    return ramp[::2] if split == "train" else ramp[1::2]
"""
CONFIG = f"""
from experiments.configs import default


def get_config():
    config = default.get_config()
    config.data.name = "{DATA}"
    config.degradation = {{"family": "mydeg:rows", "strength": 0.9}}
    config.model.network = "mynet:perceptron"
    config.model.width = 16
    config.train.update(steps={STEPS}, batch_size=16, warmup=1)
    config.prior.images = 64
    config.sample.update(batch_size=8, images=8)
    return config
"""


@pytest.fixture(scope="module")
def env(env):
    """Only the repository is on the path."""
    return env | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}


@pytest.fixture(scope="module")
def command(env, tmp_path_factory):
    """Runs a command in a folder, by default an empty one; (exit status, stdout, stderr)."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")

    def run(script, *arguments, folder=elsewhere):
        done = subprocess.run(
            [sys.executable, "-m", f"experiments.{script}", *map(str, arguments)],
            cwd=folder,
            env=env,
            text=True,
            capture_output=True,
            timeout=300,
        )
        return done.returncode, done.stdout, done.stderr

    return run


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    """A folder of what a user writes, and nothing else."""
    folder = tmp_path_factory.mktemp("mine")
    sources = {"mydeg": DEGRADATION, "mynet": NETWORK, "mydata": IMAGES, "myconfig": CONFIG}
    for name, text in sources.items():
        (folder / f"{name}.py").write_text(text)
    images = (load_digits().images[..., None] / 8 - 1).astype(np.float32)
    np.save(folder / "train.npy", images[:200])
    np.save(folder / "test.npy", images[200:240])
    return folder


@pytest.fixture(scope="module")
def train(mine, command):
    """Trains in the user's folder; arguments beyond those of every run."""

    def run(workdir, *arguments):
        given = ["--config=myconfig.py", f"--config.data.directory={mine}"]
        return command("train", *given, f"--workdir={workdir}", *arguments, folder=mine)

    return run


@pytest.fixture(scope="module")
def workdir(train, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "run"
    status, _, stderr = train(path)
    assert status == 0, stderr
    return path


def saved_state(workdir, step):
    tree = ocp.StandardCheckpointer().restore(workdir / "checkpoints" / str(step) / "default")
    return jax.tree.map(np.asarray, tree)


def check_refused(result, *parts):
    """One line, status 2, and what it must name."""
    status, _, stderr = result
    lines = stderr.splitlines()
    assert status == 2, stderr
    assert len(lines) == 1, stderr
    assert lines[0].startswith("error: ")
    for part in parts:
        assert str(part) in lines[0]


def test_a_run_remembers_what_is_the_users(workdir, mine):
    held = json.loads((workdir / "config.json").read_text())
    assert set(held["own"]) == {"mydeg:rows", "mynet:perceptron"}
    assert held["own"]["mydeg:rows"]["file"] == str(mine / "mydeg.py")
    assert held["own"]["mynet:perceptron"]["root"] == str(mine)
    assert held["degradation"] == {"family": "mydeg:rows", "strength": 0.9}
    # The perceptron's first layer, of the width that the config names.
    params = saved_state(workdir, STEPS)["params"]
    assert params["first"].shape == (65, 16)


def test_training_goes_on_from_another_folder(workdir, mine, command):
    given = (f"--config={mine / 'myconfig.py'}", f"--config.data.directory={mine}")
    status, stdout, stderr = command("train", *given, f"--workdir={workdir}")
    assert status == 0, stderr
    assert f"complete: {workdir} holds all {STEPS} steps" in stdout


def test_restorations(workdir, command):
    status, _, stderr = command("sample", f"--workdir={workdir}", "--columns=4")
    assert status == 0, stderr
    with Image.open(workdir / "samples.png") as picture:
        assert min(picture.size) > 100
    status, stdout, stderr = command("evaluate", f"--workdir={workdir}")
    assert status == 0, stderr
    report = json.loads((workdir / "evaluation.json").read_text())
    assert (report["images"], report["sample_steps"], report["step"]) == (8, T, STEPS)
    assert f"8 held-out images of {DATA}" in stdout


def test_generation_keeps_to_the_steps_of_the_degradation(workdir, command):
    chosen = (f"--workdir={workdir}", "--num=3")
    status, _, stderr = command("sample", *chosen, "--steps=20")
    assert status == 0, stderr
    assert json.loads((workdir / "generated" / "settings.json").read_text())["steps"] == T
    with np.load(workdir / "generated" / "batch_00000000.npz") as batch:
        assert batch["image"].shape == (3, 8, 8, 1)
    # The training images are read anew.
    given = f"--generated={workdir / 'generated'}"
    status, _, stderr = command("evaluate", f"--workdir={workdir}", given)
    assert status == 0, stderr
    found = json.loads((workdir / "generated" / "distances.json").read_text())
    assert found["generated"]["images"] == 3


def test_the_audit(workdir, command):
    status, _, stderr = command("audit", f"--workdir={workdir}", "--images=16", "--steps=2")
    assert status in (0, 1), stderr  # three steps teach nothing
    report = json.loads((workdir / "audit.json").read_text())
    assert report["severities"]["t"] == pytest.approx([k / T for k in range(1, T + 1)])


def test_restoring_own_images(workdir, mine, command, tmp_path):
    given = (f"--workdir={workdir}", f"--input={mine / 'test.npy'}", f"--output={tmp_path / 'out'}")
    given += ("--degrade",)  # clean digits do not fit
    status, stdout, stderr = command("restore", *given)
    assert status == 0, stderr
    assert "restored 40 images, skipped 0" in stdout
    assert len(list((tmp_path / "out").glob("test_????.png"))) == 40


def test_a_file_that_changed_or_has_gone_is_named(workdir, mine, command):
    path = mine / "mydeg.py"
    try:
        path.write_text(DEGRADATION.replace("1 / width", "2 / width"))
        check_refused(command("evaluate", f"--workdir={workdir}"), path, "has changed")
        path.unlink()
        check_refused(command("sample", f"--workdir={workdir}"), path, "gone")
    finally:
        path.write_text(DEGRADATION)


def test_nothing_is_imported_from_a_workdir(mine, train):
    before = sorted(path.name for path in mine.iterdir())
    parts = ("config.degradation.family", mine / "mydeg.py", "lies in the workdir")
    check_refused(train(mine), *parts)
    assert sorted(path.name for path in mine.iterdir()) == before


@pytest.mark.parametrize(
    ("flag", "parts"),
    [
        (
            "model.network=mynet:flat",
            ["config.model.network 'mynet:flat'", "one image [8, 8, 1]", "[64]"],
        ),
        ("degradation.family=mydeg:columns", ["config.degradation.family", "mydeg:columns"]),
        ("degradation.family=nowhere:rows", ["config.degradation.family", "nowhere:rows"]),
    ],
)
def test_what_does_not_fit_is_refused_by_its_field(train, tmp_path, flag, parts):
    check_refused(train(tmp_path / "run", f"--config.{flag}"), *parts)
    assert not (tmp_path / "run").exists()


def test_init_starts_from_the_averaged_parameters(workdir, train, tmp_path):
    given = (f"--init={workdir}", "--config.train.learning_rate=0.0", "--config.train.steps=1")
    status, _, stderr = train(tmp_path / "run", *given)
    assert status == 0, stderr
    old, new = saved_state(workdir, STEPS), saved_state(tmp_path / "run", 1)
    for name, averaged in old["ema_params"].items():
        assert np.any(averaged != old["params"][name])
        np.testing.assert_array_equal(new["params"][name], averaged)


def test_init_refuses_another_network(workdir, train, tmp_path):
    result = train(tmp_path / "run", f"--init={workdir}", "--config.model.width=24")
    check_refused(result, f"--init={workdir}", "another shape")
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(
    "callable(name)" not in inspect.getsource(data.load),
    reason="diffjax.data.load takes no function yet",
)
def test_own_images_by_a_function(train, command, tmp_path):
    status, stdout, stderr = train(tmp_path / "run", "--config.data.name=mydata:halves")
    assert status == 0, stderr
    assert "mydata:halves: 20 images 8x8x1" in stdout
    status, stdout, stderr = command("evaluate", f"--workdir={tmp_path / 'run'}")
    assert status == 0, stderr
    assert "8 held-out images of mydata:halves" in stdout
