"""Images, as a pure function of the step: the only file that reads data sets.

    digits      scikit-learn's handwritten digits: 1,797 images of 8x8x1, in the wheel
    folder      a folder of images, with train/ and test/ inside or split 9:1 by name
    any other   a data set of TensorFlow Datasets prepared as array_record, read
                without TensorFlow

Images come out as float32 [H, W, C] in [-1, 1]. `batches` starts at any step and
gives the batch that an uninterrupted run would see there, whatever the number of
hosts, so there is no iterator state to save.
"""

import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import grain
import jax
import numpy as np
from PIL import Image

SPLITS = ("train", "test")
_IN_MEMORY_BYTES = 2**30


class Source(NamedTuple):
    """Random access to the examples of one split."""

    size: int
    image_shape: tuple[int, int, int]
    num_classes: int | None
    fetch_fn: Callable[[Sequence[int]], dict[str, np.ndarray]]  # indices -> image, label


def load(
    name: str, split: str, *, directory: str | None = None, image_size: int | None = None
) -> Source:
    """Opens one split of a data set.

    Args:
      name: "digits", "folder", or the name of a prepared TFDS data set.
      split: "train" or "test" (held out).
      directory: the folder of images; for TFDS its data_dir (None: $TFDS_DATA_DIR, or
        ~/tensorflow_datasets); unused by digits.
      image_size: resize the shorter side to it and cut out the central square.
    Raises:
      ValueError: naming the field and the fix, if the data is absent or not images.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}; got {split!r}")
    if name == "digits":
        return _digits(split, image_size)
    if name == "folder":
        return _folder(split, directory, image_size)
    return _tfds(name, split, directory, image_size)


def from_arrays(images: np.ndarray, labels: np.ndarray | None = None) -> Source:
    """A split held in memory.

    Args:
      images: [N, H, W, C]; uint8 in [0, 255], or floating point in [-1, 1].
      labels: [N] integers, or None.
    Raises:
      ValueError: if the shape, the type or the range is another.
    """
    if images.ndim != 4 or not len(images):
        raise ValueError(f"images must have shape [N, H, W, C], N > 0; got {images.shape}")
    if images.dtype != np.uint8:
        if not np.issubdtype(images.dtype, np.floating):
            raise ValueError(f"images must be uint8 or floating point; got {images.dtype}")
        low, high = images.min(), images.max()
        if not (low >= -1 and high <= 1):
            raise ValueError(
                f"floating-point images must lie in [-1, 1]; got [{low:g}, {high:g}]: rescale them"
            )
    labels = None if labels is None else np.asarray(labels, np.int32)

    def fetch(indices):
        indices = np.asarray(indices)
        batch = {"image": _to_model_range(images[indices])}
        return batch if labels is None else batch | {"label": labels[indices]}

    num_classes = None if labels is None else int(labels.max()) + 1
    return Source(len(images), images.shape[1:], num_classes, fetch)


def batches(
    source: Source, *, batch_size: int, seed: int, start: int = 0
) -> Iterator[dict[str, np.ndarray]]:
    """This host's share of the global batches of steps start, start + 1, ..., without end.

    Every epoch is shuffled anew; the order depends on the seed alone. "position" is
    each example's index in the global batch.
    """
    host, hosts = jax.process_index(), jax.process_count()
    indices = grain.MapDataset.range(source.size).shuffle(seed).repeat()[host::hosts]
    steps = indices.batch(batch_size // hosts).map(source.fetch_fn)[start:]
    position = np.arange(host, batch_size, hosts, dtype=np.int32)
    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
    for batch in steps.to_iter_dataset(options):
        yield batch | {"position": position}


def _to_model_range(images: np.ndarray) -> np.ndarray:
    if images.dtype == np.uint8:
        return images.astype(np.float32) / 127.5 - 1
    return images.astype(np.float32)


def _resize(image: np.ndarray, size: int | None) -> np.ndarray:
    """Bilinear with antialiasing: shorter side to `size`, then the central square; uint8."""
    if size is None or image.shape[:2] == (size, size):
        return image
    height, width, channels = image.shape
    scale = size / min(height, width)
    pil = Image.fromarray(image[..., 0] if channels == 1 else image)
    shape = (max(size, round(width * scale)), max(size, round(height * scale)))
    resized = np.asarray(pil.resize(shape, Image.Resampling.BILINEAR)).reshape(*shape[::-1], -1)
    top, left = (shape[1] - size) // 2, (shape[0] - size) // 2
    return resized[top : top + size, left : left + size]


def _digits(split: str, image_size: int | None) -> Source:
    from sklearn.datasets import load_digits

    digits = load_digits()
    # The last fifth is held out unshuffled: it was written by people who wrote none of the rest.
    part = slice(0, 1437) if split == "train" else slice(1437, None)
    images, labels = digits.images[part, :, :, None], digits.target[part]
    if image_size in (None, 8):
        return from_arrays((images / 8 - 1).astype(np.float32), labels)
    levels = np.round(images / 16 * 255).astype(np.uint8)
    return from_arrays(np.stack([_resize(image, image_size) for image in levels]), labels)


def _folder(split: str, directory: str | None, image_size: int | None) -> Source:
    root = pathlib.Path(directory or "")
    if not directory or not root.is_dir():
        raise ValueError(f"data.directory {directory!r} is no folder: name one that holds images")
    suffixes = Image.registered_extensions()

    def images_below(folder):
        return sorted(path for path in folder.rglob("*") if path.suffix.lower() in suffixes)

    if (root / "train").is_dir() and (root / "test").is_dir():
        paths = images_below(root / split)
    else:
        paths = images_below(root)
        cut = len(paths) - max(1, len(paths) // 10)
        paths = paths[:cut] if split == "train" else paths[cut:]
    if not paths:
        raise ValueError(f"data.directory {directory!r} holds no {split} images (PNG, JPEG, ...)")
    with Image.open(paths[0]) as first:
        mode = "L" if first.mode in ("1", "L", "I;16") else "RGB"

    def read(index):
        with Image.open(paths[index]) as image:
            if image.mode.startswith("I;16"):  # PIL would clip it to 8 bits, not scale it
                image = Image.fromarray((np.asarray(image) // 257).astype(np.uint8))
            pixels = np.asarray(image.convert(mode))
        return _resize(pixels.reshape(*pixels.shape[:2], -1), image_size)

    def examples(indices):
        return [(read(index), None) for index in indices]

    return _decoded(examples, len(paths), None, lambda index: str(paths[index]))


def _tfds(name: str, split: str, directory: str | None, image_size: int | None) -> Source:
    import tensorflow_datasets as tfds

    where = os.path.expanduser(
        directory or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    )
    fix = f"prepare it with `make prepare DATASET={name}`, or set data.directory to where it is"
    try:
        records = tfds.data_source(name, split=split, data_dir=where, download=False)
    except tfds.core.DatasetNotFoundError:
        raise ValueError(f"data.name {name!r} is neither digits, folder nor a TFDS name") from None
    except (AssertionError, FileNotFoundError, NotImplementedError):
        raise ValueError(f"data.name {name!r} is not prepared in {where}: {fix}") from None
    except ValueError as error:
        raise ValueError(f"data.name {name!r}, {split!r} cannot be read: {error}") from None
    features = records.dataset_info.features
    if "image" not in features:
        raise ValueError(f"data.name {name!r} has no 'image' feature; it has {list(features)}")
    classes = features["label"].num_classes if "label" in features else None

    def examples(indices):
        found = (records[index] for index in indices)
        return [(_resize(one["image"], image_size), one.get("label")) for one in found]

    return _decoded(examples, len(records), classes, lambda index: f"{name}[{index}]")


def _decoded(examples_fn, size, num_classes, describe_fn) -> Source:
    """A source of encoded images: decoded once if they fit in memory, else when asked for.

    examples_fn: indices -> [(image, label)]; num_classes None: the labels are not read.
    """
    shape = examples_fn([0])[0][0].shape

    def read(indices):
        images, labels = zip(*examples_fn(indices), strict=True)
        for index, image in zip(indices, images, strict=True):
            if image.shape != shape or image.dtype != np.uint8:
                raise ValueError(
                    f"{describe_fn(index)} is {image.dtype}{list(image.shape)}, the first image is "
                    f"uint8{list(shape)}: set data.image_size to bring all to one size"
                )
        return np.stack(images), None if num_classes is None else np.asarray(labels, np.int32)

    if size * np.prod(shape) > _IN_MEMORY_BYTES:

        def fetch(indices):
            images, labels = read([int(index) for index in indices])
            batch = {"image": _to_model_range(images)}
            return batch if labels is None else batch | {"label": labels}

        return Source(size, shape, num_classes, fetch)
    chunks = np.array_split(np.arange(size), -(-size // 1000))
    images, labels = zip(*(read(chunk.tolist()) for chunk in chunks), strict=True)
    labels = None if num_classes is None else np.concatenate(labels)
    return from_arrays(np.concatenate(images), labels)._replace(num_classes=num_classes)
