"""How a command starts and ends: flags, help, one line for what the user got wrong."""

import contextlib
import logging
import sys
import warnings
from collections.abc import Callable, Iterator

from absl import flags
from absl import logging as absl_logging


class UsageError(ValueError):
    """A wrong flag, config or workdir; reported in one line, exit status 2."""


def run(main: Callable[[], int | None]) -> None:
    """Parses the flags and runs main; what the user got wrong ends in one line and status 2.

    --help prints the command's docstring and its own flags, and exits 0.
    """
    absl_logging.set_verbosity(absl_logging.ERROR)
    logging.getLogger("jax").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=UserWarning, module="orbax")
    if {"--help", "-help", "-h", "--helpfull"} & set(sys.argv[1:]):
        _help()
        sys.exit(0)
    with usage_errors(Exception):
        try:
            rest = flags.FLAGS(sys.argv)
        except (AttributeError, KeyError) as error:
            message = error.args[0]
            if isinstance(message, KeyError):  # its str would be a repr
                message = message.args[0]
            raise UsageError(f"no config field {' '.join(str(message).split())}") from error
        if len(rest) > 1:
            raise UsageError(f"unexpected argument {rest[1]!r}: flags are written --name=value")
    with usage_errors():
        sys.exit(main() or 0)


def _help() -> None:
    print((sys.modules["__main__"].__doc__ or "").strip(), end="\n\nFlags:\n")
    own = flags.FLAGS.get_flags_for_module(sys.argv[0])
    for flag in own + flags.FLAGS.get_flags_for_module("experiments.lib.hosts"):
        default = "" if flag.default is None else f" Default: {flag.default}."
        print(f"  --{flag.name}: {flag.help}{default}")
        if flag.name == "config":
            print("  --config.FIELD=VALUE: any field of the config, see experiments/configs")


@contextlib.contextmanager
def usage_errors(*kinds: type[Exception]) -> Iterator[None]:
    """Turns UsageError, and the kinds given, into one line on stderr and exit status 2."""
    try:
        yield
    except (UsageError, *kinds) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        print(f"error: {lines[0]}", file=sys.stderr)
        sys.exit(2)
