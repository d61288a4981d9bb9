r"""Deblurring CelebA at 128x128 with Cold Diffusion's setting: 200 steps in 15x15 kernels.

python -m experiments.train --workdir=runs/celeba_deblur \
    --config=experiments/configs/celeba_deblur.py

Setting: std_i = exp(0.01 i), reflecting ("Exponential_reflect"), as the README of the authors'
code has it.
Published (Table 1 of the paper), RMSE / SSIM of test images and their own restorations:
direct 0.083 / 0.607, Algorithm 2 0.093 / 0.568 (FID 36.37, 26.14).
Deviations: the data is TFDS's celeb_a, aligned photographs of 178x218, shrunk and cut; theirs is
CelebA-HQ at 128x128 (--config.data.name=folder --config.data.directory=...). A U-Net of 23.4 M
parameters for 100,000 steps with a decaying learning rate, theirs of 56.6 M for 700,000 at 2e-5;
no random crops and flips. 3,000 test images, about as many as theirs. Meant for one accelerator.
"""

from diffjax import schedules
from experiments.configs import default


def get_config():
    config = default.get_config()
    config.data.name = "celeb_a"
    config.data.image_size = 128
    config.degradation.stds = tuple(schedules.exponential_stds(200, rate=0.01).tolist())
    config.degradation.kernel_size = 15
    config.degradation.boundary = "reflect"
    config.model.width = 64
    config.model.multipliers = (1, 2, 4, 8)
    config.train.steps = 100_000
    config.train.batch_size = 32
    config.train.learning_rate = 2e-4
    config.train.warmup = 1000
    config.train.ema_decay = 0.9995
    config.sample.batch_size = 32
    config.sample.images = 3000
    config.run.log_every = 100
    config.run.checkpoint_every = 5000
    return config
