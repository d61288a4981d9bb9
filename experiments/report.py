"""Trains the digits' configs and tabulates what comes of them: what README shows.

python -m experiments.report --study=restoration --output=docs/results/restoration
python -m experiments.report --study=restoration --output=docs/results/restoration_mnist \
    --configs=mnist_inpaint,mnist_superres --images=512
python -m experiments.report --study=generation --output=docs/results/generation

It calls train, sample and evaluate as a user would, a workdir a config, and gathers what they
leave into a .json and a .png. It can be interrupted, and goes on as they do. In the study of
generation, every way is judged by 1,000 images against the training images; a second picture has
the blur's ways one below the other, from the same x_T but for its perturbation.
"""

import json
import pathlib
import signal
import subprocess
import sys

import matplotlib.pyplot as plt
import numpy as np
from absl import flags
from PIL import Image

from experiments.lib import commands, pictures, runs
from experiments.lib.walks import METHODS

_STUDY = flags.DEFINE_enum("study", None, ["restoration", "generation"], "What is tabulated.")
_CONFIGS = flags.DEFINE_list(
    "configs", ["digits_deblur", "digits_inpaint", "digits_superres"], "Restored, by their names."
)
_IMAGES = flags.DEFINE_integer("images", None, "Held-out images restored; none: all.")
_NUM = flags.DEFINE_integer("num", 1000, "Images generated in each way.", lower_bound=2)
_WORKDIRS = flags.DEFINE_string("workdirs", "runs/report", "Folder of the workdirs.")
_OUTPUT = flags.DEFINE_string("output", None, "Path of the .json and .png to write.")

# What is generated: config, and flags of experiments.sample; of blur, the perturbation of x_T.
# Heat is a blur as well, of a network that was trained with noise on x_t.
BLUR = "digits_blur_generation"
WAYS = {
    "noise, DDPM": ("digits_noise", {}),
    "heat, IHDM": ("digits_heat", {}),
    "heat, Algorithm 2": ("digits_heat", {"sampler": "improved", "perturbation": 0.0}),
    "blur, Algorithm 2, 0.002": (BLUR, {"perturbation": 0.002}),
    "blur, Algorithm 2, 0.01": (BLUR, {"perturbation": 0.01}),
    "blur, Algorithm 2, 0": (BLUR, {"perturbation": 0.0}),
    "blur, Algorithm 1, 0.002": (BLUR, {"perturbation": 0.002, "sampler": "naive"}),
}
GRIDS, ROW = 4, 16  # ways drawn as a grid; images of a row


def run(script: str, **arguments) -> None:
    """Runs a script to its end, and ends as it does if that is no success."""
    given = [f"--{name}={value}" for name, value in arguments.items() if value is not None]
    # A Ctrl-C reaches the script as well, which may have something to save: wait for it.
    handler = signal.signal(signal.SIGINT, lambda *_: None)
    status = subprocess.run([sys.executable, "-m", f"experiments.{script}", *given]).returncode
    signal.signal(signal.SIGINT, handler)
    if status:
        sys.exit(status)


def train(name: str) -> pathlib.Path:
    """The workdir of a config, trained."""
    workdir = pathlib.Path(_WORKDIRS.value) / name
    run("train", config=f"experiments/configs/{name}.py", workdir=workdir)
    return workdir


def restoration() -> tuple[dict, str]:
    found = {}
    for name in _CONFIGS.value:
        workdir = train(name)
        run("sample", workdir=workdir)
        run("evaluate", workdir=workdir, images=_IMAGES.value)
        found[name] = json.loads((workdir / "evaluation.json").read_text())
    figure, axes = plt.subplots(len(found), 1, figsize=(10, 3.2 * len(found)), squeeze=False)
    for axis, name in zip(axes[:, 0], found, strict=True):
        _show(axis, pathlib.Path(_WORKDIRS.value) / name / "samples.png", name)
    _save(figure)
    rows = ["| | " + " | ".join(METHODS) + " |", "|---" * (len(METHODS) + 1) + "|"]
    for name, one in found.items():
        cells = [f"{m['rmse']:.3f} / {m['ssim']:.3f}" for m in map(one["methods"].get, METHODS)]
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return found, "RMSE / SSIM\n\n" + "\n".join(rows)


def generation() -> tuple[dict, str]:
    found, folders = {}, {}
    for way, (name, arguments) in WAYS.items():
        workdir = train(name)
        suffix = "_".join(str(value) for value in arguments.values()) or "default"
        folders[way] = workdir / f"generated_{suffix}"
        run("sample", workdir=workdir, output=folders[way], num=_NUM.value, **arguments)
        run("evaluate", workdir=workdir, generated=folders[way])
        found[way] = json.loads((folders[way] / "distances.json").read_text())
        found[way]["settings"] = json.loads((folders[way] / "settings.json").read_text())
    figure, axes = plt.subplots(1, GRIDS, figsize=(3 * GRIDS, 3.3))
    for axis, way in zip(axes, found, strict=False):
        title = f"{way}\nFrechet {found[way]['generated']['frechet']:.3f}"
        _show(axis, folders[way] / "grid.png", title)
    _save(figure)
    path, blurs = pathlib.Path(_OUTPUT.value), [way for way in WAYS if way.startswith("blur")]
    pictures.draw_grid(
        path.with_name(f"{path.name}_blur.png"),
        [pictures.read_images(folders[way], ROW) for way in blurs],
        names=[way.removeprefix("blur, ") for way in blurs],
    )
    rows = ["| | Frechet | kernel |", "|---|---|---|"]
    lines = {way: one["generated"] for way, one in found.items()}
    lines["held-out images"] = found["noise, DDPM"]["held-out"]
    rows += [f"| {way} | {m['frechet']:.3f} | {m['kernel']:.4f} |" for way, m in lines.items()]
    return found, "\n".join(rows)


def _show(axis, path: pathlib.Path, title: str) -> None:
    with Image.open(path) as image:
        axis.imshow(np.asarray(image), cmap="gray", interpolation="nearest")
    axis.set_title(title, fontsize=9)
    axis.set_axis_off()


def _save(figure) -> None:
    figure.savefig(pathlib.Path(_OUTPUT.value).with_suffix(".png"), dpi=110, bbox_inches="tight")
    plt.close(figure)


def main() -> None:
    output = pathlib.Path(_OUTPUT.value)
    output.parent.mkdir(parents=True, exist_ok=True)
    found, table = restoration() if _STUDY.value == "restoration" else generation()
    report = {"device": runs.describe_device(), "results": found}
    output.with_suffix(".json").write_text(json.dumps(report, indent=2) + "\n")
    print(f"\n{table}")


if __name__ == "__main__":
    flags.mark_flags_as_required(["study", "output"])
    commands.run(main)
