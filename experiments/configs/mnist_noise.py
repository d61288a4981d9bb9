"""Hot diffusion on MNIST with the network and the budget of mnist_blur_generation.

python -m experiments.train --config=experiments/configs/mnist_noise.py --workdir=runs/mnist_noise
python -m experiments.sample --workdir=runs/mnist_noise --num=1000
"""

from experiments.configs import mnist_blur_generation


def get_config():
    config = mnist_blur_generation.get_config()
    config.degradation = {"family": "gaussian_noise", "schedule": "cosine"}
    config.train.perturbation = 0.0
    config.train.basis = "pixels"
    config.train.loss = "l2"
    config.train.prediction = "v"
    config.train.times = "stratified"
    config.sample.sampler = "ddpm"
    config.sample.steps = 100
    return config
