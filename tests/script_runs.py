"""Commands run in this process, as a shell would start them, and small runs to try them on."""

import contextlib
import io
import pathlib
import re
import runpy
import signal
import subprocess
import sys
import warnings

from absl import flags

ROOT = pathlib.Path(__file__).parents[1]
CONFIG = f"--config={ROOT}/experiments/configs/digits_deblur.py"
# The smallest network, so that what is tested is the script.
TINY = [
    "--config.model.width=8",
    "--config.model.multipliers=(1,)",
    "--config.train.batch_size=8",
    "--config.sample.batch_size=8",
    "--config.sample.steps=2",
    "--config.prior.images=32",
]


def call(script, *arguments):
    """(exit status, stdout, stderr) of `python -m experiments.<script> arguments`."""
    held = _remove_flags()  # two scripts may share a flag
    handlers = {number: signal.getsignal(number) for number in (1, 2, 15)}
    argv, sys.argv = sys.argv, [script, *map(str, arguments)]
    out, err = io.StringIO(), io.StringIO()
    status = None
    try:
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("default")
            try:
                runpy.run_path(str(ROOT / "experiments" / f"{script}.py"), run_name="__main__")
            except SystemExit as end:
                status = end.code
    finally:
        sys.argv = argv
        _remove_flags()
        for name, flag in held.items():
            flags.FLAGS[name] = flag
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return status, out.getvalue(), err.getvalue()


def process(env, script, *arguments):
    """The same as a process of its own, that has ended."""
    return subprocess.run(
        [sys.executable, "-m", f"experiments.{script}", *map(str, arguments)],
        cwd=ROOT,
        env=env,
        text=True,
        capture_output=True,
        timeout=500,
    )


def _remove_flags():
    """Forgets the flags of scripts, and returns them."""
    texts = [path.read_text() for path in (ROOT / "experiments").glob("*.py")]
    names = {name for text in texts for name in re.findall(r'DEFINE_\w+\(\s*"(\w+)"', text)}
    found = {
        name: flags.FLAGS[name]
        for name in list(flags.FLAGS)
        if name in names or name.startswith("config.")
    }
    flags.FLAGS.remove_flag_values(found)
    return found


def train(workdir, *arguments):
    return call("train", CONFIG, *TINY, f"--workdir={workdir}", *arguments)
