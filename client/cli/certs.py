"""`certs`: certificates for small clusters and for trying TLS out. Whoever has an authority of their own uses that.

DIR/ca.pem, ca.key          the authority of what clients meet
DIR/peers.pem, peers.key    another one, of what nodes show each other
DIR/NODE.pem, NODE.key      what clients meet at a node
DIR/NODE.peer.pem, .key     what it shows other nodes: its name is the node's id

With --folders a node's files are in DIR/NODE, with copies of ca.pem and peers.pem: all that it needs.
"""

import datetime
import ipaddress
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import click

from ringpost.client.cli.command import Group
from ringpost.client.cli.local import LocalNodeError
from ringpost.client.cli.output import note

_LOCAL = ("localhost", "127.0.0.1", "::1")
_AUTHORITIES = {"ca": "Ringpost clients", "peers": "Ringpost peers"}
_KEY_MODE, _CERT_MODE, _FOLDER_MODE = 0o600, 0o644, 0o755
_HOST = re.compile(r"(?:\*\.)?[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?").fullmatch
# As the broker checks it.
_NODE = re.compile(r"(?=.{1,63}$)[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?").fullmatch


class Wanted(NamedTuple):
    """A node, and what clients call it beside its id."""

    node: str
    hosts: tuple[str, ...]

    @property
    def files(self) -> tuple[str, ...]:
        return tuple(f"{self.node}{ending}" for ending in (".pem", ".key", ".peer.pem", ".peer.key"))


class Layout(NamedTuple):
    """Where the files go, and who may read them."""

    folder: Path
    apart: bool
    readable: bool

    def of(self, wanted: Wanted) -> Path:
        """The folder of a node's files."""
        return self.folder / wanted.node if self.apart else self.folder

    def make(self, folder: Path) -> None:
        """It is there afterwards."""
        folder.mkdir(parents=True, exist_ok=True)
        if self.readable:
            folder.chmod(folder.stat().st_mode | _FOLDER_MODE)


def host(text: str) -> str:
    """A name or an address, without a port."""
    if _HOST(text) is None:
        try:
            ipaddress.ip_address(text)
        except ValueError:
            raise click.BadParameter(f"{text!r} is no name and no address; ports do not belong here.") from None
    return text


def node(text: str) -> Wanted:
    """ID[=HOST,…]"""
    name, _, rest = text.partition("=")
    if _NODE(name) is None:
        raise click.BadParameter(
            f"{name!r} is no node's id: 1 to 63 of A-Z a-z 0-9 . _ -, with a letter or digit at both ends."
        )
    if name in _AUTHORITIES or name.endswith(".peer"):
        raise click.BadParameter(f"{name}'s files would be called as others are; call the node something else.")
    return Wanted(name, tuple(host(one) for one in rest.split(",") if one))


@click.group(cls=Group)
def certs() -> None:
    """Certificates for small clusters; larger ones have an authority of their own."""


@certs.command()
@click.option("--dir", "folder", required=True, type=click.Path(file_okay=False, path_type=Path), help="Where they go.")
@click.option("--node", "nodes", type=node, multiple=True, required=True, metavar="ID[=HOST,…]", help="A node.")
@click.option("--clients-host", "shared", type=host, multiple=True, metavar="HOST", help="What leads to any node.")
@click.option("--days", type=click.IntRange(1, 3650), default=365, show_default=True, help="How long they last.")
@click.option("--renew", is_flag=True, help="Make those that are there anew; the authorities stay.")
@click.option("--folders", is_flag=True, help="Give each node a folder of its own, DIR/ID, with all that it needs.")
@click.option("--readable", is_flag=True, help="Let everybody on this machine read the nodes' keys: for containers.")
def new(
    folder: Path,
    nodes: tuple[Wanted, ...],
    shared: tuple[str, ...],
    days: int,
    renew: bool,
    folders: bool,
    readable: bool,
) -> None:
    """Make certificates for nodes, and two authorities unless they are there.

    For tests and small clusters: the authorities' keys are files, and nothing revokes a certificate. Clients meet a
    node by its id, its hosts, every --clients-host, and on this machine. What is there stays, unless --renew says
    otherwise; nodes take up new files by themselves. Keep ca.key and peers.key where no node can read them.
    """
    if len({wanted.node for wanted in nodes}) < len(nodes):
        raise click.UsageError("--node: one is there twice; write its hosts as ID=HOST,HOST.")
    layout = Layout(folder, folders, readable)
    there = [path for wanted in nodes for name in wanted.files if (path := layout.of(wanted) / name).exists()]
    if there and not renew:
        raise click.ClickException(f"{there[0]} is there already; --renew makes it anew, by the same authority.")
    try:
        end = _make(layout, nodes, shared, days, renew=renew)
    except OSError as error:
        raise click.ClickException(f"{error.filename} cannot be written: {error.strerror}.") from None
    note(f"Certificates of {', '.join(wanted.node for wanted in nodes)} are in {folder}; they end on {end:%Y-%m-%d}.")


def _make(
    layout: Layout, nodes: Sequence[Wanted], shared: Sequence[str], days: int, *, renew: bool
) -> datetime.datetime:
    """When they end. Nothing is written before all that is there was found to be good."""
    folder = layout.folder
    from ringpost.client.cli.authority import HOW_ON, Authority  # cryptography takes long to import

    found = {name: Authority.of(folder / f"{name}.pem", folder / f"{name}.key") for name in _AUTHORITIES}
    if (lacking := [name for name, one in found.items() if one is None]) and (renew or any(folder.glob("*.pem"))):
        names = " and ".join(f"{name}.pem, {name}.key" for name in lacking)
        raise LocalNodeError(f"{folder} lacks {names}: {HOW_ON}")
    clients, peers = (found[name] or Authority.new(text, days) for name, text in _AUTHORITIES.items())
    end = min(clients.end_of(days), peers.end_of(days))
    layout.make(folder)
    authorities = (("ca", clients), ("peers", peers))
    for name, authority in authorities:
        if found[name] is None:
            _write_pair(folder / name, authority.pair(), _KEY_MODE)
    mode = _CERT_MODE if layout.readable else _KEY_MODE
    for wanted in nodes:
        name, own = wanted.node, layout.of(wanted)
        if layout.apart:
            layout.make(own)
            for called, authority in authorities:
                _write(own / f"{called}.pem", authority.pair()[0], _CERT_MODE)
        _write_pair(own / name, clients.issue(name, (name, *wanted.hosts, *shared, *_LOCAL), end), mode)
        _write_pair(own / f"{name}.peer", peers.issue(name, (name,), end), mode)
    return end


def _write_pair(stem: Path, pair: tuple[bytes, bytes], key_mode: int) -> None:
    # The key first: who looks in between finds two that do not belong together, and keeps those before.
    cert, key = pair
    _write(stem.with_name(f"{stem.name}.key"), key, key_mode)
    _write(stem.with_name(f"{stem.name}.pem"), cert, _CERT_MODE)


def _write(path: Path, content: bytes, mode: int) -> None:
    """Whole or not at all, and never readable for others in between."""
    draft = path.with_name(f"{path.name}.new")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        os.fchmod(file.fileno(), mode)
        file.write(content)
    draft.replace(path)
