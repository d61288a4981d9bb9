r"""Enlarging CelebA at 128x128 with Cold Diffusion's setting: 4 bicubic halvings, to 8 pixels.

python -m experiments.train --workdir=runs/celeba_superres \
    --config=experiments/configs/celeba_superres.py

Setting: "Incremental_factor_2", as the README of the authors' code has it.
Published (Table 3 of the paper), RMSE / SSIM of test images and their own restorations:
direct 0.196 / 0.400, Algorithm 2 0.201 / 0.381 (FID 112.84, 96.92).
Deviations: as in celeba_deblur.
"""

from experiments.configs import celeba_deblur


def get_config():
    config = celeba_deblur.get_config()
    config.degradation = {"family": "downsample", "steps": 4, "method": "bicubic"}
    return config
