r"""Generating CelebA at 128x128 from 2x2 pixels: 6 bicubic halvings, and back.

python -m experiments.train --workdir=runs/celeba_superres_generation \
    --config=experiments/configs/celeba_superres_generation.py
python -m experiments.sample --workdir=runs/celeba_superres_generation --num=64

Setting: the 2x2 pixels and the 6 steps are defaults in the code of Cold Diffusion's authors, whose
README has no command for it. Ours starts from one Gaussian fitted on D(x0, 1).
Published: the paper has an FID for it, which could not be verified, so none is given here.
Deviations: as in celeba_deblur; and white noise of 0.00226 on xt in training, the error of 8 bits,
which they have with "discrete". Six halvings are six jumps: digits_superres_generation avoids them.
"""

from experiments.configs import celeba_superres


def get_config():
    config = celeba_superres.get_config()
    config.degradation.steps = 6
    config.train.perturbation = 0.00226
    return config
