"""What a user may get wrong, in one table: one line that names the field, status 2, no file.

Oracle: the field that each case names, which the message must hold; the folder before.
"""

import sys

import numpy as np
import pytest
import script_runs
from images_test import BAD_FILES, GRAY, png

from experiments.lib import build, lock
from experiments.lib.commands import UsageError

DEFAULT = """
from experiments.configs import default


def get_config():
    config = default.get_config()
"""
# config field -> values that it must refuse; numbers are computed with in float32
FIELDS = {
    "seed": ["-1", "2147483648", "1.5", "many", "None"],
    "data.name": ["nosuchset", "''", "nowhere:load", "math:nothing", "math:pi"],
    "data.image_size": ["0", "-3", "1.5", "big", "100000"],
    "data.limit": ["0", "-1", "few"],
    "degradation.family": ["melting", "''", "nowhere:make", "math:pi"],
    "degradation.kernel_size": ["4", "0", "-1"],
    "degradation.boundary": ["wrap", "''"],
    "degradation.stds": ["(0,)", "(-1.0,)", "()"],
    "model.network": ["mlp", "''", "nowhere:make"],
    "model.width": ["0", "-8", "12", "8.5", "wide", "None", "80000"],
    "model.multipliers": ["()", "(0,)", "(1, -1)", "None", "(1000000,)"],
    "model.blocks": ["0", "-1", "two", "1000000"],
    "model.attention": ["(5,)", "(-1,)"],
    "model.dtype": ["float8", "int32", "''"],
    "model.precondition_floor": ["0", "-1", "inf", "nan", "low", "1e39", "1e-50"],
    "model.stationary": ["True", "maybe"],  # this blur's ends reflect
    "model.class_conditional": ["maybe"],
    "train.steps": ["0", "-1", "1.5", "many"],
    "train.batch_size": ["0", "-2", "3", "2.5", "all", "1000000000"],
    "train.loss": ["l3", "''", "L1", "None"],
    "train.loss_delta": ["0", "-1", "inf", "nan", "1e39", "1e-50"],
    "train.prediction": ["x1", "''", "epsilon"],
    "train.weighting": ["heavy", "''"],
    "train.times": ["always", "''"],
    "train.levels": ["0", "-1", "1.5", "1000000000"],
    "train.learning_rate": ["-1", "inf", "nan", "fast", "None", "1e39"],
    "train.warmup": ["-1", "1.5"],
    "train.clip_norm": ["0", "-1", "nan"],
    "train.accumulate": ["0", "-1"],
    "train.ema_decay": ["-0.1", "1", "2", "nan"],
    "train.max_skipped": ["0", "-1", "1.5"],
    "train.label_dropout": ["-0.1", "1.1", "nan"],
    "train.perturbation": ["-1", "inf", "nan", "1e39"],
    "train.basis": ["wavelets", "''"],
    "prior.kind": ["uniform", "''"],
    "prior.components": ["0", "-1"],
    "prior.images": ["0", "1", "-5"],
    "prior.perturbation": ["-1", "inf", "nan", "1e39"],
    "sample.sampler": ["cold", "''"],
    "sample.steps": ["0", "-1"],
    "sample.grid": ["square", "''"],
    "sample.dynamic_threshold": ["0", "1.1", "nan"],
    "sample.guidance_interval": ["(0.5, 0.1)", "(-1.0, 1.0)", "(0.0, 2.0)", "None"],
    "sample.batch_size": ["0", "-1"],
    "sample.images": ["0", "-1"],
    "run.log_every": ["0", "-1"],
    "run.checkpoint_every": ["0", "-1"],
    "run.keep": ["0", "-1"],
    "train.stepz": ["3"],
    "nothing": ["3"],
}
CASES = [(field, value) for field, values in FIELDS.items() for value in values]


def refuse_to_train(workdir):
    raise UsageError("it would have trained")


def named(field, line):
    """Whether a line names a field: with its section, or its last name alone."""
    return field in line or field.rpartition(".")[2] in line


def test_the_table_is_as_long_as_it_should_be():
    assert len(CASES) >= 120
    assert max(map(len, FIELDS.values())) <= 10


