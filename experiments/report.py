"""Trains configs and tabulates what comes of them: what README and docs show.

python -m experiments.report --study=restoration --output=docs/results/restoration
python -m experiments.report --study=restoration --output=docs/results/restoration_mnist \
    --configs=mnist_inpaint,mnist_superres --images=512
python -m experiments.report --study=generation --output=docs/results/generation --seeds=3
python -m experiments.report --study=generation --data=mnist --output=docs/results/generation_mnist
python -m experiments.report --study=theory --output=docs/results/theory
python -m experiments.report --study=mnist --cpu_seconds=1200 --output=docs/results/mnist
python -m experiments.report --study=cifar10 --cpu_seconds=3600 --images=1000 \
    --output=docs/results/cifar10

Writes OUTPUT.json and OUTPUT.png (theory: a .gif as well; generation: the blur's ways and its
curves too). It calls train, sample and evaluate as a user would, a workdir a config and seed, and
gathers what they leave. It can be interrupted, and goes on as they do; what was judged is not
judged again. In the study of generation every way is judged by 1,000 images against the training
images; theory trains nothing. The studies of mnist and cifar10 hold Cold Diffusion's Tables 1 to 3
against ours: each task is trained for --cpu_seconds and judged on all test images, or --images of
them, on the way there on 256.
"""

import importlib
import json
import pathlib
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from absl import flags
from PIL import Image

from diffjax import schedules
from experiments.lib import build, commands, files, pictures, runs, scores, theory, walks
from experiments.lib.config import resolve
from experiments.lib.walks import METHODS

_STUDY = flags.DEFINE_enum(
    "study",
    None,
    ["restoration", "generation", "theory", "mnist", "cifar10"],
    "What is tabulated.",
)
_DATA = flags.DEFINE_enum("data", "digits", ["digits", "mnist"], "What is generated.")
_CONFIGS = flags.DEFINE_list(
    "configs", ["digits_deblur", "digits_inpaint", "digits_superres"], "Restored, by their names."
)
_IMAGES = flags.DEFINE_integer("images", None, "Held-out images restored; none: all.")
_NUM = flags.DEFINE_integer("num", 1000, "Images generated in each way.", lower_bound=2)
_SEEDS = flags.DEFINE_integer("seeds", 1, "Of the study of generation.", lower_bound=1)
_CPU_SECONDS = flags.DEFINE_integer(
    "cpu_seconds", 600, "Of each training in the studies of mnist and cifar10.", lower_bound=1
)
_WORKDIRS = flags.DEFINE_string("workdirs", "runs/report", "Folder of the workdirs.")
_OUTPUT = flags.DEFINE_string("output", None, "Path of the .json and .png to write.")


class Way(NamedTuple):
    """One way to generate: a config, what it changes of it, and flags of experiments.sample."""

    config: str
    sample: Mapping[str, Any] = MappingProxyType({})
    train: Mapping[str, Any] = MappingProxyType({})
    seeds: int | None = None  # None: all


def _cold(label: str, config: str) -> dict[str, Way]:
    """Algorithm 2, and below it what must fail; direct is Algorithm 1 in one step."""
    return {
        f"{label}, Algorithm 2": Way(config),
        f"{label}, Algorithm 1": Way(config, {"sampler": "naive"}, seeds=1),
        f"{label}, p = 0": Way(config, {"perturbation": 0.0}, seeds=1),
        f"{label}, direct": Way(config, {"sampler": "naive", "steps": 1}, seeds=1),
    }


def _sampled(steps: int = 50) -> dict[str, Any]:
    """The blur in sampled kernels, of which those of less than half a pixel hardly blur."""
    stds = schedules.blur_increments(steps, first=0.3, last=12.0)
    return {
        "config.degradation.stds": f"({', '.join(map(repr, stds.tolist()))})",
        "config.degradation.kernel_size": "31",
    }


def _loss(name: str) -> dict[str, Any]:
    return {"config.train.loss": name, "config.train.basis": "pixels"}


