"""Every config file, without its data: the settings of the papers, typed here by hand.

Cold Diffusion's are those of its README (steps, kernels, halvings, levels), its figures for the
blurs' total std and for the mask's mean transmission recomputed from the definitions; the last
alpha^2 of the cosine is what running its code printed; Inverse Heat Dissipation's are those of its
config files, its noise of 0.01 on [0, 1] twice as large on [-1, 1].
"""

import functools
import importlib
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from diffjax import data
from experiments.lib import build, runs
from experiments.lib.config import resolve

FOLDER = pathlib.Path(__file__).parents[1] / "experiments" / "configs"
NAMES = sorted(
    path.stem for path in FOLDER.glob("*.py") if path.stem not in ("__init__", "default")
)
SIZES = {"digits": (8, 8, 1), "mnist": (28, 28, 1), "cifar10": (32, 32, 3)}
CELEBA = (128, 128, 3)
# T of the papers, and ours of the digits: trained at, and walked back in.
STEPS = {
    "celeba_animorph": (200, 200),
    "celeba_blur_generation": (300, 300),
    "celeba_deblur": (200, 200),
    "celeba_decolor": (20, 20),
    "celeba_inpaint": (100, 100),
    "celeba_inpaint_generation": (750, 750),
    "celeba_noise": (200, 200),
    "celeba_snow": (200, 200),
    "celeba_superres": (4, 4),
    "celeba_superres_generation": (6, 6),
    "cifar10_blur_generation": (100, 100),
    "cifar10_deblur": (50, 50),
    "cifar10_decolor": (20, 20),
    "cifar10_heat": (200, 200),
    "cifar10_inpaint": (50, 50),
    "cifar10_snow": (200, 200),
    "cifar10_superres": (3, 3),
    "digits_blur_generation": (50, 50),
    "digits_deblur": (10, 10),
    "digits_heat": (50, 50),
    "digits_inpaint": (10, 10),
    "digits_noise": (None, 100),  # any severity
    "digits_superres": (2, 2),
    "digits_superres_generation": (40, 40),  # 20 between two sizes
    "mnist_blur_generation": (50, 50),
    "mnist_deblur": (20, 20),
    "mnist_heat": (100, 100),
    "mnist_heat_short": (50, 50),
    "mnist_inpaint": (50, 50),
    "mnist_noise": (None, 100),
    "mnist_superres": (3, 3),
}


def blank_images(name, split, *, directory=None, image_size=None, limit=None):
    """Two images of the size that the data set would have."""
    height, width, channels = SIZES.get(name, (218, 178, 3))
    if image_size is not None:
        height = width = image_size
    return data.from_arrays(np.stack([np.full((height, width, channels), v / 4) for v in (1, 2)]))


def module(name):
    return importlib.import_module(f"experiments.configs.{name}")


@functools.cache
def built(name):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "load", blank_images)
        experiment, _ = build.build(resolve(module(name).get_config()), "train")
    return experiment


@pytest.mark.parametrize("name", NAMES)
def test_docstring_gives_the_command(name):
    doc = module(name).__doc__
    assert "python -m experiments.train" in doc
    assert f"--config=experiments/configs/{name}.py" in doc


@pytest.mark.parametrize("name", NAMES)
def test_config_builds_and_severities_are_the_tables(name):
    experiment = built(name)
    config = experiment.config
    shape = SIZES.get(config.data.name, CELEBA)
    size = config.data.image_size
    assert experiment.image_shape == (shape if size is None else (size, size, shape[2]))
    # Trained and walked back at the T of the degradation, which no config repeats.
    trained, walked = STEPS[name]
    assert (experiment.levels, len(build.grid(experiment)) - 1) == (trained, walked)
    # A smoke run of it resolves as well.
    smoke = module(name).get_config()
    smoke.smoke = True
    resolve(smoke)


@pytest.mark.parametrize("name", NAMES)
def test_config_survives_its_json(name, tmp_path, monkeypatch):
    class Read(Exception):
        pass

    def stop(config, split, roots):
        raise Read(config)

    config = resolve(module(name).get_config())
    runs.claim(tmp_path / "run", config, {})
    monkeypatch.setattr(build, "build", stop)
    with pytest.raises(Read) as read:
        runs.load_run(tmp_path / "run")
    read = read.value.args[0].copy_and_resolve_references()
    assert read.to_dict() == config.to_dict()


# name: image, T, taps, boundary, first and last std, the last step the mean, total std
BLURS = {
    "mnist_deblur": ((32, 32, 1), 20, 11, "circular", 7.0, 7.0, False, 13.6),
    "cifar10_deblur": ((32, 32, 3), 50, 11, "reflect", 0.35, 0.84, False, 4.2),
    # exp(1.99) and exp(2.99)
    "celeba_deblur": (CELEBA, 200, 15, "reflect", 1.0, 7.3155, False, 39),
    "celeba_blur_generation": (CELEBA, 300, 27, "circular", 1.0, 19.8857, True, 86),
}


