r"""Clearing CelebA of snow at 128x128 with Cold Diffusion's setting: level 4 in 200 steps.

python -m experiments.train --workdir=runs/celeba_snow \
    --config=experiments/configs/celeba_snow.py

Setting: brightness fixed, as the README of the authors' code has it.
Published: the paper has numbers for it, of which none could be verified, so none is given here.
Deviations: as in celeba_deblur; one snowfall an image, theirs is shared by a batch; and the
samplers walk from t to s, theirs are one level late.
"""

from experiments.configs import celeba_deblur


def get_config():
    config = celeba_deblur.get_config()
    config.degradation = {"family": "snow", "steps": 200, "level": 4, "fix_brightness": True}
    return config
