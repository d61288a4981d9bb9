"""Images, as a pure function of the step.

    digits      scikit-learn's handwritten digits: 1,797 images of 8x8x1, in the wheel
    folder      a folder of images, read by `diffjax.images`: train/ with test/ or val/ inside,
                or all of them, split 9:1 by name
    arrays      train.npy and test.npy, or train.npz and test.npz with image and label
    a function  the user's own
    any other   a data set of TensorFlow Datasets prepared as array_record, read
                without TensorFlow

Images come out as float32 [H, W, C] in [-1, 1], of one size and one number of channels in both
splits. `batches` starts at any step and gives the batch that an uninterrupted run would see
there, whatever the number of hosts, so there is no iterator state to save.

What takes long to decode is kept in a cache: see `diffjax.cache`.

Depends on: grain, jax, numpy, diffjax.cache, diffjax.encoded, diffjax.images; scikit-learn for
digits.
"""

import hashlib
import importlib.metadata
import math
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from diffjax import cache, encoded
from diffjax.images import cover, read_arrays, to_model_range

SPLITS = encoded.SPLITS
_IN_MEMORY_BYTES = 2**30
_SAMPLED = 64  # images that tell data sets apart


class Source(NamedTuple):
    """Random access to the examples of one split."""

    size: int
    image_shape: tuple[int, int, int]
    num_classes: int | None
    # indices -> image, label
    fetch_fn: Callable[[Sequence[int] | np.ndarray], dict[str, np.ndarray]]


# (split, *, directory, image_size) -> images, (images, labels) or a Source
LoadFn = Callable[..., Any]


