"""A run watched while it trains: what is there after kill -9, and what the numbers mean.

Oracles: `experiments.evaluate` of the same parameters on the same images; the format of TFRecord,
length, checksum, record, checksum, read here by hand, its records by tensorboardX's protocol.
"""

import io
import json
import pathlib
import signal
import struct
import subprocess
import sys
import time

import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

ROOT = pathlib.Path(__file__).parents[1]
CONFIG = "--config=experiments/configs/digits_deblur.py"
SHORT = ["--config.model.width=8", "--config.model.multipliers=(1,)", "--config.train.batch_size=8",
         "--config.train.steps=100000", "--config.run.checkpoint_every=50",
         "--config.run.evaluate_every=50", "--config.run.keep=100",
         "--config.train.perturbation=0.0"]  # which evaluation does not add  # fmt: skip


def saved_steps(workdir):
    names = (path.name for path in (workdir / "checkpoints").glob("*"))
    return sorted(int(name) for name in names if name.isdecimal())


def killed_after(env, workdir, step):
    """Trains there until that step is saved, and kills; the last saved step."""
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments.train", CONFIG, *SHORT, f"--workdir={workdir}"],
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        while saved_steps(workdir)[-1:] < [step]:
            assert process.poll() is None, process.communicate()
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
    return saved_steps(workdir)[-1]


def held_out(workdir):
    return [json.loads(line) for line in (workdir / "heldout.jsonl").read_text().splitlines()]


def events(workdir):
    """(step, tag, value) of all that TensorBoard would show; None for an image."""
    for path in sorted((workdir / "tensorboard").glob("events.*")):
        content, place = path.read_bytes(), 0
        while place + 12 <= len(content):
            (length,) = struct.unpack_from("<Q", content, place)
            record = content[place + 12 : place + 12 + length]
            place += 12 + length + 4
            if len(record) < length:
                break  # it was being written
            event = Event.FromString(record)
            for value in event.summary.value:
                number = None if value.HasField("image") else value.simple_value
                yield event.step, value.tag, number


@pytest.fixture(scope="module")
def killed(env, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("killed") / "run"
    return workdir, killed_after(env, workdir, 150)


def test_curves_and_pictures_are_there_after_a_kill(killed):
    workdir, _ = killed
    lines = held_out(workdir)
    assert [line["step"] for line in lines][:3] == [50, 100, 150]
    assert set(lines[0]["checks"]) == {"target", "time", "calibration", "floor"}
    for name in ("loss.png", "severity.png", "heldout.png"):
        with Image.open(workdir / name) as picture:
            assert min(picture.size) > 50
    shown = {(step, tag): value for step, tag, value in events(workdir)}
    tags = {tag for _, tag in shown}
    assert {"loss", "severity/loss_0.1", "severity/rmse_1.0", "heldout/images"} <= tags
    assert "_hparams_/experiment" in tags
    for line in lines[:3]:
        assert shown[line["step"], "heldout/images"] is None
        rmses = line["severity"]["rmse"]
        assert shown[line["step"], "severity/heldout_rmse_1.0"] == pytest.approx(rmses[-1])


def test_tensorboard_itself_reads_it(killed):
    """Its own reader, where it is installed: .venv/bin/pip install tensorboard."""
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    workdir, _ = killed
    found = reader.EventAccumulator(str(workdir / "tensorboard")).Reload()
    assert found.Tags()["images"] == ["heldout/images"]
    picture = Image.open(io.BytesIO(found.Images("heldout/images")[0].encoded_image_string))
    assert min(picture.size) > 50
    for line, event in zip(held_out(workdir), found.Scalars("heldout/rmse"), strict=False):
        assert (event.step, event.value) == (line["step"], pytest.approx(line["rmse"]))
    written = {tag for _, tag, value in events(workdir) if value is not None}
    hparams = {tag for tag in written if tag.startswith("_hparams_/")}
    assert written - hparams == {*found.Tags()["scalars"]}
    assert hparams == {*found.PluginTagToContent("hparams")}


def test_the_numbers_are_those_of_evaluate(killed, env):
    workdir, last = killed
    command = [sys.executable, "-m", "experiments.evaluate", f"--workdir={workdir}", "--images=32"]
    subprocess.run(command, cwd=ROOT, env=env, check=True, capture_output=True, timeout=300)
    report = json.loads((workdir / "evaluation.json").read_text())
    assert report["step"] == last
    (line,) = (line for line in held_out(workdir) if line["step"] == last)
    assert line["severity"]["rmse"][-1] == pytest.approx(
        report["methods"]["direct"]["rmse"], rel=1e-5
    )


def test_every_line_once_after_going_on(killed, env):
    workdir, last = killed
    before = {line["step"]: line for line in held_out(workdir) if line["step"] <= last}
    # What a kill between a look and its checkpoint leaves, and one amid a line.
    with (workdir / "heldout.jsonl").open("a") as file:
        file.write(json.dumps(before[last] | {"step": last + 50}) + '\n{"step": 2')
    killed_after(env, workdir, last + 50)
    lines = held_out(workdir)
    steps = [line["step"] for line in lines]
    assert steps == list(range(50, steps[-1] + 1, 50))
    assert steps[-1] > last
    assert {line["step"]: line for line in lines if line["step"] <= last} == before
