r"""Enlarging CIFAR-10 with Cold Diffusion's setting: 3 bicubic halvings, 32 to 4 pixels.

python -m experiments.train --workdir=runs/cifar10_superres \
    --config=experiments/configs/cifar10_superres.py

Setting: "Incremental_factor_2", as the README of the authors' code has it.
Published: the paper has numbers for it, of which none could be verified, so none is given here.
Deviations: as in cifar10_deblur.
"""

from experiments.configs import cifar10_deblur


def get_config():
    config = cifar10_deblur.get_config()
    config.degradation = {"family": "downsample", "steps": 3, "method": "bicubic"}
    return config
