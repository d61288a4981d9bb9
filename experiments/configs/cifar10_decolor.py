r"""Coloring CIFAR-10 with Cold Diffusion's setting: color lost linearly in 20 steps.

python -m experiments.train --workdir=runs/cifar10_decolor \
    --config=experiments/configs/cifar10_decolor.py

Setting: "Linear", to exact gray, as the README of the authors' code has it.
Published: no numbers that we know of.
Deviations: as in cifar10_deblur; and the samplers walk from t to s, theirs are one level late.
"""

from experiments.configs import cifar10_deblur


def get_config():
    config = cifar10_deblur.get_config()
    config.degradation = {"family": "decolor", "steps": 20}
    return config
