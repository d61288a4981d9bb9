"""Image files of a user, brought to the channels of a run and written as PNG.

They are read as training images are, by `diffjax.images`.
"""

import pathlib

import numpy as np

from diffjax import metrics
from experiments.lib import pictures

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
