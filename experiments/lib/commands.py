"""How a command starts and ends: flags, help, signals, one line for what the user got wrong."""

import contextlib
import gc
import importlib.metadata
import importlib.util
import logging
import os
import pathlib
import re
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Collection, Iterator

import jax
from absl import flags
from absl import logging as absl_logging

from diffjax import cache

_CACHE = flags.DEFINE_bool("compilation_cache", True, "Keep compiled programs for the next run.")
_KEPT_BYTES = 2**30
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class UsageError(ValueError):
    """A wrong flag, config or workdir; reported in one line, exit status 2."""


class Stopped(BaseException):
    """A signal that ends the command: its number, and how to go on."""

    again = "the same command starts anew"  # or what `run` was told

    def __init__(self, number: int):
        super().__init__(f"stopped by {signal.Signals(number).name}: {self.again}")
        self.number = number


def run(
    main: Callable[..., int | None],
    *,
    again: str = Stopped.again,
    operands: bool = False,
    buckets: Collection[str] = (),
) -> None:
    """Parses the flags and runs main; what the user got wrong ends in one line and status 2.

    --help prints the command's docstring and its own flags, and exits 0. SIGTERM, SIGINT and
    SIGHUP end it in one line that says `again`, with status 128 + signal. Where nobody reads
    what it prints any more, the work goes on. operands: main is given what is no flag. buckets:
    the flags that may name a place in one (gs://BUCKET/NAME).
    """
    sys.stdout, sys.stderr = _Lasting(sys.stdout), _Lasting(sys.stderr)
    absl_logging.set_verbosity(absl_logging.FATAL)
    logging.getLogger("jax").setLevel(logging.ERROR)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # writes that fail after the first one
    warnings.filterwarnings("ignore", category=UserWarning, module="orbax")
    warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    sys.unraisablehook = _unraisable
    if {"--help", "-help", "-h", "--helpfull"} & set(sys.argv[1:]):
        _help()
        sys.exit(0)
    with usage_errors():
        rest = _parsed()
        if len(rest) > 1 and not operands:
            raise UsageError(f"unexpected argument {rest[1]!r}: flags are written --name=value")
        for name in ("workdir", "init", "output", "generated"):
            place = flags.FLAGS[name].value if name in flags.FLAGS else None
            if "://" in (place or ""):
                if name not in buckets or not re.match("gs://[^/]+/[^/]", place):
                    raise UsageError(f"--{name}={place} is no folder: give one on this disk")
                _reach_bucket(name, place)
    Stopped.again = again
    for number in SIGNALS:
        signal.signal(number, _stop)
    _set_xla_flags()
    gc.set_threshold(100_000)  # tracing makes many objects, of which hardly any is a cycle
    if _CACHE.value:
        _keep_compiled()
    try:
        with usage_errors(OSError, MemoryError):
            status = main(*rest[1:]) or 0
    except Stopped as stopped:
        status = 128 + stopped.number
        print(stopped, file=sys.stderr)
    sys.stdout.flush()
    sys.exit(status)


def _reach_bucket(name: str, place: str) -> None:
    """Raises UsageError where the packages for gs:// are absent, or the bucket cannot be read."""
    try:
        import fsspec
        import gcsfs  # noqa: F401
        from etils import epath
    except ModuleNotFoundError as error:
        missing = error.name
        raise UsageError(f"--{name}={place} needs {missing}: pip install gcsfs") from error
    # Other hosts write there, too.
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
    try:
        epath.Path("/".join(place.split("/")[:3])).stat()
    except Exception as error:  # whatever networks, credentials and buckets raise
        reason = (str(error).strip().splitlines() or [""])[0]
        raise UsageError(
            f"--{name}={place}: the bucket cannot be read: {type(error).__name__}: {reason}"
        ) from error


def _set_xla_flags() -> None:
    """On a CPU: no fusions with YNNPACK, by which a U-Net's step is faster by a quarter, and LLVM's
    first level of optimization, by which it is as fast, and a fifth cheaper to compile.

    See docs/performance.md. XLA ends the process at a flag that it does not know, so it is told of
    these where that was tried. The level would count for GPUs as well, which need a higher one.
    """
    if not (0, 10) <= jax.version.__version_info__ < (0, 13):
        return
    given = os.environ.get("XLA_FLAGS", "")
    own = ["--xla_cpu_experimental_ynn_fusion_type="]
    if _has_only_a_cpu():
        own.append("--xla_backend_optimization_level=1")
    absent = [flag for flag in own if flag.partition("=")[0] not in given]
    os.environ["XLA_FLAGS"] = " ".join([given, *absent]).strip()


def _has_only_a_cpu() -> bool:
    """Whether JAX will find no other platform; when it has looked, its flags were read."""
    if jax.config.jax_platforms:
        return jax.config.jax_platforms == "cpu"
    others = map(importlib.util.find_spec, ("jax_plugins", "libtpu"))
    return not (any(others) or importlib.metadata.entry_points(group="jax_plugins"))


