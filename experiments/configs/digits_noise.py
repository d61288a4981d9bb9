"""Hot diffusion on the digits: Gaussian noise, cosine schedule, v predicted.

python -m experiments.train --config=experiments/configs/digits_noise.py --workdir=runs/digits_noise
python -m experiments.sample --workdir=runs/digits_noise --num=1000

1,500 steps in 3 minutes on one CPU core. Frechet distance of 1,000 images 0.066 to the training
images, pixels in [0, 1], the mean of three seeds (docs/results/generation.json).
"""

from experiments.configs import default


def get_config():
    config = default.get_config()
    config.degradation = {"family": "gaussian_noise", "schedule": "cosine"}
    config.train.loss = "l2"
    config.train.prediction = "v"
    config.train.times = "stratified"
    config.train.steps = 1500
    config.sample.sampler = "ddpm"
    config.sample.steps = 100
    return config
