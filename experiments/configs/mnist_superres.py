r"""Enlarging MNIST with Cold Diffusion's setting: 3 bicubic halvings, 32 to 4 pixels.

python -m experiments.train --workdir=runs/mnist_superres \
    --config=experiments/configs/mnist_superres.py

Setting: "Incremental_factor_2", as the README of the authors' code has it.
Published: the paper has numbers for it, of which none could be verified, so none is given here.
Deviations: as in mnist_deblur, a U-Net of 0.7 M parameters for 2,000 steps, which a CPU can
train, theirs of 56.6 M for 700,000.
"""

from experiments.configs import mnist_deblur


def get_config():
    config = mnist_deblur.get_config()
    config.degradation = {"family": "downsample", "steps": 3, "method": "bicubic"}
    return config
