r"""Clearing CIFAR-10 of snow with Cold Diffusion's setting: level 3 in 200 steps.

python -m experiments.train --workdir=runs/cifar10_snow \
    --config=experiments/configs/cifar10_snow.py

Setting: brightness fixed, as the README of the authors' code has it.
Published: the paper has numbers for it, of which none could be verified, so none is given here.
Deviations: as in cifar10_deblur; one snowfall an image, theirs is shared by a batch; and the
samplers walk from t to s, theirs are one level late.
"""

from experiments.configs import cifar10_deblur


def get_config():
    config = cifar10_deblur.get_config()
    config.degradation = {"family": "snow", "steps": 200, "level": 3, "fix_brightness": True}
    return config
