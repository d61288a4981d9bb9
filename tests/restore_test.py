"""Restoring a user's own images: what is read, what is restored, what is refused.

Oracles: files that Pillow wrote from pixels known here; the severity that the
test degraded with; scipy's iterated convolution for the blurred digits. The networks are all
zeros, and so is what they answer: the run on digits restores by the Wiener restorer, and
the run on colors, whose hole is of color 0, returns what it is given.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from images_test import BAD_FILES, COLOR, GRAY, SMOOTH, in_model_range, npy, png, saved
from PIL import Image
from scipy import ndimage

from diffjax import checkpoints, data
from experiments.configs import digits_deblur
from experiments.lib import build, images
from experiments.lib import runs as workdirs
from experiments.lib.commands import UsageError
from experiments.lib.config import resolve

ROOT = pathlib.Path(__file__).parents[1]
RNG = np.random.default_rng(0)


# Files


def test_channels():
    color = in_model_range(COLOR).astype(np.float32)
    gray, note = images.to_channels(color, 1)
    # Rec. 601; Pillow's own "L" rounds to 8 bits, its halves included.
    np.testing.assert_allclose(gray, color @ [[0.299], [0.587], [0.114]], atol=1e-6)
    expected = np.asarray(Image.fromarray(COLOR).convert("L"))
    np.testing.assert_allclose(gray[..., 0], in_model_range(expected), atol=1.01 / 127.5)
    assert note == "color to luminance"
    again, note = images.to_channels(gray, 3)
    np.testing.assert_array_equal(again, np.concatenate([gray] * 3, axis=-1))
    assert note == "gray to color"
    assert images.to_channels(gray, 1) == (gray, "")
    with pytest.raises(ValueError, match="2 channels, the run's images 3"):
        images.to_channels(np.zeros((8, 8, 2)), 3)


def test_nothing_is_overwritten(tmp_path):
    path = tmp_path / "a.png"
    images.write(path, np.full((2, 2, 1), 0.2, np.float32))
    # 0.2 is 1.2 * 127.5 = 153 of 255.
    np.testing.assert_array_equal(np.asarray(Image.open(path)), np.full((2, 2), 153))
    before = path.read_bytes()
    with pytest.raises(FileExistsError):
        images.write(path, np.zeros((2, 2, 1), np.float32))
    assert path.read_bytes() == before


# The script

STDS = (2.0, 3.0)  # of the hole of the run on colors


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Workdirs as training leaves them, but for their parameters, which are zeros."""
    root = tmp_path_factory.mktemp("runs")
    (root / "photos").mkdir()
    for i in range(20):
        (root / "photos" / f"{i:02d}.png").write_bytes(png(np.roll(COLOR, i, axis=0)))
    digits = digits_deblur.get_config()
    colors = digits_deblur.get_config()
    colors.data.update(name="folder", directory=str(root / "photos"))
    colors.degradation = {"family": "fade", "stds": STDS}
    colors.train.levels = 2
    noise = digits_deblur.get_config()
    noise.degradation = {"family": "gaussian_noise", "schedule": "cosine"}
    noise.train.levels = None
    for name, config in (("digits", digits), ("colors", colors), ("noise", noise)):
        config.model.update(width=8, multipliers=(1,))
        config = resolve(config)
        experiment, source = build.build(config, "train")
        workdirs.claim(root / name, config, {})
        about = {"fingerprint": data.fingerprint(source)}
        (root / name / "run.json").write_text(json.dumps({"starts": [about]}))
        workdirs.fit_or_load(experiment, source, root / name)
        manager = checkpoints.open_manager(root / name / "checkpoints")
        state = jax.eval_shape(experiment.initial_state)
        checkpoints.save(manager, 0, jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), state))
        manager.close()
    return root


# One interpreter for many command lines: what it has compiled serves them all.
RUN_CASES = """
import contextlib, io, json, os, signal, sys
from absl import flags
from experiments import restore
from experiments.lib import commands

write_fn = restore.images.write
results = []
for arguments in json.load(sys.stdin):
    for name in flags.FLAGS:
        flags.FLAGS[name].unparse()
    left = [int(one[5:]) for one in arguments if one.startswith("stop=")]
    sys.argv = ["restore", *(one for one in arguments if not one.startswith("stop="))]

    def write(path, image):
        if left and not left[0]:
            os.kill(os.getpid(), signal.SIGTERM)
        left[:] = [left[0] - 1] if left else []
        write_fn(path, image)

    restore.images.write = write
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            commands.run(restore.main, again="on it goes")
        except SystemExit as end:
            status = end.code
    results.append((status, out.getvalue(), err.getvalue()))
print(json.dumps(results))
"""
ENV = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {
    "JAX_PLATFORMS": "cpu",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
}


