r"""Deblurring CIFAR-10 with Cold Diffusion's setting: 50 steps in 11x11 reflecting kernels.

python -m experiments.train --workdir=runs/cifar10_deblur \
    --config=experiments/configs/cifar10_deblur.py

Setting: std_i = 0.35 + i / 100 ("Special_6_routine"), as the README of the authors' code has it.
Published (Table 1 of the paper), RMSE / SSIM of test images and their own restorations:
direct 0.071 / 0.775, Algorithm 2 0.075 / 0.773 (FID 83.69, 80.08).
Deviations: a U-Net of 7.3 M parameters for 50,000 steps with a decaying learning rate, theirs of
35.7 M for 700,000 at 2e-5; no dropout, no random crops and flips. Meant for one accelerator;
`experiments.report --study=cifar10` trains a smaller one on a CPU.
"""

from diffjax import schedules
from experiments.configs import default


def get_config():
    config = default.get_config()
    config.data.name = "cifar10"
    config.data.image_size = 32
    config.degradation.stds = tuple(schedules.linear_stds(50, start=0.35, slope=0.01).tolist())
    config.degradation.kernel_size = 11
    config.degradation.boundary = "reflect"
    config.model.width = 64
    config.model.multipliers = (1, 2, 2, 2)
    config.model.blocks = 2
    config.model.attention = (1,)
    config.train.steps = 50_000
    config.train.batch_size = 128
    config.train.learning_rate = 3e-4
    config.train.warmup = 1000
    config.train.ema_decay = 0.9995
    config.run.log_every = 100
    config.run.checkpoint_every = 5000
    return config
