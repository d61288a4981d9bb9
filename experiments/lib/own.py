"""What a config names as "module:function": yours, without editing ours.

The module is found from the current folder when training starts, and remembered in config.json
with its file and its hash, so that the other commands work from any folder; a file that has
changed since, or gone, is named. Nothing is imported from a workdir.
"""

import hashlib
import importlib
import pathlib
import sys
from collections.abc import Callable, Mapping
from typing import Any

from experiments.lib.commands import UsageError


def _digest(path: pathlib.Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def load(field: str, name: str, root: str | None = None) -> Callable[..., Any]:
    """The function that config.`field` names.

    Args:
      field: the config's field, for messages.
      name: "module:function"; the module may have dots.
      root: the folder it is imported from; None: the current one.
    Raises:
      UsageError: naming the field, if there is no such module or function, or if importing
        it fails.
    """
    module_name, _, function_name = name.partition(":")
    folder = str(pathlib.Path(root or ".").resolve())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        importlib.invalidate_caches()
        module = importlib.import_module(module_name)
        function = getattr(module, function_name)
    except Exception as error:  # a user's module may raise anything
        reason = (str(error).strip().splitlines() or [""])[0]
        raise UsageError(
            f"config.{field} = {name!r} cannot be imported from {folder}: "
            f"{type(error).__name__}: {reason}"
        ) from error
    if not callable(function):
        raise UsageError(f"config.{field} = {name!r} must name a function")
    return function


def describe(field: str, name: str, root: str | None, workdir: pathlib.Path) -> dict[str, str]:
    """{"root", "file", "sha256"} of what config.`field` names; arguments as in `load`.

    Raises:
      UsageError: if its file lies in the workdir, from which nothing is imported.
    """
    module = sys.modules[load(field, name, root).__module__]
    path = pathlib.Path(module.__file__ or "").resolve()
    if path.is_relative_to(workdir.resolve()):
        raise UsageError(f"config.{field} = {name!r}: {path} lies in the workdir; move it out")
    depth = module.__name__.count(".") + (path.name == "__init__.py")
    return {"root": str(path.parents[depth]), "file": str(path), "sha256": _digest(path)}


def check(held: Mapping[str, Mapping[str, str]]) -> None:
    """Raises UsageError if a file that a run remembers is gone, or is another now."""
    for name, known in held.items():
        path = pathlib.Path(known["file"])
        if not path.is_file():
            raise UsageError(f"{name} was in {path} when the run was trained, which is gone")
        if _digest(path) != known["sha256"]:
            raise UsageError(
                f"{name}: {path} has changed since the run was trained; restore it, or train anew"
            )
