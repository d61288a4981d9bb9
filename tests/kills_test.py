"""kill -9 at random moments, also in the middle of a save: the same command goes on, bit for bit.

Oracle: the same run, never disturbed; of the best checkpoint, its own lines of heldout.jsonl.
"""

import random
import time

import jax
import numpy as np
import processes
import pytest

STEPS = 60


# Eight images, learned so fast that held-out ones are restored best long before the end.
FAST = (
    f"--config.train.steps={STEPS}",
    "--config.train.learning_rate=0.03",
    "--config.train.warmup=0",
    "--config.data.limit=8",
    "--config.run.checkpoint_every=5",
    "--config.run.evaluate_every=10",
)


def train(folder, name):
    return processes.start(folder, *FAST, f"--workdir={folder / name}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = processes.prepare(tmp_path_factory.mktemp("kills"))
    processes.complete([train(folder, "undisturbed")])
    lines = processes.lines(folder / "undisturbed", "heldout.jsonl")
    best = min(lines, key=lambda line: line["loss"])["step"]
    assert processes.saved_steps(folder / "undisturbed") == [best, STEPS - 5, STEPS]
    return folder


def half_saved(workdir):
    """Checkpoints that are being written: orbax renames them when they are whole."""
    found = (workdir / "checkpoints").glob("*.orbax-checkpoint-tmp*")
    return {path.name.partition(".")[0] for path in found}


def kill(process, workdir, chance):
    """Kills a training; None if it ended before, else whether it was in the middle of a save."""
    saves = chance.randint(0, 2)  # seen before the kill: 0 while it starts, up to the first steps
    delay = chance.uniform(0, 5) if saves == 0 else chance.choice([0, 0, chance.uniform(0, 0.05)])
    left, seen = half_saved(workdir), set()
    while len(seen) < saves and process.poll() is None:
        seen |= half_saved(workdir) - left
        time.sleep(0.001)
    time.sleep(delay)
    process.kill()
    process.communicate()
    return None if process.returncode >= 0 else half_saved(workdir) > left


def equal_runs(one, other):
    assert processes.saved_steps(one) == processes.saved_steps(other)
    for step in processes.saved_steps(other):  # the last, the one before, the best
        jax.tree.map(
            np.testing.assert_array_equal, *(processes.saved(run, step) for run in (one, other))
        )
    for name in ("metrics.jsonl", "heldout.jsonl"):
        assert processes.lines(one, name) == processes.lines(other, name)


def disturb(folder, seed, kills):
    """Runs, each killed over and over, until there were so many kills; all end as undisturbed."""
    chance, hit, name = random.Random(seed), [], 0
    while len(hit) < kills:
        workdir = folder / f"{seed}_{name}"
        found = kill(train(folder, workdir.name), workdir, chance)
        if found is None:
            equal_runs(workdir, folder / "undisturbed")
            name += 1
        else:
            hit.append(found)
    workdir = folder / f"{seed}_{name}"
    processes.complete([train(folder, workdir.name)])
    equal_runs(workdir, folder / "undisturbed")
    return hit


def test_five_kills_lose_nothing(folder):
    assert any(disturb(folder, 0, 5))  # one was in the middle of a save


@pytest.mark.soak
@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_twenty_kills_lose_nothing(folder, seed):
    disturb(folder, seed, 5)
