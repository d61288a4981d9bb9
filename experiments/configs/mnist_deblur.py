"""Deblurring MNIST with Cold Diffusion's setting: 20 steps of std 7 in 11x11 circular kernels.

python -m experiments.train --config=experiments/configs/mnist_deblur.py --workdir=runs/mnist
"""

from experiments.configs import default


def get_config():
    config = default.get_config()
    config.data.name = "mnist"
    config.data.image_size = 32
    config.degradation.stds = (7.0,) * 20
    config.degradation.kernel_size = 11
    config.degradation.boundary = "circular"
    config.model.width = 16
    config.model.multipliers = (1, 2, 4, 4)
    config.train.levels = 20
    config.train.steps = 2000
    config.sample.steps = 20
    return config
