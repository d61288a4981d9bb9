r"""Inpainting CelebA at 128x128 with Cold Diffusion's setting: 100 growing holes in the center.

python -m experiments.train --workdir=runs/celeba_inpaint \
    --config=experiments/configs/celeba_inpaint.py

Setting: std_i = 0.2 (i + 1) ("Incremental"), as the README of the authors' code has it.
Published (Table 2 of the paper), RMSE / SSIM of test images and their own restorations:
direct 0.039 / 0.922, Algorithm 2 0.043 / 0.917 (FID 7.74, 5.73).
Deviations: as in celeba_deblur (theirs is 350,000 steps here).
"""

from diffjax import schedules
from experiments.configs import celeba_deblur


def get_config():
    config = celeba_deblur.get_config()
    stds = schedules.linear_stds(100, start=0.2, slope=0.2)
    config.degradation = {"family": "fade", "stds": tuple(stds.tolist())}
    return config
