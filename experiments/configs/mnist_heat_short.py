r"""Inverse heat dissipation on MNIST with the network and the budget of mnist_blur_generation.

python -m experiments.train --workdir=runs/mnist_heat_short \
    --config=experiments/configs/mnist_heat_short.py
python -m experiments.sample --workdir=runs/mnist_heat_short --num=1000

The setting of mnist_heat in 50 levels.
"""

from experiments.configs import mnist_blur_generation


def get_config():
    config = mnist_blur_generation.get_config()
    config.degradation = {
        "family": "heat",
        "sigma_min": 0.5,
        "sigma_max": 20.0,
        "levels": 50,
        "noise": 0.02,
    }
    config.train.perturbation = 0.0
    config.train.basis = "pixels"
    config.train.loss = "l2"
    config.train.prediction = "previous"
    config.prior.kind = "bank"
    config.prior.perturbation = 0.015
    config.sample.sampler = "ihdm"
    config.sample.settings.delta = 0.025
    return config
