"""Two CPU devices, no silent broadcasting, warnings as errors (see pyproject.toml)."""

import os

import chex
import jax

chex.set_n_cpu_devices(2)
# Hundreds of small programs, each run a few times: the passes would cost more than they save.
jax.config.update("jax_disable_most_optimizations", True)
jax.config.update("jax_numpy_rank_promotion", "raise")

# Nothing decoded in a test goes into the cache of whoever runs it.
os.environ.setdefault("DIFFJAX_CACHE", "")
