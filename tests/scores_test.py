"""Oracle: images that are wrong by a constant, and hand computation."""

import jax
import numpy as np
import pytest

from diffjax import parallel
from experiments.lib import scores


def test_every_image_counts_once_and_one_program_serves_all_batches():
    rng = np.random.default_rng(0)
    clean = rng.uniform(-0.5, 0.5, (5, 12, 12, 1)).astype(np.float32)
    errors = np.array([0.1, 0.1, 0.2, 0.2, 0.4], np.float32)[:, None, None, None]
    restored = {"wrong": clean + errors, "exact": clean}
    parts = [slice(0, 2), slice(2, 4), slice(4, 5)]
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, _, **about: compiled.append(event.endswith("backend_compile_duration"))
    )
    try:
        found = scores.tabulate(
            (clean[part], {name: images[part] for name, images in restored.items()})
            for part in parts
        )
    finally:
        jax.monitoring.clear_event_listeners()
    # In [0, 1] an error is half of that in [-1, 1].
    half = errors.ravel() / 2
    np.testing.assert_allclose(found["wrong"]["rmse"], np.sqrt(np.mean(half**2)), rtol=1e-4)
    np.testing.assert_allclose(found["wrong"]["psnr"], np.mean(-20 * np.log10(half)), rtol=1e-4)
    assert found["wrong"]["exact"] == 0
    assert found["exact"] == {"rmse": 0.0, "psnr": None, "exact": 5, "ssim": 1.0}
    assert sum(compiled) == 1


def test_the_scores_of_shares_are_those_of_all(monkeypatch):
    rng = np.random.default_rng(0)
    clean = rng.uniform(-0.5, 0.5, (5, 12, 12, 1)).astype(np.float32)
    wrong = clean + rng.normal(0, 0.1, clean.shape).astype(np.float32)
    whole = scores.tabulate([(clean, {"wrong": wrong})])["wrong"]
    shares = []
    monkeypatch.setattr(
        parallel, "bytes_from_all_hosts", lambda mine: shares.append(mine) or shares
    )
    # Three hosts: four images, one, none.
    for part in (slice(0, 4), slice(4, 5), None):
        batches = [] if part is None else [(clean[part], {"wrong": wrong[part]})]
        together = scores.tabulate(batches, shared=True)
    assert together["wrong"] == pytest.approx(whole, rel=1e-6)
