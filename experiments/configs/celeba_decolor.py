r"""Coloring CelebA with Cold Diffusion's setting: color lost linearly in 20 steps.

python -m experiments.train --workdir=runs/celeba_decolor \
    --config=experiments/configs/celeba_decolor.py

Setting: "Linear", to exact gray, as the README of the authors' code has it.
Published: no numbers that we know of.
Deviations: as in celeba_deblur; 128x128 pixels, where the authors' scripts have 64x64
(--config.data.image_size=64); and the samplers walk from t to s, theirs are one level late.
"""

from experiments.configs import celeba_deblur


def get_config():
    config = celeba_deblur.get_config()
    config.degradation = {"family": "decolor", "steps": 20}
    return config
