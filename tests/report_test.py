"""The report: what it calls, what it tabulates, how it ends when a script does.

Oracles: numbers written here in the place of the scripts' own, and tables typed by hand. That
the scripts leave such files is scripts_test's.
"""

import json
import pathlib
import subprocess

import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver
from PIL import Image

from experiments import report


def width(path):
    with Image.open(path) as image:
        return image.size[0]


@pytest.fixture
def called(tmp_path, monkeypatch):
    """Every call of a script, which leaves what it would: constant pictures, round numbers."""
    calls = []

    def run(script, arguments):
        calls.append((script, arguments))
        workdir = pathlib.Path(arguments["workdir"])
        workdir.mkdir(parents=True, exist_ok=True)
        if script == "sample" and "num" not in arguments:
            Image.fromarray(np.zeros((10, 20, 4), np.uint8)).save(workdir / "samples.png")
        elif script == "sample":
            folder = arguments["output"]
            folder.mkdir(exist_ok=True)
            Image.fromarray(np.zeros((8, 8), np.uint8)).save(folder / "grid.png")
            np.savez(folder / "batch_00000000.npz", image=np.zeros((20, 8, 8, 1), np.uint8))
            (folder / "settings.json").write_text('{"step": 5}')
        elif script == "evaluate" and "generated" in arguments:
            distances = {"frechet": len(calls) / 8, "kernel": 0.25}
            one = {
                "images": 20,
                "pixels": distances,
                "classifier": distances,
                "sure": 0.5,
                "nearest": {"median": 2.0, "least": 1.0},
            }
            found = {"generated": one, "held-out": one}
            (arguments["generated"] / "distances.json").write_text(json.dumps(found))
        elif script == "evaluate":
            scores = [{"rmse": k / 8, "psnr": 9.0, "ssim": 1 - k / 8} for k in range(4)]
            methods = dict(zip(report.METHODS, scores, strict=True))
            step = arguments.get("step")
            name = "evaluation.json" if step is None else f"evaluation_{step}.json"
            found = {"step": step or 1000, "methods": methods}
            (workdir / name).write_text(json.dumps(found))
        elif script == "train":
            Image.fromarray(np.zeros((9, 9), np.uint8)).save(workdir / "severity.png")
            # A step costs 0.4 s of CPU time, the first one 20 s more.
            steps = range(25, arguments.get("config.train.steps", 0) + 1, 25)
            lines = [{"step": n, "cpu_seconds": 20 + 0.4 * n, "seconds": n / 4} for n in steps]
            (workdir / "metrics.jsonl").write_text(
                "".join(map("{}\n".format, map(json.dumps, lines)))
            )

    if not flags.FLAGS.is_parsed():
        flags.FLAGS(["report", "--study=restoration", "--output=unused"])
    monkeypatch.setattr(report, "run", run)
    with flagsaver.flagsaver(workdirs=str(tmp_path / "runs"), output=str(tmp_path / "out" / "it")):
        yield calls


def test_restoration_tabulates_every_config(called, tmp_path, capsys):
    with flagsaver.flagsaver(study="restoration", configs=["one", "two"], images=7):
        report.main()
    workdirs = [tmp_path / "runs" / name for name in ("one", "two")]
    assert [script for script, _ in called] == ["train", "sample", "evaluate"] * 2
    assert called[0][1] == {"config": "experiments/configs/one.py", "workdir": workdirs[0]}
    assert called[5][1] == {"workdir": workdirs[1], "images": 7}
    row = "0.000 / 1.000 | 0.125 / 0.875 | 0.250 / 0.750 | 0.375 / 0.625 |"
    assert capsys.readouterr().out.splitlines()[-4:] == [
        "| | degraded | direct | Algorithm 1 | Algorithm 2 |",
        "|---|---|---|---|---|",
        f"| one | {row}",
        f"| two | {row}",
    ]
    held = json.loads((tmp_path / "out" / "it.json").read_text())
    assert held["results"]["two"]["methods"]["direct"]["psnr"] == 9
    assert width(tmp_path / "out" / "it.png") > 100


