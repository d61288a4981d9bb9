"""The audit as a user runs it. Oracles: the documented exit statuses, and a run that cannot
have learned anything, its learning rate being zero.
"""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from diffjax.auditing.audit import Audit
from diffjax.auditing.checks import Check
from diffjax.auditing.generation_laws import WAYS, Generation
from experiments.lib import pictures

ROOT = pathlib.Path(__file__).parents[1]
TINY = ["--config.model.width=8", "--config.model.multipliers=(1,)", "--config.train.batch_size=16"]
IDLE = ["--config.train.learning_rate=0.0", "--config.train.steps=40", "--config.run.log_every=2"]


@pytest.fixture(scope="module")
def run_script(env):
    def run(script, *arguments):
        command = [sys.executable, "-m", f"experiments.{script}", *arguments]
        return subprocess.run(
            command, cwd=ROOT, env=env, text=True, capture_output=True, timeout=300
        )

    return run


def test_a_run_that_learns_nothing_is_found_out(run_script, tmp_path):
    workdir = f"--workdir={tmp_path / 'run'}"
    config = "--config=experiments/configs/digits_deblur.py"
    trained = run_script("train", config, workdir, *TINY, *IDLE)
    assert trained.returncode == 0, trained.stderr
    audited = run_script("audit", workdir, "--images=32", "--steps=20")
    assert audited.returncode == 1, audited.stderr

    report = json.loads((tmp_path / "run" / "audit.json").read_text())
    status = {check["name"]: check["status"] for check in report["checks"]}
    assert set(status) == {"target", "time", "calibration", "floor", "weight", "scale",
                           "step", "overfit", "loss", "average", "convergence"}  # fmt: skip
    assert report["verdict"].startswith("step: the step moves no parameter")
    assert audited.stdout.splitlines()[0] == report["verdict"]
    for name in ("audit.json", "audit.png"):
        assert str(tmp_path / "run" / name) in audited.stdout
    assert "steps on 8 images" in audited.stderr
    assert (status["step"], status["scale"]) == ("fail", "pass")
    assert status["convergence"] in ("warn", "fail")
    assert (report["step"], report["images"]) == (40, 32)
    assert report["severities"]["t"] == pytest.approx([k / 10 for k in range(1, 11)])

    rows = [line for line in audited.stdout.splitlines() if line.startswith("|")]
    assert len(rows) == 2 + len(status)
    assert len({len(row) for row in rows}) == 1  # aligned
    for row, check in zip(rows[2:], report["checks"], strict=True):
        assert [cell.strip() for cell in row.split("|")[1:3]] == [check["name"], check["status"]]
    with Image.open(tmp_path / "run" / "audit.png") as picture:
        assert picture.width > picture.height > 100


def test_the_picture_of_a_generation(tmp_path, monkeypatch):
    # Ten modes, of which the walk makes nine tenths, and the two ways that must fail nothing.
    drawn, new_figure = [], pictures.new_figure
    monkeypatch.setattr(
        pictures, "new_figure", lambda size: drawn.append(new_figure(size)) or drawn[-1]
    )
    std = np.geomspace(1, 0.1, 10)
    made = {way: np.full(10, share) for way, share in zip(WAYS, (0.9, 0, 0), strict=True)}
    found = Generation(std, made, 0 * std, ("jump",), "cannot generate")
    pictures.draw_generation(tmp_path / "generation.png", found)
    (axis,) = drawn[0].axes
    lines = {line.get_label(): line.get_ydata() for line in axis.lines}
    assert list(lines) == ["data", *WAYS]
    for way, share in zip(lines, (1, 0.9, 0, 0), strict=True):
        np.testing.assert_allclose(lines[way], share * std)
    assert axis.get_title() == "jump broken"
    with Image.open(tmp_path / "generation.png") as picture:
        assert picture.width > picture.height > 100


def test_a_folder_without_a_run(run_script, tmp_path):
    audited = run_script("audit", f"--workdir={tmp_path}")
    assert audited.returncode == 2
    assert audited.stderr.startswith("error: ")
    assert len(audited.stderr.splitlines()) == 1


@pytest.mark.parametrize(("status", "expected"), [("healthy", 0), ("too early", 0), ("fail", 1)])
def test_the_exit_status(status, expected):
    check = Check("scale", "warn", 1.0, "> 1.01", "one sentence")
    assert Audit(status, "", [check], {}).failed == bool(expected)
