"""Studies of variants: the README's own, interrupted and gone on with; those that cannot be.

Oracles: the same study never interrupted; means and deviations by numpy; the configs that the
committed results say they were made of; the field that each bad file names.
"""

import itertools
import json
import pathlib
import re
import signal

import numpy as np
import processes
import pytest
import script_runs
from PIL import Image

from experiments.lib import studies

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
SNIPPET = re.search(
    r"\n## Your own study\n.*?```python\n(.*?)```", README, re.DOTALL
)[1]  # fmt: skip
# So that it takes seconds; a score of its own; and, where told to, a signal at the end of a run.
QUICK = """
import os, pathlib, signal

VARIANTS = {name: VARIANTS[name] for name in ("l1, rate 0.003", "l2, rate 0.001")}
full_config = get_config
marks = pathlib.Path(__file__).parent


def get_config():
    config = full_config()
    config.model.network = "tiny:network"
    config.train.update(steps=20, batch_size=8, warmup=2)
    return config


def score(trained):
    if (marks / "stop").exists():
        left = int((marks / "stop").read_text()) - 1
        (marks / "stop").write_text(str(left))
        if left == 0:
            os.kill(os.getpid(), signal.SIGTERM)
    return {"widest": float(abs(trained.images).max())}
"""


def compare(path, output, seeds, *more):
    return script_runs.call(
        "compare", f"--study={path}", f"--output={output}", f"--seeds={seeds}", "--images=6", *more
    )


def held(output):
    return json.loads(output.with_suffix(".json").read_text())


@pytest.fixture(scope="module")
def mine(tmp_path_factory):
    """The file of a study, and its results in one go: two seeds."""
    folder = processes.prepare(tmp_path_factory.mktemp("mine"))
    path, output = folder / "mine.py", folder / "whole"
    path.write_text(SNIPPET + QUICK)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # where its network lies
        status, printed, error = compare(path, output, 2)
        assert status == 0, error
        yield path, output, printed


def test_the_study_of_the_readme_is_a_grid(tmp_path):
    (tmp_path / "mine.py").write_text(SNIPPET)
    configs = studies.load(tmp_path / "mine.py").configs
    names = ["l1, rate 0.001", "l1, rate 0.003", "l2, rate 0.001", "l2, rate 0.003"]
    assert list(configs) == names
    for (loss, rate), config in zip(
        itertools.product(("l1", "l2"), (1e-3, 3e-3)), configs.values(), strict=True
    ):
        assert (config.train.loss, config.train.learning_rate) == (loss, rate)
        assert config.train.steps == 300


def test_what_a_study_leaves(mine):
    _, output, printed = mine
    results = held(output)["results"]
    first, second = (results[name]["config"] for name in ("l1, rate 0.003", "l2, rate 0.001"))
    assert (first["train.learning_rate"], second["train.loss"]) == (0.003, "l2")
    assert not {"train.loss", "train.learning_rate"} & {*first} & {*second}  # as by default
    for result in results.values():
        assert result["step"] == list(range(2, 21, 2))
        assert np.shape([result[name] for name in studies.CURVES]) == (3, 10, 2)
        assert len(set(result["rmse"][-1])) == 2  # the seeds differ
        assert result["widest"] == [1, 1]  # a digit reaches white
        cells = [
            f"{np.mean(result[name][-1]):.3f} ± {np.std(result[name][-1], ddof=1):.3f}"
            for name in studies.CURVES
        ]
        assert " | ".join([*cells, "1.000 ± 0.000"]) in printed
    assert "| | RMSE over all t | RMSE at t = 1 | SSIM at t = 1 | widest |" in printed
    with Image.open(output.with_suffix(".png")) as picture:
        assert min(picture.size) > 100


def test_a_study_that_was_stopped_goes_on(mine):
    path, output, _ = mine
    other = output.with_name("stopped")
    mark = path.with_name("stop")
    mark.write_text("3")  # the first run of the second variant
    status, _, error = compare(path, other, 2)
    mark.unlink()
    assert status == 128 + signal.SIGTERM
    assert error.splitlines()[-1] == (
        "stopped by SIGTERM: the same command goes on where it stopped"
    )
    before = held(other)["results"]
    assert [len(one["rmse"][0]) for one in before.values() if "rmse" in one] == [2]
    status, _, error = compare(path, other, 2)
    assert status == 0, error
    assert "l1, rate 0.003, seed" not in error  # it is not trained again
    assert held(other) == held(output)


