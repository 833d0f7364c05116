"""`bundle`: what a person who helps needs to see, in one archive. No payloads, no keys, no certificates."""

import asyncio
import io
import json
import os
import platform
import tarfile
import time
from collections.abc import Awaitable, Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from ringpost.client import errors
from ringpost.client.api import Client
from ringpost.client.cli import local, local_cluster
from ringpost.client.cli.command import output_option, remote
from ringpost.client.cli.output import Output
from ringpost.client.cli.units import show_bytes

# Of each local log the end; of channels and groups the first.
_LOG_BYTES = 2 << 20
_LISTED = 5_000
_MODE = 0o600
_LIBRARIES = ("ringpost", "grpcio", "protobuf", "uvloop", "crc32c", "click")

Part = Callable[[], Awaitable[Any]]


class Archive:
    """A tar.gz in the making; what cannot be had is named in it and holds up nothing."""

    def __init__(self) -> None:
        self.problems: dict[str, str] = {}
        self.files: dict[str, bytes] = {}

    async def add(self, name: str, part: Part) -> Any:
        """One JSON file; what `part` gave, or None."""
        try:
            found = await part()
        except errors.RingpostError as error:
            self.problems[name] = error.message
            return None
        self.files[name] = json.dumps(_plain(found), indent=2, ensure_ascii=False).encode()
        return found

    def write(self, path: Path) -> int:
        """Its size. Nobody else can read it at any time: logs and names are in it. Raises OSError."""
        if self.problems:
            self.files["problems.json"] = json.dumps(self.problems, indent=2, ensure_ascii=False).encode()
        folder, now = path.name.removesuffix(".tar.gz"), int(time.time())
        file = os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, _MODE), "wb")
        os.fchmod(file.fileno(), _MODE)  # where it was there already
        with file, tarfile.open(fileobj=file, mode="w:gz") as archive:
            for name, content in sorted(self.files.items()):
                entry = tarfile.TarInfo(f"{folder}/{name}")
                entry.size, entry.mtime, entry.mode = len(content), now, _MODE
                archive.addfile(entry, io.BytesIO(content))
        return path.stat().st_size


def _plain(found: Any) -> Any:
    if isinstance(found, Message):
        return MessageToDict(found, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    if isinstance(found, list):
        return [_plain(one) for one in found]
    return found


async def collect(mq: Client, folder: Path) -> Archive:
    """Asks the cluster, and takes the logs of the local nodes of `folder`."""
    archive = Archive()
    await archive.add("client.json", _client)
    await archive.add("status.json", mq.cluster.status)
    members = await archive.add("nodes.json", mq.cluster.nodes) or []
    await archive.add("routes.json", mq.cluster.routes)
    names = [member.node for member in members if member.alive] or [""]
    await asyncio.gather(*(archive.add(f"node-{name or 'this'}.json", _info(mq, name)) for name in names))
    await archive.add("channels.json", lambda: _first(mq.channels.list()))
    await archive.add("groups.json", lambda: _first(mq.groups.list()))
    for log in _logs(folder):
        archive.files[f"logs/{log.name}"] = _end_of(log)
    return archive


async def _client() -> dict[str, Any]:
    libraries = {}
    for name in _LIBRARIES:
        try:
            libraries[name] = version(name)
        except PackageNotFoundError:
            libraries[name] = "not installed"
    return {
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "python": platform.python_version(),
        "system": platform.platform(),
        "libraries": libraries,
    }


def _info(mq: Client, node: str) -> Part:
    return lambda: mq.node.info(within=3.0, node=node)


async def _first(found: Any) -> list[Any]:
    some = []
    async for one in found:
        some.append(one)
        if len(some) == _LISTED:
            break
    return some


def _logs(folder: Path) -> list[Path]:
    cluster, node = local_cluster.remembered(folder), local.remembered(folder)
    named = [one.log for one in cluster.nodes] if cluster is not None else []
    if cluster is not None and cluster.etcd is not None:
        named.append(cluster.etcd.log)
    if node is not None:
        named.append(node.log)
    return [Path(name) for name in dict.fromkeys(named) if Path(name).is_file()]


def _end_of(log: Path) -> bytes:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _LOG_BYTES))
        return file.read()


@click.command()
@click.option(
    "--to", type=click.Path(dir_okay=False, path_type=Path), help="Default: ringpost-bundle-TIME.tar.gz here."
)
@output_option
@remote()
async def bundle(mq: Client, to: Path | None, output: Output) -> None:
    """Collect for support how the cluster is, in an archive that only you can read.

    Status, members, nodes, routes, names and settings of channels and groups, versions, the ends of local logs. No
    message, no key, no certificate, no token.
    """
    path = to or Path(time.strftime("ringpost-bundle-%Y%m%d-%H%M%S.tar.gz"))
    archive = await collect(mq, local.home())
    size = await asyncio.to_thread(archive.write, path)
    text = f"{path}: {len(archive.files)} files, {show_bytes(size)}"
    if archive.problems:
        text += f"; could not be had: {', '.join(sorted(archive.problems))}"
    output.line(text, {"path": str(path), "bytes": size, "files": sorted(archive.files), "problems": archive.problems})
