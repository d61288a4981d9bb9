"""Two CPU devices, no silent broadcasting, warnings as errors (see pyproject.toml)."""

import os

import chex
import jax
import pytest

chex.set_n_cpu_devices(2)
# Hundreds of small programs, each run a few times: the passes would cost more than they save.
jax.config.update("jax_disable_most_optimizations", True)
jax.config.update("jax_numpy_rank_promotion", "raise")

# Nothing decoded in a test goes into the cache of whoever runs it.
os.environ.setdefault("DIFFJAX_CACHE", "")


@pytest.fixture(scope="session")
def env(tmp_path_factory):
    """For commands: one CPU device, and what was compiled once is not compiled again."""
    changes = {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("jax_cache")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_PLATFORMS": "cpu",
    }
    return {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | changes