def blurred(x0, steps):
    kernel = np.exp(-0.5 * (np.arange(-2, 3) / 0.8) ** 2)
    for _ in range(steps):
        for axis in (1, 2):
            x0 = ndimage.convolve1d(x0, kernel / kernel.sum(), axis=axis, mode="mirror")
    return x0.astype(np.float32)


def lay_out(folder):
    """The inputs of all cases."""

    def put(path, content):
        path = folder / path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    clean = data.load("digits", "test").fetch_fn(range(40))["image"]
    put("mixed/stack.npy", npy(blurred(clean, 6)))
    ramp = np.repeat(np.arange(8, dtype=np.uint8)[:, None] * 30, 8, axis=1)
    put("mixed/gray.png", png(ramp))
    put("mixed/color.png", png(np.stack([ramp] * 3, axis=-1)))
    put("mixed/sixteen.png", png(ramp.astype(np.uint16) * 257))
    put("mixed/palette.png", saved(Image.fromarray(ramp).convert("P"), "PNG"))
    cmyk = Image.merge("CMYK", [Image.fromarray(ramp)] * 4)
    put("mixed/cmyk.jpg", saved(cmyk, "JPEG"))
    put("mixed/pair.npy", npy(np.zeros((2, 8, 8, 1), np.float32)))
    for name, (content, _) in BAD_FILES.items():
        put(f"mixed/{name}", content)
    put("mixed/large.png", png(np.zeros((9, 7), np.uint8)))
    put("mixed/channels.npy", npy(np.zeros((8, 8, 2))))
    put("mixed/range.npy", npy(np.full((8, 8), 1.5)))
    put("mixed/notes.txt", b"mine")
    put("mixed/sub/inner.png", png(ramp))
    put("mixed/.hidden", b"")
    # No blur leaves the highest frequency at full contrast, and a digit is bright on dark.
    put("odd/checkers.png", png(np.uint8(np.indices((8, 8)).sum(0) % 2 * 255)))
    put("odd/inverted.npy", npy(-blurred(clean[:1], 6)[0]))
    put("odd/right.npy", npy(blurred(clean[:1], 6)[0]))
    put("same/a.png", png(ramp))
    put("same/a.bmp", saved(Image.fromarray(ramp), "BMP"))
    put("sizes/wide.png", png(SMOOTH[:10, :12]))
    put("sizes/own.png", png(COLOR))
    put("taken/own.png", b"mine")
    # By the definition of the cosine schedule, half-way: both are sqrt(1/2), but for its offset.
    noisy = np.sqrt(0.5) * (clean + np.random.default_rng(1).standard_normal(clean.shape))
    put("noisy/noisy.npy", npy(noisy.astype(np.float32)))
    put("noisy/bytes_as_floats.npy", npy(GRAY.astype(np.float32)))
    (folder / "bare").mkdir()
    return clean


