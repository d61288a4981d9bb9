r"""Inpainting scikit-learn's 8x8 digits: 10 growing holes at a random place. On a CPU in minutes.

python -m experiments.train --workdir=runs/digits_inpaint \
    --config=experiments/configs/digits_inpaint.py

RMSE of Algorithm 2 on 360 held-out digits 0.104 (docs/results/restoration.json).
"""

from diffjax import schedules
from experiments.configs import default


def get_config():
    config = default.get_config()
    config.train.steps = 1200
    stds = schedules.linear_stds(10, start=0.3, slope=0.3)
    config.degradation = {"family": "fade", "stds": tuple(stds.tolist()), "place": "random"}
    return config
