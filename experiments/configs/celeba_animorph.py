r"""Generating CelebA at 128x128 from animals (AFHQ): Cold Diffusion's animorphosis.

python -m experiments.train --workdir=runs/celeba_animorph \
    --config=experiments/configs/celeba_animorph.py \
    --config.degradation.images.directory=afhq/train
python -m experiments.sample --workdir=runs/celeba_animorph --num=64

Setting: 200 steps of the clipped cosine and Algorithm 2 with the animal kept, as the README and
the code of the authors have it. The folder is AFHQ's training images, all three kinds.
Published: the paper has an FID for it, which could not be verified, so none is given here.
Deviations: as in celeba_deblur; the animals are the folder's first 1,024 images.
"""

import ml_collections

from experiments.configs import celeba_noise


def get_config():
    config = celeba_noise.get_config()
    config.degradation.family = "animorph"
    config.degradation.images = images = ml_collections.ConfigDict()
    images.name = "folder"
    images.directory = ml_collections.config_dict.placeholder(str)
    config.sample.sampler = "improved"
    return config
