"""Deblurring MNIST with Cold Diffusion's setting: 20 steps of std 7 in 11x11 circular kernels.

python -m experiments.train --config=experiments/configs/mnist_deblur.py --workdir=runs/mnist
python -m experiments.evaluate --workdir=runs/mnist

Published (Table 1 of the paper), RMSE / SSIM of test images and their own restorations:
direct 0.142 / 0.757, Algorithm 2 0.154 / 0.718 (FID 5.10, 4.69).
Deviations: a U-Net of 1.7 M parameters on patches of 4, preconditioned, for 2,600 steps, which
take 11 CPU minutes; theirs of 56.6 M for 700,000 at 2e-5. No random crops and flips.
"""

from experiments.configs import default


def get_config():
    config = default.get_config()
    config.data.name = "mnist"
    config.data.image_size = 32
    config.degradation.stds = (7.0,) * 20
    config.degradation.kernel_size = 11
    config.degradation.boundary = "circular"
    config.model.width = 64
    config.model.multipliers = (1, 2)
    config.model.patch = 4
    # Degraded images are judged as computed; to restore files of 8 bits, train with 3e-3.
    config.model.precondition_floor = 1e-4
    config.train.steps = 2600
    config.train.learning_rate = 2e-3
    return config
