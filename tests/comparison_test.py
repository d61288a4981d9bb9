"""Runs side by side. Oracles: tables by hand; a run and its copy, which must come out alike."""

import json
import pathlib
import shutil

import pytest
import script_runs
from PIL import Image

from experiments.lib import comparison
from experiments.lib.commands import UsageError

ROOT = pathlib.Path(__file__).parents[1]


def write_config(folder, **fields):
    folder.mkdir(parents=True)
    config = {"data": {"name": "digits"}, "train": {"steps": 3, "loss": "l1"}}
    for name, value in fields.items():
        section, field = name.split("_")
        config[section][field] = value
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def test_the_differences_of_configs(tmp_path):
    names = [
        write_config(tmp_path / "a"),
        write_config(tmp_path / "b", train_loss="l2", train_warmup=7),
    ]
    found = comparison.differences(comparison.read_configs(names))
    assert found == {"train.loss": ["l1", "l2"], "train.warmup": ["-", 7]}


def test_runs_of_other_images_are_not_compared(tmp_path):
    names = [write_config(tmp_path / "a"), write_config(tmp_path / "b", data_name="mnist")]
    with pytest.raises(UsageError, match=r"b is judged on other images .* config.data.name"):
        comparison.read_configs(names)


def test_the_best_are_marked():
    def row(spent, rmse, ssim):
        methods = {"direct": {"rmse": rmse, "ssim": ssim}}
        return {"step": 9, "cpu_seconds": spent, "methods": methods}

    judged = {"a": row(None, 0.2, 0.5), "b": row(1234.5, 0.1, 0.5)}
    lines = comparison.markdown(judged).splitlines()
    assert lines[2] == "| a | 9 | - | 0.200 / **0.500** |"
    assert lines[3] == "| b | 9 | 1,234 | **0.100** / **0.500** |"


def test_a_run_beside_its_copy(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    status, _, error = script_runs.train(one, "--config.smoke=True")
    assert status == 0, error
    shutil.copytree(one, other)
    config = json.loads((other / "config.json").read_text())
    config["train"]["learning_rate"] = 0.5
    (other / "config.json").write_text(json.dumps(config))
    status, printed, error = script_runs.call("compare", one, other, "--images=8")
    assert status == 0, error
    assert "| train.learning_rate | 0.001 | 0.5 |" in printed
    report = json.loads((tmp_path / "comparison.json").read_text())
    first, second = report["runs"].values()
    assert first == second
    spent = json.loads((one / "metrics.jsonl").read_text().splitlines()[-1])["cpu_seconds"]
    assert (
        f"| {one} | 6 | {spent:,.0f} | **{first['methods']['degraded']['rmse']:.3f}** / " in printed
    )
    with Image.open(tmp_path / "comparison.png") as picture:
        assert min(picture.size) > 100
    status, _, error = script_runs.call("compare", one)
    assert status == 2
    assert error.startswith("error: ")
