r"""Generating CelebA at 128x128 from noise: the hot model that Cold Diffusion compares itself with.

python -m experiments.train --workdir=runs/celeba_noise \
    --config=experiments/configs/celeba_noise.py
python -m experiments.sample --workdir=runs/celeba_noise --num=64
python -m experiments.sample --workdir=runs/celeba_noise --num=64 --sampler=improved \
    --output=runs/celeba_noise/fixed

Setting: 200 steps of the clipped cosine, x0 predicted, L1, as the README and the code of the
authors have it. The first sampler is their "estimated noise" (DDIM), the second their "fixed".
Published: FID 23.11 with estimated noise; read in a secondary source that was checked against the
paper, not in the paper.
Deviations: as in celeba_deblur.
"""

from diffjax import schedules
from experiments.configs import celeba_deblur


def get_config():
    config = celeba_deblur.get_config()
    table = schedules.beta_table(schedules.cosine_betas(200))
    config.degradation = {
        "family": "gaussian_noise",
        "schedule": "tabulated",
        "table": tuple(map(tuple, table.tolist())),
    }
    config.sample.sampler = "ddim"
    return config
