"""Every measured number in the README, against the result file that a committed command wrote.

Oracle: docs/results/*.json, formatted here.
"""

import json
import pathlib

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def result(name):
    return json.loads((ROOT / "docs" / "results" / f"{name}.json").read_text())


@pytest.mark.parametrize("name", ["demo", "mnist_deblur"])
def test_restored(name):
    found = result(name)
    for method, row in found["methods"].items():
        line = f"| {method} | {row['rmse']:.3f} | {row['psnr']:.2f} | {row['ssim']:.3f} |"
        assert line in README
    assert f"{found['images']} held-out" in README


def test_tasks():
    for name, one in result("restoration")["results"].items():
        cells = [f"{row['rmse']:.3f} / {row['ssim']:.3f}" for row in one["methods"].values()]
        assert f"| {name} | {' | '.join(cells)} |" in README


def test_generated():
    found = result("generation")["results"]
    for way, one in found.items():
        distance = one["generated"]
        assert f"| {way} | {distance['frechet']:.3f} | {distance['kernel']:.4f} |" in README
    held_out = next(iter(found.values()))["held-out"]
    line = f"| held-out images | {held_out['frechet']:.3f} | {held_out['kernel']:.4f} |"
    assert line in README


def over_seeds(values):
    spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{spread}"


def test_losses():
    for variant, one in result("losses")["results"].items():
        values = [one["rmse"][-1], one["rmse1"][-1], one["ssim1"][-1], one["frechet"]]
        assert f"| {variant} | {' | '.join(map(over_seeds, values))} |" in README


@pytest.mark.parametrize(
    ("name", "data"), [("preconditioning", "digits"), ("preconditioning_mnist", "MNIST")]
)
def test_preconditioning(name, data):
    for variant, one in result(name)["results"].items():
        values = [one[score][-1] for score in ("rmse", "rmse1", "ssim1")]
        assert f"| {data}, {variant} | {' | '.join(map(over_seeds, values))} |" in README


def test_benchmark():
    rows = {row["what"]: row["value"] for row in result("benchmark")["rows"]}
    for what, text in (
        ("convolved t times in PyTorch", "| {:,.0f} |"),
        ("convolved t times in PyTorch, over tables", " {:,.0f}x |"),
        ("the same chain in jitted JAX", "| {:,.0f} |"),
    ):
        assert text.format(rows[what]) in README
