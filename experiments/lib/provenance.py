"""run.json: what each start of a training was made of, for whoever asks later.

A list, one entry a start: the command line, the config, the code's commit and what of it was not
committed, versions, devices, host, seed, the data's fingerprint, when it began and ended, how, and
how long it took. Written before the first step.
"""

import contextlib
import datetime
import importlib.metadata
import json
import pathlib
import platform
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
import ml_collections

from experiments.lib import files

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


_CODE = pathlib.Path(__file__).parent


def _git(folder: pathlib.Path, *arguments: str) -> str | None:
    """What git says in a folder; None where there is no git, or no repository."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode(errors="surrogateescape")


def commit(folder: pathlib.Path) -> dict[str, Any]:
    """{"commit", "dirty"} of the repository that a folder lies in; both None where in none."""
    head, changed = _git(folder, "rev-parse", "HEAD"), _git(folder, "status", "--porcelain")
    if head is None or changed is None:
        return {"commit": None, "dirty": None}
    return {"commit": head.strip(), "dirty": bool(changed)}


def uncommitted(folder: pathlib.Path) -> str | None:
    """What `git apply` makes the working tree of, but for files that git does not know."""
    return _git(folder, "diff", "HEAD", "--no-ext-diff", "--no-color")


def brief(fingerprint: str | None) -> dict[str, Any]:
    """What a result is made of: for the files that say one. fingerprint: of the training data."""
    return {
        "command": ["python", "-m", f"experiments.{pathlib.Path(sys.argv[0]).stem}", *sys.argv[1:]],
        **commit(_CODE),
        "fingerprint": fingerprint,
    }


def describe(config: ml_collections.ConfigDict, fingerprint: str) -> dict[str, Any]:
    """What this process runs, and on what."""
    versions = {name: importlib.metadata.version(name) for name in _PACKAGES}
    return {
        **brief(fingerprint),
        "diff": uncommitted(_CODE),
        "config": json.loads(config.to_json()),
        "versions": {"python": platform.python_version()} | versions,
        "devices": [device.device_kind for device in jax.devices()],
        "hosts": jax.process_count(),
        "host": socket.gethostname(),
        "seed": config.seed,
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
