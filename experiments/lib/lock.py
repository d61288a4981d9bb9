"""One trainer a workdir.

By a lock of the operating system, which death releases. Some network disks have none, and no bucket
has; there the owner goes on writing a file, and one that nobody writes any more is a dead owner's.
"""

import contextlib
import datetime
import fcntl
import itertools
import os
import pathlib
import socket
import sys
import threading
import time
from collections.abc import Iterator

import jax

from experiments.lib import files
from experiments.lib.commands import UsageError

BEAT, SILENCE = 5.0, 60.0  # seconds between two signs of life; without one for that long: dead


@contextlib.contextmanager
def held(workdir: pathlib.Path) -> Iterator[None]:
    """Keeps other trainers out of a workdir, which is made if absent.

    Raises:
      UsageError: naming who trains there already.
    """
    if jax.process_index():
        yield
        return
    workdir.mkdir(parents=True, exist_ok=True)
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    owner = f"process {os.getpid()} on {socket.gethostname()} since {now}"
    if not files.on_disk(workdir):
        with _written(workdir, owner):
            yield
        return
    with (workdir / "lock").open("a+") as file:
        with contextlib.nullcontext() if _locked(workdir, file) else _written(workdir, owner):
            file.truncate(0)
            file.write(f"{owner}\n")
            file.flush()
            try:
                yield
            finally:
                file.truncate(0)


def _locked(workdir: pathlib.Path, file) -> bool:
    """Locks an open file until it is closed; whether its disk can."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        raise _taken(workdir, file.read()) from error
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _written(workdir: pathlib.Path, owner: str) -> Iterator[None]:
    """Goes on writing a file "owner", where nobody else does.

    Who finds one waits whether it changes: so no two clocks are compared.
    """
    path, sign, inherited = workdir / "owner", f"{owner}, sign of life {{}}\n", False
    with contextlib.suppress(FileNotFoundError):  # its writer has ended
        seen, until = path.read_text(), time.monotonic() + SILENCE
        print(f"waiting up to {SILENCE:g} s whether {path} is still written", file=sys.stderr)
        while time.monotonic() < until:
            time.sleep(BEAT)
            now = path.read_text()
            if now != seen:
                raise _taken(workdir, (now or seen).partition(",")[0])
        inherited = True
        path.unlink()
    try:
        files.create(path)
    except FileExistsError as error:  # another was faster
        raise _taken(workdir, "") from error
    path.write_text(sign.format(0))
    if inherited:  # another who found the same dead owner may have removed what is ours
        time.sleep(2 * BEAT)
        now = ""
        with contextlib.suppress(FileNotFoundError):
            now = path.read_text()
        if now != sign.format(0):
            raise _taken(workdir, now.partition(",")[0])
    ended = threading.Event()

    def write():
        for count in itertools.count(1):
            with contextlib.suppress(Exception):  # whatever a network raises; it may come back
                path.write_text(sign.format(count))
            if ended.wait(BEAT):
                break

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    try:
        yield
    finally:
        ended.set()
        writer.join()
        path.unlink(missing_ok=True)


def _taken(workdir: pathlib.Path, owner: str) -> UsageError:
    return UsageError(
        f"{workdir} is being trained in by {owner.strip() or 'another process'}: "
        "wait for its end, or choose another --workdir"
    )
