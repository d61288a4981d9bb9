"""Who trains in a workdir.

Oracles: the operating system's own locks, asked by another file handle; an owner's file written by
hand.
"""

import errno
import os
import subprocess
import sys
import time

import pytest
import script_runs

from experiments.configs import digits_deblur
from experiments.lib import lock, runs
from experiments.lib.commands import UsageError
from experiments.lib.config import resolve


def test_a_workdir_has_one_trainer(tmp_path):
    workdir = tmp_path / "run"
    with lock.held(workdir):
        with pytest.raises(
            UsageError, match=f"process {os.getpid()} on .* since .*--workdir"
        ) as raised:
            with lock.held(workdir):
                pass
        assert str(workdir) in str(raised.value)
    with lock.held(workdir):
        pass


def test_death_releases_a_workdir(tmp_path):
    code = """
import sys, pathlib
from experiments.lib import lock
manager = lock.held(pathlib.Path(sys.argv[1]))
manager.__enter__()
print("held", flush=True)
sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", code, tmp_path], cwd=script_runs.ROOT, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as child:  # fmt: skip
        assert child.stdout.readline() == "held\n"
        with pytest.raises(UsageError, match=f"process {child.pid} "), lock.held(tmp_path):
            pass
        child.kill()
        child.wait()
        with lock.held(tmp_path):
            pass


@pytest.fixture
def no_locks(monkeypatch):
    """A disk as some network disks are."""

    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(lock.fcntl, "flock", refuse)
    monkeypatch.setattr(lock, "BEAT", 0.02)
    monkeypatch.setattr(lock, "SILENCE", 2)


def test_a_workdir_has_one_trainer_where_disks_have_no_locks(tmp_path, no_locks):
    workdir = tmp_path / "run"
    with lock.held(workdir):
        runs.claim(workdir, resolve(digits_deblur.get_config()), {})
        with pytest.raises(UsageError, match=f"process {os.getpid()} on .* since [^,]*: wait"):
            with lock.held(workdir):
                pass
    assert not (workdir / "owner").exists()
    with lock.held(workdir):
        pass


def test_an_owner_who_writes_no_more_is_dead(tmp_path, no_locks, monkeypatch, capsys):
    path, text = tmp_path / "owner", "process 7 on elsewhere since noon, sign of life 3\n"
    path.write_text(text)
    started = time.monotonic()
    with lock.held(tmp_path):
        assert time.monotonic() - started >= 2
        assert "elsewhere" not in path.read_text()
    assert capsys.readouterr().err == f"waiting up to 2 s whether {path} is still written\n"
    # One that somebody goes on writing, with whatever.
    path.write_text(text)
    monkeypatch.setattr(lock.time, "sleep", lambda _: path.write_text(text.replace("3", "4")))
    with pytest.raises(UsageError, match="process 7 on elsewhere since noon: wait"):
        with lock.held(tmp_path):
            pass
    assert path.read_text() == text.replace("3", "4")


def test_of_two_who_find_a_dead_owner_one_takes_over(tmp_path, no_locks, monkeypatch):
    path, others = tmp_path / "owner", "process 8 on elsewhere since one, sign of life 0\n"
    path.write_text("process 7 on elsewhere since noon, sign of life 3\n")

    def sleep(_):
        if str(os.getpid()) in path.read_text():  # the other removes ours for the dead one's
            path.write_text(others)

    monkeypatch.setattr(lock.time, "sleep", sleep)
    with pytest.raises(UsageError, match="by process 8 on elsewhere since one: wait"):
        with lock.held(tmp_path):
            pass
    assert path.read_text() == others