def test_generation_tabulates_every_way(called, tmp_path, capsys):
    with flagsaver.flagsaver(study="generation", num=20, seeds=2):
        report.main()
    ways = report.WAYS["digits"]
    sampled = [arguments for script, arguments in called if script == "sample"]
    runs = sum(min(2, way.seeds or 2) for way in ways.values())
    assert len({arguments["output"] for arguments in sampled}) == len(sampled) == runs
    assert {arguments["num"] for arguments in sampled} == {20}
    assert {arguments["seed"] for arguments in sampled} == {0, 1}
    # A workdir a config, its changes and its seed, trained once.
    trained = [arguments["workdir"].name for script, arguments in called if script == "train"]
    assert len(set(trained)) == len(trained)
    assert "digits_blur_generation_1" in trained
    assert "digits_blur_generation_T20_31_0" in trained
    assert "digits_blur_generation_T50_31_l2_pixels_1" in trained
    lines = capsys.readouterr().out.splitlines()
    # Three commands a seed; the first way's distances are written by the third and the sixth:
    # 3/8 and 6/8, of mean 0.5625 and standard deviation 0.375 / sqrt(2).
    first = next(iter(ways))
    assert f"| {first} | 0.562 ± 0.265 | 0.2500 | 0.6 | 50% | 2.00 |" in lines
    assert lines[-1] == "| held-out images | 0.375 | 0.2500 | 0.4 | 50% | 2.00 |"
    for picture in ("it.png", "it_blur.png"):
        assert width(tmp_path / "out" / picture) > 100
    assert width(tmp_path / "out" / "it_curves.png") == 9
    # Once more: trained as far as it goes, and only other numbers of images judged anew.
    for num, scripts in ((20, {"train"}), (21, {"train", "sample", "evaluate"})):
        called.clear()
        with flagsaver.flagsaver(study="generation", num=num, seeds=2):
            report.main()
        assert {script for script, _ in called} == scripts


def test_mnist_spends_its_budget_and_is_set_beside_the_paper(called, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(report, "degraded", lambda name: {"degraded": {"rmse": 0.5, "ssim": 0.25}})
    with flagsaver.flagsaver(study="mnist", cpu_seconds=410):
        report.main()
    lines = capsys.readouterr().out.splitlines()
    # 410 s pay for 1,025 steps; with 8 points at multiples of 25, for 1,000, saved every 125.
    trained = [arguments for script, arguments in called if script == "train"]
    assert [one["config.train.steps"] for one in trained] == 3 * [75, 1000]
    assert trained[1]["config.run.checkpoint_every"] == 125
    judged = [arguments for script, arguments in called if script == "evaluate"]
    assert [(one["step"], one["images"]) for one in judged[:5]] == [
        (125, 256), (250, 256), (500, 256), (1000, 256), (None, None),
    ]  # fmt: skip
    # 420 s in all are 7 minutes.
    row = "0.000 / 1.000 | 0.125 / 0.875 | 0.250 / 0.750 | 0.375 / 0.625 |"
    assert lines[-12:-10] == [
        f"| mnist_deblur | 7.0 | {row}",
        "| the paper |  | 0.287 | 0.142 / 0.757 |  | 0.154 / 0.718 |",
    ]
    assert lines[-2:] == [
        "| cifar10_superres |  | 0.500 / 0.250 |  |  |  |",
        "| the paper |  | 0.146 / 0.279 |  |  |  |",
    ]
    held = json.loads((tmp_path / "out" / "it.json").read_text())
    assert [one["cpu_seconds"] for one in held["results"]["mnist_superres"]] == [
        70,
        120,
        220,
        420,
        420,
    ]
    assert width(tmp_path / "out" / "it.png") > 100
    # Again: nothing is judged twice.
    with flagsaver.flagsaver(study="mnist", cpu_seconds=410):
        report.main()
    assert sum(script == "evaluate" for script, _ in called) == len(judged) == 15


def test_cifar10_is_trained_on_what_fits_a_laptop(called, capsys):
    with flagsaver.flagsaver(study="cifar10", cpu_seconds=410, images=1000):
        report.main()
    lines = capsys.readouterr().out.splitlines()
    trained = [arguments for script, arguments in called if script == "train"]
    assert [one["config.model.patch"] for one in trained] == 6 * [4]
    assert [one["config.train.steps"] for one in trained] == 3 * [75, 1000]
    assert [arguments.get("images") for script, arguments in called if script == "evaluate"] == (
        3 * [256, 256, 256, 256, 1000]
    )
    row = "0.000 / 1.000 | 0.125 / 0.875 | 0.250 / 0.750 | 0.375 / 0.625 |"
    assert lines[-6:-4] == [
        f"| cifar10_deblur | 7.0 | {row}",
        "| the paper |  | 0.136 / 0.315 | 0.071 / 0.775 |  | 0.075 / 0.773 |",
    ]


def test_it_ends_as_the_script_that_fails(monkeypatch):
    seen = []

    def failing(command):
        seen.append(command[1:])
        return subprocess.CompletedProcess(command, 130)

    monkeypatch.setattr(subprocess, "run", failing)
    with pytest.raises(SystemExit) as ended:
        report.run("train", {"config": "one.py", "images": None})
    assert ended.value.code == 130
    assert seen == [["-m", "experiments.train", "--config=one.py"]]
