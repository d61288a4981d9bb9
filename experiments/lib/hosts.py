"""Several hosts that run one command: how they join, stop together, and end when one has failed.

On TPU pods and under SLURM `--distributed` finds the other hosts. Elsewhere each host is given
--coordinator_address, --num_processes and --process_id, or JAX_COORDINATOR_ADDRESS,
JAX_NUM_PROCESSES and JAX_PROCESS_ID.

Hosts wait for each other in JAX's C++, where Python's exceptions do not reach and from which a
normal exit does not return. So a host that fails says why in one line and ends with os._exit.
"""

import contextlib
import itertools
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator

import jax
import numpy as np
from absl import flags

from diffjax import parallel
from experiments.lib import commands
from experiments.lib.commands import UsageError

_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Join the other hosts first.")
_ADDRESS = flags.DEFINE_string(
    "coordinator_address", None, "host:port of process 0; none: $JAX_COORDINATOR_ADDRESS."
)
_COUNT = flags.DEFINE_integer(
    "num_processes", None, "Of all hosts; none: $JAX_NUM_PROCESSES.", lower_bound=1
)
_INDEX = flags.DEFINE_integer(
    "process_id", None, "From 0, another on each host; none: $JAX_PROCESS_ID.", lower_bound=0
)
JOIN_SECONDS = 50  # before JAX's own 300, which end in a C++ abort
_HEARTBEAT_SECONDS = 60  # a host that is silent so long has died, for JAX
_SHUTDOWN_SECONDS = 24 * 3600  # a host that is done waits so long for the others
_POLL_SECONDS = 0.2


