"""Data sets of encoded images: a folder of files, or one of TensorFlow Datasets.

Here is said what they hold, from their headers, and how to decode it; `diffjax.data` makes
sources of them. One size and one number of channels hold for both splits:

    color        where one image of either split has color
    float32      where one has 16 bits or alpha; else uint8
    size         image_size, or that of the images, which must all agree

Depends on: numpy, Pillow, diffjax.cache, diffjax.images; tensorflow-datasets for its data sets.
"""

import io
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from diffjax import cache, images

SPLITS = ("train", "test")
_TRAIN = ("train", "training")
_HELD_OUT = ("test", "testing", "val", "valid", "validation")  # the first that exists is read


class Encoded(NamedTuple):
    """A split that is not decoded yet."""

    size: int
    shape: tuple[int, int, int]  # of an image
    dtype: np.dtype  # uint8, uint16, or float32 in [-1, 1]
    num_classes: int | None
    decode_fn: Callable[[Sequence[int]], list[np.ndarray]]  # indices -> [images(, labels)]
    place: Sequence  # see `diffjax.cache.cached`
    state: Sequence | None


# A folder of images


def existing_folder(directory: str | None, wanted: str) -> pathlib.Path:
    """data.directory, absolute.

    Raises:
      ValueError: if there is no such folder; `wanted` says what it should hold.
    """
    if not directory or not os.path.isdir(directory):
        raise ValueError(f"data.directory {directory!r} is no folder: name one that holds {wanted}")
    return pathlib.Path(os.path.abspath(directory))


def folder(split: str, directory: str | None, image_size: int | None) -> Encoded:
    """One split of a folder of images.

    With train/ and test/ or val/ (also training, testing, valid, validation) inside, those are
    the splits; where there are both, val/ is left out. Without train/, all else is for training.
    Without a folder that is held out, the last tenth by name is.

    Args:
      split: "train" or "test".
      directory: the folder.
      image_size: as in `diffjax.data.load`.
    Raises:
      ValueError: naming the folder, or the file that cannot be read or is of another size.
    """
    root = existing_folder(directory, "images")
    try:
        paths = _split_by_name(root)
        everything = [path for name in SPLITS for path in paths[name]]
        state = cache.state(everything)
    except OSError as error:
        raise ValueError(f"{error.filename}: {error.strerror}") from error
    for name in SPLITS:
        if not paths[name]:
            raise ValueError(
                f"data.directory {directory!r} holds no {name} images (PNG, JPEG, ...)"
            )
    place = ("folder", str(root), image_size, Image.__version__)
    kept = cache.cached(
        (*place, "headers"),
        state,
        [((4,), np.dtype(np.int64))],
        lambda: [np.array(_headers(everything, image_size), np.int64)],
    )
    height, width, channels, is_float = kept[0].tolist()
    shape, dtype = (height, width, channels), np.dtype(np.float32 if is_float else np.uint8)

    def decode(indices):
        wanted = [paths[split][index] for index in indices]
        return [np.stack([_read(path, shape, dtype, image_size) for path in wanted])]

    return Encoded(len(paths[split]), shape, dtype, None, decode, (*place, split), state)


def _read(path: pathlib.Path, shape, dtype, image_size: int | None) -> np.ndarray:
    """One picture, brought to the shape and type that the headers of all promised."""
    try:
        pixels = images.read_picture(path)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if dtype == np.float32:
        pixels = images.to_model_range(pixels)
    if pixels.shape[-1] < shape[-1]:
        pixels = pixels.repeat(shape[-1], axis=-1)
    if image_size is not None:
        pixels = images.cover(pixels, image_size, image_size)
    if (pixels.shape, pixels.dtype) != (shape, dtype):
        raise ValueError(
            f"{path} is {pixels.dtype}{list(pixels.shape)} now, and its header said "
            f"{dtype}{list(shape)}: it was changed, start again"
        )
    return pixels


