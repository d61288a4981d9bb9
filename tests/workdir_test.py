"""What lies in a workdir, whole, cut or wrong, and what results say that they are made of.

Oracles: the file as it was before it was cut; the lines of a log that was never interrupted; git,
the operating system and the installed packages themselves.
"""

import datetime
import importlib.metadata
import json
import os
import shutil
import signal
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
import script_runs

from diffjax import data
from experiments.configs import digits_deblur
from experiments.lib import commands, files, judge, pictures, provenance, records, runs
from experiments.lib.commands import UsageError
from experiments.lib.config import resolve

# Files


@pytest.mark.parametrize(
    ("text", "said"),
    [("", "is empty"), ('{"seed": 1, ', "no whole JSON"), ("[1, 2]", "list"), ("\0\0\0", "JSON")],
)
def test_a_broken_config_is_named(tmp_path, text, said):
    path = tmp_path / "config.json"
    path.write_text(text)
    config = resolve(digits_deblur.get_config())
    for call in (
        lambda: runs.read_config(tmp_path),
        lambda: runs.known_roots(tmp_path),
        lambda: runs.claim(tmp_path, config, {}),
    ):
        with pytest.raises(UsageError, match=said) as raised:
            call()
        assert str(path) in str(raised.value)
        assert "\n" not in str(raised.value)
    assert path.read_text() == text


def test_a_config_of_something_else_is_named(tmp_path):
    for held in (
        {},
        {"degradation": 3},
        {"degradation": {}, "train": 3},
        {"degradation": {}, "seed": "a"},
    ):
        (tmp_path / "config.json").write_text(json.dumps(held))
        with pytest.raises(UsageError, match=r"config\.json is no config of an experiment"):
            runs.read_config(tmp_path)


