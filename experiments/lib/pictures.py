"""The pictures that the scripts leave behind."""

import pathlib
import warnings
import zipfile
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from diffjax import metrics
from diffjax.auditing.generation_laws import Generation
from experiments.lib import files


def new_figure(size: tuple[float, float]):
    """An empty matplotlib figure, in inches; importing matplotlib takes half a second."""
    from matplotlib.figure import Figure

    return Figure(figsize=size)


def draw_grid(
    path: pathlib.Path,
    rows: Sequence[Sequence[np.ndarray]],
    *,
    names: Sequence[str] = (),
    columns: Sequence[str] = (),
) -> None:
    """Rows of images [H, W, C] in [-1, 1], with a name beside each row or above each column."""
    width = max(map(len, rows))
    margin = 0.1 + 0.075 * max(map(len, names), default=0)
    top = 0.2 if columns else 0.02
    size = (0.72 * width + margin, 0.72 * len(rows) + top)
    figure = new_figure(size)
    axes = figure.subplots(len(rows), width, squeeze=False)
    for axes_row, images in zip(axes, rows, strict=True):
        for axis in axes_row:
            axis.set_axis_off()
        for axis, image in zip(axes_row, images, strict=False):
            image = metrics.to_uint8(np.asarray(image))
            axis.imshow(image.squeeze(-1) if image.shape[-1] == 1 else image, cmap="gray", vmin=0,
                        vmax=255, interpolation="nearest")  # fmt: skip
    for axis, name in zip(axes[:, 0], names, strict=False):
        axis.text(-0.1, 0.5, name, transform=axis.transAxes, ha="right", va="center", fontsize=9)
    for axis, name in zip(axes[0], columns, strict=False):
        axis.set_title(name, fontsize=7, pad=2)
    figure.subplots_adjust(
        left=margin / size[0], right=0.998, top=1 - top / size[1], bottom=0.002,
        wspace=0.04, hspace=0.04,
    )  # fmt: skip
    with files.whole(path) as file:
        figure.savefig(file, dpi=110)


