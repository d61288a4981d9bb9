"""With and without the preconditioner, on MNIST, under Cold Diffusion's blur.

python -m experiments.compare --study=experiments/studies/preconditioning_mnist.py --seeds=1 \
    --images=128 --output=docs/results/preconditioning_mnist
"""

from experiments.configs import default
from experiments.studies import preconditioning

VARIANTS = preconditioning.variants(halvings=3)


def get_config():
    config = default.get_config()
    config.data.update(name="mnist", image_size=32)
    config.degradation.update(stds=(7.0,) * 20, kernel_size=11, boundary="circular")
    config.model.update(width=16, multipliers=(1, 2, 4, 4))
    config.train.steps = 300
    return config