DIGITS_BLUR = "digits_blur_generation"
WAYS: dict[str, dict[str, Way]] = {
    "digits": {
        "noise, DDPM": Way("digits_noise"),
        "noise, DDIM": Way("digits_noise", {"sampler": "ddim"}),
        "heat, IHDM": Way("digits_heat", seeds=1),
        "heat, Algorithm 2": Way("digits_heat", {"sampler": "improved"}, seeds=1),
        **_cold("blur", DIGITS_BLUR),
        "blur, 25 of its 50 steps": Way(DIGITS_BLUR, {"steps": 25}, seeds=1),
        "blur in sampled kernels": Way(DIGITS_BLUR, train=_sampled()),
        "blur in sampled kernels, L2": Way(DIGITS_BLUR, train=_sampled() | _loss("l2")),
        "blur in sampled kernels, L1 on pixels": Way(
            DIGITS_BLUR, train=_sampled() | _loss("l1"), seeds=1
        ),
        "blur in sampled kernels, 20 steps": Way(DIGITS_BLUR, train=_sampled(20), seeds=1),
        "blur in sampled kernels, 100 steps": Way(DIGITS_BLUR, train=_sampled(100), seeds=1),
        **_cold("downsample", "digits_superres_generation"),
    },
    "mnist": {
        "noise, DDPM": Way("mnist_noise"),
        "heat, IHDM": Way("mnist_heat_short"),
        **_cold("blur", "mnist_blur_generation"),
    },
}
GRIDS = {
    "digits": ("noise, DDPM", "heat, IHDM", "blur, Algorithm 2", "downsample, Algorithm 2"),
    "mnist": ("noise, DDPM", "heat, IHDM", "blur, Algorithm 2"),
}
ROW = 16  # images of a row of the second picture


def run(script: str, arguments: Mapping[str, Any]) -> None:
    """Runs a command to its end, and ends as it does if that is no success."""
    given = [f"--{name}={value}" for name, value in arguments.items() if value is not None]
    # A Ctrl-C reaches the command as well, which may have something to save: wait for it.
    handler = signal.signal(signal.SIGINT, lambda *_: None)
    status = subprocess.run([sys.executable, "-m", f"experiments.{script}", *given]).returncode
    signal.signal(signal.SIGINT, handler)
    if status:
        sys.exit(status)


def train(name: str, workdir: pathlib.Path, changes: Mapping[str, Any]) -> None:
    run("train", {"config": f"experiments/configs/{name}.py", "workdir": workdir} | dict(changes))


def restoration(
    names: list[str], workdirs: pathlib.Path, images: int | None, output: pathlib.Path
) -> tuple[dict, str]:
    found = {}
    for name in names:
        workdir = workdirs / name
        train(name, workdir, {})
        run("sample", {"workdir": workdir})
        run("evaluate", {"workdir": workdir, "images": images})
        found[name] = json.loads((workdir / "evaluation.json").read_text())
    figure, axes = plt.subplots(len(found), 1, figsize=(10, 3.2 * len(found)), squeeze=False)
    for axis, name in zip(axes[:, 0], found, strict=True):
        _show(axis, workdirs / name / "samples.png", name)
    _save(figure, output)
    rows = ["| | " + " | ".join(METHODS) + " |", "|---" * (len(METHODS) + 1) + "|"]
    for name, one in found.items():
        cells = [f"{m['rmse']:.3f} / {m['ssim']:.3f}" for m in map(one["methods"].get, METHODS)]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return found, "RMSE / SSIM\n\n" + "\n".join(rows)


def generate(
    way: Way, seed: int, workdirs: pathlib.Path, num: int, trained: set[pathlib.Path]
) -> pathlib.Path:
    """The folder of a way's images of one seed, judged; adds its workdir to those trained."""
    changes = [
        f"T{value.count(',') + 1}" if "," in value else value for value in way.train.values()
    ]
    name = "_".join([way.config, *changes])
    workdir = workdirs / f"{name}_{seed}"
    if workdir not in trained:
        train(way.config, workdir, {**way.train, "config.seed": seed})
        trained.add(workdir)
    suffix = "_".join(str(value) for value in way.sample.values()) or "default"
    folder = workdir / f"generated_{suffix}"
    judged = folder / "distances.json"
    if not judged.exists() or json.loads(judged.read_text())["generated"]["images"] != num:
        chosen = {"workdir": workdir, "output": folder, "num": num, "seed": seed}
        run("sample", chosen | dict(way.sample))
        run("evaluate", {"workdir": workdir, "generated": folder})
    return folder


