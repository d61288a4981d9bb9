r"""Inpainting MNIST with Cold Diffusion's setting: 50 growing holes at a random place.

python -m experiments.train --workdir=runs/mnist_inpaint \
    --config=experiments/configs/mnist_inpaint.py

Setting: std_i = 0.1 (i + 11) ("Random_Incremental"), from the README of the authors' code; the
initial mask of 11 is its script's default. The code as published stops at one channel.
Published (Table 2 of the paper), RMSE / SSIM of test images and their own restorations:
direct 0.060 / 0.948, Algorithm 2 0.068 / 0.941 (FID 2.24, 1.61).
Deviations: as in mnist_deblur; nor are training inputs truncated to 8 bits ("discrete").
"""

from diffjax import schedules
from experiments.configs import mnist_deblur


def get_config():
    config = mnist_deblur.get_config()
    stds = schedules.linear_stds(50, start=1.1, slope=0.1)
    config.degradation = {"family": "fade", "stds": tuple(stds.tolist()), "place": "random"}
    return config