def test_more_seeds_and_variants_are_added(mine):
    path, output, _ = mine
    other = output.with_name("grown")
    few = path.with_name("few") / "mine.py"
    few.parent.mkdir()
    few.write_text(path.read_text() + "\nVARIANTS = dict(list(VARIANTS.items())[:1])\n")
    assert compare(few, other, 1)[0] == 0
    assert [len(one["rmse"][0]) for one in held(other)["results"].values()] == [1]
    assert compare(path, other, 2)[0] == 0
    assert held(other) == held(output)


def test_a_changed_study_is_not_mixed_with_the_old(mine):
    path, output, _ = mine
    before = output.with_suffix(".json").read_bytes()
    changed = path.with_name("changed") / "mine.py"
    changed.parent.mkdir()
    more = "VARIANTS['l1, rate 0.003']['train.learning_rate'] = 4e-3"
    changed.write_text(f"{path.read_text()}\n{more}\n")
    for argument, message in (
        ((changed, output, 2), "'l1, rate 0.003' with config.train.learning_rate = 0.003, and"),
        ((path, output, 2, "--images=7"), "is of another held_out_images, 6 and not 7"),
    ):
        status, _, error = compare(*argument)
        assert status == 2
        assert message in error, error
    assert output.with_suffix(".json").read_bytes() == before


FILE = """
from experiments.configs import default
VARIANTS = {"mine": %s}
def get_config():
    return default.get_config()
"""
# What a study's file may hold, and what the line must.
FILES = {
    "is absent": (None, "--study="),
    "raises": ("raise RuntimeError('not today\\nnor tomorrow')", "RuntimeError: not today"),
    "exits": ("import sys; sys.exit(0)", "SystemExit"),
    "is no Python": ("def get_config(:", "SyntaxError"),
    "has no config": ("VARIANTS = {'a': {}}", "get_config()"),
    "has a bad config": ("VARIANTS = {'a': {}}\ndef get_config(): pass", "got NoneType"),
    "has a config that raises": ("VARIANTS = {'a': {}}\ndef get_config(): 1 / 0", "by zero"),
    "has no variants": ("def get_config(): pass", "VARIANTS must be"),
    "has none in them": ("VARIANTS = {}\ndef get_config(): pass", "VARIANTS must be"),
    "names no fields": (FILE % "['train.loss']", "variant 'mine': it must be {field: value}"),
    "names no field": (FILE % "{'train.los': 'l2'}", "config.train.los: there is no such field"),
    "goes too deep": (FILE % "{'train.loss.p': 2}", "config.train.loss.p: there is no such field"),
    "has a wrong type": (FILE % "{'train.steps': 'many'}", "config.train.steps cannot be 'many'"),
    "has a wrong value": (FILE % "{'train.loss': 'l3'}", "config.train.loss must be one of"),
    "has a bad degradation": (
        FILE % "{'degradation': {'family': 'melting'}}",
        "config.degradation.family",
    ),
    "scores by a number": (FILE % "{}" + "score = 3", "score must be a function; got 3"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_bad_study(tmp_path, name):
    text, message = FILES[name]
    path = tmp_path / "study.py"
    if text is not None:
        path.write_text(text)
    status, out, err = compare(path, tmp_path / "new" / "output", 1)
    lines = err.splitlines()
    assert (status, out) == (2, "")
    assert len(lines) == 1, err
    assert lines[0].startswith("error: ")
    assert str(path) in lines[0]
    assert message in lines[0], err
    assert not (tmp_path / "new").exists()


OURS = sorted(path.stem for path in (ROOT / "experiments" / "studies").glob("[a-z]*.py"))


@pytest.mark.parametrize("name", OURS)
def test_our_studies_are_what_the_results_were_made_of(name):
    study = studies.load(ROOT / "experiments" / "studies" / f"{name}.py")
    found = held(ROOT / "docs" / "results" / name)
    assert found["settings"]["study"] == name
    configs = {variant: studies.describe(config) for variant, config in study.configs.items()}
    assert configs == {variant: one["config"] for variant, one in found["results"].items()}
    doc = (ROOT / "experiments" / "studies" / f"{name}.py").read_text()
    assert f"--study=experiments/studies/{name}.py" in doc