def generation(
    data: str, workdirs: pathlib.Path, num: int, seeds: int, output: pathlib.Path
) -> tuple[dict, str]:
    """{way: [the judgment of each seed]}, and the table; the pictures are of seed 0."""
    found: dict[str, list] = {}
    folders = {}
    trained: set[pathlib.Path] = set()
    for label, way in WAYS[data].items():
        of_seeds = [
            generate(way, seed, workdirs, num, trained)
            for seed in range(min(seeds, way.seeds or seeds))
        ]
        folders[label] = of_seeds[0]
        found[label] = [json.loads((one / "distances.json").read_text()) for one in of_seeds]
        for one, folder in zip(found[label], of_seeds, strict=True):
            one["settings"] = json.loads((folder / "settings.json").read_text())
    figure, axes = plt.subplots(1, len(GRIDS[data]), figsize=(3.2 * len(GRIDS[data]), 3.6))
    for axis, label in zip(axes, GRIDS[data], strict=True):
        title = f"{label}\nFrechet {found[label][0]['generated']['pixels']['frechet']:.3f}"
        _show(axis, folders[label] / "grid.png", title)
    _save(figure, output)
    curves = folders["blur, Algorithm 2"].parent / "severity.png"
    shutil.copy(curves, output.with_name(f"{output.name}_curves.png"))
    blurs = [label for label in WAYS[data] if label.startswith("blur, ")]
    pictures.draw_grid(
        output.with_name(f"{output.name}_blur.png"),
        [pictures.read_images(folders[label], ROW) for label in blurs],
        names=[label.removeprefix("blur, ") for label in blurs],
    )
    return found, generation_table(found)


def generation_table(found: dict[str, list]) -> str:
    """Means over the seeds, ± the standard deviation where there are several."""
    rows = [
        "| | Frechet, pixels | kernel, pixels | Frechet, classifier | sure | nearest |",
        "|---|---|---|---|---|---|",
    ]
    lines = {label: [one["generated"] for one in ones] for label, ones in found.items()}
    lines["held-out images"] = [next(iter(found.values()))[0]["held-out"]]
    for label, ones in lines.items():
        frechet = [one["pixels"]["frechet"] for one in ones]
        spread = f" ± {np.std(frechet, ddof=1):.3f}" if len(ones) > 1 else ""
        kernel, far, sure, near = (
            np.mean([get(one) for one in ones])
            for get in (
                lambda one: one["pixels"]["kernel"],
                lambda one: one["classifier"]["frechet"],
                lambda one: one["sure"],
                lambda one: one["nearest"]["median"],
            )
        )
        rows.append(
            f"| {label} | {np.mean(frechet):.3f}{spread} | {kernel:.4f} | {far:.1f} | "
            f"{100 * sure:.0f}% | {near:.2f} |"
        )
    return "\n".join(rows)


