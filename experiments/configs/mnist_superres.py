r"""Enlarging MNIST with Cold Diffusion's setting: 3 bicubic halvings, 32 to 4 pixels.

python -m experiments.train --workdir=runs/mnist_superres \
    --config=experiments/configs/mnist_superres.py

Setting: "Incremental_factor_2", as the README of the authors' code has it.
Published (Table 3 of the paper), RMSE / SSIM of test images and their own restorations:
direct 0.114 / 0.823, Algorithm 2 0.115 / 0.820 (FID 4.05, 4.33).
Deviations: as in mnist_deblur.
"""

from experiments.configs import mnist_deblur


def get_config():
    config = mnist_deblur.get_config()
    config.degradation = {"family": "downsample", "steps": 3, "method": "bicubic"}
    return config
