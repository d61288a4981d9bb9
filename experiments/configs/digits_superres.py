r"""Enlarging scikit-learn's 8x8 digits: 8 to 4 to 2 pixels and back. On a CPU in minutes.

python -m experiments.train --workdir=runs/digits_superres \
    --config=experiments/configs/digits_superres.py

RMSE of Algorithm 2 on 360 held-out digits 0.245 (docs/results/restoration.json).
"""

from experiments.configs import default


def get_config():
    config = default.get_config()
    config.train.steps = 1200
    config.degradation = {"family": "downsample", "steps": 2, "method": "bicubic"}
    return config