# RMSE and SSIM of Tables 1 to 3 of "Cold Diffusion" by Bansal et al.
# (https://arxiv.org/abs/2208.09392). Its SSIM of blurred MNIST repeats the RMSE: a slip, left out.
PAPER: dict[str, dict[str, tuple[float, float | None]]] = {
    "mnist_deblur": {
        "degraded": (0.287, None),
        "direct": (0.142, 0.757),
        "Algorithm 2": (0.154, 0.718),
    },
    "mnist_inpaint": {
        "degraded": (0.262, 0.490),
        "direct": (0.060, 0.948),
        "Algorithm 2": (0.068, 0.941),
    },
    "mnist_superres": {
        "degraded": (0.231, 0.178),
        "direct": (0.114, 0.823),
        "Algorithm 2": (0.115, 0.820),
    },
    "cifar10_deblur": {
        "degraded": (0.136, 0.315),
        "direct": (0.071, 0.775),
        "Algorithm 2": (0.075, 0.773),
    },
    "cifar10_inpaint": {
        "degraded": (0.143, 0.615),
        "direct": (0.063, 0.869),
        "Algorithm 2": (0.068, 0.859),
    },
    "cifar10_superres": {
        "degraded": (0.146, 0.279),
        "direct": (0.152, 0.420),
        "Algorithm 2": (0.155, 0.411),
    },
}
# What the configs of CIFAR-10, which are meant for an accelerator, become on a laptop.
SHORT: dict[str, dict[str, Any]] = {
    "mnist": {},
    "cifar10": {
        "model.patch": 4,
        "model.multipliers": "(1, 2)",
        "model.blocks": 1,
        "model.attention": "()",
        "model.precondition_floor": 1e-4,
        "train.batch_size": 64,
        "train.learning_rate": 2e-3,
        "train.warmup": 100,
        "train.ema_decay": 0.999,
        "run.log_every": 25,
    },
}
POINTS, WATCHED = 8, 256  # saves of a training, of which 1, 2, 4 and 8 are judged; images


def affordable(
    name: str, workdirs: pathlib.Path, changes: Mapping[str, Any], cpu_seconds: int
) -> int:
    """The steps that a budget of CPU time pays for, by a short training that finds their price.

    A multiple of 25 POINTS: there are saves and lines of metrics.jsonl at each of the points.
    """
    workdir = workdirs / f"{name}_price"
    train(name, workdir, _fields({**changes, "train.steps": 75}))
    first, *_, last = files.read_lines(workdir / "metrics.jsonl")
    price = (last["cpu_seconds"] - first["cpu_seconds"]) / (last["step"] - first["step"])
    return max(1, round(cpu_seconds / price / (25 * POINTS))) * 25 * POINTS


def evaluated(workdir: pathlib.Path, step: int | None = None, images: int | None = None) -> dict:
    """What experiments.evaluate says of a finished training, the first time it is asked."""
    suffix = "" if step is None else f"_{step}"
    path = workdir / f"evaluation{suffix}.json"
    if not path.exists():
        run("evaluate", {"workdir": workdir, "step": step, "images": images})
    return files.read_json(path, "remove it")


def _fields(changes: Mapping[str, Any]) -> dict[str, Any]:
    return {f"config.{field}": value for field, value in changes.items()}


def restored(
    name: str,
    workdirs: pathlib.Path,
    changes: Mapping[str, Any],
    cpu_seconds: int,
    images: int | None,
) -> list[dict]:
    """A task trained, and judged at each of its points; at the last one on more images, too."""
    workdir, steps = workdirs / name, affordable(name, workdirs, changes, cpu_seconds)
    every = steps // POINTS
    # Stops on the way save as well; and looking is not training.
    run = {"checkpoint_every": every, "keep": 4 * POINTS, "evaluate_every": steps}
    own = {"train.steps": steps} | {f"run.{field}": value for field, value in run.items()}
    train(name, workdir, _fields({**changes, **own}))
    found = [evaluated(workdir, k * every, WATCHED) for k in (1, 2, 4, POINTS)]
    found.append(evaluated(workdir, images=images))
    spent = {line["step"]: line for line in files.read_lines(workdir / "metrics.jsonl")}
    for one in found:
        one |= {field: spent[one["step"]][field] for field in ("cpu_seconds", "seconds")}
    return found


def degraded(name: str) -> dict:
    """The scores of a config's test images as they are given to R at t = 1."""
    module = importlib.import_module(f"experiments.configs.{name}")
    experiment, source = build.build(resolve(module.get_config()), "test")
    return scores.tabulate(walks.degraded(experiment, source, source.size))


def paper(
    data: str, workdirs: pathlib.Path, cpu_seconds: int, images: int | None, output: pathlib.Path
) -> tuple[dict, str]:
    """{task: its points} of a data set, and the table; with mnist the other as it is degraded."""
    tasks = [name for name in PAPER if name.startswith(data)]
    found: dict[str, Any] = {
        name: restored(name, workdirs, SHORT[data], cpu_seconds, images) for name in tasks
    }
    _save(_curves(found), output)
    if data == "mnist":
        found |= {name: degraded(name) for name in PAPER if name not in tasks}
    return found, paper_table(found)