def load(
    name: str | LoadFn,
    split: str,
    *,
    directory: str | None = None,
    image_size: int | None = None,
    limit: int | None = None,
) -> Source:
    """Opens one split of a data set.

    Args:
      name: "digits", "folder", "arrays", the name of a prepared TFDS data set, or a function
        (split, directory=None, image_size=None) that returns images [N, H, W, C],
        (images, labels), both as `from_arrays` takes them, or a Source. It is asked for both
        splits, which must be of one kind.
      split: "train" or "test" (held out).
      directory: the folder of images or arrays; for TFDS its data_dir (None: $TFDS_DATA_DIR, or
        ~/tensorflow_datasets); unused by digits. "~" is the user's home.
      image_size: resize the shorter side to it and cut out the central square.
      limit: use only so many images of the training split, the first ones.
    Raises:
      ValueError: naming the field or the file and the fix, if the data is absent or not images.
        A file that changes later is named when it is fetched.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}; got {split!r}")
    for field, value in (("image_size", image_size), ("limit", limit)):
        if value is not None and not (isinstance(value, int) and value > 0):
            raise ValueError(f"data.{field} must be a positive integer, or None; got {value!r}")
    directory = os.path.expanduser(directory) if directory else None
    limit = limit if split == "train" else None
    if callable(name):
        source = _function(name, split, directory, image_size)
    elif name == "digits":
        source = _digits(split, image_size)
    elif name == "folder":
        source = _decoded(encoded.folder(split, directory, image_size), limit)
    elif name == "arrays":
        source = _arrays(split, directory, image_size)
    else:
        dataset = encoded.tensorflow_dataset(name, split, directory, image_size)
        source = _decoded(dataset, limit)
    return source._replace(size=min(source.size, limit or source.size))


def from_arrays(images: np.ndarray, labels: np.ndarray | None = None) -> Source:
    """A split held in memory.

    Args:
      images: [N, H, W, C]; uint8 in [0, 255], uint16 in [0, 65535], or floating point in [-1, 1].
      labels: [N] integers from 0, or None.
    Raises:
      ValueError: if the shape, the type or the range is another.
    """
    if images.ndim != 4 or 0 in images.shape:
        raise ValueError(f"images must have shape [N, H, W, C], N > 0; got {images.shape}")
    if images.dtype not in (np.uint8, np.uint16):
        if not np.issubdtype(images.dtype, np.floating):
            raise ValueError(f"images must be uint8, uint16 or floating point; got {images.dtype}")
        low, high = images.min(), images.max()
        if not (low >= -1 and high <= 1):
            raise ValueError(
                f"floating-point images must lie in [-1, 1]; got [{low:g}, {high:g}]: rescale them"
            )
    if labels is None:
        return _in_memory(images, None, None)
    labels = np.asarray(labels)
    if labels.shape != images.shape[:1]:
        raise ValueError(f"labels must have shape [{len(images)}], as images; got {labels.shape}")
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels must be integers; got {labels.dtype}")
    if labels.min() < 0 or labels.max() >= 2**31 - 1:
        raise ValueError(f"labels must count from 0; got [{labels.min()}, {labels.max()}]")
    return _in_memory(images, labels, int(labels.max()) + 1)


def fingerprint(source: Source) -> str:
    """Says which data a source holds, however it is stored: "1437x8x8x1-" and a hash.

    The hash is the beginning of SHA-256 over up to 64 of the images, evenly spread, and their
    labels, as `fetch_fn` gives them.
    """
    indices = np.linspace(0, source.size - 1, min(source.size, _SAMPLED)).astype(int)
    batch = source.fetch_fn(indices.tolist())
    digest = hashlib.sha256()
    for name in sorted(batch):
        digest.update(name.encode() + np.ascontiguousarray(batch[name]).tobytes())
    shape = "x".join(map(str, (source.size, *source.image_shape)))
    return f"{shape}-{digest.hexdigest()[:16]}"


def batches(
    source: Source, *, batch_size: int, seed: int, start: int = 0, shared: bool = True
) -> Iterator[dict[str, np.ndarray]]:
    """This host's share of the global batches of steps start, start + 1, ..., without end.

    Every epoch is shuffled anew; the order depends on the seed alone. "position" is
    each example's index in the global batch. shared=False: all of each batch, on any host.
    """
    import grain  # what only reads a source need not wait for it

    host, hosts = (jax.process_index(), jax.process_count()) if shared else (0, 1)
    position = np.arange(host, batch_size, hosts, dtype=np.int32)

    def share(step):
        # What MapDataset.range(size).shuffle(seed).repeat() holds there, without its cost an index.
        epochs, places = np.divmod(step * batch_size + position.astype(np.int64), source.size)
        indices = [
            grain.experimental.index_shuffle(
                place, max_index=source.size - 1, seed=(seed + epoch) % 2**32, rounds=4
            )
            for epoch, place in zip(epochs.tolist(), places.tolist(), strict=True)
        ]
        return source.fetch_fn(np.asarray(indices)) | {"position": position}

    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)
    yield from grain.MapDataset.range(start, 2**62).map(share).to_iter_dataset(options)


def _in_memory(pixels, labels, num_classes) -> Source:
    labels = None if labels is None else labels.astype(np.int32)

    def fetch(indices):
        indices = np.asarray(indices)
        batch = {"image": to_model_range(pixels[indices])}
        return batch if labels is None else batch | {"label": labels[indices]}

    return Source(len(pixels), pixels.shape[1:], num_classes, fetch)


def _alike(sources: dict[str, Source], what: str) -> dict[str, Source]:
    """Both splits, with the classes of either.

    Raises:
      ValueError: if images of one split have another shape, or only one has labels.
    """
    train, test = (sources[name] for name in SPLITS)
    if train.image_shape != test.image_shape:
        raise ValueError(
            f"{what}: train images are {list(train.image_shape)}, test images "
            f"{list(test.image_shape)}: bring both to one shape"
        )
    if train.num_classes is None or test.num_classes is None:
        if train.num_classes != test.num_classes:
            raise ValueError(f"{what}: only one of train and test has labels: give both, or none")
        return sources
    classes = max(train.num_classes, test.num_classes)
    return {name: source._replace(num_classes=classes) for name, source in sources.items()}


# Digits


def _digits(split: str, image_size: int | None) -> Source:
    # Importing scikit-learn takes a second, so that what it holds is kept, too.
    pixels, labels = cache.cached(
        ("digits",),
        [importlib.metadata.version("scikit-learn")],
        [((1797, 8, 8), np.dtype(np.float64)), ((1797,), np.dtype(np.int64))],
        _read_digits,
    )
    # The last fifth is held out unshuffled: it was written by people who wrote none of the rest.
    part = slice(0, 1437) if split == "train" else slice(1437, None)
    pixels, labels = pixels[part, :, :, None], labels[part]
    if image_size in (None, 8):
        return from_arrays((pixels / 8 - 1).astype(np.float32), labels)
    return from_arrays(_covered(np.round(pixels / 16 * 255).astype(np.uint8), image_size), labels)


def _read_digits() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    return digits.images, digits.target


def _covered(pixels: np.ndarray, image_size: int) -> np.ndarray:
    return np.stack([cover(image, image_size, image_size) for image in pixels])


# Arrays and functions


def _arrays(split: str, directory: str | None, image_size: int | None) -> Source:
    root = encoded.existing_folder(directory, "train.npy and test.npy, or .npz")
    sources = {name: _array(root, name, image_size) for name in SPLITS}
    return _alike(sources, f"data.directory {str(root)!r}")[split]


def _array(root: pathlib.Path, split: str, image_size: int | None) -> Source:
    paths = [root / f"{split}{suffix}" for suffix in (".npy", ".npz")]
    held = [path for path in paths if path.exists()]
    if len(held) != 1:
        raise ValueError(
            f"data.directory {str(root)!r} holds {'both' if held else 'neither'} {paths[0].name} "
            f"{'and' if held else 'nor'} {paths[1].name}: it must hold one of them"
        )
    (path,) = held
    try:
        pixels, labels = read_arrays(path, mmap=path.stat().st_size > _IN_MEMORY_BYTES)
        source = from_arrays(pixels, labels)
        if image_size is None:
            return source
        return from_arrays(_covered(pixels, image_size), labels)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _function(fn: LoadFn, split: str, directory: str | None, image_size: int | None) -> Source:
    what = f"data.name {getattr(fn, '__module__', '')}:{getattr(fn, '__qualname__', repr(fn))}"
    sources = {}
    for name in SPLITS:
        try:
            sources[name] = _returned(fn(name, directory=directory, image_size=image_size))
        except Exception as error:  # it is the user's code
            reason = (str(error).strip().splitlines() or [""])[0]
            message = f"{what} failed for {name!r}: {type(error).__name__}: {reason}"
            raise ValueError(message) from error
    source = _alike(sources, what)[split]
    if image_size is not None and source.image_shape[:2] != (image_size, image_size):
        raise ValueError(
            f"{what} returned images of {list(source.image_shape)} where data.image_size is "
            f"{image_size}: resize them there, or set it to None"
        )
    return source


def _returned(found: Any) -> Source:
    """What a user's function returned, as a Source."""
    if not isinstance(found, Source):
        pixels, labels = found if isinstance(found, tuple) and len(found) == 2 else (found, None)
        if not hasattr(pixels, "shape"):
            kind = type(pixels).__name__
            raise ValueError(f"images, (images, labels) or a Source are wanted; got {kind}")
        return from_arrays(np.asarray(pixels), None if labels is None else np.asarray(labels))
    height, width, channels = shape = tuple(found.image_shape)
    if not found.size > 0:
        raise ValueError(f"a Source must have a size > 0; got {found.size}")
    batch = found.fetch_fn([0])
    wanted = {"image"} if found.num_classes is None else {"image", "label"}
    if set(batch) != wanted:
        raise ValueError(f"fetch_fn must give {sorted(wanted)}; it gives {sorted(batch)}")
    image = np.asarray(batch["image"])
    if image.dtype != np.float32 or image.shape != (1, *shape):
        raise ValueError(
            f"fetch_fn([0]) must give an image float32{[1, *shape]}; it is "
            f"{image.dtype}{list(image.shape)}"
        )
    from_arrays(image, batch.get("label"))  # their range
    return found._replace(image_shape=(height, width, channels))


# Encoded images


def _decoded(split: encoded.Encoded, limit: int | None) -> Source:
    """Decoded once if they fit in memory, and kept in the cache; else when asked for."""
    size, shape = min(split.size, limit or split.size), split.shape
    if size * math.prod(shape) * split.dtype.itemsize > _IN_MEMORY_BYTES:

        def fetch(indices):
            pixels, *labels = split.decode_fn([int(index) for index in indices])
            batch = {"image": to_model_range(pixels)}
            return batch | {"label": labels[0]} if labels else batch

        return Source(size, shape, split.num_classes, fetch)

    def decode():
        starts = range(0, size, 1000)
        parts = [split.decode_fn(range(i, min(i + 1000, size))) for i in starts]
        return [np.concatenate(part) for part in zip(*parts, strict=True)]

    expected: list[tuple[tuple[int, ...], np.dtype]] = [((size, *shape), split.dtype)]
    if split.num_classes is not None:
        expected += [((size,), np.dtype(np.int32))]
    pixels, *labels = cache.cached((*split.place, size), split.state, expected, decode)
    return _in_memory(pixels, labels[0] if labels else None, split.num_classes)
