"""Image files: one reader, for training folders and for whatever a user wants restored.

8 bits                v / 127.5 - 1
16 bits, gray         v / 32767.5 - 1; color of 16 bits is read as 8, which is all that
                      Pillow offers
palette, CMYK, ...    as RGB
alpha a               over white (Porter and Duff's "over"): a v + (1 - a)
EXIF orientation      turned upright
animation             its first frame
no known range        refused: floats, integers of 32 bits, TIFF of 12 bits
.npy                  [H, W], [H, W, C] or [N, H, W, C]; uint8 and uint16 as above, floats as
                      they are: never guessed to be in [0, 1]

Only regular files are opened, and a picture's size is known before its pixels are decoded.

Depends on: numpy, Pillow.
"""

import contextlib
import functools
import os
import pathlib
import stat
import warnings
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

# Formats that Pillow knows by their first bytes alone, or hands to another program.
_NOT_DECODED = ("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF")
_GRAY = ("1", "L", "LA", "La")
_COLOR = ("P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV")


class Header(NamedTuple):
    """What is known of a picture before its pixels are decoded."""

    height: int
    width: int
    channels: int  # 1 or 3
    dtype: np.dtype  # of `read_picture`: uint8, uint16 or float32


@functools.cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(kind for kind in Image.ID if kind not in _NOT_DECODED)


@functools.cache
def _suffixes() -> frozenset[str]:
    """Those of the formats that can be read; some others Pillow can only write."""
    kinds = {*_formats(), "MPO"}  # Pillow opens MPO, several JPEGs in a file, as JPEG
    return frozenset(
        suffix for suffix, kind in Image.registered_extensions().items() if kind in kinds
    )


def is_named_as_image(path: pathlib.Path) -> bool:
    """Whether it is a regular file with the name of a picture or of an array (.npy)."""
    return path.is_file() and path.suffix.lower() in _suffixes() | {".npy"}


def find(folder: pathlib.Path, *, skip: tuple[pathlib.Path, ...] = ()) -> list[pathlib.Path]:
    """The files below a folder that have the name of a picture, sorted.

    Args:
      folder: where to look; links to folders are followed, each real folder is read once.
      skip: folders to leave out.
    Raises:
      OSError: if a folder cannot be read.
    Note: hidden files and folders (".name") are left out. What a name promises, `header` checks.
    """
    # A link to a folder that holds this one would bring in all that lies beside it.
    seen = {_identity(parent) for parent in folder.resolve().parents} | set(map(_identity, skip))
    found = []
    for root, folders, files in os.walk(folder, onerror=_raise, followlinks=True):
        if _identity(root) in seen:
            folders.clear()
            continue
        seen.add(_identity(root))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [
            pathlib.Path(root, name)
            for name in files
            if not name.startswith(".") and pathlib.Path(name).suffix.lower() in _suffixes()
        ]
    return sorted(found)


def _identity(path) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino


def _raise(error: OSError) -> None:
    raise error


def header(path: pathlib.Path, *, upright: bool = True) -> Header:
    """The size and kind of a picture, read from its first bytes.

    Args:
      path: the file.
      upright: whether height and width must be those after turning; without it the pixels of a
        PNG that is not square need not be decoded, where the orientation may come last.
    Raises:
      ValueError: saying in one line why it cannot be read; the caller names the file.
    """
    with _opened(path) as image:
        width, height = image.size
        if upright and width != height and image.format != "TIFF":  # Pillow has turned that one
            if image.getexif().get(ExifTags.Base.Orientation, 1) >= 5:  # these swap the axes
                width, height = height, width
        return Header(height, width, *_kind(image))


def read_picture(path: pathlib.Path) -> np.ndarray:
    """The pixels of a picture, [H, W, C], C 1 or 3; `to_model_range` maps them to [-1, 1].

    Returns:
      uint8 or uint16 as stored; where there is alpha, float32 in [-1, 1], over white.
    Raises:
      ValueError: saying in one line why it cannot be read; the caller names the file.
    """
    with _opened(path) as image:
        channels, dtype = _kind(image)
        transparent = image.info.get("transparency")
        image = ImageOps.exif_transpose(image)
        mode = "L" if channels == 1 else "RGB"
        pixels: np.ndarray
        if dtype == np.uint16:
            pixels = np.asarray(image).astype(np.uint16)
            if transparent is not None:  # one value stands for it
                pixels[pixels == transparent] = 65535
        elif dtype == np.uint8:
            pixels = np.asarray(image.convert(mode))
        else:
            pixels = to_model_range(np.asarray(image.convert(mode + "A")))
            color, alpha = pixels[..., :-1], (pixels[..., -1:] + 1) / 2
            pixels = alpha * color + (1 - alpha)
    return pixels.reshape(*pixels.shape[:2], channels)


def read_array(path: pathlib.Path, *, mmap: bool = False) -> np.ndarray:
    """The array of a .npy file, in this machine's byte order; nothing is ever unpickled.

    Raises:
      ValueError: saying in one line why it cannot be read; the caller names the file.
    """
    with _one_line():
        _check_regular(path)
        array = np.load(path, mmap_mode="r" if mmap else None, allow_pickle=False)
        if not isinstance(array, np.ndarray):
            raise ValueError("it is no single array")
    return _native(array)