@pytest.fixture(scope="module")
def results(runs, tmp_path_factory):
    """(inputs' folder, clean digits, name -> (exit status, lines of stdout, of stderr))"""
    root = tmp_path_factory.mktemp("inputs")
    clean = lay_out(root)
    cases = {
        "mixed": ("digits", "mixed", ()),
        "resized": (
            "digits",
            "mixed/large.png",
            ("--resize", "--severity=0.63", "--sampler=naive", "--steps=3"),
        ),
        "sizes": ("colors", "sizes", ("--severity=0.5",)),
        "guessed": ("colors", "sizes/wide.png", ()),
        "noisy": ("noise", "noisy", ("--severity=0.5",)),
        "degraded": ("colors", "sizes/own.png", ("--degrade",)),
        "odd": ("digits", "odd", ("--severity=0.6",)),
        "stopped": ("digits", "mixed/stack.npy", ("stop=3",)),
        "gone on": ("digits", "mixed/stack.npy", ("--output=" + str(root / "out" / "stopped"),)),
        "another": (
            "digits",
            "mixed/stack.npy",
            ("--severity=0.5", "--output=" + str(root / "out" / "stopped")),
        ),
        "a second time": (
            "digits",
            "mixed/stack.npy",
            ("--output=" + str(root / "out" / "stopped"),),
        ),
        "nowhere": ("digits", "nowhere.png", ()),
        "bare": ("digits", "bare", ()),
        "same": ("digits", "same", ()),
        "zero": ("digits", "mixed/gray.png", ("--severity=0",)),
        "two": ("digits", "mixed/gray.png", ("--severity=1.01",)),
        "untrained": ("nothing", "mixed/gray.png", ()),
        "taken": ("colors", "sizes/own.png", ("--output=" + str(root / "taken"),)),
    }  # fmt: skip
    command_lines = [
        [
            f"--workdir={runs / workdir}",
            f"--input={root / source}",
            f"--output={root / 'out' / name}",
            *options,
        ]
        for name, (workdir, source, options) in cases.items()
    ]
    cases["flag"] = None
    command_lines.append(command_lines[0][:2])
    done = subprocess.run(
        [sys.executable, "-c", RUN_CASES],
        cwd=ROOT,
        env=ENV,
        input=json.dumps(command_lines),
        text=True,
        capture_output=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    ends = json.loads(done.stdout.splitlines()[-1])
    found = {
        name: (status, out.splitlines(), err.splitlines())
        for name, (status, out, err) in zip(cases, ends, strict=True)
    }
    return root, clean, found


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


def test_blurred_digits_are_restored(results):
    _, clean, found = results
    lines = [line for line in found["mixed"][1] if line.startswith("stack.npy: ")]
    assert len(lines) == 40
    assert all(": 8x8x1, severity " in line and " (estimated), unexpl" in line for line in lines)
    told = [float(line.split("severity ")[1].split()[0]) for line in lines]
    # The oracle is the number of blurs in 10; the bound is half a level.
    assert abs(np.median(told) - 0.6) <= 0.05
    restored = np.stack([pixels(pathlib.Path(line.split(" -> ")[1])) for line in lines])
    error = in_model_range(restored) - clean[..., 0]
    before = blurred(clean, 6)[..., 0] - clean[..., 0]
    assert np.sqrt(np.mean(error**2)) < 0.7 * np.sqrt(np.mean(before**2))


def test_the_bad_are_named_and_the_good_restored(results):
    root, _, found = results
    status, out, err = found["mixed"]
    assert status == 1
    good = ["cmyk", "color", "gray", "pair_0000", "pair_0001", "palette", "sixteen"]
    good += [f"stack_{i:04d}" for i in range(40)]
    written = root / "out" / "mixed"
    names = [f"{name}.png" for name in [*good, "compare"]]
    assert sorted(path.name for path in written.iterdir()) == sorted([*names, "settings.json"])
    messages = {name: message for name, (_, message) in BAD_FILES.items()} | {
        "large.png": "it is 9 x 7, and the run's Wiener restorer is for 8 x 8: add --resize",
        "channels.npy": "2 channels, the run's images 1",
        "range.npy": "[1.5, 1.5]: rescale them to [-1, 1]",
        "notes.txt": "no image",
        "sub": "no image",
    }
    skipped = [line for line in err if line.startswith("skipped ")]
    assert len(skipped) == len(messages)
    for name, message in messages.items():
        (line,) = [
            line for line in skipped if line.startswith(f"skipped {root / 'mixed' / name}: ")
        ]
        assert message in line
    # Of what is restored, the digits alone are images of the run's kind.
    told = {line.split(":")[0] for line in err if line not in skipped}
    strange = ("cmyk.jpg", "color.png", "gray.png", "pair.npy", "palette.png", "sixteen.png")
    assert told == {f"misfit {name}" for name in strange}
    assert out[-1] == f"restored 47 images, of which 7 do not fit, skipped {len(messages)}"
    assert any(line.startswith("color.png: 8x8x1, color to luminance, sev") for line in out)
    # One picture in four kinds of files.
    for name in ("color", "sixteen", "palette"):
        np.testing.assert_array_equal(
            pixels(written / f"{name}.png"), pixels(written / "gray.png"), err_msg=name
        )


def test_the_folder_says_what_it_was_made_of(results):
    root, _, _ = results
    held = json.loads((root / "out" / "mixed" / "settings.json").read_text())
    assert held["step"] == 0
    assert held["command"][:3] == ["python", "-m", "experiments.restore"]
    assert held["command"][-1] == f"--output={root / 'out' / 'mixed'}"
    assert held["fingerprint"] == data.fingerprint(data.load("digits", "train"))
    asked = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, text=True, capture_output=True)
    assert held["commit"] == (asked.stdout.strip() or None)
    assert held["restored"]["stack_0000"].keys() == {"image", "severity", "unexplained", "misfit"}