def _split_by_name(root: pathlib.Path) -> dict[str, list[pathlib.Path]]:
    """The pictures of each split: in folders of their names, or the last tenth held out."""
    folders = {path.name.lower(): path for path in root.iterdir() if path.is_dir()}
    held_out = [folders[name] for name in _HELD_OUT if name in folders]
    if not held_out:
        paths = images.find(root)
        cut = len(paths) - max(1, len(paths) // 10)
        return {"train": paths[:cut], "test": paths[cut:]}
    training = [folders[name] for name in _TRAIN if name in folders] or [root]
    train = images.find(training[0], skip=tuple(held_out))
    return {"train": train, "test": images.find(held_out[0])}


def _headers(paths: list[pathlib.Path], image_size: int | None) -> tuple[int, int, int, bool]:
    """(height, width, channels, whether floats are needed) of the data that all files make up.

    Raises:
      ValueError: naming the first file that cannot be read, or that is of another size.
    """
    channels, is_float, first = 1, False, None
    for path in paths:
        try:
            header = images.header(path, upright=image_size is None)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        first = first or header
        if image_size is None and header[:2] != first[:2]:
            raise ValueError(
                f"{path} is {header.height}x{header.width}, {paths[0]} is "
                f"{first.height}x{first.width}: set data.image_size to bring all to one size"
            )
        channels = max(channels, header.channels)
        is_float = is_float or header.dtype != np.uint8
    assert first is not None
    height, width = first[:2] if image_size is None else (image_size, image_size)
    return height, width, channels, is_float


# TensorFlow Datasets


def tensorflow_dataset(
    name: str, split: str, directory: str | None, image_size: int | None
) -> Encoded:
    """One split of a data set of TensorFlow Datasets, prepared as array_record.

    Args:
      name: its name.
      split: "train" or "test".
      directory: its data_dir; None: $TFDS_DATA_DIR, or ~/tensorflow_datasets.
      image_size: as in `diffjax.data.load`.
    Raises:
      ValueError: naming the data set and the fix.
    """
    where = directory or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    where = os.path.expanduser(where)
    records = _records(name, split, where)
    info = records.dataset_info
    if "image" not in info.features:
        raise ValueError(f"data.name {name!r} has no 'image' feature; it has {list(info.features)}")
    classes = info.features["label"].num_classes if "label" in info.features else None
    if image_size is None and None in info.features["image"].shape:
        _check_sizes(name, where, [held for held in SPLITS if held in info.splits])

    def pixels_of(record):
        if image_size is None:
            return record["image"]
        return images.cover(record["image"], image_size, image_size)

    first = pixels_of(records[0])

    def decode(indices):
        found = [records[index] for index in indices]
        pixels = [pixels_of(record) for record in found]
        for index, image in zip(indices, pixels, strict=True):
            if (image.shape, image.dtype) != (first.shape, first.dtype):
                raise ValueError(
                    f"{name}[{index}] of {split} is {image.dtype}{list(image.shape)}, the first is "
                    f"{first.dtype}{list(first.shape)}: set data.image_size to one size for all"
                )
        if classes is None:
            return [np.stack(pixels)]
        return [np.stack(pixels), np.array([record["label"] for record in found], np.int32)]

    place = (name, info.full_name, os.path.abspath(where), split, image_size, Image.__version__)
    state = _state_of(records, split)
    return Encoded(len(records), first.shape, first.dtype, classes, decode, place, state)


def _records(name: str, split: str, where: str, *, encoded: bool = False) -> Any:
    """The examples of a split; with `encoded`, the images in them are the bytes of files."""
    try:
        import tensorflow_datasets as tfds
    except ImportError:
        raise ValueError(
            f"data.name {name!r} needs tensorflow-datasets: pip install 'diffjax[data]'"
        ) from None
    fix = f"prepare it with `make prepare DATASET={name}`, or set data.directory to where it is"
    decoders = {"image": tfds.decode.SkipDecoding()} if encoded else None
    try:
        return tfds.data_source(
            name, split=split, data_dir=where, download=False, decoders=decoders
        )
    except tfds.core.DatasetNotFoundError:
        raise ValueError(
            f"data.name {name!r} is neither digits, folder, arrays nor a TFDS name"
        ) from None
    except (AssertionError, FileNotFoundError, NotImplementedError):
        raise ValueError(f"data.name {name!r} is not prepared in {where}: {fix}") from None
    except ValueError as error:
        raise ValueError(f"data.name {name!r}, {split!r} cannot be read: {error}") from None


def _state_of(records: Any, split: str) -> list | None:
    """None if the records do not come from files, as those of tfds.testing.mock_data."""
    splits = records.dataset_info.splits
    if split not in splits or len(records) != splits[split].num_examples:
        return None
    try:
        return cache.state(splits[split].filepaths)
    except OSError:
        return None


def _check_sizes(name: str, where: str, splits: list[str]) -> None:
    """Raises ValueError, naming the example, unless all encoded images have one size."""
    first = None
    for split in splits:
        records = _records(name, split, where, encoded=True)
        for index in range(len(records)):
            with Image.open(io.BytesIO(records[index]["image"])) as image:
                width, height = image.size
            first = first or (height, width)
            if (height, width) != first:
                raise ValueError(
                    f"{name}[{index}] of {split} is {height}x{width}, the first image is "
                    f"{first[0]}x{first[1]}: set data.image_size to bring all to one size"
                )
