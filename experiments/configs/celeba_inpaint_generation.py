r"""Generating CelebA at 128x128 from one color, drawn, that recedes to the border.

python -m experiments.train --workdir=runs/celeba_inpaint_generation \
    --config=experiments/configs/celeba_inpaint_generation.py
python -m experiments.sample --workdir=runs/celeba_inpaint_generation --num=64

Setting: 750 steps of std_i = 0.05 (i + 1), reversed: the image is lost from the border inwards,
to a color uniform on [-0.5, 0.5)^3, as the README and the code of Cold Diffusion's authors have
it.
Published: the paper has an FID for it, which could not be verified, so none is given here.
Deviations: as in celeba_deblur.
"""

from diffjax import schedules
from experiments.configs import celeba_deblur


def get_config():
    config = celeba_deblur.get_config()
    stds = schedules.linear_stds(750, start=0.05, slope=0.05)
    config.degradation = {
        "family": "fade",
        "stds": tuple(stds.tolist()),
        "color": "drawn",
        "reverse": True,
    }
    return config
