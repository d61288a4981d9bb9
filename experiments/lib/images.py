"""Image files of a user, read into [N, H, W, C] in [-1, 1] and written as PNG.

8 bits                v / 127.5 - 1
16 bits, gray         v / 32767.5 - 1; color of 16 bits is read as 8, which is all that
                      Pillow offers
palette, CMYK, ...    as RGB
alpha                 laid over white
EXIF orientation      turned upright
animation             its first frame
.npy                  [H, W], [H, W, C] or [N, H, W, C]; uint8 and uint16 as above, floats
                      as they are: in [-1, 1], never guessed to be in [0, 1]
"""

import pathlib
import warnings

import numpy as np
from PIL import Image, ImageOps

from diffjax import metrics
from experiments.lib import pictures

_LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)  # Rec. 601, as Pillow's "L"


def is_named_as_image(path: pathlib.Path) -> bool:
    suffix = path.suffix.lower()
    return path.is_file() and (suffix == ".npy" or suffix in Image.registered_extensions())


def read(path: pathlib.Path) -> np.ndarray:
    """The images of a file, float32 [N, H, W, C]; N is 1 unless the file is a stack in .npy.

    Raises:
      ValueError: saying in one line what is wrong with the file.
    """
    try:
        images = _read_array(path) if path.suffix.lower() == ".npy" else _read_picture(path)
    except Exception as error:  # a decoder may raise anything on a broken file
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(reason) from error
    if 0 in images.shape:
        raise ValueError(f"it holds no pixels: its shape is {list(images.shape)}")
    if not np.all(np.isfinite(images)):
        raise ValueError("it holds numbers that are not finite")
    return images


def _scale(values: np.ndarray) -> np.ndarray:
    half = {np.dtype(np.uint8): 127.5, np.dtype(np.uint16): 32767.5}.get(values.dtype)
    with np.errstate(over="ignore"):  # what is too large is found not to be finite
        return (values if half is None else values / half - 1).astype(np.float32)


def _read_array(path):
    array = np.load(path, allow_pickle=False)
    if not isinstance(array, np.ndarray):
        raise ValueError("it is no single array")
    array = array.astype(array.dtype.newbyteorder("="))
    if array.dtype not in (np.uint8, np.uint16) and not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"it must be uint8, uint16 or floating point; it is {array.dtype}")
    if array.ndim not in (2, 3, 4):
        raise ValueError(
            f"it must be [H, W], [H, W, C] or [N, H, W, C]; its shape is {list(array.shape)}"
        )
    array = array[..., None] if array.ndim == 2 else array
    return _scale(array if array.ndim == 4 else array[None])


def _read_picture(path):
    with warnings.catch_warnings():
        # A large photograph is no attack; Pillow still refuses what is twice as large.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with Image.open(path) as image:
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I;16"):
                return _scale(np.asarray(image).astype(np.uint16))[None, ..., None]
            if image.mode in ("F", "I"):
                raise ValueError(f"its pixels have no known range (mode {image.mode}): use .npy")
            mode = "L" if image.mode in ("1", "L", "LA", "La") else "RGB"
            if not image.has_transparency_data:
                pixels = np.asarray(image.convert(mode))
                return _scale(pixels.reshape(1, *pixels.shape[:2], -1))
            pixels = _scale(np.asarray(image.convert(mode + "A")))[None]
    color, alpha = pixels[..., :-1], (pixels[..., -1:] + 1) / 2
    return alpha * color + (1 - alpha)


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


def cover(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """The smallest enlargement or reduction of [H, W, C] that covers height x width, cut to it.

    Bilinear with antialiasing, the central part: what `diffjax.data` does to training images.
    """
    if image.shape[:2] == (height, width):
        return image
    scale = max(height / image.shape[0], width / image.shape[1])
    size = (max(width, round(image.shape[1] * scale)), max(height, round(image.shape[0] * scale)))
    planes = [
        np.asarray(Image.fromarray(image[..., c]).resize(size, Image.Resampling.BILINEAR))
        for c in range(image.shape[-1])
    ]
    top, left = (size[1] - height) // 2, (size[0] - width) // 2
    return np.stack(planes, axis=-1)[top : top + height, left : left + width]


def write(path: pathlib.Path, image: np.ndarray) -> None:
    """[H, W, C] in [-1, 1], 1 or 3 channels, as a PNG of 8 bits.

    Raises:
      FileExistsError: if there is a file already; it stays as it is.
    """
    picture = pictures.to_pil(metrics.to_uint8(image))
    with open(path, "xb") as file:
        picture.save(file, format="PNG")
