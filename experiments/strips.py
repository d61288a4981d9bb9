"""Draws D(x0, t) for t from 0 to 1 over a few held-out images: strip.png and strip.gif.

python -m experiments.strips --config=experiments/configs/mnist_deblur.py --output=runs/mnist_strip
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import config_flags

from diffjax.degradations import Degradation, degrade, draw
from experiments import common, pictures

_CONFIG = config_flags.DEFINE_config_file("config", None, "The experiment.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder for strip.png and strip.gif; made if absent.")
_IMAGES = flags.DEFINE_integer("images", 4, "How many images.", lower_bound=1)
_COLUMNS = flags.DEFINE_integer("columns", 9, "Severities in the strip.", lower_bound=2)
_FRAMES = flags.DEFINE_integer("frames", 41, "Severities in the animation.", lower_bound=2)


def strip(degradation: Degradation, key, x0_BHWC, ts) -> np.ndarray:
    """D(x0, t, omega) for every image and severity, one omega an image; [B, S, H, W, C]."""

    def of_one(key, x0):
        omega = draw(degradation, key, x0)
        return jax.vmap(lambda t: degrade(degradation, x0, t, omega))(ts)

    return np.asarray(jax.jit(jax.vmap(of_one))(jax.random.split(key, len(x0_BHWC)), x0_BHWC))


def main() -> None:
    config = common.resolve(_CONFIG.value)
    experiment, source = common.build(config, "test")
    count = min(_IMAGES.value, source.size)
    clean = source.fetch_fn(range(count))["image"]
    key = jax.random.key(config.seed)
    output = pathlib.Path(_OUTPUT.value)
    output.mkdir(parents=True, exist_ok=True)

    ts = jnp.linspace(0, 1, _COLUMNS.value)
    still = strip(experiment.degradation, key, clean, ts)
    columns = [f"t = {t:.3g}" for t in ts.tolist()]
    pictures.draw_grid(output / "strip.png", list(still), columns=columns)
    moving = strip(experiment.degradation, key, clean, jnp.linspace(0, 1, _FRAMES.value))
    pictures.write_gif(output / "strip.gif", np.moveaxis(moving, 1, 0))
    print(f"wrote {output / 'strip.png'} and {output / 'strip.gif'}")


if __name__ == "__main__":
    flags.mark_flags_as_required(["config", "output"])
    common.run(main)
