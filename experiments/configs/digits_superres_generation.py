r"""Digits from 2x2 pixels: 8 to 4 to 2, in 20 steps between two sizes.

python -m experiments.train --workdir=runs/digits_superres_generation \
    --config=experiments/configs/digits_superres_generation.py
python -m experiments.sample --workdir=runs/digits_superres_generation --num=1000

As digits_blur_generation; a halving at once would be a jump. Frechet distance of 1,000 images 0.166
(docs/results/generation.json).
"""

from experiments.configs import digits_blur_generation


def get_config():
    config = digits_blur_generation.get_config()
    config.degradation = {
        "family": "downsample",
        "steps": 2,
        "method": "area",
        "between": 20,
        "faintest": 0.01,
    }
    config.train.perturbation = 0.05
    return config
