r"""CIFAR-10 from a blur that leaves the mean color: as digits_blur_generation, for an accelerator.

python -m experiments.train --workdir=runs/cifar10_blur_generation \
    --config=experiments/configs/cifar10_blur_generation.py
python -m experiments.sample --workdir=runs/cifar10_blur_generation --num=50000

Setting: the four conditions of docs/why-cold-diffusion-works.md, with 100 steps. It is ours: the
paper has no CIFAR-10 from nothing.
Published: nothing comparable. Not trained here: it asks for an accelerator.
"""

from diffjax import schedules
from experiments.configs import cifar10_deblur


def get_config():
    config = cifar10_deblur.get_config()
    stds = schedules.blur_increments(100, first=0.5, last=1.2 * 32)
    config.degradation.stds = tuple(stds.tolist())
    config.degradation.kernel_size = None
    config.degradation.boundary = "symmetric"
    config.degradation.mean_at_end = True
    config.train.perturbation = 0.02
    config.train.basis = "dct"
    return config