def paper_table(found: dict[str, Any]) -> str:
    """RMSE / SSIM of each config, and below it the paper's."""
    rows = ["| | CPU min | " + " | ".join(METHODS) + " |", "|---" * (len(METHODS) + 2) + "|"]
    for name, one in found.items():
        minutes, methods = "", one
        if isinstance(one, list):
            minutes, methods = f"{one[-1]['cpu_seconds'] / 60:.1f}", one[-1]["methods"]
        ours = {method: (row["rmse"], row["ssim"]) for method, row in methods.items()}
        for label, time, cells in ((name, minutes, ours), ("the paper", "", PAPER[name])):
            texts = [
                _cell(*cells[method]) if method in cells and method in ours else ""
                for method in METHODS
            ]
            rows.append(f"| {label} | {time} | {' | '.join(texts)} |")
    return "RMSE / SSIM\n\n" + "\n".join(rows)


def _cell(rmse: float, ssim: float | None) -> str:
    return f"{rmse:.3f}" if ssim is None else f"{rmse:.3f} / {ssim:.3f}"


def _curves(found: dict[str, list[dict]]):
    """RMSE and SSIM of the images watched over the CPU time of training; the paper's as lines."""
    figure, axes = plt.subplots(2, len(found), figsize=(4 * len(found), 6), layout="constrained")
    for column, (name, points) in zip(axes.T, found.items(), strict=True):
        *points, _ = points  # the last is of other images
        minutes = [point["cpu_seconds"] / 60 for point in points]
        for axis, score, k in zip(column, ("rmse", "ssim"), (0, 1), strict=True):
            for color, method in (("C0", "direct"), ("C1", "Algorithm 2")):
                values = [point["methods"][method][score] for point in points]
                axis.plot(minutes, values, "o-", color=color, label=method)
                axis.axhline(PAPER[name][method][k], color=color, ls=":", label="the paper")
            axis.set(xlabel="CPU minutes of training", ylabel=score.upper(), xscale="log")
            axis.set_xticks(minutes, [f"{at:.0f}" for at in minutes])
            axis.minorticks_off()
            axis.grid(alpha=0.3)
        column[0].set_title(name)
    axes[0, 0].legend()
    return figure


def _show(axis, path: pathlib.Path, title: str) -> None:
    with Image.open(path) as image:
        axis.imshow(np.asarray(image), cmap="gray", interpolation="nearest")
    axis.set_title(title, fontsize=9)
    axis.set_axis_off()


def _save(figure, output: pathlib.Path) -> None:
    figure.savefig(output.with_suffix(".png"), dpi=110, bbox_inches="tight")
    plt.close(figure)


def main() -> None:
    output, workdirs = pathlib.Path(_OUTPUT.value), pathlib.Path(_WORKDIRS.value)
    output.parent.mkdir(parents=True, exist_ok=True)
    if _STUDY.value == "theory":
        report = {"table": theory.table(), "paper": theory.paper(), "curve": theory.curve()}
        theory.draw(output)
        table = f"wrote {output}.json, .png and .gif: see docs/why-cold-diffusion-works.md"
    else:
        if _STUDY.value in SHORT:
            found, table = paper(_STUDY.value, workdirs, _CPU_SECONDS.value, _IMAGES.value, output)
        elif _STUDY.value == "restoration":
            found, table = restoration(_CONFIGS.value, workdirs, _IMAGES.value, output)
        else:
            found, table = generation(_DATA.value, workdirs, _NUM.value, _SEEDS.value, output)
        report = {"device": runs.describe_device(), "results": found}
    output.with_suffix(".json").write_text(json.dumps(report, indent=2) + "\n")
    print(f"\n{table}")


if __name__ == "__main__":
    flags.mark_flags_as_required(["study", "output"])
    commands.run(main)
