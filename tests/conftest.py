"""Two CPU devices, no silent broadcasting, warnings as errors (see pyproject.toml)."""

import chex
import jax

chex.set_n_cpu_devices(2)
jax.config.update("jax_numpy_rank_promotion", "raise")