def tile(images: np.ndarray, columns: int) -> np.ndarray:
    """[N, H, W, C] in [-1, 1] -> one uint8 picture of a grid, one pixel between its cells."""
    images = metrics.to_uint8(images)
    count, height, width, channels = images.shape
    rows = -(-count // columns)
    picture = np.full((rows * (height + 1) - 1, columns * (width + 1) - 1, channels), 255, np.uint8)
    for i, image in enumerate(images):
        top, left = i // columns * (height + 1), i % columns * (width + 1)
        picture[top : top + height, left : left + width] = image
    return picture


def to_pil(picture: np.ndarray, scale: int = 1) -> Image.Image:
    """A uint8 [H, W, C] of 1 or 3 channels as a PIL image, every pixel `scale` wide."""
    picture = picture.repeat(scale, axis=0).repeat(scale, axis=1)
    return Image.fromarray(picture.squeeze(-1) if picture.shape[-1] == 1 else picture)


def write_gif(path: pathlib.Path, frames: np.ndarray, *, seconds: float = 4.0) -> None:
    """An animation over the first axis of [F, N, H, W, C], there and, after a rest, again."""
    columns = int(np.ceil(np.sqrt(frames.shape[1])))
    scale = max(1, 128 // frames.shape[2])
    pictures = [to_pil(tile(images, columns), scale) for images in frames]
    durations = [int(1000 * seconds / len(frames))] * len(frames)
    durations[0] = durations[-1] = 800
    with files.whole(path) as file:
        pictures[0].save(file, format="GIF", save_all=True, append_images=pictures[1:],
                         duration=durations, loop=0)  # fmt: skip


def count_images(path: pathlib.Path) -> int:
    """How many images a batch_*.npz holds; 0 for a file that is absent or not whole."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as batch:
            return len(batch["label"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return 0


def read_images(folder: pathlib.Path, num: int | None = None) -> np.ndarray:
    """The first `num` images that sample.py generated (None: all), [N, H, W, C] in [-1, 1]."""
    found, count = [], 0
    for path in sorted(folder.glob("batch_????????.npz")):
        if num is not None and count >= num:
            break
        with path.open("rb") as file:
            found.append(np.load(file)["image"])
        count += len(found[-1])
    images = np.concatenate(found)[:num] if found else np.zeros((0, 1, 1, 1), np.uint8)
    return images.astype(np.float32) / 127.5 - 1


def draw_curves(workdir: pathlib.Path) -> None:
    """loss.png and severity.png: training beside held-out images; over the steps, by severity."""
    import matplotlib

    lines = files.read_lines(workdir / "metrics.jsonl")
    held = files.read_lines(workdir / "heldout.jsonl")
    if not lines:
        return
    steps, held_steps = ([line["step"] for line in some] for some in (lines, held))

    def values(some, name):
        return np.array([line["severity"][name] for line in some], float)  # None becomes NaN

    figure = new_figure((10, 3.5))
    axes = figure.subplots(1, 2)
    loss = np.array([line["loss"] for line in lines], float)
    axes[0].semilogy(steps, loss, lw=1, label="training")
    axes[0].semilogy(
        held_steps, [line["loss"] for line in held], "o-", lw=1, ms=3, label="held-out"
    )
    axes[0].set(xlabel="step", ylabel="loss, weighted")
    with np.errstate(invalid="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a line without any severity
        rmse = np.sqrt(np.nanmean(values(lines, "rmse") ** 2, axis=1))
    axes[1].semilogy(steps, rmse, lw=1, label="training")
    axes[1].semilogy(
        held_steps, [line["rmse"] for line in held], "o-", lw=1, ms=3, label="held-out"
    )
    axes[1].set(xlabel="step", ylabel="RMSE of x0_hat, images in [0, 1]")
    for axis in axes:
        axis.grid(alpha=0.3, which="both")
        axis.legend(fontsize=8)
    _save(figure, workdir / "loss.png")

    names = {
        "loss": "loss",
        "rmse": "RMSE of x0_hat, images in [0, 1]",
        "explained_variance": "explained variance",
    }
    figure = new_figure((12, 3.5))
    axes = figure.subplots(1, len(names))
    for axis, (name, label) in zip(axes, names.items(), strict=True):
        found = values(lines, name)
        colors = matplotlib.colormaps["viridis"](np.arange(found.shape[1]) / found.shape[1])
        for k, series in enumerate(found.T):
            ends = f"t <= {(k + 1) / found.shape[1]:.1f}"
            axis.plot(steps, series, lw=1, color=colors[k], label=ends)
        if held and name in held[0]["severity"]:
            for t, series in zip(held[0]["severity"]["t"], values(held, name).T, strict=True):
                color = colors[min(int(t * len(colors) - 1e-6), len(colors) - 1)]
                axis.plot(held_steps, series, "o--", lw=0.8, ms=2, color=color)
        axis.set(xlabel="step", ylabel=label)
        axis.grid(alpha=0.3)
    axes[0].set_title("lines: training; dots: held-out", fontsize=8)
    axes[-1].set_ylim(max(-1, np.nanmin(found, initial=1)), 1.02)
    axes[-1].legend(fontsize=6)
    _save(figure, workdir / "severity.png")


def _save(figure: Any, path: pathlib.Path) -> None:
    """As a whole: somebody may look at it while the run goes on."""
    # By numbers: to measure the texts would cost as much as to draw them.
    figure.subplots_adjust(left=0.09, right=0.99, bottom=0.15, top=0.92, wspace=0.35)
    with files.whole(path) as file:
        figure.savefig(file, dpi=110)


def draw_generation(path: pathlib.Path, found: Generation) -> None:
    """Per mode, the std that each way makes, and the data's."""
    figure = new_figure((6, 3.5))
    axis = figure.subplots()
    modes = range(1, 1 + len(found.data_std))
    axis.semilogy(modes, found.data_std, color="0.75", lw=5, label="data")
    for (way, ratios), style in zip(found.made.items(), ("-", ":", "--"), strict=True):
        axis.semilogy(modes, ratios * found.data_std, style, lw=1.5, label=way)
    axis.set(xlabel="mode of the data", ylabel="std, images in [-1, 1]", ylim=(1e-4, None))
    axis.set_title("; ".join(found.broken) + " broken" if found.broken else "can generate")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    with files.whole(path) as file:
        figure.savefig(file, dpi=110, bbox_inches="tight")


def incomplete(folder: pathlib.Path) -> str | None:
    """Which images of a set are missing, in one line; None where it is whole."""
    path = folder / "settings.json"
    if not path.exists():
        return f"{folder} holds no settings.json, so nobody knows how many images it should hold"
    settings = files.read_json(path, "generate the images again, into another --output")
    wanted, size = settings.get("images"), settings.get("batch_size")
    if wanted is None or size is None:
        return f"{path} does not say how many images there should be"
    held = sum(
        min(count_images(folder / f"batch_{start:08d}.npz"), wanted - start)
        for start in range(0, wanted, size)
    )
    if held == wanted:
        return None
    return f"{folder} holds {held:,} of {wanted:,} images; the same sample command makes the rest"
