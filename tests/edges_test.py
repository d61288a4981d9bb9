"""What a run may meet at the edge: no signal at t = 1, images all alike, others' shapes.

Oracles: the fields that a message must name; rows cut out by hand; the contract of the library.
"""

import contextlib
import json
import subprocess

import jax
import numpy as np
import pytest
import script_runs

from diffjax import data, losses
from diffjax.degradations.base import degrade, draw
from diffjax.degradations.mask import mask
from experiments.configs import default
from experiments.lib import build
from experiments.lib.commands import UsageError
from experiments.lib.config import resolve

# alpha(1) = 0, each by another way
WITHOUT_SIGNAL = {
    "flow": {"family": "gaussian_noise", "schedule": "flow"},
    "zero terminal SNR": {"family": "gaussian_noise", "zero_terminal_snr": True},
}


@pytest.mark.parametrize("prediction", ["noise", "score", "v"])
@pytest.mark.parametrize("name", WITHOUT_SIGNAL)
def test_noise_tells_no_image_where_no_signal_is_left(name, prediction):
    config = default.get_config()
    config.degradation = WITHOUT_SIGNAL[name]
    config.train.prediction = prediction
    config.model.update(width=8, multipliers=(1,))
    if prediction == "v":
        build.build(resolve(config), "train")
        return
    with pytest.raises(UsageError) as raised:
        build.build(resolve(config), "train")
    for field in (f"config.train.prediction {prediction!r}", "config.degradation"):
        assert field in str(raised.value)


def save_arrays(folder, train, test):
    folder.mkdir()
    np.save(folder / "train.npy", train)
    np.save(folder / "test.npy", test)
    return ["--config.data.name=arrays", f"--config.data.directory={folder}"]


@pytest.mark.parametrize("count", [1, 5])
def test_images_all_alike_are_trained_without_preconditioning(tmp_path, count):
    one = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 1), np.uint8)
    given = save_arrays(tmp_path / "data", one.repeat(count, axis=0), one)
    if count == 1:
        status, out, err = script_runs.train(tmp_path / "run", *given, "--config.train.steps=1")
        assert status == 0, err
        assert "all training images are alike: trained without preconditioning" in out
        held = json.loads((tmp_path / "run" / "config.json").read_text())
        assert held["model"]["precondition"] is False
        return
    status, _, err = script_runs.train(tmp_path / "run", *given, "--config.model.precondition=True")
    assert status == 2
    assert err.splitlines() == [
        "error: config.model.precondition needs training images that differ: these are all alike"
    ]
    assert not (tmp_path / "run").exists()


def test_animorph_of_another_shape(tmp_path):
    save_arrays(tmp_path / "data", *np.zeros((2, 3, 6, 8, 1), np.float32))
    config = default.get_config()
    config.data.update(name="arrays", directory=str(tmp_path / "data"))
    config.degradation = {"family": "animorph", "images": {"name": "digits"}}
    config.model.update(width=8, multipliers=(1,))
    experiment, source = build.build(resolve(config), "train")
    assert source.image_shape == (6, 8, 1)
    # 8 x 8 covers 6 x 8 as it is: the first and the last row are cut off.
    digits = data.load("digits", "train").fetch_fn(range(1024))["image"][:, 1:7]
    x0 = source.fetch_fn([0])["image"][0]
    omega = draw(experiment.degradation, jax.random.key(0), x0)
    assert any(np.allclose(omega, digit, atol=1 / 127.5) for digit in digits)


def test_a_box_keeps_its_type_where_nothing_is_promoted():
    x0 = np.ones((8, 8, 1), np.float32)
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        box = mask((8, 8, 1), size=3)
        xT = degrade(
            box, jax.numpy.asarray(x0), jax.numpy.float32(1), draw(box, jax.random.key(0), x0)
        )
    assert xT.dtype == np.float32
    assert np.sum(np.asarray(xT) != 1) == 9


@pytest.mark.parametrize("weighting", losses.WEIGHTINGS)
def test_every_weighting_is_a_word_in_a_config(weighting):
    config = default.get_config()
    config.degradation = {"family": "gaussian_noise"}
    config.train.update(weighting=weighting, loss="l2")
    config.model.update(width=8, multipliers=(1,))
    experiment, _ = build.build(resolve(config), "train")
    alpha, sigma = 0.8, 0.6
    weight = experiment.objective.weight_fn(jax.numpy.float32(alpha), jax.numpy.float32(sigma))
    np.testing.assert_allclose(weight, losses.WEIGHTINGS[weighting](alpha, sigma), rtol=1e-6)
    assert 0 < weight < np.inf


@contextlib.contextmanager
def disk(folder, options):
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"no disk can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def train_there(env, workdir):
    """(exit status, stderr) of a real training of four steps, each of which is saved."""
    arguments = [*script_runs.TINY, "--config.train.steps=4", "--config.run.checkpoint_every=1"]
    done = script_runs.process(env, "train", script_runs.CONFIG, *arguments, f"--workdir={workdir}")
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr


def test_a_full_disk_is_one_line(env, tmp_path):
    with disk(tmp_path / "disk", "size=150k") as folder:  # enough for a config, no checkpoint
        status, stderr = train_there(env, folder / "run")
        assert status == 2, stderr
        last = stderr.splitlines()[-1]
        assert last.startswith("error: "), stderr
        assert str(folder / "run") in last
        assert "No space left on device" in last
        assert json.loads((folder / "run" / "config.json").read_text())["train"]["steps"] == 4


def test_a_disk_that_cannot_be_written_is_one_line(env, tmp_path):
    with disk(tmp_path / "disk", "ro") as folder:
        status, stderr = train_there(env, folder / "run")
        assert (status, stderr) == (2, f"error: {folder / 'run'}: Read-only file system\n")
