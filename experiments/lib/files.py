"""What the commands keep on disk: whole or not at all, and valid JSON."""

import contextlib
import json
import os
import pathlib
import tempfile
from typing import Any

from experiments.lib.commands import UsageError


def write_bytes(path: pathlib.Path, content: bytes) -> None:
    """All of the file or nothing, whenever this process ends or the machine stops."""
    with _temporary(path, content) as temporary:
        os.replace(temporary, path)


def write_json(path: pathlib.Path, tree: Any) -> None:
    """A file of JSON, whole or not at all; a number that is not finite becomes null."""
    text = json.dumps(finite(tree), indent=2, allow_nan=False)
    write_bytes(path, f"{text}\n".encode())


def read_json(path: pathlib.Path, fix: str) -> dict[str, Any]:
    """The object that a file of ours holds.

    Raises:
      UsageError: naming the file, and the fix, if it holds anything else.
    """
    try:
        held = json.loads(path.read_bytes())
    except ValueError as error:
        reason = "is empty" if not path.stat().st_size else f"is no whole JSON ({error})"
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


def keep_lines(path: pathlib.Path, last: int) -> list[dict[str, Any]]:
    """The lines up to that step; the others are removed from the file."""
    kept = [line for line in read_lines(path) if line["step"] <= last]
    write_bytes(path, "".join(f"{json.dumps(line)}\n" for line in kept).encode())
    return kept


def append_line(path: pathlib.Path, line: dict[str, Any]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(line, allow_nan=False) + "\n")


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
