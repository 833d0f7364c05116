"""`context`: names for clusters, with their addresses and what TLS needs; and the connection that commands make.

<home>/contexts.json    the contexts, and which of them is in use
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import grpc

from ringpost.client.api import Client, connect
from ringpost.client.cli import local
from ringpost.client.cli.local import LocalNodeError
from ringpost.client.cli.output import Output, note
from ringpost.client.options import Options

_VARIABLES = {"ca": "RINGPOST_CA", "cert": "RINGPOST_CERT", "key": "RINGPOST_KEY"}


@dataclass(frozen=True)
class Context:
    """A cluster. `ca`, `cert`, `key`: PEM files, "" for none; without `ca` there is no TLS."""

    addr: str
    ca: str = ""
    cert: str = ""
    key: str = ""


@dataclass(frozen=True)
class Contexts:
    """What contexts.json holds; `current` "" for none."""

    current: str
    known: dict[str, Context]


def _path() -> Path:
    return local.home() / "contexts.json"


def load() -> Contexts:
    """All contexts. Raises `LocalNodeError` for a file that cannot be read."""
    try:
        state = json.loads(_path().read_text())
        return Contexts(state["current"], {name: Context(**one) for name, one in state["contexts"].items()})
    except FileNotFoundError:
        return Contexts("", {})
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise LocalNodeError(f"{_path()} cannot be read ({error}); mend it, or remove it.") from None


def _save(contexts: Contexts) -> None:
    _path().parent.mkdir(parents=True, exist_ok=True)
    known = {name: asdict(one) for name, one in contexts.known.items()}
    local.remember(_path(), {"current": contexts.current, "contexts": known})


def in_use() -> Context | None:
    """The one that RINGPOST_CONTEXT names, or that `context use` has chosen. Raises `LocalNodeError`."""
    contexts = load()
    name = os.environ.get("RINGPOST_CONTEXT") or contexts.current
    if not name:
        return None
    if name not in contexts.known:
        raise LocalNodeError(f"There is no context {name}: `ringpost context ls` shows those that there are.")
    return contexts.known[name]


def dial(addr: str, options: Options | None = None) -> Client:
    """A client for these addresses, separated by commas."""
    return connect(addr, credentials=credentials_for(addr), options=options)


def credentials_for(addr: str) -> grpc.ChannelCredentials | None:
    """For TLS, if RINGPOST_CA says so, or the context in use that the addresses are of. Raises `LocalNodeError`."""
    files = {name: os.environ.get(variable, "") for name, variable in _VARIABLES.items()}
    if not files["ca"]:
        context = in_use()
        if context is None or not set(addr.split(",")) <= set(context.addr.split(",")):
            return None
        files = {name: getattr(context, name) for name in _VARIABLES}
    return credentials(**files)


def credentials(ca: str, cert: str, key: str) -> grpc.ChannelCredentials | None:
    """From PEM files; None without `ca`. Raises `LocalNodeError`."""
    if not ca:
        return None
    if bool(cert) != bool(key):
        raise LocalNodeError("A client's certificate needs its key, and a key its certificate.")
    try:
        root, chain, private = (Path(file).read_bytes() if file else None for file in (ca, cert, key))
    except OSError as error:
        raise LocalNodeError(f"{error.filename} cannot be read: {error.strerror}.") from None
    return grpc.ssl_channel_credentials(root, private, chain)


# -- commands ---------------------------------------------------------------------------------------------------------


@click.group()
def context() -> None:
    """Names for clusters: their addresses, and the files for TLS. One is in use; RINGPOST_CONTEXT names another."""


_FILE = click.Path(exists=True, dir_okay=False, resolve_path=True)


@context.command()
@click.argument("name")
@click.option("--addr", required=True, metavar="HOST:PORT", help="A node, or several, separated by commas.")
@click.option("--ca", type=_FILE, default=None, help="PEM file of the authority of the nodes' certificate: TLS.")
@click.option("--cert", type=_FILE, default=None, help="PEM file of this client's certificate, where nodes want one.")
@click.option("--key", type=_FILE, default=None, help="PEM file of its key.")
def add(name: str, addr: str, ca: str | None, cert: str | None, key: str | None) -> None:
    """Add a context, or change it, and use it."""
    if (cert or key) and not ca:
        raise click.UsageError("--cert and --key are for TLS: add --ca.")
    made = Context(addr, ca or "", cert or "", key or "")
    credentials(made.ca, made.cert, made.key)
    contexts = load()
    _save(Contexts(name, {**contexts.known, name: made}))
    note(f"Commands now go to {addr}{' with TLS' if ca else ''}.")


@context.command()
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
def ls(output: str) -> None:
    """List the contexts; * is the one in use."""
    contexts = load()
    current = os.environ.get("RINGPOST_CONTEXT") or contexts.current
    rows = [
        ("*" if name == current else "", name, one.addr, one.ca or "plain text", one.cert)
        for name, one in sorted(contexts.known.items())
    ]
    data = [{"name": name, "in_use": name == current, **asdict(one)} for name, one in sorted(contexts.known.items())]
    Output(output).listing(("", "name", "address", "authority", "certificate"), rows, data)


@context.command()
@click.argument("name")
def use(name: str) -> None:
    """Use a context from now on; "none": none."""
    contexts = load()
    if name != "none" and name not in contexts.known:
        raise LocalNodeError(f"There is no context {name}: `ringpost context ls` shows those that there are.")
    _save(Contexts("" if name == "none" else name, contexts.known))


@context.command()
@click.argument("name")
def rm(name: str) -> None:
    """Forget a context."""
    contexts = load()
    if name not in contexts.known:
        raise LocalNodeError(f"There is no context {name}.")
    rest = {other: one for other, one in contexts.known.items() if other != name}
    _save(Contexts("" if contexts.current == name else contexts.current, rest))