def _keep_compiled() -> None:
    """Lets JAX keep what it compiles beside our own cache, unless it was told where to."""
    root = cache.folder()
    if root is None or jax.config.jax_compilation_cache_dir is not None:
        return
    folder = root / "compiled"
    with contextlib.suppress(OSError):
        _bound(folder, _KEPT_BYTES)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # A command makes a hundred small programs beside the large one.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def _bound(folder: pathlib.Path, most: int) -> None:
    """Removes the oldest files of a folder until the others hold no more than so many bytes."""
    entries = [(path.stat(), path) for path in folder.glob("*")]
    held = 0
    for facts, path in sorted(entries, key=lambda entry: entry[0].st_mtime, reverse=True):
        held += facts.st_size
        if held > most:
            path.unlink(missing_ok=True)


def _parsed() -> list[str]:
    """What is left of the command line; the flags are set.

    Raises:
      UsageError: naming the field that a config has not, or what is wrong with its file.
    """
    try:
        with warnings.catch_warnings():  # how ml_collections loads a config's file
            warnings.simplefilter("ignore", DeprecationWarning)
            return flags.FLAGS([sys.argv[0], *map(_expanded, sys.argv[1:])])
    except (AttributeError, KeyError) as error:
        message = error.args[0]
        if isinstance(message, KeyError):  # its str would be a repr
            message = message.args[0]
        raise UsageError(f"no config field {' '.join(str(message).split())}") from error
    except flags.Error as error:
        first, *rest = str(error).strip().splitlines()
        # A traceback follows where the file raised.
        raise UsageError(f"{first} {rest[-1]}" if rest else first) from error
    except (Exception, SystemExit) as error:
        reason = (str(error).strip().splitlines() or [""])[0]
        raise UsageError(f"--config cannot be loaded: {type(error).__name__}: {reason}") from error


def _stop(number, frame):
    del frame
    for other in SIGNALS:
        signal.signal(other, signal.SIG_DFL)  # a second one ends it at once
    raise Stopped(number)


def _unraisable(found, usual=sys.unraisablehook):
    # Reads of a damaged checkpoint that orbax leaves behind when the first of them fails.
    if "Event loop is closed" not in str(found.exc_value):
        usual(found)


def _expanded(argument: str) -> str:
    """~ in --name=~/somewhere, which a shell leaves as it is."""
    name, _, value = argument.partition("=")
    return f"{name}={os.path.expanduser(value)}" if re.match(r"~[\w-]*(/|$)", value) else argument


class _Lasting:
    """A stream that outlives its reader: what can no longer be written is dropped."""

    def __init__(self, stream):
        self._stream = stream

    def write(self, text: str) -> int:
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._try(lambda: self._stream.flush())

    def _try(self, action: Callable[[], object]) -> None:
        if self._stream is None:  # closed before the command began
            return
        try:
            action()
        except (OSError, ValueError):  # no reader, no disk, no terminal; closed
            stream, self._stream = self._stream, None
            with contextlib.suppress(Exception):
                # What still lies in its buffer must not fail again when Python ends.
                with open(os.devnull, "w") as nowhere:
                    os.dup2(nowhere.fileno(), stream.fileno())

    def __getattr__(self, name: str):
        if self._stream is None:
            return getattr(sys.__stdout__, name)
        return getattr(self._stream, name)


def _help() -> None:
    print((sys.modules["__main__"].__doc__ or "").strip(), end="\n\nFlags:\n")
    modules = sys.argv[0], "experiments.lib.hosts", "experiments.lib.commands"
    for flag in [flag for name in modules for flag in flags.FLAGS.get_flags_for_module(name)]:
        default = "" if flag.default is None else f" Default: {flag.default}."
        print(f"  --{flag.name}: {flag.help}{default}")
        if flag.name == "config":
            print("  --config.FIELD=VALUE: any field of the config, see experiments/configs")


@contextlib.contextmanager
def told_if_slow(what: str, seconds: float = 10) -> Iterator[None]:
    """Says on stderr what is going on, if it goes on for long."""
    timer = threading.Timer(seconds, lambda: print(f"{what}; this takes long", file=sys.stderr))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextlib.contextmanager
def _told_if_device_is_full() -> Iterator[None]:
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise UsageError(
            "a device is out of memory: lower train.batch_size or sample.batch_size, or take a "
            f"smaller model ({str(error).splitlines()[0]})"
        ) from error


@contextlib.contextmanager
def usage_errors(*kinds: type[Exception]) -> Iterator[None]:
    """Turns UsageError, and the kinds given, into one line on stderr and exit status 2."""
    try:
        with _told_if_device_is_full():
            yield
    except (UsageError, *kinds) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        if isinstance(error, OSError) and error.strerror:
            where = error.filename2 or error.filename
            lines = [f"{where}: {error.strerror}" if where else error.strerror]
        print(f"error: {lines[0]}", file=sys.stderr)
        sys.exit(2)
