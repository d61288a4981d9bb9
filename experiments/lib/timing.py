"""What a benchmark is made of: fair rounds, medians with quartiles, rows, and a quiet machine."""

import importlib.util
import os
import pathlib
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np


class Row(NamedTuple):
    """One line of the table: a value, its quartiles, and what was promised of it."""

    what: str
    value: float | None
    unit: str
    low: float | None = None
    high: float | None = None
    target: str = ""
    met: bool | None = None


class Times(NamedTuple):
    """Milliseconds of one call: the median over rounds, and the quartiles."""

    median: float
    low: float
    high: float

    def row(self, what: str) -> Row:
        return Row(what, self.median, "ms", self.low, self.high)


def clock(contenders: dict[str, Callable], rounds: int, calls: int = 1) -> dict[str, Times]:
    """How long each takes over the rounds, in every one of which all have their turn.

    A turn of several calls counts as their mean. Each is called once before, to compile.
    """
    for call in contenders.values():
        jax.block_until_ready(call())
    ms = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, call in contenders.items():
            start = time.perf_counter()
            for _ in range(calls):
                jax.block_until_ready(call())
            ms[name].append(1e3 * (time.perf_counter() - start) / calls)
    return {
        name: Times(*map(float, np.quantile(values, (0.5, 0.25, 0.75))))
        for name, values in ms.items()
    }


def ratio(
    what: str, value: float, *, at_least: float | None = None, at_most: float | None = None
) -> Row:
    """A row of a quotient and, where one was promised, its bound."""
    if at_least is not None:
        return Row(what, value, "x", target=f">= {at_least:,g}", met=value >= at_least)
    if at_most is not None:
        return Row(what, value, "x", target=f"<= {at_most:,g}", met=value <= at_most)
    return Row(what, value, "x")


def missing(*packages: str) -> list[str]:
    """Those of the packages that are not installed."""
    return [name for name in packages if importlib.util.find_spec(name) is None]


def skipped(what: str, *packages: str) -> Row:
    return Row(what, None, f"skipped: {', '.join(packages)} not installed")


class Others:
    """How many CPUs other programs have kept busy since this was made, on average.

    Our own threads are no disturbance, so the load average, which counts them, says less.
    Where /proc/stat is not, it answers 0.
    """

    def __init__(self):
        self.start, self.seconds = time.perf_counter(), self._seconds()

    def _seconds(self) -> float:
        path = pathlib.Path("/proc/stat")
        if not path.exists():
            return 0.0
        user, nice, system, _idle, _wait, irq, softirq = map(
            int, path.read_text().split("\n", 1)[0].split()[1:8]
        )
        ticks = user + nice + system + irq + softirq
        return ticks / os.sysconf("SC_CLK_TCK") - sum(os.times()[:4])

    def busy(self) -> float:
        passed = time.perf_counter() - self.start
        return max(0.0, self._seconds() - self.seconds) / passed


def quoted(rows: list[Row], others: float) -> list[Row]:
    """The rows, without what was measured while other programs kept the machine busy."""
    if others <= 0.5:
        return rows
    reason = f"not quoted: other programs kept {others:.1f} CPUs busy"
    return [row._replace(value=None, unit=reason, low=None, high=None, met=None) for row in rows]


def markdown(rows: list[Row]) -> str:
    lines = ["| | median | quartiles | target | met |", "|---|---|---|---|---|"]
    for row in rows:
        value = row.unit if row.value is None else f"{_digits(row.value)} {row.unit}".rstrip()
        spread = "" if row.low is None else f"{_digits(row.low)} to {_digits(row.high)}"
        met = "" if row.met is None else ("yes" if row.met else "NO")
        lines.append(f"| {row.what} | {value} | {spread} | {row.target} | {met} |")
    return "\n".join(lines)


def _digits(value: float) -> str:
    """Three digits, and all of those before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
