"""Deblurring scikit-learn's 8x8 digits: the demo.

python -m experiments.train --config=experiments/configs/digits_deblur.py --workdir=runs/demo

1,200 steps in 2 minutes on two CPU cores; RMSE of Algorithm 2 on 360 held-out digits 0.087
(docs/results/demo.json).
"""

from experiments.configs import default


def get_config():
    config = default.get_config()
    config.train.steps = 1200
    return config
