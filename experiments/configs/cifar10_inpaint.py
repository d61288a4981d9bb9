r"""Inpainting CIFAR-10 with Cold Diffusion's setting: 50 growing holes at a random place.

python -m experiments.train --workdir=runs/cifar10_inpaint \
    --config=experiments/configs/cifar10_inpaint.py

Setting: std_i = 0.1 (i + 11) ("Random_Incremental"), from the README of the authors' code; the
initial mask of 11 is its script's default.
Published (Table 2 of the paper), RMSE / SSIM of test images and their own restorations:
direct 0.063 / 0.869, Algorithm 2 0.068 / 0.859 (FID 9.97, 8.92).
Deviations: as in cifar10_deblur; nor are training inputs truncated to 8 bits ("discrete").
"""

from diffjax import schedules
from experiments.configs import cifar10_deblur


def get_config():
    config = cifar10_deblur.get_config()
    stds = schedules.linear_stds(50, start=1.1, slope=0.1)
    config.degradation = {"family": "fade", "stds": tuple(stds.tolist()), "place": "random"}
    return config
