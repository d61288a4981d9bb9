"""Deblurring scikit-learn's 8x8 digits: the demo.

python -m experiments.train --config=experiments/configs/digits_deblur.py --workdir=runs/demo

1,200 steps in 2 minutes on two CPU cores; RMSE of Algorithm 2 on 360 held-out digits 0.099
(docs/results/demo.json). The rounding of files to 8 bits is an error of std 0.00226, which this
blur amplifies: trained without perturbation, the RMSE is 0.087, and restored files are farther from
the clean digits than they were; with 0.00226 it is 0.108. At 0.001 files of severity 0.5 come at
least twice nearer (tests/restore_test.py).
"""

from experiments.configs import default


def get_config():
    config = default.get_config()
    config.train.steps = 1200
    config.train.perturbation = 0.001
    config.prior.perturbation = 0.0  # it restores: from so little nothing is generated
    return config
