"""Draws D(x0, t) for t from 0 to 1, still and moving.

python -m experiments.strips --config=experiments/configs/mnist_deblur.py --output=runs/mnist_strip

Writes, into --output: of a config's degradation over a few held-out images, strip.png and
strip.gif; without --config, of every family on a photograph that comes with scikit-learn,
gallery.png and gallery.gif.
"""

import pathlib

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from absl import flags
from ml_collections import config_flags
from PIL import Image
from sklearn.datasets import load_sample_images

from diffjax import schedules
from diffjax.degradations.base import Degradation, degrade, draw
from diffjax.degradations.noise import animorph
from experiments.lib import build, commands, pictures
from experiments.lib.config import resolve

_CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment; none: every family.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder for the pictures; made if absent.")
_IMAGES = flags.DEFINE_integer("images", 4, "How many images.", lower_bound=1)
_COLUMNS = flags.DEFINE_integer("columns", 9, "Severities in the strip.", lower_bound=2)
_SIZE = flags.DEFINE_integer("size", 96, "Side of the photograph in pixels.", lower_bound=16)


def strip(degradation: Degradation, key, x0, ts) -> np.ndarray:
    """D(x0, t, omega) at every t for one omega; [S, H, W, C]."""

    @jax.jit
    def at_all(degradation, key, x0):
        omega = draw(degradation, key, x0)
        return jax.lax.map(lambda t: degrade(degradation, x0, t, omega), ts)

    return np.asarray(at_all(degradation, key, x0))


def photographs(size: int) -> np.ndarray:
    """The central squares of scikit-learn's two photographs; [2, size, size, 3] in [-1, 1]."""
    squares = [
        Image.fromarray(photo).crop((106, 0, 533, 427)).resize((size, size), Image.Resampling.BOX)
        for photo in load_sample_images().images
    ]
    return np.stack([np.asarray(square, np.float32) / 127.5 - 1 for square in squares])


def families(size: int) -> dict[str, dict]:
    """The settings drawn, by the name of the row; lengths in pixels grow with the image."""
    blur = {
        "family": "gaussian_blur",
        "stds": schedules.exponential_stds(200, rate=0.01),
        "kernel_size": 15,
        "boundary": "reflect",
    }
    fade = {"family": "fade", "stds": schedules.linear_stds(100, start=0.2, slope=0.2)}
    heat = {"family": "heat", "sigma_max": size / 4}
    gray = {"family": "decolor", "steps": 20}
    return {
        "gaussian_noise": {"family": "gaussian_noise", "schedule": "cosine"},
        "gaussian_blur": blur,
        "heat": heat,
        "blurring_noise": {"family": "blurring_noise", "blur_max": 20.0},
        "downsample": {"family": "downsample", "steps": 4, "method": "bicubic"},
        "fade": fade,
        "fade, reverse": fade | {"reverse": True, "color": "drawn"},
        "mask, pixels": {"family": "mask", "fraction": 1.0},
        "mask, box": {"family": "mask", "size": size // 2},
        "decolor": gray,
        "snow": {"family": "snow", "steps": 200, "level": 4},
        "animorph": {"family": "animorph"},
        "bridge": {"family": "bridge", "end": heat, "noise": 0.05},
        "compose": {"family": "compose", "first": gray, "second": blur},
    }


def of_config(config: ml_collections.ConfigDict, count: int):
    """One row an image: (label, degradation, key, clean image)."""
    experiment, source = build.build(config, "test")
    clean = source.fetch_fn(range(min(count, source.size)))["image"]
    keys = jax.random.split(jax.random.key(config.seed), len(clean))
    return [("", experiment.degradation, key, x0) for key, x0 in zip(keys, clean, strict=True)]


def of_families(size: int):
    china, flower = photographs(size)
    rows = []
    for name, settings in families(size).items():
        if settings["family"] == "animorph":
            degradation = animorph(flower.shape, images=china[None])
        else:
            degradation = build.build_degradation(ml_collections.ConfigDict(settings), flower.shape)
        rows.append((name, degradation, jax.random.key(0), flower))
    return rows


def main() -> None:
    if _CONFIG.value is None:
        name, rows = "gallery", of_families(_SIZE.value)
    else:
        name, rows = "strip", of_config(resolve(_CONFIG.value), _IMAGES.value)
    output = pathlib.Path(_OUTPUT.value)
    output.mkdir(parents=True, exist_ok=True)
    # The frames of the animation; the still shows some of them, so that each is made once.
    columns = _COLUMNS.value
    stride = -(-40 // (columns - 1))
    ts = jnp.linspace(0, 1, stride * (columns - 1) + 1)
    strips = np.stack([strip(degradation, key, x0, ts) for _, degradation, key, x0 in rows])
    pictures.draw_grid(
        output / f"{name}.png",
        list(strips[:, ::stride]),
        names=[row[0] for row in rows],
        columns=[f"t = {t:.2g}" for t in ts[::stride].tolist()],
    )
    pictures.write_gif(output / f"{name}.gif", np.moveaxis(strips, 1, 0))
    print(f"wrote {output / name}.png and .gif")


if __name__ == "__main__":
    flags.mark_flag_as_required("output")
    commands.run(main)