@contextlib.contextmanager
def joined(*, stops_itself: bool = False) -> Iterator[None]:
    """Decorates a command's main: joins the other hosts first, before a device is touched.

    Where one host fails, it ends at once, for nobody waits for the others. A signal to any of
    them ends all, whatever they are doing: what a command writes is whole at any time.

    Args:
      stops_itself: main asks a `Stop` in its steps instead, to save first.
    """
    _join()
    done = threading.Event()
    watcher = threading.Thread(target=_end_with_the_others, args=[done], daemon=True)
    try:
        if jax.distributed.is_initialized():
            for number in (signal.SIGINT, signal.SIGHUP):
                signal.signal(number, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
            if not stops_itself:
                watcher.start()
        yield
    except BaseException as error:
        if jax.process_count() == 1 or isinstance(error, SystemExit):
            raise
        _leave(error)
    finally:
        done.set()
        if watcher.is_alive():
            watcher.join()


def _end_with_the_others(done: threading.Event) -> None:
    """Ends this host once one of them has received SIGTERM, which is JAX's from now on.

    The question is numbered by the clock, for a host that fell behind would answer late.
    """
    began = time.monotonic()
    for calls in itertools.count():
        if done.wait(began + calls * _POLL_SECONDS - time.monotonic()):
            return
        if parallel.reached_sync_point(calls):
            _leave(commands.Stopped(signal.SIGTERM))


def _join() -> None:
    """Raises UsageError if the flags are incomplete, or if JAX refuses to start."""
    given = {
        "coordinator_address": _ADDRESS.value or os.environ.get("JAX_COORDINATOR_ADDRESS"),
        "num_processes": _number(_COUNT.value, "JAX_NUM_PROCESSES"),
        "process_id": _number(_INDEX.value, "JAX_PROCESS_ID"),
    }
    if not _DISTRIBUTED.value:
        if (_ADDRESS.value, _COUNT.value, _INDEX.value) != (None, None, None):
            raise UsageError("--coordinator_address and the like need --distributed")
        return
    missing = [name for name, value in given.items() if value is None]
    if 0 < len(missing) < len(given):
        raise UsageError(f"--distributed also needs --{missing[0]} or $JAX_{missing[0].upper()}")
    count, index = given["num_processes"], given["process_id"]
    if not missing and index >= count:
        raise UsageError(f"--process_id must lie in 0..{count - 1}; got {index}")
    host, _, port = (given["coordinator_address"] or ":0").rpartition(":")
    if not missing and not (host and port.isdecimal()):
        raise UsageError(f"--coordinator_address must be host:port; got {host or port!r}")
    who = "this host" if missing else f"host {index} of {count}"
    place = "" if missing else f" at {given['coordinator_address']}"
    late = (
        f"{who} waited {JOIN_SECONDS} s for the others{place}: start the command on every host, "
        "each with another --process_id, and check that they reach that address"
    )
    with _signals_end_it(), deadline(JOIN_SECONDS, late):
        try:
            jax.distributed.initialize(
                **given,
                heartbeat_timeout_seconds=_HEARTBEAT_SECONDS,
                shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
            )
        except (ValueError, RuntimeError) as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise UsageError(
                f"--distributed: {lines[0]} (off TPU pods and SLURM, give --coordinator_address, "
                "--num_processes and --process_id)"
            ) from error


def _number(flag: int | None, variable: str) -> int | None:
    text = os.environ.get(variable)
    if flag is not None or not text:
        return flag
    if not text.isdecimal():
        raise UsageError(f"${variable} must be a whole number; got {text!r}")
    return int(text)


@contextlib.contextmanager
def _signals_end_it() -> Iterator[None]:
    """A signal ends the process at once, in one line, though the body waits in C++.

    Python's handlers would run when it returns. A thread reads what Python's own in C writes.
    """
    reader, writer = socket.socketpair()
    writer.setblocking(False)  # or Python warns

    def watch():
        number = reader.recv(1)[0]
        if number:
            _end(128 + number, str(commands.Stopped(number)))

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    usual = signal.set_wakeup_fd(writer.fileno())
    try:
        yield
    finally:
        signal.set_wakeup_fd(usual)
        writer.send(b"\0")  # behind a signal that came before
        thread.join()


@contextlib.contextmanager
def deadline(seconds: float, message: str) -> Iterator[None]:
    """Ends the process with one line, status 1, if the body takes longer."""
    done = threading.Event()

    def watch():
        if not done.wait(seconds):
            _end(1, f"error: {message}")

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        done.set()


def _end(status: int, line: str) -> None:
    """Ends without asking the other hosts; JAX's own end would wait for them."""
    print(line, file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _leave(error: BaseException) -> None:
    who = f"host {jax.process_index()} of {jax.process_count()}"
    reason = (str(error).strip().splitlines() or [""])[0]
    if not isinstance(error, (UsageError, jax.errors.JaxRuntimeError, commands.Stopped)):
        traceback.print_exception(error)
    if jax.process_index() == 0:
        time.sleep(2)  # its end aborts the others: let them say theirs first
    if isinstance(error, commands.Stopped):
        _end(128 + error.number, f"\n{who} was {reason}")  # not behind a bar
    if isinstance(error, UsageError):
        _end(2, f"error: {reason}")
    if isinstance(error, jax.errors.JaxRuntimeError):
        reason = f"another host has probably died; the same command goes on ({reason[:200]})"
    _end(1, f"error: {who} ends: {reason or type(error).__name__}")


def on_first(work_fn: Callable[[], int | None]) -> int:
    """work_fn() on the first host, while the others wait; its exit status, on all.

    Raises:
      UsageError: on every host, if work_fn raised one.
    """
    status, error = 0, None
    if is_first():
        try:
            status = work_fn() or 0
        except UsageError as refused:
            status, error = 2, refused
    status = int(parallel.from_first_host(np.int32(status)))
    if error is not None:
        raise error
    if status == 2:
        raise UsageError("the first host refuses: see its message")
    return status


def first_on_one(check_fn: Callable[[], None]) -> None:
    """Calls check_fn on the first host, then on the others; what it refuses, all refuse."""
    on_first(check_fn)
    if not is_first():
        check_fn()


def is_first() -> bool:
    """Whether this is the host that writes what is written once."""
    return jax.process_index() == 0


class Stop:
    """Turns SIGTERM, SIGINT and SIGHUP into one stop of a loop of steps, alike on all hosts.

    One process catches them itself. On several SIGTERM is JAX's: it tells the other hosts and
    finds a step that all can still reach.
    """

    def __init__(self) -> None:
        self._received = self._calls = 0
        if jax.process_count() == 1:
            for number in commands.SIGNALS:
                signal.signal(number, self._receive)

    def _receive(self, number, frame):
        del frame
        self._received = number
        signal.signal(number, signal.SIG_DFL)

    def asked(self) -> int:
        """The signal to stop for, or 0; to be called once a step, on every host."""
        if not self._received and parallel.reached_sync_point(self._calls):
            self._received = signal.SIGTERM
        self._calls += 1
        return self._received
