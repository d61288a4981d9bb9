"""What several hosts must have in common, looked at before they train and told in one screen."""

import contextlib
import hashlib
import json
import pathlib
import secrets
import socket
from typing import Any

import jax
import ml_collections

from diffjax import data, parallel
from experiments.lib import hosts
from experiments.lib.commands import UsageError

_SECONDS = 55  # from the first question to the last answer
_LISTED = 8  # hosts
_ROOT = pathlib.Path(__file__).parents[2]
_OWN = ("config.data.directory",)  # may differ: a copy on the host's disk


def check(config: ml_collections.ConfigDict, source: data.Source, workdir: pathlib.Path) -> None:
    """Compares the hosts, and tries whether all write into one workdir; the first prints it.

    All hosts must call it. It ends the process if a host does not answer within a minute.

    Raises:
      UsageError: on all hosts, naming what differs, or who cannot write.
    """
    index = jax.process_index()
    with hosts.deadline(_SECONDS, f"host {index} waited {_SECONDS} s for another's answer"):
        token = parallel.bytes_from_first_host(secrets.token_bytes(4)).hex()
        with _probe(workdir, f".preflight-{token}-{index}") as (folder, refused):
            found = _exchange({"refused": refused, **_describe(config, source)})
            names = {f".preflight-{token}-{i}" for i in range(len(found))}
            unseen = sorted(names - {path.name for path in folder.glob(f".preflight-{token}-*")})
            found = _exchange({**found[index], "unseen": len(unseen)})
    _compare(found, workdir)
    if index == 0:
        print(_screen(found, config, source, workdir))


@contextlib.contextmanager
def _probe(workdir: pathlib.Path, name: str):
    """A file where checkpoints go: (its folder, why it cannot be written or None)."""
    folder = workdir / "checkpoints" if (workdir / "checkpoints").is_dir() else workdir
    refused = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    except OSError as error:
        refused = error.strerror or type(error).__name__
    try:
        yield folder, refused
    finally:
        with contextlib.suppress(OSError, ValueError):  # ValueError: etils', of a bucket
            (folder / name).unlink()
            workdir.rmdir()  # if it held nothing before


def _describe(config, source) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(config.to_dict(), is_leaf=lambda x: x is None)
    fields = {
        f"config.{jax.tree_util.keystr(path, simple=True, separator='.')}": repr(value)
        for path, value in leaves
    }
    digest = hashlib.sha256()
    for path in sorted(_ROOT.glob("diffjax/**/*.py")) + sorted(_ROOT.glob("experiments/**/*.py")):
        digest.update(str(path.relative_to(_ROOT)).encode() + path.read_bytes())
    return {
        "host": socket.gethostname(),
        "devices": f"{jax.local_device_count()} x {jax.local_devices()[0].device_kind}",
        "common": fields
        | {
            "the code": digest.hexdigest()[:12],
            "jax": jax.__version__,
            "the data": data.fingerprint(source),
        },
    }


def _exchange(mine: dict[str, Any]) -> list[dict[str, Any]]:
    return list(map(json.loads, parallel.bytes_from_all_hosts(json.dumps(mine).encode())))


def _compare(found: list[dict[str, Any]], workdir: pathlib.Path) -> None:
    def name(index):
        return f"host {index} ({found[index]['host']})"

    for index, one in enumerate(found):
        if one["refused"]:
            raise UsageError(f"{name(index)} cannot write into {workdir}: {one['refused']}")
        if one["unseen"]:
            raise UsageError(
                f"{name(index)} does not see in {workdir} what the others write there: "
                "--workdir must be one folder that all hosts share"
            )
        for field in sorted(one["common"].keys() | found[0]["common"].keys()):
            first, other = found[0]["common"].get(field), one["common"].get(field)
            if first != other and field not in _OWN:
                raise UsageError(
                    f"the hosts differ: {field} is {first} on {name(0)} and {other} on "
                    f"{name(index)}; start the same command from the same code everywhere"
                )


def _screen(found, config, source, workdir) -> str:
    count, size, devices = len(found), config.train.batch_size, jax.device_count()
    lines = [f"{count} hosts, {devices} devices"]
    lines += [f"  {i}  {one['host']}  {one['devices']}" for i, one in enumerate(found[:_LISTED])]
    lines += [f"  and {count - _LISTED} more"] if count > _LISTED else []
    common = found[0]["common"]
    shape = "x".join(map(str, source.image_shape))
    return "\n".join(
        [
            *lines,
            f"batch    {size} in all, {size // count} a host, {size // devices} a device",
            f"data     {source.size:,} images {shape}; a host reads 1/{count} of each batch",
            f"workdir  {workdir}: all hosts write there and see the others' files",
            f"alike    code {common['the code']}, jax {common['jax']}, data, every config field",
        ]
    )
