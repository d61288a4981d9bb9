"""What train.perturbation does to restoration, from x_T as computed and as a file of 8 bits has it.

python -m experiments.compare --study=experiments/studies/perturbation.py \
    --output=docs/results/perturbation

Beside the restorations, the RMSE of one call of R and of Algorithm 2 from either x_T.
"""

import jax
import jax.numpy as jnp

from diffjax import restorers, samplers
from diffjax.degradations.base import degrade, draw
from experiments.configs import default
from experiments.lib import build
from experiments.lib.studies import Trained

TASKS = {
    "deblurring": {},
    "super-resolution": {
        "degradation": {"family": "downsample", "steps": 2, "method": "bicubic"},
    },
}
VARIANTS = {
    f"{task}, q = {q:g}": changes | {"train.perturbation": q}
    for task, changes in TASKS.items()
    for q in (0.0, 1e-3, 1e-2)
}
WAYS = ("direct", "Algorithm 2", "direct, 8 bits", "Algorithm 2, 8 bits")


def get_config():
    config = default.get_config()
    config.model.width = 16
    config.train.steps = 300
    return config


def round_to_8_bits(x):
    return jnp.round((jnp.clip(x, -1, 1) + 1) * 127.5) / 127.5 - 1


def score(trained: Trained) -> dict[str, float]:
    objective = trained.experiment.objective
    ts = build.grid(trained.experiment, name="uniform")

    @jax.jit
    def rmses(params, problem, key, clean_BHWC):
        restore_fn = restorers.restorer(objective, params, problem)
        process = restorers.process(problem.degradation, restore_fn)

        def restored(key, x0):
            omega = draw(problem.degradation, key, x0)
            xT = degrade(problem.degradation, x0, 1.0, omega)

            def ways(xT):
                walked = samplers.sample(samplers.improved, process, key, xT, ts, omega)
                return {"direct": restore_fn(xT, ts[0]), "Algorithm 2": walked}

            rounded = ways(round_to_8_bits(xT))
            return ways(xT) | {f"{way}, 8 bits": x for way, x in rounded.items()}

        made = jax.vmap(restored)(jax.random.split(key, len(clean_BHWC)), clean_BHWC)
        # Half the error in [-1, 1] is that in [0, 1].
        return {way: jnp.sqrt(jnp.mean(jnp.square(x - clean_BHWC))) / 2 for way, x in made.items()}

    found = rmses(trained.params, trained.problem, jax.random.key(1), trained.images)
    return {way: float(found[way]) for way in WAYS}
