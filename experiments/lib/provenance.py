"""run.json: what each start of a training was made of, for whoever asks later.

A list, one entry a start: the command line, the code's commit, versions, devices, host, seed,
the data's fingerprint, when it began and ended, how, and how long it took. Written before the
first step.
"""

import contextlib
import datetime
import importlib.metadata
import pathlib
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax

from experiments.lib import files

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


def commit(folder: pathlib.Path) -> dict[str, Any]:
    """{"commit", "dirty"} of the repository that a folder lies in; both None where in none."""

    def git(*arguments):
        return subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        ).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return {"commit": None, "dirty": None}


def brief(fingerprint: str | None) -> dict[str, Any]:
    """What a result is made of: for the files that say one. fingerprint: of the training data."""
    return {
        "command": ["python", "-m", f"experiments.{pathlib.Path(sys.argv[0]).stem}", *sys.argv[1:]],
        **commit(pathlib.Path(__file__).parent),
        "fingerprint": fingerprint,
    }


def describe(seed: int, fingerprint: str) -> dict[str, Any]:
    """What this process runs, and on what."""
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {
        **brief(fingerprint),
        "versions": {"python": platform.python_version()} | versions,
        "devices": [device.device_kind for device in jax.devices()],
        "hosts": jax.process_count(),
        "host": socket.gethostname(),
        "seed": seed,
        "start": _now(),
    }


def trained_on(workdir: pathlib.Path) -> str | None:
    """The fingerprint of the data that a workdir's run was last trained on, if it is known."""
    starts = _starts(workdir)
    return starts[-1].get("fingerprint") if starts else None


def _starts(workdir: pathlib.Path) -> list[dict[str, Any]]:
    path = workdir / "run.json"
    held = files.read_json(path, "remove it, or restore it") if path.exists() else {}
    return list(held.get("starts", []))


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


@contextlib.contextmanager
def recorded(workdir: pathlib.Path, about: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Appends an entry to run.json, and says in the end when that was and how, if it can.

    Yields the entry: what is put into it is written in the end.

    Raises:
      UsageError: if run.json is not what it should be.
    """
    if jax.process_index():
        yield about
        return
    path, began = workdir / "run.json", time.monotonic()
    starts = _starts(workdir)
    files.write_json(path, {"starts": [*starts, about]})
    try:
        yield about
    except BaseException as error:
        about["error"] = f"{type(error).__name__}: {error}".splitlines()[0]
        raise
    finally:
        about |= {"end": _now(), "seconds": round(time.monotonic() - began, 2)}
        files.write_json(path, {"starts": [*starts, about]})