def test_severities_are_those_trained_and_sizes_those_of_the_run(results):
    root, _, found = results
    status, out, err = found["resized"]
    assert status == 1
    (line,) = err  # all black, and no digit
    assert line.startswith("misfit large.png: ")
    assert "severity 0.6 (the trained level nearest to 0.63), " in out[0]
    assert pixels(root / "out" / "resized" / "large.png").shape == (8, 8)


def test_another_size_needs_a_severity(results):
    root, _, found = results
    status, out, err = found["sizes"]
    assert status == 1
    (line,) = err  # at another size nobody knows what is usual
    assert line.startswith("misfit own.png: ")
    assert any(line.startswith("wide.png: 10x12x3, gray to color, severity 0.5 (g") for line in out)
    # This network answers 0, of which the hole makes 0: every step adds and takes away nothing.
    expected = np.stack([SMOOTH[:10, :12]] * 3, axis=-1)
    np.testing.assert_array_equal(pixels(root / "out" / "sizes" / "wide.png"), expected)
    np.testing.assert_array_equal(pixels(root / "out" / "sizes" / "own.png"), COLOR)

    status, out, err = found["guessed"]
    assert (status, out) == (1, ["restored nothing, skipped 1"])
    assert len(err) == 1
    assert "it is 10 x 12, and severities are estimated at 8 x 8 alone: give --severity" in err[0]
    assert not (root / "out" / "guessed").exists()


def test_noise_is_read_off_the_image(results):
    root, clean, found = results
    status, out, err = found["noisy"]
    assert status == 1
    # Noise takes floats beyond [-1, 1], not to 255.
    (line,) = err
    assert "bytes_as_floats.npy: its numbers lie in" in line
    assert len(out) == 41
    names = [root / "out" / "noisy" / f"noisy_{i:04d}.png" for i in range(40)]
    error = in_model_range(np.stack([pixels(name) for name in names])) - clean[..., 0]
    before = np.clip(np.load(root / "noisy" / "noisy.npy"), -1, 1) - clean
    assert np.sqrt(np.mean(error**2)) < 0.8 * np.sqrt(np.mean(before**2))


def test_what_does_not_fit_is_said_in_words_and_restored(results):
    root, _, found = results
    status, out, err = found["odd"]
    assert status == 1
    assert len(err) == 2
    for line, name in zip(err, ("checkers.png", "inverted.npy"), strict=True):
        assert line.startswith(f"misfit {name}: D(x0_hat, t) is ")
        assert "from held-out images, and the squared distance of its statistics" in line
        assert line.endswith("it was not degraded like this, or is no image of this kind")
    assert out[-1] == "restored 3 images, of which 2 do not fit, skipped 0"
    # The blur of the checkerboard's frequency: D of any image in [-1, 1] has less of it.
    told = float(err[0].split(" is ")[1].split()[0])
    checkers = np.indices((1, 8, 8)).sum(0)[..., None] % 2 * 2.0 - 1
    assert told >= 1 - np.abs(blurred(checkers, 6)).max() - 0.01
    with Image.open(root / "out" / "odd" / "compare.png") as picture:
        assert picture.width > picture.height  # three images beside one another, in two rows


def test_a_stopped_restoration_goes_on(results):
    root, _, found = results
    status, out, err = found["stopped"]
    assert (status, len(out)) == (128 + signal.SIGTERM, 3)
    assert err == ["stopped by SIGTERM: on it goes"]
    status, out, _ = found["gone on"]
    assert (status, out[-1]) == (0, "restored 40 images, skipped 0")
    for i in range(40):
        name = f"stack_{i:04d}.png"
        np.testing.assert_array_equal(
            pixels(root / "out" / "stopped" / name), pixels(root / "out" / "mixed" / name)
        )
    assert found["another"][0] == 2
    assert "severity is None there and 0.5 here; choose another --output" in found["another"][2][0]
    status, out, err = found["a second time"]
    assert (status, err) == (0, [])
    assert out == ["restored 40 images, 40 of them before, skipped 0"]


