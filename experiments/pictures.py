"""The pictures that the scripts leave in a workdir."""

import json
import pathlib

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np


def draw_grid(path: pathlib.Path, rows: dict[str, np.ndarray]) -> None:
    """One labelled row of images per entry; images [N, H, W, C] in [-1, 1], shown clipped."""
    columns = max(map(len, rows.values()))
    figure, axes = plt.subplots(
        len(rows), columns, figsize=(0.7 * columns + 1.2, 0.75 * len(rows)), squeeze=False
    )
    for axes_row, (name, images) in zip(axes, rows.items(), strict=True):
        for axis in axes_row:
            axis.set_axis_off()
        for axis, image in zip(axes_row, images, strict=False):
            pixels = np.clip((image + 1) / 2, 0, 1)
            pixels = pixels[..., 0] if pixels.shape[-1] == 1 else pixels
            axis.imshow(pixels, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes_row[0].text(
            -0.15, 0.5, name, transform=axes_row[0].transAxes, ha="right", va="center", fontsize=9
        )
    figure.subplots_adjust(left=1.2 / figure.get_figwidth(), right=0.995, top=0.99, bottom=0.01)
    figure.subplots_adjust(wspace=0.05, hspace=0.05)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_loss(workdir: pathlib.Path) -> None:
    """loss.png: the training loss over the steps, from metrics.jsonl."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    figure, axis = plt.subplots(figsize=(6, 3.5))
    axis.semilogy([line["step"] for line in lines], [line["loss"] for line in lines], lw=1)
    axis.set_xlabel("step")
    axis.set_ylabel("training loss")
    axis.grid(alpha=0.3, which="both")
    figure.savefig(workdir / "loss.png", dpi=120, bbox_inches="tight")
    plt.close(figure)
