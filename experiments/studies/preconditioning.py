"""With and without the preconditioner of the best linear restorer, on scikit-learn's digits.

python -m experiments.compare --study=experiments/studies/preconditioning.py \
    --output=docs/results/preconditioning
"""

from experiments.configs import default

ON, OFF = {"model.precondition": True}, {"model.precondition": False}


def variants(halvings: int) -> dict:
    lost = {"degradation": {"family": "downsample", "steps": halvings, "method": "bicubic"}}
    return {
        "deblurring, preconditioned": ON,
        "deblurring, plain": OFF,
        "super-resolution, preconditioned": lost | ON,
        "super-resolution, plain": lost | OFF,
    }


VARIANTS = variants(halvings=2)


def get_config():
    config = default.get_config()
    config.train.steps = 600
    return config