def test_a_file_is_whole_or_not_there(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    files.write_json(
        path, {"a": float("inf"), "b": [float("nan"), 1.5], "c": (np.float64("-inf"),)}
    )
    assert json.loads(path.read_text()) == {"a": None, "b": [None, 1.5], "c": [None]}
    before = path.read_bytes()

    def full(handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        files.write_json(path, {"a": 1})
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == ["a.json"]


def test_a_start_that_never_saved_does_not_refuse_another_config(tmp_path):
    config = resolve(digits_deblur.get_config())
    runs.claim(tmp_path, config, {})
    (tmp_path / "fitted").mkdir()
    config.seed = 1
    runs.claim(tmp_path, config, {})
    assert json.loads((tmp_path / "config.json").read_text())["seed"] == 1
    assert not (tmp_path / "fitted").exists()
    for name in ("3", "3.damaged"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
        config.seed += 1
        with pytest.raises(UsageError, match=r"config\.seed is 1 there and"):
            runs.claim(tmp_path, config, {})
        (tmp_path / "checkpoints" / name).rmdir()


# Lines


def some_metrics(step):
    rng = np.random.default_rng(step)
    numbers = rng.uniform(0.1, 1, 4).astype(np.float32)
    names = ("count", "loss", "error", "target", "target_square", "restored")
    severity = {name: rng.uniform(1, 2, 3).astype(np.float32) for name in names}
    skipped = step in (5, 11, 12)
    loss = np.float32(np.nan) if skipped else numbers[0]
    return {
        "loss": loss, "grad_norm": numbers[1], "severity": severity,
        "skipped": np.bool_(skipped), "culprit": np.int32(1 if skipped else -1),
    }  # fmt: skip


def log_steps(workdir, first, last, *, every, saves, steps):
    """Logs as training does, up to a stop after `last`; what is in no line is lost."""
    with records.Log(workdir, first, steps, 8) as log:
        for step in range(first + 1, last + 1):
            log.add(step, some_metrics(step))
            end = step == steps
            saving, logging = step in saves or end, step % every == 0 or end
            if saving or logging:
                assert log.read(3, wait=saving) is None
            if logging:
                log.write(step, last=end)
            if saving:
                log.keep(step, saves)


def lines_of(workdir):
    lines = files.read_lines(workdir / "metrics.jsonl")
    return [{name: line[name] for name in line if "seconds" not in name} for line in lines]


@pytest.mark.parametrize("killed_after", [8, 9, 10, 11, 13])
@pytest.mark.parametrize("saved", [7, 8, 9, 12])
@pytest.mark.parametrize("cut", [0, 7])
def test_the_lines_of_a_resumed_run_are_those_of_one_never_stopped(
    tmp_path, killed_after, saved, cut
):
    if killed_after < saved:
        pytest.skip("it was not saved yet")
    plain, stopped = tmp_path / "plain", tmp_path / "stopped"
    plain.mkdir()
    stopped.mkdir()
    log_steps(plain, 0, 17, every=4, saves={3}, steps=17)
    log_steps(stopped, 0, killed_after, every=4, saves={5, saved}, steps=17)
    path = stopped / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[: -cut or None])
    log_steps(stopped, saved, 17, every=4, saves={14}, steps=17)
    if cut and killed_after // 4 * 4 <= saved:
        # The line was cut that the checkpoint stands behind: it is gone, and the others are right.
        assert [line for line in lines_of(plain) if line in lines_of(stopped)] == lines_of(stopped)
        assert len(lines_of(stopped)) == len(lines_of(plain)) - 1
    else:
        assert lines_of(stopped) == lines_of(plain)
    assert [line["step"] for line in lines_of(plain)] == [4, 8, 12, 16, 17]


class InBucket:
    """As much of etils' paths as a file of lines needs: an object is read and written whole."""

    def __init__(self):
        self.content = None

    def exists(self):
        return self.content is not None

    def read_bytes(self):
        return self.content

    def write_bytes(self, content):
        self.content = content


def test_in_a_bucket_lines_are_written_as_a_whole(tmp_path):
    steps, on_disk, in_bucket = ([{"step": step} for step in (1, 2, 3)], tmp_path / "a", InBucket())
    for path, seen in ((on_disk, 3), (in_bucket, 2)):
        lines = files.Lines(path, 0)
        lines.append(steps[0])
        lines.append(steps[1])
        lines.flush()
        lines.append(steps[2])
        assert files.read_lines(path) == steps[:seen]  # what a kill would leave
        lines.flush()
        assert files.read_lines(path) == steps
        assert files.Lines(path, 2).kept == steps[:2]
    assert in_bucket.content == on_disk.read_bytes() == b'{"step": 1}\n{"step": 2}\n'


def test_a_line_leaves_out_what_was_skipped(tmp_path):
    log_steps(tmp_path, 0, 17, every=4, saves={3}, steps=17)
    for line, steps in zip(
        lines_of(tmp_path), ([1, 2, 3], [4, 6, 7], [8, 9, 10], [13, 14, 15], [16, 17]), strict=True
    ):
        wanted = np.mean([some_metrics(step)["loss"] for step in steps])
        np.testing.assert_allclose(line["loss"], wanted, rtol=1e-6)
    assert [line["skipped"] for line in lines_of(tmp_path)] == [0, 1, 1, 1, 0]


def test_cpu_time_goes_on_where_the_run_stopped(tmp_path, monkeypatch):
    now = [100.0]  # of a process; the next one starts at 7
    monkeypatch.setattr(records.time, "process_time", lambda: now[0])

    def steps(first, last):
        with records.Log(tmp_path, first, 9, 8) as log:
            for step in range(first + 1, last + 1):
                now[0] += 0.5
                log.add(step, some_metrics(step))
            assert log.read(9, wait=True) is None
            log.write(last, last=True)
            log.keep(last, [])

    steps(0, 3)
    now[0] = 7
    steps(3, 9)
    lines = files.read_lines(tmp_path / "metrics.jsonl")
    assert [(line["step"], line["cpu_seconds"]) for line in lines] == [(3, 1.5), (9, 4.5)]


def test_the_step_of_the_last_of_a_row_is_told_over_a_stop(tmp_path):
    def bad(step):
        return some_metrics(step) | {"skipped": np.bool_(True), "culprit": np.int32(2)}

    with records.Log(tmp_path, 0, 9, 8) as log:
        for step in (1, 2):
            log.add(step, bad(step))
        assert log.read(3, wait=True) is None
        log.keep(2, [])
    with records.Log(tmp_path, 2, 9, 8) as log:
        log.add(3, bad(3))
        assert log.read(3, wait=False) is None  # it may still be computed
        assert log.read(3, wait=True) == 3
        assert log.skipped["culprit"] == 2


# Streams and signals

STARTS = """
import os, signal, sys
from experiments.lib import commands
def main():
    for i in range(20000):
        print("line", i)
    open(sys.argv[1][7:], "w").write("done")
    if "%s": os.kill(os.getpid(), signal.%s)
    return 3
from absl import flags
flags.DEFINE_string("file", None, "")
commands.run(main, again="on it goes")
"""


@pytest.mark.parametrize("number", ["", "SIGTERM", "SIGINT", "SIGHUP"])
@pytest.mark.parametrize("stdout", ["| head -n 1", ">&-", "> /dev/full"])
def test_a_reader_that_goes_stops_no_work(tmp_path, stdout, number):
    code = STARTS % (number, number or "SIGTERM")
    path = tmp_path / "done"
    command = f'"$0" -c "$1" --file={path} {stdout}; echo ${{PIPESTATUS[0]}} >&2'
    done = subprocess.run(
        ["bash", "-c", command, sys.executable, code],
        cwd=script_runs.ROOT, text=True, capture_output=True, check=True,
    )  # fmt: skip
    *said, status = done.stderr.splitlines()
    assert path.read_text() == "done"
    if number:
        assert int(status) == 128 + getattr(signal, number)
        assert said == [f"stopped by {number}: on it goes"]
    else:
        assert (said, status) == ([], "3")


def test_home_in_paths(monkeypatch):
    monkeypatch.setenv("HOME", "/somewhere")
    expanded = [commands._expanded(one) for one in ("--a=~/b", "--a=~", "--a=b~c", "--a=~/b=~/c")]
    assert expanded == ["--a=/somewhere/b", "--a=/somewhere", "--a=b~c", "--a=/somewhere/b=~/c"]


# Generated images


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of one step."""
    workdir = tmp_path_factory.mktemp("trained") / "run"
    status, _, err = script_runs.train(workdir, "--config.train.steps=1")
    assert status == 0, err
    return workdir


def all_images(folder):
    return np.concatenate([np.load(path)["image"] for path in sorted(folder.glob("batch_*.npz"))])


@pytest.fixture
def sample(trained):
    def call(folder, num):
        return script_runs.call(
            "sample", f"--workdir={trained}", f"--output={folder}", f"--num={num}"
        )

    return call


def test_a_stopped_generation_goes_on(sample, tmp_path, monkeypatch):
    save, calls = np.savez_compressed, []

    def stop_in_the_second(path, **arrays):
        save(path, **arrays)
        calls.append(path)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(np, "savez_compressed", stop_in_the_second)
        status, _, err = sample(tmp_path / "stopped", 12)
    assert status == 128 + signal.SIGINT
    assert "stopped by SIGINT: the same command goes on where it stopped" in err.splitlines()
    assert len(pictures.read_images(tmp_path / "stopped")) == 8  # the first batch
    assert sample(tmp_path / "stopped", 12)[0] == 0
    assert sample(tmp_path / "straight", 12)[0] == 0
    np.testing.assert_array_equal(*(all_images(tmp_path / n) for n in ("stopped", "straight")))


def test_more_images_in_a_folder_are_those_of_one_call(trained, sample, tmp_path, monkeypatch):
    assert sample(tmp_path / "twice", 5)[0] == 0
    assert len(all_images(tmp_path / "twice")) == 5
    status, out, _ = sample(tmp_path / "twice", 12)
    assert status == 0
    assert "holds 12 images" in out
    assert sample(tmp_path / "once", 12)[0] == 0
    np.testing.assert_array_equal(all_images(tmp_path / "twice"), all_images(tmp_path / "once"))
    assert len(all_images(tmp_path / "once")) == 12
    settings = json.loads((tmp_path / "once" / "settings.json").read_text())
    check_provenance(settings, "sample", json.loads((trained / "run.json").read_text()))
    # An evaluation says what is missing.
    assert pictures.incomplete(tmp_path / "once") is None
    (tmp_path / "once" / "batch_00000008.npz").write_bytes(b"PK")
    assert "holds 8 of 12 images" in pictures.incomplete(tmp_path / "once")
    (tmp_path / "once" / "settings.json").unlink()
    assert "no settings.json" in pictures.incomplete(tmp_path / "once")
    monkeypatch.setattr(judge, "fit_judge", lambda *_: None)  # its training takes a minute
    (tmp_path / "twice" / "batch_00000000.npz").unlink()
    status, out, err = script_runs.call(
        "evaluate", f"--workdir={trained}", f"--generated={tmp_path / 'twice'}"
    )
    assert status == 0, err
    assert f"incomplete: {tmp_path / 'twice'} holds 4 of 12 images; the same sample" in out
    report = json.loads((tmp_path / "twice" / "distances.json").read_text())
    assert "holds 4 of 12 images" in report["incomplete"]
    assert report["generated"]["images"] == 4
    check_provenance(report, "evaluate", json.loads((trained / "run.json").read_text()))


# What results are made of, and where the data lies


def git(*arguments, cwd=script_runs.ROOT):
    """What git says; None where it fails."""
    done = subprocess.run(["git", *arguments], cwd=cwd, text=True, capture_output=True)
    return None if done.returncode else done.stdout


def check_start(one):
    """One entry of run.json of a finished run on the digits."""
    assert one["commit"] == ((git("rev-parse", "HEAD") or "").strip() or None)
    assert one["dirty"] in ((True, False) if one["commit"] else (None,))
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    versions = {name: importlib.metadata.version(name) for name in packages}
    python = ".".join(map(str, sys.version_info[:3]))
    assert one["versions"] == {"python": python} | versions
    assert one["devices"] == [device.device_kind for device in jax.devices()]
    assert (one["hosts"], one["host"]) == (1, socket.gethostname())
    assert one["seed"] == 0
    assert one["fingerprint"] == data.fingerprint(data.load("digits", "train"))
    now = datetime.datetime.now(datetime.UTC)
    start, end = (datetime.datetime.fromisoformat(one[name]) for name in ("start", "end"))
    assert now - datetime.timedelta(hours=1) < start <= end <= now
    assert abs((end - start).total_seconds() - one["seconds"]) < 10
    assert one["status"] == 0


def test_a_run_says_what_it_was(trained, tmp_path, monkeypatch):
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)
    monkeypatch.setattr(provenance, "uncommitted", lambda folder: f"changes in {folder}")
    again = ("--config.train.steps=1", "--config.run.keep=7")
    for options in (again, (*again, "--config.train.loss=l2")):  # the second one is refused
        script_runs.train(workdir, *options)
    first, second = json.loads((workdir / "run.json").read_text())["starts"]
    check_start(first)
    check_start(second)
    assert first["command"] == [
        *("python", "-m", "experiments.train", script_runs.CONFIG, *script_runs.TINY),
        *(f"--workdir={trained}", "--config.train.steps=1"),
    ]
    assert second["command"][-2:] == list(again)
    assert first["config"] == json.loads((workdir / "config.json").read_text())
    assert (first["config"]["run"]["keep"], second["config"]["run"]["keep"]) == (2, 7)
    assert second["diff"] == f"changes in {script_runs.ROOT / 'experiments' / 'lib'}"


def test_the_entry_is_there_before_the_first_step_and_says_how_it_ended(tmp_path):
    path = tmp_path / "run.json"

    def first_step():
        assert json.loads(path.read_text()) == {"starts": [{"seed": 3}]}
        raise KeyError("what failed")

    with pytest.raises(KeyError), provenance.recorded(tmp_path, {"seed": 3}):
        first_step()
    (entry,) = json.loads(path.read_text())["starts"]
    assert entry["error"] == "KeyError: 'what failed'"
    assert entry.keys() == {"seed", "error", "end", "seconds"}


def test_what_is_not_committed_is_what_git_applies(tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    assert provenance.commit(here) == {"commit": None, "dirty": None}
    assert provenance.uncommitted(here) is None
    git("init", cwd=here)
    (here / "code.py").write_bytes(b"one\r\ntwo\n")
    git("add", ".", cwd=here)
    who = ("-c", "user.name=me", "-c", "user.email=me@here")
    git(*who, "commit", "-m", "first", cwd=here)
    head = git("rev-parse", "HEAD", cwd=here).strip()
    assert provenance.commit(here) == {"commit": head, "dirty": False}
    assert provenance.uncommitted(here) == ""
    git("clone", here, there, cwd=tmp_path)
    (here / "code.py").write_bytes(b"one\r\nthree \xe4\n")
    assert provenance.commit(here) == {"commit": head, "dirty": True}
    text = provenance.uncommitted(here / ".")
    (tmp_path / "patch").write_bytes(text.encode(errors="surrogateescape"))
    assert git("apply", tmp_path / "patch", cwd=there) == ""
    assert (there / "code.py").read_bytes() == b"one\r\nthree \xe4\n"


def check_provenance(report, script, record):
    """Oracles: git itself; what the run's own record says of its data."""
    assert report["commit"] == ((git("rev-parse", "HEAD") or "").strip() or None)
    assert report["step"] == 1
    assert report["command"][:3] == ["python", "-m", f"experiments.{script}"]
    assert any(one.startswith("--workdir=") for one in report["command"])
    assert report["fingerprint"] == record["starts"][-1]["fingerprint"]


def test_data_that_was_moved_is_named_again(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1), np.uint8)
    for name, train in (("first", pixels), ("other", 255 - pixels)):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "train.npy", train[:30])
        np.save(tmp_path / name / "test.npy", pixels[30:])
    workdir = tmp_path / "run"
    options = ("--config.data.name=arrays", "--config.train.steps=1")

    def there(name):
        return f"--config.data.directory={name}"

    status, _, err = script_runs.train(workdir, *options, there("first"))
    assert status == 0, err
    held = json.loads((workdir / "config.json").read_text())
    assert held["data"]["directory"] == str(tmp_path / "first")
    record = json.loads((workdir / "run.json").read_text())
    source = data.from_arrays(pixels[:30])
    assert record["starts"][0]["fingerprint"] == data.fingerprint(source)

    (tmp_path / "first").rename(tmp_path / "moved")
    evaluate = ("evaluate", f"--workdir={workdir}", "--images=2")
    status, _, err = script_runs.call(*evaluate)
    assert (status, err.count("\n")) == (2, 1)
    assert str(tmp_path / "first") in err
    for call in (
        lambda: script_runs.call(*evaluate, there("other")),
        lambda: script_runs.train(workdir, *options, there("other")),
    ):
        status, _, err = call()
        assert (status, err.count("\n")) == (2, 1)
        assert f"config.data.directory={tmp_path / 'other'} holds images 30x8x8x1-" in err
        assert f"was trained on {data.fingerprint(source)}" in err
    assert not (workdir / "evaluation.json").exists()

    status, _, err = script_runs.call(*evaluate, there("moved"))
    assert status == 0, err
    report = json.loads((workdir / "evaluation.json").read_text())
    check_provenance(report, "evaluate", record)
    assert json.loads((workdir / "config.json").read_text()) == held
    status, out, err = script_runs.train(workdir, *options, there("moved"))
    assert (status, err) == (0, "")
    assert "complete" in out
    held["data"]["directory"] = str(tmp_path / "moved")
    assert json.loads((workdir / "config.json").read_text()) == held


def test_a_config_of_before_a_field_has_its_default(tmp_path):
    config = resolve(digits_deblur.get_config())
    runs.claim(tmp_path, config, {})
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    held = json.loads((tmp_path / "config.json").read_text())
    del held["train"]["max_skipped"], held["prior"]["kind"], held["sample"]["settings"]
    text = json.dumps(held)
    (tmp_path / "config.json").write_text(text)
    runs.claim(tmp_path, config, {})
    assert (tmp_path / "config.json").read_text() == text
    assert runs.read_config(tmp_path)[0] == config
    config.prior.kind = "bank"
    with pytest.raises(UsageError, match=r"config\.prior\.kind is 'mixture' there and 'bank' here"):
        runs.claim(tmp_path, config, {})
    # A field that there is no more, and that changed something.
    held["train"]["momentum"] = 0.5
    (tmp_path / "config.json").write_text(json.dumps(held))
    config.prior.kind = "mixture"
    with pytest.raises(UsageError, match=r"config\.train\.momentum is 0\.5 there and None here"):
        runs.claim(tmp_path, config, {})
