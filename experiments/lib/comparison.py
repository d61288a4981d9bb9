"""Runs side by side: how their configs differ, their curves, and the same images restored."""

import pathlib
from collections.abc import Mapping
from typing import Any

from experiments.lib import files, pictures, runs, scores, walks
from experiments.lib.commands import UsageError

SPLIT = ("data.name", "data.directory", "data.image_size")  # what decides the held-out images
ABSENT = "-"
BEST = {"rmse": min, "ssim": max}


def read_configs(workdirs: list[str]) -> dict[str, dict[str, Any]]:
    """{workdir: {field: value}}, each held to the same held-out images.

    Raises:
      UsageError: naming the first run that is no run, or whose images are others.
    """
    found = {}
    for name in workdirs:
        path = pathlib.Path(name) / "config.json"
        if not path.exists():
            raise UsageError(f"{name} holds no config.json: train there first")
        found[name] = runs.flatten(files.read_json(path, "restore it"))
    first, *others = found
    for other in others:
        for field in SPLIT:
            one, two = found[first].get(field), found[other].get(field)
            if one != two:
                raise UsageError(
                    f"{other} is judged on other images than {first}: config.{field} is {two!r} "
                    f"and {one!r}; compare runs of one data set"
                )
    return found


def differences(configs: Mapping[str, Mapping[str, Any]]) -> dict[str, list[Any]]:
    """{field: the value in each run} of the fields that are not the same in all."""
    fields = dict.fromkeys(field for config in configs.values() for field in config)
    rows = {field: [c.get(field, ABSENT) for c in configs.values()] for field in fields}
    return {field: row for field, row in rows.items() if any(one != row[0] for one in row)}


def judge(workdir: pathlib.Path, images: int) -> dict[str, Any]:
    """{"step", "cpu_seconds" of training until then, or None, "methods": as in `scores.tabulate`}
    of a run on the first held-out images.
    """
    run = runs.load_run(workdir)
    batches = walks.restorations(
        run.experiment, run.state.ema_params, run.problem, run.source, images
    )
    step = int(run.state.step)
    spent = {
        line["step"]: line["cpu_seconds"] for line in files.read_lines(workdir / "metrics.jsonl")
    }
    return {"step": step, "cpu_seconds": spent.get(step), "methods": scores.tabulate(batches)}


def markdown(judged: Mapping[str, dict[str, Any]]) -> str:
    """RMSE / SSIM of every way back, one row a run; the best of a column in bold."""
    methods = next(iter(judged.values()))["methods"]
    lines = ["| | step | CPU s | " + " | ".join(methods) + " |", "|---" * (len(methods) + 3) + "|"]
    best = {
        (method, score): choose(one["methods"][method][score] for one in judged.values())
        for method in methods
        for score, choose in BEST.items()
    }
    for name, one in judged.items():
        spent = one["cpu_seconds"]
        cells = [name, f"{one['step']:,}", ABSENT if spent is None else f"{spent:,.0f}"]
        for method, row in one["methods"].items():
            marked = (
                f"**{row[score]:.3f}**"
                if row[score] == best[method, score]
                else f"{row[score]:.3f}"
                for score in BEST
            )
            cells.append(" / ".join(marked))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(path: pathlib.Path, workdirs: list[str]) -> None:
    """The training loss and the held-out RMSE of all runs over the steps."""
    figure = pictures.new_figure((11, 4))
    figure.set_layout_engine("constrained")
    axes = figure.subplots(1, 2)
    curves = (
        ("metrics.jsonl", "loss", "training loss"),
        ("heldout.jsonl", "rmse", "held-out RMSE of x0_hat, images in [0, 1]"),
    )
    for axis, (file, field, label) in zip(axes, curves, strict=True):
        for name in workdirs:
            lines = files.read_lines(pathlib.Path(name) / file)
            shown = [(line["step"], line[field]) for line in lines if line.get(field) is not None]
            points = zip(*shown, strict=True) if shown else ([], [])
            axis.semilogy(*points, ".-", lw=1, ms=4, label=name)  # one look alone is a point
        axis.set(xlabel="step", ylabel=label)
        axis.grid(alpha=0.3, which="both")
    axes[1].legend(fontsize=8)
    figure.savefig(path, dpi=110, bbox_inches="tight")


def compare(workdirs: list[str], output: pathlib.Path, images: int) -> None:
    """Judges the runs, prints what there is to see, and writes OUTPUT.json and OUTPUT.png."""
    configs = read_configs(workdirs)
    differs = differences(configs)
    judged = {name: judge(pathlib.Path(name), images) for name in workdirs}
    if len({one["step"] for one in judged.values()}) > 1:
        print("warning: the runs are of different length, see the column step")
    output.parent.mkdir(parents=True, exist_ok=True)
    report = {"images": images, "config": differs, "runs": judged}
    files.write_json(output.with_suffix(".json"), report)
    draw(output.with_suffix(".png"), workdirs)
    print("| config | " + " | ".join(workdirs) + " |\n" + "|---" * (len(workdirs) + 1) + "|")
    for field, values in differs.items():
        print(f"| {field} | " + " | ".join(map(str, values)) + " |")
    print(f"\nRMSE / SSIM of the same {images} held-out images, the best in bold\n")
    print(markdown(judged))
    print(f"\nwritten: {output.with_suffix('.json')}, {output.with_suffix('.png')}")
