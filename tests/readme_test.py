"""The README's tables of measurements, against the result files that committed commands wrote.

Oracle: docs/results/*.json, formatted here. Durations of training are in no result file.
"""

import json
import pathlib

import numpy as np
import pytest

from experiments import report
from experiments.lib import comparison, timing

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PERFORMANCE = (ROOT / "docs" / "performance.md").read_text()


def result(name):
    return json.loads((ROOT / "docs" / "results" / f"{name}.json").read_text())


def test_restored():
    found = result("demo")
    for method, row in found["methods"].items():
        line = f"| {method} | {row['rmse']:.3f} | {row['psnr']:.2f} | {row['ssim']:.3f} |"
        assert line in README
    assert f"{found['images']:,} held-out" in README


def tasks():
    return (result(name)["results"] for name in ("mnist", "cifar10"))


def test_the_tasks_beside_the_paper():
    mnist, cifar10 = tasks()
    _, _, table = report.paper_table(mnist | cifar10).partition("\n\n")
    assert table in README
    _, _, table = report.paper_table({task: mnist[task] for task in cifar10}).partition("\n\n")
    assert table in PERFORMANCE  # all test images as they are degraded


def test_the_tasks_over_cpu_time():
    mnist, cifar10 = tasks()
    for task in report.PAPER:
        for one in (mnist | cifar10)[task]:
            ways = [one["methods"][way] for way in ("direct", "Algorithm 1", "Algorithm 2")]
            cells = [f"{way['rmse']:.3f} / {way['ssim']:.3f}" for way in ways]
            head = f"| {task}, {one['cpu_seconds']:,.0f} | {one['images']:,} |"
            assert f"{head} {' | '.join(cells)} |" in PERFORMANCE


def test_a_quarter_of_the_time():
    assert comparison.markdown(result("patches")["runs"]) in PERFORMANCE


def test_tasks():
    for name, one in result("restoration")["results"].items():
        cells = [f"{row['rmse']:.3f} / {row['ssim']:.3f}" for row in one["methods"].values()]
        assert f"| {name} | {' | '.join(cells)} |" in README


def judged(ones):
    """A row of the study of generation: means over the seeds, and the spread of the first."""
    frechet = over_seeds([one["pixels"]["frechet"] for one in ones])
    kernel, far, sure, near = np.mean(
        [
            (
                one["pixels"]["kernel"],
                one["classifier"]["frechet"],
                one["sure"],
                one["nearest"]["median"],
            )
            for one in ones
        ],
        axis=0,
    )
    return f"{frechet} | {kernel:.4f} | {far:.1f} | {100 * sure:.0f}% | {near:.2f} |"


PAGE = (ROOT / "docs" / "why-cold-diffusion-works.md").read_text()


def test_generated():
    found = result("generation")["results"]
    for way, ones in found.items():
        assert f"| {way} | {judged([one['generated'] for one in ones])}" in PAGE
    for way in ("noise, DDPM", "blur, Algorithm 2", "downsample, Algorithm 2"):
        assert f"| {way} | {judged([one['generated'] for one in found[way]])}" in README
    held_out = next(iter(found.values()))[0]["held-out"]
    for text in (README, PAGE):
        assert f"| held-out images | {judged([held_out])}" in text


def test_generated_mnist():
    found = result("generation_mnist")["results"]
    section = README.partition("\nMNIST from the same recipe")[2].partition("\n## ")[0]
    for way, ones in found.items():
        assert f"| {way} | {judged([one['generated'] for one in ones])}" in section
    held_out = next(iter(found.values()))[0]["held-out"]
    assert f"| held-out images | {judged([held_out])}" in section


def test_the_grid_of_the_blur():
    """How many of the 64 digits shown the classifier is sure of, beside the held-out ones."""
    first = result("generation")["results"]["blur, Algorithm 2"][0]
    shown, held_out = (first[name]["sure of the grid"] for name in ("generated", "held-out"))
    line = f"sure of {64 * shown:.0f} of the 64 shown, of {64 * held_out:.0f} of 64 held-out ones"
    assert line in " ".join(README.split())


def test_perturbed_restoration():
    ways = ("direct", "Algorithm 2", "direct, 8 bits", "Algorithm 2, 8 bits")
    for variant, one in result("perturbation")["results"].items():
        assert f"| {variant} | {' | '.join(over_seeds(one[way]) for way in ways)} |" in PAGE


def over_seeds(values):
    spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{spread}"


def test_losses():
    for variant, one in result("losses")["results"].items():
        values = [one["rmse"][-1], one["rmse1"][-1], one["ssim1"][-1], one["Frechet, pixels"]]
        assert f"| {variant} | {' | '.join(map(over_seeds, values))} |" in README


@pytest.mark.parametrize(
    ("name", "data"), [("preconditioning", "digits"), ("preconditioning_mnist", "MNIST")]
)
def test_preconditioning(name, data):
    for variant, one in result(name)["results"].items():
        values = [one[score][-1] for score in ("rmse", "rmse1", "ssim1")]
        assert f"| {data}, {variant} | {' | '.join(map(over_seeds, values))} |" in README


@pytest.mark.parametrize("page", [README, PERFORMANCE], ids=["README", "performance"])
def test_benchmark(page):
    rows = [timing.Row(**row) for row in result("benchmark")["rows"]]
    head, rule, *lines = timing.markdown(rows).splitlines()
    shown = page.partition(f"{head}\n{rule}\n")[2].partition("\n\n")[0].splitlines()
    assert len(shown) > 3
    assert set(shown) <= set(lines)