@pytest.mark.parametrize(("field", "value"), CASES)
def test_a_bad_config(tmp_path, monkeypatch, field, value):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lock, "held", refuse_to_train)
    workdir = tmp_path / "run"
    status, out, err = script_runs.call(
        "train", script_runs.CONFIG, f"--workdir={workdir}", f"--config.{field}={value}"
    )
    lines = err.splitlines()
    assert (status, out) == (2, "")
    assert len(lines) == 1, err
    assert lines[0].startswith("error: ")
    assert named(field, lines[0]), err
    assert not list(tmp_path.iterdir())


# What a config's file may hold, and what the line must.
FILES = {
    "returns nothing": ("def get_config(): pass", "--config"),
    "returns a dict": ("def get_config(): return {'seed': 1}", "got dict"),
    "is empty": ("", "get_config"),
    "raises": ("def get_config(): raise RuntimeError('not today\\nnor tomorrow')", "not today"),
    "exits": ("import sys\ndef get_config(): sys.exit(0)", "SystemExit"),
    "is no Python": ("def get_config(:", "SyntaxError"),
    "imports what is absent": ("import nosuchmodule", "nosuchmodule"),
    "lacks a section": (f"{DEFAULT}    del config.train\n    return config", "config.train:"),
    "lacks a field": (
        f"{DEFAULT}    del config.train.loss\n    return config",
        "config.train.loss",
    ),
    "has a number for a section": (f"{DEFAULT}    config.train = 3\n    return config", "'train'"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_bad_file_of_a_config(tmp_path, monkeypatch, name):
    text, message = FILES[name]
    path = tmp_path / "mine.py"
    path.write_text(text)
    # All files of configs bear one name as modules, and what one defined the next would find.
    monkeypatch.delitem(sys.modules, "config_config", raising=False)
    status, out, err = script_runs.call("train", f"--config={path}", f"--workdir={tmp_path}/run")
    lines = err.splitlines()
    assert (status, out) == (2, "")
    assert len(lines) == 1, err
    assert lines[0].startswith("error: ")
    assert message in lines[0], err
    assert not (tmp_path / "run").exists()


def test_none_unsets_a_field(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(build, "build", lambda config, *_: seen.append(config) or 1 / 0)
    given = ["data.image_size=9", "sample.images=3", "prior.perturbation=1", "train.weighting=snr"]
    unset = [f"--config.{one.partition('=')[0]}=None" for one in [*given, "model.precondition="]]
    with pytest.raises(ZeroDivisionError):
        script_runs.call(
            "train",
            script_runs.CONFIG,
            f"--workdir={tmp_path}/run",
            *(f"--config.{one}" for one in given),
            *unset,
        )
    (config,) = seen
    fields = (
        config.data.image_size,
        config.sample.images,
        config.prior.perturbation,
        config.train.weighting,
        config.model.precondition,
    )
    assert fields == (None,) * 5


GOOD, FOLDER = np.zeros((4, 8, 8, 1), np.uint8), {"a.png": png(GRAY), "b.png": png(GRAY)}
OBJECTS = np.array([{"a": 1}], dtype=object)  # numpy pickles them
ARRAYS = {
    "absent": {},
    "one split": {"train.npy": GOOD},
    "nonsense": {"train.npy": b"nonsense", "test.npy": GOOD},
    "objects": {"train.npy": OBJECTS, "test.npy": GOOD},
    "integers": {"train.npy": GOOD.astype(int), "test.npy": GOOD},
    "out of range": {"train.npy": GOOD + np.float32(255), "test.npy": GOOD},
    "not finite": {"train.npy": GOOD * np.float32(np.nan), "test.npy": GOOD},
    "no batch": {"train.npy": GOOD[0], "test.npy": GOOD},
    "another size": {"train.npy": GOOD, "test.npy": GOOD[:, 1:]},
    "labels": {"train.npz": {"image": GOOD, "label": [0, 1, -1, 2]}, "test.npy": GOOD},
}
FOLDERS = {name: FOLDER | {name: BAD_FILES[name][0]} for name in BAD_FILES if ".npy" not in name}
DATA = [("arrays", name, ARRAYS[name]) for name in ARRAYS]
DATA += [("folder", name, FOLDERS[name]) for name in FOLDERS]


@pytest.mark.parametrize(("kind", "name", "held"), DATA, ids=[name for _, name, _ in DATA])
def test_bad_data(tmp_path, kind, name, held):
    folder = tmp_path / "data"
    folder.mkdir()
    for path, content in held.items():
        if isinstance(content, bytes):
            (folder / path).write_bytes(content)
        elif isinstance(content, dict):
            np.savez(folder / path, **content)
        else:
            np.save(folder / path, content)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    flags = [f"--config.data.name={kind}", f"--config.data.directory={folder}"]
    status, out, err = script_runs.call(
        "train", script_runs.CONFIG, f"--workdir={tmp_path}/run", *flags
    )
    lines = err.splitlines()
    assert (status, out) == (2, "")
    assert len(lines) == 1, err
    assert lines[0].startswith("error: ")
    assert str(folder / name if kind == "folder" else folder) in lines[0], err
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


# (command, arguments, what the line must hold); {t} is an empty folder, {f} a file
COMMANDS = [
    ("train", [], "--config"),
    ("train", ["--config={t}/none.py", "--workdir={t}/new"], "none.py"),
    ("train", [script_runs.CONFIG], "--workdir"),
    ("train", [script_runs.CONFIG, "--workdir={f}"], "{f}"),
    ("train", [script_runs.CONFIG, "--workdir={f}/deeper"], "{f}"),
    ("train", [script_runs.CONFIG, "--workdir=/proc/nowhere"], "/proc/nowhere"),
    ("train", [script_runs.CONFIG, "--workdir=s3://b/run"], "--workdir=s3://b/run is no folder"),
    ("train", [script_runs.CONFIG, "--workdir=gs://b"], "--workdir=gs://b is no folder"),
    ("strips", ["--output=gs://b/o"], "--output=gs://b/o is no folder"),
    ("restore", ["--workdir={t}", "--input={f}", "--output=gs://b/o"], "--output=gs://b/o is no"),
    ("train", [script_runs.CONFIG, "--workdir={t}/new", "--init={t}/none"], "--init={t}/none"),
    ("train", [script_runs.CONFIG, "--workdir={t}/new", "stray"], "stray"),
    ("train", [script_runs.CONFIG, "--workdir={t}/new", "--unknown=1"], "unknown"),
    ("sample", [], "--workdir"),
    ("sample", ["--workdir={t}"], "{t} holds no config.json"),
    ("sample", ["--workdir={f}"], "{f}"),
    ("sample", ["--workdir={t}", "--num=0"], "--num"),
    ("sample", ["--workdir={t}", "--num=x"], "--num"),
    ("sample", ["--workdir={t}", "--steps=0"], "--steps"),
    ("sample", ["--workdir={t}", "--sampler=cold"], "--sampler"),
    ("sample", ["--workdir={t}", "--seed=-1"], "--seed"),
    ("sample", ["--workdir={t}", "--perturbation=-1"], "--perturbation"),
    ("sample", ["--workdir={t}", "--perturbation=nan"], "--perturbation"),
    ("sample", ["--workdir={t}", "--perturbation=1e39"], "--perturbation"),
    ("sample", ["--workdir={t}", "--guidance=inf"], "--guidance"),
    ("sample", ["--workdir={t}", "--columns=0"], "--columns"),
    ("evaluate", [], "--workdir"),
    ("evaluate", ["--workdir={t}"], "{t} holds no config.json"),
    ("evaluate", ["--workdir={t}", "--images=0"], "--images"),
    ("audit", [], "--workdir"),
    ("audit", ["--workdir={t}"], "{t} holds no config.json"),
    ("audit", ["--workdir={t}", "--images=1"], "--images"),
    ("audit", ["--workdir={t}", "--steps=0"], "--steps"),
    ("restore", ["--workdir={t}"], "--"),
    ("restore", ["--workdir={t}", "--input={f}", "--output={t}/o"], "{t} holds no config.json"),
    (
        "restore",
        ["--workdir={t}", "--input={f}", "--output={t}/o", "--severity=nan"],
        "--severity",
    ),
    ("compare", [], "--study"),
    ("compare", ["--study={f}"], "--output"),
    ("compare", ["--study={f}", "{t}"], "--study"),
    ("compare", ["--output={t}/o", "--study=none"], "--study"),
    ("compare", ["--output={t}/o", "--seeds=0"], "--seeds"),
    ("report", ["--output={t}/o"], "--study"),
    ("report", ["--output={t}/o", "--study=generation", "--num=1"], "--num"),
    ("strips", [], "--output"),
    ("strips", ["--output={f}"], "{f}"),
    ("strips", ["--output={t}/o", "--columns=1"], "--columns"),
    ("export", ["--workdir={t}", "--output={t}/o"], "{t} holds no config.json"),
    ("benchmark", ["--output={t}/o", "--only=nothing"], "--only"),
]


@pytest.mark.parametrize("case", range(len(COMMANDS)))
def test_a_bad_flag(tmp_path, case):
    script, arguments, message = COMMANDS[case]
    folder, file = tmp_path / "empty", tmp_path / "file"
    folder.mkdir()
    file.write_text("mine")
    places = {"t": folder, "f": file}
    status, out, err = script_runs.call(script, *(one.format(**places) for one in arguments))
    lines = err.splitlines()
    assert (status, out) == (2, "")
    assert len(lines) == 1, err
    assert lines[0].startswith("error: ")
    assert message.format(**places) in lines[0], err
    assert not list(folder.iterdir())
    assert file.read_text() == "mine"


@pytest.mark.parametrize(
    "case",
    [
        ("train", [script_runs.CONFIG, "--workdir=gs://b/run"]),
        ("train", [script_runs.CONFIG, "--workdir={t}/new", "--init=gs://b/run"]),
        ("sample", ["--workdir=gs://b/run"]),
        ("sample", ["--workdir={t}", "--num=3", "--output=gs://b/run"]),
        ("evaluate", ["--workdir=gs://b/run"]),
        ("evaluate", ["--workdir={t}", "--generated=gs://b/run"]),
        ("restore", ["--workdir=gs://b/run", "--input={t}", "--output={t}/o"]),
        ("audit", ["--workdir=gs://b/run"]),
        ("export", ["--workdir=gs://b/run", "--output={t}/o"]),
    ],
)
def test_a_bucket_needs_a_package(tmp_path, monkeypatch, case):
    monkeypatch.setitem(sys.modules, "gcsfs", None)  # as if it were not installed
    script, arguments = case
    status, out, err = script_runs.call(script, *(one.format(t=tmp_path) for one in arguments))
    assert (status, out) == (2, "")
    (line,) = err.splitlines()
    assert "=gs://b/run needs gcsfs: pip install gcsfs" in line
    assert not list(tmp_path.iterdir())


# The same of real commands, of every kind one.
REAL = [
    ("train", [script_runs.CONFIG, "--workdir={t}/new", "--config.train.steps=0"], "train.steps"),
    ("train", [script_runs.CONFIG, "--workdir={t}/new", "--config.nothing=1"], "nothing"),
    ("train", [script_runs.CONFIG, "--workdir={t}/new", "--config.seed=None"], "config.seed"),
    ("train", ["--config={f}", "--workdir={t}/new"], "--config"),
    ("train", [script_runs.CONFIG, "--workdir={f}"], "{f}"),
    ("sample", ["--workdir={t}"], "{t} holds no config.json"),
    ("evaluate", ["--workdir={t}", "--images=0"], "--images"),
    ("restore", ["--workdir={t}", "--input={f}"], "--output"),
    ("audit", ["--workdir={t}", "stray"], "stray"),
    ("compare", ["--output={t}/o", "--study=none"], "--study"),
]


@pytest.mark.parametrize("case", range(len(REAL)))
def test_a_real_command(env, tmp_path, case):
    script, arguments, message = REAL[case]
    folder, file = tmp_path / "empty", tmp_path / "file"
    folder.mkdir()
    file.write_text("mine")
    places = {"t": folder, "f": file}
    done = script_runs.process(env, script, *(one.format(**places) for one in arguments))
    lines = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (2, "")
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    assert message.format(**places) in lines[0]
    assert not list(folder.iterdir())
    assert file.read_text() == "mine"