@pytest.mark.parametrize("name", BLURS)
def test_blurs(name):
    shape, steps, taps, boundary, first, last, mean_at_end, total_std = BLURS[name]
    experiment = built(name)
    config = experiment.config.degradation
    assert experiment.image_shape == shape
    assert experiment.degradation.params.rows.shape == (steps, shape[0], shape[0])
    assert (config.kernel_size, config.boundary) == (taps, boundary)
    assert config.get("mean_at_end", False) == mean_at_end
    np.testing.assert_allclose([config.stds[0], config.stds[-1]], [first, last], rtol=1e-4)
    offsets = np.arange(taps) - taps // 2
    kernels = np.exp(-(offsets**2) / (2 * np.square(config.stds)[:, None]))
    variances = kernels @ offsets**2 / kernels.sum(axis=1)
    np.testing.assert_allclose(np.sqrt(variances.sum()), total_std, rtol=0.015)
    is_mean = np.ptp(experiment.degradation.params.rows[-1]) == 0
    assert is_mean == mean_at_end


# name: image, T, first and last std, other fields
FADES = {
    "mnist_inpaint": ((32, 32, 1), 50, 1.1, 6.0, {"place": "random"}),
    "cifar10_inpaint": ((32, 32, 3), 50, 1.1, 6.0, {"place": "random"}),
    "celeba_inpaint": (CELEBA, 100, 0.2, 20.0, {}),
    "celeba_inpaint_generation": (CELEBA, 750, 0.05, 37.5, {"reverse": True, "color": "drawn"}),
}


@pytest.mark.parametrize("name", FADES)
def test_fades(name):
    shape, steps, first, last, others = FADES[name]
    experiment = built(name)
    config = experiment.config.degradation.to_dict()
    assert experiment.image_shape == shape
    assert experiment.degradation.steps == steps
    stds = config.pop("stds")
    np.testing.assert_allclose([stds[0], stds[-1]], [first, last], rtol=1e-6)
    np.testing.assert_allclose(np.diff(stds), (last - first) / (steps - 1), rtol=1e-6)
    assert config == {"family": "fade"} | others


def test_celebas_hole_leaves_half_of_the_image():
    params = built("celeba_inpaint").degradation.params
    np.testing.assert_allclose(np.mean(params.keep[-1][params.distance]), 0.53, atol=0.005)


@pytest.mark.parametrize(
    ("name", "size", "steps", "left"),
    [
        ("digits_superres", 8, 2, 2),
        ("mnist_superres", 32, 3, 4),
        ("cifar10_superres", 32, 3, 4),
        ("celeba_superres", 128, 4, 8),
        ("celeba_superres_generation", 128, 6, 2),
    ],
)
def test_superres(name, size, steps, left):
    experiment = built(name)
    rows = np.asarray(experiment.degradation.params.rows)
    assert rows.shape == (steps, size, size)
    assert len(np.unique(rows[-1], axis=0)) == left
    assert experiment.config.degradation.method == "bicubic"


@pytest.mark.parametrize(
    ("name", "shape", "level"), [("cifar10_snow", (32, 32, 3), 3), ("celeba_snow", CELEBA, 4)]
)
def test_snow(name, shape, level):
    experiment = built(name)
    assert experiment.image_shape == shape
    assert experiment.config.degradation.to_dict() == {
        "family": "snow",
        "steps": 200,
        "level": level,
        "fix_brightness": True,
    }
    np.testing.assert_array_equal(experiment.degradation.params.brightness, np.ones(200))


@pytest.mark.parametrize(
    ("name", "shape"), [("cifar10_decolor", (32, 32, 3)), ("celeba_decolor", CELEBA)]
)
def test_decolor(name, shape):
    experiment = built(name)
    assert experiment.image_shape == shape
    # Half of the color is left half way: half of the identity and half of the mean.
    expected = np.full((3, 3), 1 / 6) + np.eye(3) / 2
    assert len(experiment.degradation.params) == 20
    np.testing.assert_allclose(experiment.degradation.params[9], expected, atol=1e-6)
    np.testing.assert_allclose(experiment.degradation.params[-1], np.full((3, 3), 1 / 3), atol=1e-7)


