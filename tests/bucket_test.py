"""A workdir in a bucket (gs://), against an emulator of one: tests/bucket.py.

It needs `pip install gcsfs`. Oracle: the same commands in a folder of this disk.
"""

import json
import signal
import subprocess
import sys
import time

import bucket as buckets
import kills_test
import numpy as np
import processes
import pytest
from PIL import Image

from diffjax import data

pytestmark = pytest.mark.pods
pytest.importorskip("gcsfs")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return processes.prepare(tmp_path_factory.mktemp("bucket"))


@pytest.fixture(scope="module")
def bucket():
    with pytest.MonkeyPatch.context() as patched, buckets.Bucket("bucket") as bucket:
        for name, value in bucket.environment().items():
            patched.setenv(name, value)
        yield bucket


def copied(bucket, tmp_path, name):
    """What lies in a folder of the bucket, as files."""
    bucket.copy_to(tmp_path)
    return tmp_path / name


def train(folder, place, *arguments):
    return processes.start(folder, *kills_test.FAST, *arguments, f"--workdir={place}")


@pytest.fixture(scope="module")
def runs(folder, bucket):
    """(the workdir on this disk, the one in the bucket): the second was killed in a save."""
    on_disk, place = folder / "run", "gs://bucket/run"
    processes.complete([train(folder, on_disk)])
    bucket.withheld = "run/checkpoints/40/commit_success.txt"
    killed = train(folder, place)
    assert bucket.reached.wait(300), killed.communicate()
    killed.kill()
    killed.communicate()
    bucket.withheld = None
    assert bucket.names("run/checkpoints/40/")
    assert "owner" in bucket.names("run/")
    ((status, _, said),) = processes.finish([train(folder, place)])
    assert status == 0, said
    assert f"waiting up to 60 s whether {place}/owner is still written" in said
    return on_disk, place


def test_a_run_that_was_killed_in_a_save_is_that_on_a_disk(runs, bucket, tmp_path):
    in_bucket = copied(bucket, tmp_path, "run")
    kills_test.equal_runs(in_bucket, runs[0])
    on_disk = {path.name for path in runs[0].iterdir()}
    assert bucket.names("run/") == on_disk - {"lock"}
    assert json.loads((in_bucket / "config.json").read_text()) == json.loads(
        (runs[0] / "config.json").read_text()
    )
    assert len(json.loads((in_bucket / "run.json").read_text())["starts"]) == 2
    for name in ("heldout.png", "loss.png", "severity.png"):
        Image.open(in_bucket / name).verify()


def both(folder, runs, script, *arguments, output=None):
    """One command, told of each of the two runs; both must end in the same way."""
    outputs = [[]] * 2
    if output is not None:
        outputs = [[f"--output={folder / f'{output}_{name}'}"] for name in ("on_disk", "in_bucket")]
    pair = [
        processes.start(folder, f"--workdir={run}", *arguments, *where, script=script)
        for run, where in zip(runs, outputs, strict=True)
    ]
    ended = processes.finish(pair)
    assert ended[0][0] == ended[1][0] < 2, ended
    return ended


def test_every_command_reads_a_bucket(folder, runs, bucket, tmp_path):
    images = data.load("digits", "test").fetch_fn(range(3))["image"]
    np.save(folder / "images.npy", images)
    both(folder, runs, "evaluate", "--images=32")
    both(folder, runs, "sample")
    both(folder, runs, "sample", "--num=12")
    both(folder, runs, "sample", "--num=40")  # more of them
    both(folder, runs, "audit", "--images=32", "--steps=20")
    both(folder, runs, "export", output="export")
    both(folder, runs, "restore", f"--input={folder / 'images.npy'}", "--degrade", output="restore")
    in_bucket = copied(bucket, tmp_path, "run")
    for name, parts in (("evaluation", ["methods"]), ("audit", ["checks", "severities"])):
        one, other = (
            json.loads((run / f"{name}.json").read_text()) for run in (in_bucket, runs[0])
        )
        for part in parts:
            assert one[part] == other[part]
    names = sorted(path.name for path in (runs[0] / "generated").iterdir())
    assert sorted(path.name for path in (in_bucket / "generated").iterdir()) == names
    for name in (name for name in names if name.endswith((".npz", ".png", ".gif"))):
        one, other = ((run / "generated" / name).read_bytes() for run in (in_bucket, runs[0]))
        assert one == other, name
    for script in ("export", "restore"):
        one, other = (folder / f"{script}_{name}" for name in ("on_disk", "in_bucket"))
        for path in one.iterdir():
            if path.name not in ("settings.json", "model.json"):
                assert path.read_bytes() == (other / path.name).read_bytes(), path


def test_the_others_are_refused_and_a_stop_leaves_no_owner(folder, bucket, tmp_path):
    place = "gs://bucket/held"
    with train(folder, place, "--config.train.steps=100000") as first:
        while not bucket.names("held/checkpoints/"):
            assert first.poll() is None, first.communicate()
            time.sleep(0.05)
        ended = processes.finish([train(folder, place, "--config.train.steps=100000")])
        first.send_signal(signal.SIGTERM)
        ((status, out, said),) = processes.finish([first])
    assert (ended[0][0], ended[0][1]) == (2, ""), ended
    assert f"error: {place} is being trained in by process {first.pid} on" in ended[0][2]
    assert status == 143, said
    assert "owner" not in bucket.names("held/")
    workdir = copied(bucket, tmp_path, "held")
    last = processes.saved_steps(workdir)[-1]
    assert f"interrupted at step {last:,}" in out
    assert processes.lines(workdir)[-1]["step"] in range(last - 5, last + 1)


def test_two_hosts_train_in_a_bucket_as_one_does_on_a_disk(folder, bucket, tmp_path):
    steps = "--config.train.steps=40"
    place = "gs://bucket/two"
    screen, _ = processes.complete(processes.start_two(folder, steps, f"--workdir={place}"))
    assert f"workdir  {place}: all hosts write there and see the others' files" in screen
    processes.complete([processes.start(folder, steps, f"--workdir={folder / 'one'}", devices=4)])
    two = processes.losses(copied(bucket, tmp_path, "two"))
    assert two == pytest.approx(processes.losses(folder / "one"), rel=1e-3)
    assert not [name for name in bucket.names("two/") if "preflight" in name]


LOOKS_TWICE = """
import sys
from experiments.lib import commands, files
place = files.folder(sys.argv[1])
commands._reach_bucket("workdir", sys.argv[1])
for _ in range(2):
    print(len(list(place.iterdir())), (place / "a").read_text(), flush=True)
    sys.stdin.readline()
"""


def test_what_others_write_is_seen(folder, bucket):
    bucket.put("others/a", b"1")
    with subprocess.Popen(
        [sys.executable, "-c", LOOKS_TWICE, "gs://bucket/others"], cwd=folder, text=True,
        env=processes.environment(folder), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as child:  # fmt: skip
        assert child.stdout.readline() == "1 1\n"
        bucket.put("others/a", b"23")
        bucket.put("others/b", b"")
        child.stdin.write("\n")
        child.stdin.flush()
        assert child.stdout.readline() == "2 23\n"
        child.communicate("\n")


@pytest.mark.parametrize("place", ["gs://absent/run", "gs://bucket"])
def test_a_bucket_that_is_not_there_is_one_line(folder, bucket, place):
    ((status, out, said),) = processes.finish([train(folder, place)])
    assert (status, out, len(said.splitlines())) == (2, "", 1), said
    assert said.startswith(f"error: --workdir={place}")
