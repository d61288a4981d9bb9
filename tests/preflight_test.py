"""What a preflight says of hosts that differ; the other host is made up here.

Real hosts are in hosts_test.py.
"""

import json

import jax
import numpy as np
import pytest

from diffjax import data, parallel
from experiments.configs import digits_deblur
from experiments.lib import preflight
from experiments.lib.commands import UsageError
from experiments.lib.config import resolve

SOURCE = data.from_arrays(np.zeros((10, 4, 4, 3), np.float32))


def check(monkeypatch, workdir, change=lambda other: None, sees=True):
    """The preflight of host 0, beside a host 1 that is the same but for the change."""

    def exchange(content):
        other = json.loads(content)
        change(other)
        for probe in list(workdir.glob("**/.preflight-*-0")) if sees else ():
            probe.with_name(f"{probe.name[:-1]}1").touch()
        return [content, json.dumps(other).encode()]

    monkeypatch.setattr(parallel, "bytes_from_all_hosts", exchange)
    preflight.check(resolve(digits_deblur.get_config()), SOURCE, workdir)


def test_the_screen_says_what_there_is(monkeypatch, tmp_path, capsys):
    check(monkeypatch, tmp_path / "run")
    devices = jax.device_count()
    screen = capsys.readouterr().out
    for line in (
        f"2 hosts, {devices} devices",
        f"batch    64 in all, 32 a host, {64 // devices} a device",
        "data     10 images 4x4x3; a host reads 1/2 of each batch",
        f"workdir  {tmp_path / 'run'}: all hosts write there",
    ):
        assert line in screen
    assert len(screen.splitlines()) < 24
    assert not list((tmp_path / "run").glob(".preflight-*-0"))  # its own is gone


@pytest.mark.parametrize(
    ("field", "value"),
    [("config.train.steps", "7"), ("the code", "other"), ("jax", "0"), ("the data", "other")],
)
def test_what_differs_is_named(monkeypatch, tmp_path, field, value):
    def change(other):
        other["common"][field] = value

    with pytest.raises(UsageError, match=rf"the hosts differ: {field} is .* and {value} on host 1"):
        check(monkeypatch, tmp_path / "run", change)


def test_a_copy_of_the_data_may_lie_elsewhere(monkeypatch, tmp_path):
    check(monkeypatch, tmp_path, lambda other: other["common"].update({preflight._OWN[0]: "'/b'"}))


def test_another_folder_of_the_same_name_is_named(monkeypatch, tmp_path):
    with pytest.raises(UsageError, match=r"host 0 .* does not see in .*one folder that all hosts"):
        check(monkeypatch, tmp_path / "run", sees=False)
    assert not (tmp_path / "run").exists()  # nothing is left of the trial


def test_who_cannot_write_is_named(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(
        UsageError, match=r"host 0 .* cannot write into .*file/run: Not a directory"
    ):
        check(monkeypatch, tmp_path / "file" / "run")
