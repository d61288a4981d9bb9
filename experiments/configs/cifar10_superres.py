r"""Enlarging CIFAR-10 with Cold Diffusion's setting: 3 bicubic halvings, 32 to 4 pixels.

python -m experiments.train --workdir=runs/cifar10_superres \
    --config=experiments/configs/cifar10_superres.py

Setting: "Incremental_factor_2", as the README of the authors' code has it.
Published (Table 3 of the paper), RMSE / SSIM of test images and their own restorations:
direct 0.152 / 0.420, Algorithm 2 0.155 / 0.411 (FID 169.94, 152.76).
Deviations: as in cifar10_deblur.
"""

from experiments.configs import cifar10_deblur


def get_config():
    config = cifar10_deblur.get_config()
    config.degradation = {"family": "downsample", "steps": 3, "method": "bicubic"}
    return config
