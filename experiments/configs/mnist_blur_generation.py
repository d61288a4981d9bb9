r"""MNIST from a blur that leaves one number, the mean, for a laptop: as digits_blur_generation.

python -m experiments.train --workdir=runs/mnist_blur_generation \
    --config=experiments/configs/mnist_blur_generation.py
python -m experiments.sample --workdir=runs/mnist_blur_generation --num=1000

Setting: the four conditions of docs/why-cold-diffusion-works.md: noise of 0.02 on xt in training
and 1.1 times that on the start; total stds log-spaced up to 1.2 times the image's width; 50 steps;
a restorer that answers a mean. It is ours: the paper has no MNIST from nothing.
"""

from diffjax import schedules
from experiments.configs import default


def get_config():
    config = default.get_config()
    config.data.name = "mnist"
    stds = schedules.blur_increments(50, first=0.4, last=1.2 * 28)
    config.degradation.stds = tuple(stds.tolist())
    config.degradation.kernel_size = 101
    config.degradation.boundary = "symmetric"
    config.degradation.mean_at_end = True
    config.model.width = 32
    config.model.multipliers = (1, 2, 4)
    config.model.patch = 2
    config.train.perturbation = 0.02
    config.train.basis = "dct"
    config.train.steps = 3000
    config.train.ema_decay = 0.999
    config.run.checkpoint_every = 1000
    return config
