"""Arrays that take long to make, kept on disk between runs.

An entry says what it is (its place: a data set, a split, a size) and what it was made from (its
state: the paths, sizes and times of change of files). An entry of another state is replaced.

The folder is $DIFFJAX_CACHE, or else diffjax/ in $XDG_CACHE_HOME or in ~/.cache;
DIFFJAX_CACHE="" turns the cache off. A cache that cannot be read or written does no harm:
the arrays are made again.

Depends on: numpy.
"""

import contextlib
import hashlib
import os
import pathlib
import re
import tempfile
from collections.abc import Callable, Iterable, Sequence

import numpy as np


def folder() -> pathlib.Path | None:
    """Where entries are kept; None: nowhere."""
    named = os.environ.get("DIFFJAX_CACHE")
    if named is not None:
        return pathlib.Path(os.path.expanduser(named)) if named else None
    base = os.environ.get("XDG_CACHE_HOME", "")
    base = base if os.path.isabs(base) else os.path.expanduser("~/.cache")
    return pathlib.Path(base, "diffjax") if os.path.isabs(base) else None


def state(paths: Iterable[str | os.PathLike]) -> list[tuple[str, int, int]]:
    """What tells that files changed: the path, size and time of change of each.

    Raises:
      OSError: if there is no such file.
    """
    found = ((os.fspath(path), os.stat(path)) for path in paths)
    return [(path, facts.st_size, facts.st_mtime_ns) for path, facts in found]


def cached(
    place: Sequence,
    state: Sequence | None,
    expected: Sequence[tuple[tuple[int, ...], np.dtype]],
    make_fn: Callable[[], Sequence[np.ndarray]],
) -> Sequence[np.ndarray]:
    """The arrays that make_fn gives, mapped from disk where they are kept already.

    Args:
      place: what they are; its first part begins the names of their files. All its parts, and
        those of `state`, are told apart by their repr.
      state: what they are made from; None: nothing is kept.
      expected: shape and dtype of each; a kept file of another kind is broken.
      make_fn: () -> arrays.
    """
    root = folder()
    if root is None or state is None:
        return make_fn()
    name = f"{re.sub(r'[^A-Za-z0-9]', '_', str(place[0]))}-{_digest(place)}"
    paths = [root / f"{name}-{_digest(state)}-{i}.npy" for i in range(len(expected))]
    with contextlib.suppress(Exception):  # a broken file may raise anything
        kept = [np.asarray(np.load(path, mmap_mode="r", allow_pickle=False)) for path in paths]
        if [(array.shape, array.dtype) for array in kept] == list(expected):
            return kept
    arrays = make_fn()
    with contextlib.suppress(OSError):  # a full disk, a folder of somebody else
        root.mkdir(parents=True, exist_ok=True)
        for path, array in zip(paths, arrays, strict=True):
            _write(path, name, array)
        # Other states, and what a killed process left behind.
        for path in set(root.glob(f"{name}-*")) - set(paths):
            path.unlink(missing_ok=True)
    return arrays


def _digest(parts: Sequence) -> str:
    return hashlib.sha256(repr(tuple(parts)).encode(errors="surrogateescape")).hexdigest()[:16]


def _write(path: pathlib.Path, name: str, array: np.ndarray) -> None:
    """All of the file or nothing, whenever this process ends or the machine stops."""
    handle, temporary = tempfile.mkstemp(prefix=f"{name}-", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            np.save(file, array, allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
