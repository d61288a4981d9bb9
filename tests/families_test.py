"""Every family through what train, sample and evaluate run: two steps, then both ways to sample.

Nothing is compared with a number here: it is the pieces that must fit together. The network is
one dense layer in place of the U-Net, whose compilation would take most of the time.
"""

import functools
import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from diffjax import data, training
from diffjax.degradations.families import FAMILIES
from diffjax.models import unet
from experiments.configs import celeba_deblur, default
from experiments.lib import build, walks
from experiments.lib.config import resolve

BLUR = {"family": "gaussian_blur", "stds": (0.8,) * 4, "kernel_size": 5}
HEAT = {"family": "heat", "sigma_max": 4.0, "levels": 4, "noise": 0.02}
FADE = {"family": "fade", "stds": (0.5, 1.0, 1.5, 2.0)}
# Compiling is what takes the time.
QUICKLY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
LEFT_HALF = ((1.0,) * 4 + (0.0,) * 4,) * 8
CASES = {
    "gaussian_noise": {"family": "gaussian_noise"},
    "gaussian_blur": BLUR,
    "heat": HEAT,
    "blurring_noise": {"family": "blurring_noise", "blur_max": 4.0},
    "downsample": {"family": "downsample", "steps": 2},
    "fade": FADE,
    "fade, random": FADE | {"place": "random", "color": "drawn"},
    "mask": {"family": "mask", "mask": LEFT_HALF},
    "mask, pixels": {"family": "mask", "fraction": 0.5},
    "mask, box": {"family": "mask", "size": 4},
    "decolor": {"family": "decolor", "steps": 4},
    "snow": {"family": "snow", "steps": 4},
    "animorph": {"family": "animorph", "images": {"name": "digits"}},
    "bridge": {"family": "bridge", "end": BLUR, "noise": 0.05},
    "compose": {"family": "compose", "first": FADE, "second": HEAT},
}


def test_every_family_has_a_case():
    assert {settings["family"] for settings in CASES.values()} == set(FAMILIES)


class Dense(nn.Module):
    """A U-Net's signature, and next to nothing to compile."""

    channels: int

    @nn.compact
    def __call__(self, xt, t, label=None):
        return (1 + t) * nn.Dense(self.channels)(xt)


@pytest.fixture(autouse=True)
def small_network(monkeypatch):
    monkeypatch.setattr(unet, "UNet", lambda channels, **settings: Dense(channels))


def smoke_config(settings):
    config = default.get_config()
    config.smoke = True
    config.train.levels = 4
    config.degradation = settings
    return resolve(config)


def train(experiment, source, problem):
    """The state after two steps, which changed the parameters."""
    step_fn = jax.jit(
        functools.partial(
            training.train_step,
            objective=experiment.objective,
            optimizer=experiment.optimizer,
            ema_decay=experiment.config.train.ema_decay,
        ),
        compiler_options=QUICKLY,
    )
    first = state = experiment.initial_state()
    for batch in itertools.islice(data.batches(source, batch_size=8, seed=0), 2):
        state, metrics = step_fn(state, batch, jax.random.key(1), problem)
        assert np.isfinite(metrics["loss"])
        assert np.isfinite(metrics["grad_norm"])
    assert int(state.step) == 2
    pairs = zip(jax.tree.leaves(first.params), jax.tree.leaves(state.params), strict=True)
    assert any(np.any(old != new) for old, new in pairs)
    return state


@pytest.mark.parametrize("case", CASES)
def test_family_trains_and_samples(case, tmp_path):
    config = smoke_config(CASES[case])
    if case == "decolor":
        rng = np.random.default_rng(0)
        for i in range(40):
            image = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(image).save(tmp_path / f"{i:02}.png")
        config.data.update(name="folder", directory=str(tmp_path))
    experiment, source = build.build(config, "train")
    fitted = build.fit(experiment, source)
    problem = build.problem(experiment, fitted["wiener"])
    state = train(experiment, source, problem)

    _, held_out = build.build(config, "test")
    shape = experiment.image_shape
    ((clean, outputs),) = walks.restorations(experiment, state.ema_params, problem, held_out, 3)
    assert list(outputs) == list(walks.METHODS)
    for images in (clean, *outputs.values()):
        assert images.shape == (3, *shape)
        assert np.all(np.isfinite(images))
    ((_, alone),) = walks.degraded(experiment, held_out, 3)
    np.testing.assert_allclose(alone["degraded"], outputs["degraded"], atol=1e-5)

    make_fn = jax.jit(
        walks.generator(experiment, sampler_name=config.sample.sampler, steps=2),
        compiler_options=QUICKLY,
    )
    perturbation = jnp.float32(build.start_perturbation(config))
    operand = (state.ema_params, problem, fitted["prior"], perturbation)
    image = make_fn(operand, jax.random.key(2), jnp.int32(0))
    assert image.shape == shape
    assert np.all(np.isfinite(image))


def test_celeba_loads():
    # Random images with CelebA's features and sizes.
    with tfds.testing.mock_data(num_examples=3):
        _, source = build.build(resolve(celeba_deblur.get_config()), "test")
        images = source.fetch_fn([0, 2])["image"]
    assert source.num_classes is None
    assert images.shape == (2, 128, 128, 3)
    assert images.dtype == np.float32
    assert -1 <= images.min() < images.max() <= 1
