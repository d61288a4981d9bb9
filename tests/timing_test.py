"""Oracle: hand computation; clocks and counters that the test itself turns."""

import numpy as np

from experiments.lib import timing


def test_clock_takes_turns_and_tells_the_quartiles(monkeypatch):
    now, calls = [0.0], []
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    # Seconds of the calls of "slow"; the first is to compile and does not count.
    lasting = iter([100, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5])

    def slow():
        calls.append("slow")
        now[0] += next(lasting)

    def fast():
        calls.append("fast")
        now[0] += 0.5

    times = timing.clock({"slow": slow, "fast": fast}, rounds=5, calls=2)
    assert times["slow"] == (3000, 2000, 4000)
    assert times["fast"] == (500, 500, 500)
    assert calls == ["slow", "fast"] + 5 * ["slow", "slow", "fast", "fast"]


def test_ratio_is_held_to_its_bound():
    assert timing.ratio("", 2.0, at_least=2).met
    assert not timing.ratio("", 1.9, at_least=2).met
    assert timing.ratio("", 1.1, at_most=1.1).met
    assert not timing.ratio("", 1.2, at_most=1.1).met
    assert timing.ratio("", 5.0).met is None


def test_others_are_what_we_are_not(tmp_path, monkeypatch):
    # In ticks: user, nice, system, idle, iowait, irq, softirq, steal.
    ticks = iter(["100 0 0 9 9 0 0 9", "500 20 40 99 99 20 20 99"])
    path = tmp_path / "stat"
    monkeypatch.setattr(timing.pathlib, "Path", lambda _: path)
    monkeypatch.setattr(timing.os, "sysconf", lambda _: 100)
    # Ours: 1 s, then 1 + 2 s, of which half by a child.
    own = iter([(0.5, 0, 0.5, 0, 0), (1, 0.5, 1, 0.5, 0)])
    monkeypatch.setattr(timing.os, "times", lambda: next(own))
    now = iter([10.0, 12.0])
    monkeypatch.setattr(timing.time, "perf_counter", lambda: next(now))
    path.write_text(f"cpu  {next(ticks)}\ncpu0 7\n")
    others = timing.Others()
    path.write_text(f"cpu  {next(ticks)}\ncpu0 7\n")
    # 5 s passed on all, 2 of them ours, in 2 s: the others kept 1.5 CPUs busy.
    np.testing.assert_allclose(others.busy(), 1.5)


def test_a_disturbed_row_is_not_quoted():
    row = timing.Row("a step", 3.0, "ms", 2.0, 4.0, "< 5", True)
    assert timing.quoted([row], 0.2) == [row]
    (line,) = timing.markdown(timing.quoted([row], 1.25)).splitlines()[2:]
    assert line == "| a step | not quoted: other programs kept 1.2 CPUs busy |  | < 5 |  |"


def test_numbers_are_written_for_reading():
    rows = [timing.Row("", value, "x", 0.012345, 12.345) for value in (10389.2, 0.98001, 2.5e-5)]
    lines = timing.markdown(rows).splitlines()[2:]
    assert lines == [
        f"|  | {shown} x | 0.0123 to 12.3 |  |  |" for shown in ("10,389", "0.98", "2.5e-05")
    ]


def test_a_missing_package_is_named():
    assert timing.missing("numpy", "no_such_package") == ["no_such_package"]
    row = timing.skipped("a step", "no_such_package")
    assert timing.markdown([row]).splitlines()[2] == (
        "| a step | skipped: no_such_package not installed |  |  |  |"
    )
