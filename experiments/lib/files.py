"""What the commands keep: whole or not at all, and valid JSON; on a disk, or in a bucket.

A path in a bucket is etils', which is no pathlib.Path but one of its pure kind. An object appears
whole by itself, and is never appended to; a folder is there as long as an object is in it.
"""

import contextlib
import io
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator
from typing import Any

from experiments.lib.commands import UsageError


def folder(place: str) -> pathlib.Path:
    """What a flag names: a path on this disk, or in a bucket (gs://)."""
    if "://" not in place:
        return pathlib.Path(place)
    from etils import epath

    return epath.Path(place)


def on_disk(path: pathlib.Path) -> bool:
    return isinstance(path, pathlib.Path)


def write_bytes(path: pathlib.Path, content: bytes) -> None:
    """All of the file or nothing, whenever this process ends or the machine stops."""
    if not on_disk(path):
        path.write_bytes(content)
        return
    with _temporary(path, content) as temporary:
        os.replace(temporary, path)


@contextlib.contextmanager
def whole(path: pathlib.Path) -> Iterator[io.BytesIO]:
    """A file to write into, which is there in the end, unless the body raised."""
    held = io.BytesIO()
    yield held
    write_bytes(path, held.getvalue())


def create(path: pathlib.Path) -> None:
    """An empty file where there is none; of several who ask at once, for one alone.

    Raises:
      FileExistsError: for the others.
    """
    if on_disk(path):
        path.open("x").close()
    else:
        import gcsfs

        gcsfs.GCSFileSystem().pipe_file(str(path), b"", mode="create")


def remove_tree(path: pathlib.Path) -> None:
    """Removes a folder, if it is there."""
    if on_disk(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.rmtree(missing_ok=True)


def write_json(path: pathlib.Path, tree: Any) -> None:
    """A file of JSON, whole or not at all; a number that is not finite becomes null."""
    text = json.dumps(finite(tree), indent=2, allow_nan=False)
    write_bytes(path, f"{text}\n".encode())


def read_json(path: pathlib.Path, fix: str) -> dict[str, Any]:
    """The object that a file of ours holds.

    Raises:
      UsageError: naming the file, and the fix, if it holds anything else.
    """
    content = path.read_bytes()
    try:
        held = json.loads(content)
    except ValueError as error:
        reason = f"is no whole JSON ({error})" if content else "is empty"
        raise UsageError(f"{path} {reason}: {fix}") from error
    if not isinstance(held, dict):
        raise UsageError(f"{path} holds no JSON object but a {type(held).__name__}: {fix}")
    return held


def read_settings(output: pathlib.Path, chosen: dict[str, Any]) -> dict[str, Any]:
    """settings.json of a folder of images that a command goes on with; {} where there is none.

    Raises:
      UsageError: naming the setting in which it differs from what is chosen now.
    """
    path = output / "settings.json"
    held = read_json(path, "choose another --output") if path.exists() else {}
    for name in chosen if held else ():
        if held.get(name) != chosen[name]:
            raise UsageError(
                f"{output} holds other images: {name} is {held.get(name)!r} there and "
                f"{chosen[name]!r} here; choose another --output"
            )
    return held


def read_lines(path: pathlib.Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, without what a killed process left of its last one."""
    lines = []
    for text in path.read_bytes().splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError):
            line = json.loads(text)
            if isinstance(line, dict) and isinstance(line.get("step"), int):
                lines.append(line)
    return lines


class Lines:
    """A file of lines that grows: on a disk at once, in a bucket as a whole at each `flush`.

    It must be flushed before a checkpoint is saved. What a kill then loses of it are lines after
    the last checkpoint, which the run that goes on from there writes again.
    """

    def __init__(self, path: pathlib.Path, last: int):
        """The lines up to that step are `kept`; the others are removed from the file."""
        self._path = path
        self.kept = [line for line in read_lines(path) if line["step"] <= last]
        self._texts = [f"{json.dumps(line)}\n" for line in self.kept]
        self._write()

    def append(self, line: dict[str, Any]) -> None:
        text = json.dumps(line, allow_nan=False) + "\n"
        if on_disk(self._path):
            with self._path.open("a") as file:
                file.write(text)
        else:
            self._texts.append(text)

    def flush(self) -> None:
        if not on_disk(self._path):
            self._write()

    def _write(self) -> None:
        write_bytes(self._path, "".join(self._texts).encode())


def finite(tree: Any) -> Any:
    """The tree with None for every number that JSON has no word for."""
    if isinstance(tree, dict):
        return {name: finite(value) for name, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [finite(value) for value in tree]
    bad = isinstance(tree, float) and not -float("inf") < tree < float("inf")
    return None if bad else tree


@contextlib.contextmanager
def _temporary(path: pathlib.Path, content: bytes):
    """A file beside `path` with that content, on disk; gone in the end."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(name, 0o666 & ~mask)  # as any other file; a temporary one is its owner's alone
        yield name
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
