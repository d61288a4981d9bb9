"""Image files of a user, brought to the channels of a run and written as PNG.

They are read as training images are, by `diffjax.images`.
"""

import hashlib
import pathlib
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from diffjax import metrics
from diffjax.images import cover, is_named_as_image, read
from experiments.lib import files, pictures
from experiments.lib.commands import UsageError

_SHOWN = 16  # images before and after
_LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)  # Rec. 601, as Pillow's "L"


def to_channels(images: np.ndarray, channels: int) -> tuple[np.ndarray, str]:
    """[..., C] with that many channels, and what was done, if anything was.

    Raises:
      ValueError: if neither gray is to become color nor color gray.
    """
    held = images.shape[-1]
    if held == channels:
        return images, ""
    if (held, channels) == (3, 1):
        return images @ _LUMINANCE[:, None], "color to luminance"
    if (held, channels) == (1, 3):
        return images.repeat(3, axis=-1), "gray to color"
    raise ValueError(f"it has {held} channels, the run's images {channels}")


def write(path: pathlib.Path, image: np.ndarray) -> None:
    """[H, W, C] in [-1, 1], 1 or 3 channels, as a PNG of 8 bits.

    Raises:
      FileExistsError: if there is a file already; it stays as it is.
    """
    picture = pictures.to_pil(metrics.to_uint8(image))
    with open(path, "xb") as file:
        picture.save(file, format="PNG")


class Item(NamedTuple):
    """One image to restore."""

    name: str
    image: np.ndarray  # [H, W, C]
    note: str  # what was done to it on reading
    output: pathlib.Path
    degraded: pathlib.Path  # where --degrade leaves its picture

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.image.tobytes()).hexdigest()[:16]


def find_inputs(source: pathlib.Path) -> list[pathlib.Path]:
    """The files of --input."""
    if not source.exists():
        raise UsageError(f"--input {source} does not exist")
    if not source.is_dir():
        return [source]
    paths = sorted(path for path in source.iterdir() if not path.name.startswith("."))
    if not any(map(is_named_as_image, paths)):
        raise UsageError(f"--input {source} holds no images (PNG, JPEG, .npy, ...)")
    return paths


def read_inputs(
    paths: list[pathlib.Path],
    output: pathlib.Path,
    image_shape: tuple[int, int, int],
    *,
    resize: bool,
    problem_fn: Callable,
    reach_fn: Callable[[], float],
) -> tuple[list[Item], int]:
    """The images of the files, and how many were skipped, each with a line of its own."""
    height, width, channels = image_shape
    items, skipped = [], 0
    for path in paths:
        try:
            if len(paths) > 1 and not is_named_as_image(path):
                raise ValueError("it is no image")
            stack, note = to_channels(read(path), channels)
            largest = float(np.abs(stack).max())
            if largest > 1 + 1e-5 and largest > reach_fn():
                low, high = stack.min(), stack.max()
                raise ValueError(f"its numbers lie in [{low:g}, {high:g}]: rescale them to [-1, 1]")
            if resize:
                stack = np.stack([cover(image, height, width) for image in stack])
            problem_fn(stack.shape[1:])
        except ValueError as error:
            print(f"skipped {path}: {error}", file=sys.stderr)
            skipped += 1
            continue
        for i, image in enumerate(stack):
            name = path.stem if len(stack) == 1 else f"{path.stem}_{i:04d}"
            outputs = output / f"{name}.png", output / f"{name}_degraded.png"
            items.append(Item(path.name, image, note, *outputs))
    return items, skipped


def claim_outputs(
    items: list[Item], output: pathlib.Path, chosen: dict[str, Any]
) -> dict[str, Any]:
    """Makes the output folder; what its settings.json is to hold beside the settings.

    "begun" names the images that were ever to be written there, "restored" says what is known of
    those that are written whole. What lies between was being written when a command was stopped,
    and is removed.

    Raises:
      UsageError: if two images want the same name, if a file that is not ours has it, or if
        other settings or other images were restored there.
    """
    held = files.read_settings(output, chosen)
    begun, done = held.get("begun", []), held.get("restored", {})
    taken = {output / "compare.png": "the picture before and after"}
    broken = []
    for item in items:
        stem = item.output.stem
        if done.get(stem, {"image": item.digest})["image"] != item.digest:
            raise UsageError(
                f"{item.name} is another image than {output} was made of: choose another --output"
            )
        for path in (item.output, item.degraded) if chosen["degrade"] else (item.output,):
            if path in taken:
                raise UsageError(
                    f"{taken[path]} and {item.name} would both become {path}: rename one of them"
                )
            taken[path] = item.name
            if stem in begun and stem not in done:
                broken.append(path)
            elif stem not in begun and path.exists():
                raise UsageError(f"{path} exists: choose another --output")
    if not held and (output / "compare.png").exists():
        raise UsageError(f"{output / 'compare.png'} exists: choose another --output")
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--output {output} cannot be made: {error}") from error
    for path in broken:
        path.unlink(missing_ok=True)
    return {"begun": sorted({*begun, *(item.output.stem for item in items)}), "restored": done}


def draw_comparison(path: pathlib.Path, items: list[Item]) -> None:
    """The first images that were restored: before, after."""
    shown = [item for item in items if item.output.exists()][:_SHOWN]
    if not shown:
        return
    before = [read(item.degraded)[0] if item.degraded.exists() else item.image for item in shown]
    after = [read(item.output)[0] for item in shown]
    pictures.draw_grid(path, [before, after], names=["before", "after"])