def test_what_a_stopped_restoration_left_and_what_is_the_users(tmp_path):
    def item(name, value):
        image = np.full((8, 8, 1), value, np.float32)
        return images.Item(
            f"{name}.npy", image, "", tmp_path / f"{name}.png", tmp_path / f"{name}_degraded.png"
        )

    chosen = {"severity": 0.5, "degrade": False}
    one, two = item("one", 0.1), item("two", 0.2)
    held = images.claim_outputs([one, two], tmp_path, chosen)
    assert held == {"begun": ["one", "two"], "restored": {}}
    held["restored"]["one"] = {"image": one.digest}
    (tmp_path / "settings.json").write_text(json.dumps(chosen | held))
    for name in ("one.png", "two.png", "two_degraded.png", "three.png"):
        (tmp_path / name).write_bytes(b"half")
    assert images.claim_outputs([one, two], tmp_path, chosen) == held
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["one.png", "settings.json", "three.png", "two_degraded.png"]
    with pytest.raises(UsageError, match=r"three\.png exists: choose another --output"):
        images.claim_outputs([one, item("three", 0)], tmp_path, chosen)
    with pytest.raises(UsageError, match=r"one\.npy is another image than .* was made of"):
        images.claim_outputs([item("one", 0.3)], tmp_path, chosen)
    with pytest.raises(UsageError, match="degrade is False there and True here"):
        images.claim_outputs([one], tmp_path, chosen | {"degrade": True})
    with pytest.raises(UsageError, match=r"before and after and compare\.npy would both become"):
        images.claim_outputs([item("compare", 0)], tmp_path, chosen)
    assert (tmp_path / "three.png").read_bytes() == b"half"


@pytest.mark.soak
def test_the_demo_restores_files_of_8_bits(tmp_path):
    """As the README's demo: trained, files degraded by one command and restored by another."""
    env = {name: value for name, value in ENV.items() if "OPTIMIZATIONS" not in name}

    def command(script, *arguments):
        done = subprocess.run(
            [sys.executable, "-m", f"experiments.{script}", *map(str, arguments)],
            cwd=ROOT, env=env, text=True, capture_output=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]

    workdir, clean, files = (tmp_path / name for name in ("run", "clean", "files"))
    command("train", "--config=experiments/configs/digits_deblur.py", f"--workdir={workdir}")
    clean.mkdir()
    digits = np.uint8(data.load("digits", "test").fetch_fn(range(100))["image"] * 127.5 + 127.5)
    for i, digit in enumerate(digits):
        (clean / f"{i:03d}.png").write_bytes(png(digit[..., 0]))
    there = (f"--workdir={workdir}", "--severity=0.5")
    command("restore", *there, "--degrade", f"--input={clean}", f"--output={tmp_path / 'made'}")
    files.mkdir()
    for path in (tmp_path / "made").glob("*_degraded.png"):
        path.rename(files / path.name)
    command("restore", *there, f"--input={files}", f"--output={tmp_path / 'out'}")

    def error(folder):
        names = [folder / f"{i:03d}_degraded.png" for i in range(100)]
        found = in_model_range(np.stack([pixels(name) for name in names]))
        return np.sqrt(np.mean((found - in_model_range(digits[..., 0])) ** 2))

    assert error(tmp_path / "out") < error(files) / 2


def test_degrade_first(results):
    root, _, found = results
    status, out, _ = found["degraded"]
    assert status == 0
    assert "severity 1 (given)" in out[0]
    distance = np.add.outer((np.arange(8) - 3.0) ** 2, (np.arange(8) - 3.0) ** 2)
    keep = np.prod([1 - np.exp(-distance / (2 * std**2)) for std in STDS], axis=0)
    expected = keep[..., None] * in_model_range(COLOR)
    degraded = pixels(root / "out" / "degraded" / "own_degraded.png")
    np.testing.assert_allclose(in_model_range(degraded), expected, atol=0.51 / 127.5)
    np.testing.assert_array_equal(pixels(root / "out" / "degraded" / "own.png"), degraded)


@pytest.mark.parametrize(
    ("name", "message"),
    {
        "nowhere": "nowhere.png does not exist",
        "bare": "holds no images",
        "same": "a.bmp and a.png would both become",
        "zero": "--severity must lie in (0, 1]; got 0",
        "two": "--severity must lie in (0, 1]; got 1.01",
        "untrained": "holds no config.json",
        "taken": "own.png exists: choose another --output",
        "flag": "--output",
    }.items(),
)
def test_what_is_refused_before_it_starts(results, name, message):
    root, _, found = results
    status, out, err = found[name]
    assert status == 2
    assert out == []
    assert len(err) == 1
    assert err[0].startswith("error: ")
    assert message in err[0]
    assert not (root / "out" / name).exists()
    assert (root / "taken" / "own.png").read_bytes() == b"mine"
    assert len(list((root / "taken").iterdir())) == 1
