"""With and without the preconditioner of the best linear restorer, on scikit-learn's digits.

python -m experiments.compare --study=experiments/studies/preconditioning.py \
    --output=docs/results/preconditioning
"""

from experiments.configs import default

SUPER_RESOLUTION = {"degradation": {"family": "downsample", "steps": 2, "method": "bicubic"}}
ON, OFF = {"model.precondition": True}, {"model.precondition": False}
VARIANTS = {
    "deblurring, preconditioned": ON,
    "deblurring, plain": OFF,
    "super-resolution, preconditioned": SUPER_RESOLUTION | ON,
    "super-resolution, plain": SUPER_RESOLUTION | OFF,
}


def get_config():
    config = default.get_config()
    config.train.steps = 600
    return config