@pytest.mark.parametrize("name", ["celeba_noise", "celeba_animorph"])
def test_hot(name):
    experiment = built(name)
    table = np.asarray(experiment.degradation.params.numbers["table"], np.float64)
    assert experiment.image_shape == CELEBA
    assert table.shape == (201, 2)
    np.testing.assert_allclose(table[-1, 0] ** 2, 6.07e-8, rtol=0.01)
    # Half way the cosine is cos((1/2 + s) / (1 + s) pi / 2), s = 0.008, over its value at 0.
    np.testing.assert_allclose(table[100, 0], 0.70275, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "shape", "levels", "sigma_max", "delta"),
    [("mnist_heat", (28, 28, 1), 100, 20, 0.025), ("cifar10_heat", (32, 32, 3), 200, 24, 0.026)],
)
def test_heat(name, shape, levels, sigma_max, delta):
    experiment = built(name)
    config, params = experiment.config, experiment.degradation.params
    assert experiment.image_shape == shape
    assert len(params.stds) == levels + 1  # level 0 is the image
    np.testing.assert_allclose(params.stds[np.array([0, 1, -1])], [0, 0.5, sigma_max], rtol=1e-6)
    np.testing.assert_allclose(params.noise, 2 * 0.01)
    assert config.sample.settings.delta == delta
    # The bank's noise and the start's together are the sampler's.
    np.testing.assert_allclose(np.hypot(0.02, config.prior.perturbation), delta, rtol=1e-3)
    assert (config.train.prediction, config.train.loss) == ("previous", "l2")
    assert (config.sample.sampler, config.prior.kind) == ("ihdm", "bank")


# --- the numbers of a generation


def changed(name, **fields):
    """A config with other values, "train.perturbation" written train_perturbation."""
    config = module(name).get_config()
    config.update_from_flattened_dict(
        {field.replace("_", ".", 1): value for field, value in fields.items()}
    )
    return resolve(config)


@pytest.mark.parametrize(
    ("name", "fields", "said"),
    [
        (
            *("default", {"prior_perturbation": 0.002}),
            "config.prior.perturbation = 0.002, train.perturbation = 0, "
            "model.precondition_floor = 0.001: R never sees such noise; set train.perturbation",
        ),
        (
            *("default", {"prior_perturbation": 0.04, "train_perturbation": 0.02}),
            "config.prior.perturbation = 0.04, train.perturbation = 0.02, "
            "model.precondition_floor = 0.001: the first exceeds 1.5 times",
        ),
        (
            *("digits_noise", {"train_prediction": "noise", "train_perturbation": 0.02}),
            "config.train.perturbation = 0.02 is for train.prediction x0; got 'noise'",
        ),
    ],
    ids=["p without q", "p above 1.5", "noise predicted"],
)
def test_numbers_that_contradict_each_other_are_told_so(name, fields, said):
    with pytest.raises(build.UsageError) as error:
        build.build(changed(name, **fields), "train")
    assert str(error.value).startswith(said)
    assert "\n" not in str(error.value)


def test_the_start_and_the_floor_follow_the_perturbation():
    config = changed("default", train_perturbation=0.003, model_precondition_floor=0.004)
    np.testing.assert_allclose(build.start_perturbation(config), 0.0033)
    np.testing.assert_allclose(build.total_floor(config), 0.005)  # 3, 4, 5
    config = changed("default", train_perturbation=0.02, prior_perturbation=0.03)
    assert build.start_perturbation(config) == 0.03
    experiment, _ = build.build(config, "train")  # 1.5 times is allowed
    assert (experiment.objective.perturbation, experiment.objective.basis) == (0.02, "pixels")
    assert build.start_perturbation(changed("default")) == 0


def test_a_config_that_generates_is_foretold_in_one_line():
    experiment, source = build.build(changed("digits_blur_generation"), "train")
    line = build.foretell(experiment, source).summary
    assert line.startswith("can generate: the Wiener restorer alone makes ")
    assert "\n" not in line
    q = experiment.config.train.perturbation
    floor = np.hypot(experiment.config.model.precondition_floor, q)
    np.testing.assert_allclose(build.fit_wiener(experiment, source).floor, floor, rtol=1e-6)
    for name in ("default", "digits_deblur"):
        assert build.foretell(*build.build(changed(name), "train")) is None


# Without a training: a run is what its config builds. In a process of its own, for its flags.
SAMPLE = """
import types
from absl import flags
from experiments import sample
from experiments.configs import digits_blur_generation, digits_deblur
from experiments.lib import build
from experiments.lib.config import resolve

flags.FLAGS(["sample", "--workdir=none", "--num=1"])
sample.generate = lambda run, output, num, chosen: print(chosen["perturbation"])
for config in (digits_deblur, digits_blur_generation):
    experiment, _ = build.build(resolve(config.get_config()), "test")
    state = types.SimpleNamespace(step=0)
    run = types.SimpleNamespace(experiment=experiment, prior=(), state=state)
    sample.runs.load_run = lambda workdir, step, directory, run=run: run
    sample.main()
"""


def test_a_run_that_was_trained_to_restore_says_so_when_it_generates():
    root = FOLDER.parents[1]
    ended = subprocess.run(
        [sys.executable, "-c", SAMPLE], cwd=root, text=True, capture_output=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    said, without, perturbation = ended.stdout.splitlines()
    assert said.startswith("this run was trained to restore, not to generate: ")
    assert "--config.train.perturbation above 0" in said
    assert float(without) == 0
    np.testing.assert_allclose(float(perturbation), 1.1 * 0.02)