def read_arrays(path: pathlib.Path, *, mmap: bool = False) -> tuple[np.ndarray, np.ndarray | None]:
    """(images, labels) of a .npy file of images, or of a .npz file with image and, perhaps, label.

    Args:
      path: the file; nothing in it is ever unpickled.
      mmap: whether a .npy file stays on disk, mapped into memory.
    Raises:
      ValueError: saying in one line why it cannot be read; the caller names the file.
    """
    if path.suffix != ".npz":
        return read_array(path, mmap=mmap), None
    with _one_line():
        _check_regular(path)
        # Opened here, since numpy leaves a broken one open.
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as held:
            if "image" not in held:
                raise ValueError(f"it must hold image, and may hold label; it holds {list(held)}")
            return _native(held["image"]), held["label"] if "label" in held else None


def _native(array: np.ndarray) -> np.ndarray:
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def read(path: pathlib.Path) -> np.ndarray:
    """The images of a file, float32 [N, H, W, C]; N is 1 unless the file is a stack in .npy.

    Raises:
      ValueError: saying in one line why it cannot be read; the caller names the file.
    """
    if path.suffix.lower() != ".npy":
        return to_model_range(read_picture(path))[None]
    array = read_array(path)
    if array.dtype not in (np.uint8, np.uint16) and not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"it must be uint8, uint16 or floating point; it is {array.dtype}")
    if array.ndim not in (2, 3, 4):
        raise ValueError(
            f"it must be [H, W], [H, W, C] or [N, H, W, C]; its shape is {list(array.shape)}"
        )
    if 0 in array.shape:
        raise ValueError(f"it holds no pixels: its shape is {list(array.shape)}")
    array = array[..., None] if array.ndim == 2 else array
    images = to_model_range(array if array.ndim == 4 else array[None])
    if not np.all(np.isfinite(images)):
        raise ValueError("it holds numbers that are not finite")
    return images


def to_model_range(values: np.ndarray) -> np.ndarray:
    """float32: 0..255 (uint8) and 0..65535 (uint16) onto [-1, 1], floats as they are."""
    half = {np.dtype(np.uint8): 127.5, np.dtype(np.uint16): 32767.5}.get(values.dtype)
    with np.errstate(over="ignore"):  # what is too large becomes infinite, for the caller to find
        values = values.astype(np.float32)
    return values if half is None else values / np.float32(half) - np.float32(1)


def cover(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """The smallest enlargement or reduction that covers height x width, its center cut out.

    Bilinear with antialiasing. uint8 stays uint8, rounded; all else becomes float32.

    Args:
      image: [H, W, C].
      height, width: of the result, in pixels.
    """
    if image.shape[:2] == (height, width):
        return image
    if image.dtype != np.uint8:  # Pillow resizes bytes and floats
        image = to_model_range(image)
    scale = max(height / image.shape[0], width / image.shape[1])
    size = (max(width, round(image.shape[1] * scale)), max(height, round(image.shape[0] * scale)))
    planes = [
        np.asarray(Image.fromarray(image[..., c]).resize(size, Image.Resampling.BILINEAR))
        for c in range(image.shape[-1])
    ]
    top, left = (size[1] - height) // 2, (size[0] - width) // 2
    return np.stack(planes, axis=-1)[top : top + height, left : left + width]


def _kind(image: Image.Image) -> tuple[int, np.dtype]:
    """(channels, dtype) of its pixels as `read_picture` gives them."""
    # Pillow scales gray PPM of more than 8 bits to 0..65535, and calls it "I".
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):
        tags = getattr(image, "tag_v2", {})  # of a TIFF: bits a sample; 1: 0 is black
        if tags and (tags.get(258), tags.get(262)) != ((16,), 1):
            raise ValueError("its numbers do not go from 0, black, to 65535: save it as 16-bit PNG")
        return 1, np.dtype(np.uint16)
    if image.mode not in _GRAY + _COLOR:
        raise ValueError(
            f"its pixels (mode {image.mode}) have no known range or color: save it as gray or RGB "
            "of 8 or 16 bits"
        )
    dtype = np.float32 if image.has_transparency_data else np.uint8
    return (1 if image.mode in _GRAY else 3), np.dtype(dtype)


def _check_regular(path: pathlib.Path) -> None:
    if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait for ever
        raise ValueError("it is no regular file")


@contextlib.contextmanager
def _opened(path: pathlib.Path) -> Iterator[Image.Image]:
    """A picture, opened; what goes wrong with it is a ValueError of one line."""
    with _one_line(), warnings.catch_warnings():
        _check_regular(path)
        # A large photograph is no attack; Pillow still refuses what is twice as large.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        with Image.open(path, formats=_formats()) as image:
            yield image


@contextlib.contextmanager
def _one_line() -> Iterator[None]:
    try:
        yield
    except UnidentifiedImageError as error:
        raise ValueError("cannot identify its format: it is no picture, or a broken one") from error
    except Image.DecompressionBombError as error:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise ValueError(f"it has more than {limit:,} pixels: make it smaller") from error
    except Exception as error:  # a decoder may raise anything on a broken file
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(reason) from error
