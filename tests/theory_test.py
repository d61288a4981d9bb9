"""The closed form of generation, and the page that tells of it.

Oracles: walks of diffjax's samplers over many draws, with a dense restorer; products of the
factors of one mode, in loops of plain Python; the limit of many small steps; scipy's DCT; and
docs/results/theory.json for the page.
"""

import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.fft

from diffjax import samplers, schedules
from diffjax.degradations import base, blur
from experiments.lib import theory

ROOT = pathlib.Path(__file__).parents[1]
SHAPE = (4, 4, 1)
STDS = schedules.blur_increments(8, first=0.3, last=6.0).tolist()
Q = 0.1


def blurred(*, mean_at_end, stds=STDS):
    return blur.gaussian_blur(
        SHAPE, stds=stds, kernel_size=15, boundary="symmetric", mean_at_end=mean_at_end
    )


def random_covariance():
    root = np.random.default_rng(0).normal(size=(16, 16)) / 4
    return root @ root.T + 0.05 * np.eye(16)


@pytest.mark.parametrize(
    ("degradation", "algorithm", "p"),
    [
        (blurred(mean_at_end=True), 2, 1.1 * Q),
        (blurred(mean_at_end=True), 2, 0.0),
        (blurred(mean_at_end=False, stds=STDS[:4]), 1, Q),
        (blur.downsample((4, 4, 1), steps=1, method="bicubic", between=5), 2, Q),
    ],
)
def test_propagate_is_the_covariance_of_many_walks(degradation, algorithm, p):
    S, count = random_covariance(), 5_000
    mean = np.linspace(-0.5, 0.5, 16)
    steps = theory.matrices(degradation)
    T = len(steps) - 1
    # R, dense, of every severity, in float64 by another formula: information, not gain.
    gains = [
        np.linalg.inv(np.linalg.inv(S) + A.T @ A / Q**2) @ A.T / Q**2
        for A in (base_matrix(degradation, k / T) for k in range(T + 1))
    ]
    gains, A_T = jnp.asarray(np.stack(gains), jnp.float32), jnp.asarray(steps, jnp.float32)

    def restore(xt, t):
        k = jnp.round(t * T).astype(int)
        x = xt.reshape(-1) - jnp.asarray(A_T)[k] @ jnp.asarray(mean, jnp.float32)
        return (jnp.asarray(mean, jnp.float32) + gains[k] @ x).reshape(SHAPE)

    process = samplers.Process(restore, lambda x0, t, omega: base.degrade(degradation, x0, t, None))
    sampler = samplers.improved if algorithm == 2 else samplers.naive
    rng = np.random.default_rng(1)
    x0 = mean + rng.normal(size=(count, 16)) @ np.linalg.cholesky(S).T
    xT = x0 @ base_matrix(degradation, 1.0).T + p * rng.normal(size=x0.shape)
    walk = jax.jit(
        jax.vmap(
            lambda x: samplers.sample(
                sampler, process, jax.random.key(0), x, samplers.uniform_grid(T)
            )
        )
    )
    made = np.asarray(walk(jnp.asarray(xT.reshape(-1, *SHAPE), jnp.float32)), np.float64)
    made = made.reshape(count, 16)
    found = theory.propagate(steps, S, Q, p, algorithm)
    # A covariance of n draws errs by about sqrt((c_ii c_jj + c_ij^2) / n); five of these.
    error = np.sqrt((np.outer(np.diag(found), np.diag(found)) + found**2) / count)
    assert np.all(np.abs(np.cov(made, rowvar=False) - found) <= 5 * error + 1e-5)
    assert np.all(np.abs(made.mean(axis=0) - mean) <= 5 * np.sqrt(np.diag(found) / count) + 1e-4)


def base_matrix(degradation, t):
    """D at t as a matrix, column by column from D itself."""
    columns = jnp.eye(16).reshape(16, *SHAPE)
    out = jax.vmap(lambda x: base.degrade(degradation, x, jnp.float32(t), None))(columns)
    return np.asarray(out, np.float64).reshape(16, 16).T


