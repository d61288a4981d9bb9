"""Deblurring MNIST with Cold Diffusion's setting: 20 steps of std 7 in 11x11 circular kernels.

python -m experiments.train --config=experiments/configs/mnist_deblur.py --workdir=runs/mnist
python -m experiments.evaluate --workdir=runs/mnist --images=512

2,000 steps in 35 minutes on one CPU core; 512 held-out images, RMSE / PSNR / SSIM:

    degraded 0.287 / 11.10 / 0.014      Algorithm 1 0.167 / 17.19 / 0.650
    direct   0.136 / 19.00 / 0.730      Algorithm 2 0.157 / 17.90 / 0.678

The paper trains 56.6 M parameters for 700,000 steps, this config 0.7 M, preconditioned.
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
    # Degraded images are judged as computed; to restore files of 8 bits, train with 3e-3.
    config.model.precondition_floor = 1e-4
    config.train.steps = 2000
    return config
