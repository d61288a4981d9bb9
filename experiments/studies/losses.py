"""Losses and predictions, hot and cold, on scikit-learn's digits.

python -m experiments.compare --study=experiments/studies/losses.py --output=docs/results/losses

Beside the restorations, the Frechet distance between 1,024 generated images and the training
images, in the space of their pixels. x_T is not perturbed.
"""

import jax
import jax.numpy as jnp
import numpy as np

from experiments.configs import default
from experiments.lib import judge, walks
from experiments.lib.studies import Trained

HOT = {
    "degradation": {"family": "gaussian_noise", "schedule": "cosine"},
    "model.precondition": False,
    "train.loss": "l2",
    "train.prediction": "noise",
    "sample.sampler": "ddpm",
    "sample.steps": 50,
}
VARIANTS = {
    "hot, noise, L2": HOT,
    "hot, noise, L1": HOT | {"train.loss": "l1"},
    "hot, x0, L2": HOT | {"train.prediction": "x0"},
    "hot, v, L2, min-SNR": HOT | {"train.prediction": "v", "train.weighting": "min_snr"},
    "cold blur, x0, L1": {},
    "cold blur, x0, L2": {"train.loss": "l2"},
    "cold blur, x0, L1, not preconditioned": {"model.precondition": False},
}


def get_config():
    config = default.get_config()
    config.model.width = 16  # so that seven variants and three seeds take minutes
    config.train.steps = 600
    return config


def score(trained: Trained) -> dict[str, float]:
    generate_fn = jax.jit(jax.vmap(walks.generator(trained.experiment), in_axes=(None, 0, None)))
    # Unperturbed: this blur leaves more than the mean, and so no symmetry to break.
    operand = (trained.params, trained.problem, trained.fitted["prior"], jnp.float32(0))
    keys = jax.random.split(jax.random.key(2), 1024)
    made = np.asarray(generate_fn(operand, keys, trained.experiment.objective.num_classes))
    reference = trained.train.fetch_fn(range(trained.train.size))["image"]
    found = judge.distances(judge.as_pixels(made), judge.as_pixels(reference))
    return {"Frechet, pixels": found["frechet"]}