@pytest.mark.parametrize("algorithm", [2, 1])
def test_a_mode_is_a_product(algorithm):
    """In the DCT, symmetric boundary: mode by mode, the product in a loop."""
    dct = scipy.fft.dct(np.eye(4), axis=0, norm="ortho")
    basis = np.kron(dct, dct)
    variances = np.random.default_rng(2).uniform(0.05, 1, 16)
    # Algorithm 1 makes nothing of what D destroyed: a D that leaves something, for it.
    p, ends, stds = 1.1 * Q, algorithm == 2, STDS if algorithm == 2 else STDS[:4]
    degradation = blurred(mean_at_end=ends, stds=stds)
    made = theory.propagate(
        theory.matrices(degradation), basis.T @ np.diag(variances) @ basis, Q, p, algorithm
    )
    modes = basis @ made @ basis.T
    np.testing.assert_allclose(modes - np.diag(np.diag(modes)), 0, atol=1e-6)
    for mode in range(1, 16):
        along = [1.0]
        for std in stds:
            left = 1.0
            for k in divmod(mode, 4):
                taps = [math.exp(-0.5 * (j / std) ** 2) for j in range(-7, 8)]
                waves = [math.cos(math.pi * k * j / 4) for j in range(-7, 8)]
                left *= sum(g * w for g, w in zip(taps, waves, strict=True)) / sum(taps)
            along.append(along[-1] * left)
        along[-1] *= not ends
        S = variances[mode]
        x = math.hypot(along[-1] * math.sqrt(S), p)
        for t in range(len(stds), 0, -1):
            gain = along[t] * S / (along[t] ** 2 * S + Q**2)
            step = along[t - 1] * gain
            x *= step if algorithm == 1 else 1 + step - along[t] * gain
        assert modes[mode, mode] == pytest.approx(x**2, rel=1e-4, abs=1e-8)


@pytest.mark.parametrize("p", [0.02, 0.022])
def test_many_small_steps_make_the_data(p):
    """std(x_0) = (p / q) sqrt(S + q^2): within 1% after 4,000 steps, and ever nearer before."""
    q, frequencies = 0.02, np.array([1, 3, 7]) / 16
    variances = np.array([1.0, 0.3, 0.05])
    limit = p / q * np.sqrt(variances + q**2)

    def error(steps):
        stds = schedules.blur_increments(steps, first=0.05, last=14.0)
        amplitude = theory.amplitudes(stds, frequencies)
        return np.abs(p * theory.walk_of_mode(amplitude, variances, q)[-1] / limit - 1)

    assert np.all(error(4000) < 0.01)
    assert np.all(error(100) < error(50))
    assert np.all(error(4000) < error(100))


def test_the_paper_is_one_number_apart():
    """Far above the noise of training a walk makes p / q times what is right; below, too little."""
    found = theory.paper()
    assert found["made"]["0.02"] < 0.002 / 0.02
    assert 0.5 < found["made"]["0.00226"] < 0.002 / 0.00226
    assert 0.5 * 0.002 / 0.0002 < found["made"]["0.0002"] < 0.002 / 0.0002
    assert 0.5 * 0.002 / 0.00001 < found["made"]["1e-05"] < 0.002 / 0.00001
    assert found["jump"] < 0.00226


def test_the_four_ways():
    found = theory.curve()
    ways, std = found["ways"], found["std"]
    images = theory.digits()[..., 0]
    mode = scipy.fft.dctn(images, axes=(1, 2), norm="ortho")[:, *found["mode"]]
    assert std == pytest.approx(mode.std(ddof=1), abs=1e-6)
    assert found["data"][0] == found["q"]
    assert found["data"][-1] == pytest.approx(math.hypot(std, found["q"]), abs=1e-6)
    assert {len(along) for along in (found["t"], found["data"], *ways.values())} == {51}
    assert 0.8 < ways["Algorithm 2, p = q"][-1] / std < 1
    assert [along[-1] for along in ways.values()][1:] == [0, 0, 0]


def test_the_committed_numbers(tmp_path):
    """The file is what the functions make; and the pictures can be drawn."""
    found = {"table": theory.table(), "paper": theory.paper(), "curve": theory.curve()}
    committed = json.loads((ROOT / "docs" / "results" / "theory.json").read_text())
    for part, one in found.items():
        new, old = (jax.tree.flatten(tree) for tree in (one, committed[part]))
        assert new[1] == old[1]
        for a, b in zip(new[0], old[0], strict=True):
            assert a == (b if isinstance(b, str) else pytest.approx(b, rel=1e-3, abs=2e-5))
    theory.draw(tmp_path / "theory")
    assert all((tmp_path / f"theory.{kind}").stat().st_size for kind in ("gif", "png"))


def test_the_page():
    found = json.loads((ROOT / "docs" / "results" / "theory.json").read_text())
    page = (ROOT / "docs" / "why-cold-diffusion-works.md").read_text()
    lines = []
    for row in found["table"]["rows"]:
        distances = [*row["algorithm 2"].values(), row["p = 0"], row["algorithm 1"]]
        cells = [row["degradation"], row["steps"], row["q"], *(f"{d:.3f}" for d in distances)]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    assert "\n".join(lines) in page
    for q, made in found["paper"]["made"].items():
        q = f"{float(q):.5f}".rstrip("0")
        assert f"| {q} | {made:.3g} |" in page
    prose = " ".join(page.split())
    assert f"leave {found['paper']['jump']:.4f} in the strongest mode" in prose
    curve = found["curve"]
    share = curve["ways"]["Algorithm 2, p = q"][-1] / curve["std"]
    assert f"makes {100 * share:.0f}% of the std of the mode" in prose
