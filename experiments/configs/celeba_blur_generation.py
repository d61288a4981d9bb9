r"""Generating CelebA at 128x128 by deblurring one color, with Cold Diffusion's setting.

python -m experiments.train --workdir=runs/celeba_blur_generation \
    --config=experiments/configs/celeba_blur_generation.py
python -m experiments.sample --workdir=runs/celeba_blur_generation --num=64

Setting: 300 steps in 27x27 circular kernels of std_i = exp(0.01 i), the last one to the mean
color; a Gaussian fitted on the mean colors of 6,400 images: as the README of the authors' code has
it.
Published: FID 49.45 with that noise ("broken symmetry"); read in a secondary source that was
checked against the paper, and on a leaderboard, not in the paper.
Deviations: as in celeba_deblur; and in the place of training inputs truncated to 8 bits
("discrete"), white noise of that error's std, (2/255) / sqrt(12) = 0.00226: it is what the walk
makes an image of, see docs/why-cold-diffusion-works.md. The noise on the start is 1.1 times as
much, where theirs is 0.002.
"""

from diffjax import schedules
from experiments.configs import celeba_deblur


def get_config():
    config = celeba_deblur.get_config()
    config.degradation.stds = tuple(schedules.exponential_stds(300, rate=0.01).tolist())
    config.degradation.kernel_size = 27
    config.degradation.boundary = "circular"
    config.degradation.mean_at_end = True
    config.train.perturbation = 0.00226
    return config
