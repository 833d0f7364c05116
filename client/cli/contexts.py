"""`context`: names for clusters, with addresses, what TLS needs and a token; and the connection that commands make.

<home>/contexts.json    the contexts, and which of them is in use
"""

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import click
import grpc

from ringpost.client.api import Client, connect
from ringpost.client.cli import local
from ringpost.client.cli.local import LocalNodeError
from ringpost.client.cli.output import Output, note
from ringpost.client.connection import is_local
from ringpost.client.connection import token_file as read_token
from ringpost.client.options import Options

_VARIABLES = {"ca": "RINGPOST_CA", "cert": "RINGPOST_CERT", "key": "RINGPOST_KEY"}
TOKEN_VARIABLE = "RINGPOST_TOKEN_FILE"
INSECURE_VARIABLE = "RINGPOST_INSECURE"  # as a node's
_YES = ("true", "yes", "1")
_FOR_TLS = "name the authority of the nodes' certificates by RINGPOST_CA, or by --ca of `ringpost context add`,"


@dataclass(frozen=True)
class Context:
    """A cluster. `ca`, `cert`, `key`: PEM files, `token_file`: all "" for none; without `ca` there is no TLS.

    `insecure`: the token may be sent in plain text all the same.
    """

    addr: str
    ca: str = ""
    cert: str = ""
    key: str = ""
    token_file: str = ""
    insecure: bool = False


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
    """A client for these addresses, separated by commas. Raises `LocalNodeError` for a token that others could read."""
    credentials, token = credentials_for(addr), token_for(addr)
    if credentials is None and token is not None and (open_to := _open_to(addr)):
        context = _context_of(addr)
        if not (os.environ.get(INSECURE_VARIABLE, "").lower() in _YES or (context is not None and context.insecure)):
            raise LocalNodeError(
                f"The token would go to {open_to} in plain text: {_FOR_TLS} or, where the network is trusted, "
                f"{INSECURE_VARIABLE}=true."
            )
    return connect(addr, credentials=credentials, token=token, options=options)


def _open_to(addr: str) -> str:
    """The first of the addresses that is another machine's; "" where there is none."""
    return next((one for one in addr.split(",") if not is_local(one.strip())), "")


def token_for(addr: str) -> Callable[[], str] | None:
    """The token of RINGPOST_TOKEN_FILE, or of the context in use that the addresses are of."""
    file = os.environ.get(TOKEN_VARIABLE, "")
    if not file and (context := _context_of(addr)) is not None:
        file = context.token_file
    return read_token(file) if file else None


def _context_of(addr: str) -> Context | None:
    context = in_use()
    known = context is not None and set(addr.split(",")) <= set(context.addr.split(","))
    return context if known else None


def credentials_for(addr: str) -> grpc.ChannelCredentials | None:
    """For TLS, if RINGPOST_CA says so, or the context in use that the addresses are of. Raises `LocalNodeError`."""
    files = {name: os.environ.get(variable, "") for name, variable in _VARIABLES.items()}
    if not files["ca"]:
        context = _context_of(addr)
        if context is None:
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
    """Names for clusters: addresses, files for TLS, the token. One is in use; RINGPOST_CONTEXT names another."""


_FILE = click.Path(exists=True, dir_okay=False, resolve_path=True)


@context.command()
@click.argument("name")
@click.option("--addr", required=True, metavar="HOST:PORT", help="A node, or several, separated by commas.")
@click.option("--ca", type=_FILE, default=None, help="PEM file of the authority of the nodes' certificate: TLS.")
@click.option("--cert", type=_FILE, default=None, help="PEM file of this client's certificate, where nodes want one.")
@click.option("--key", type=_FILE, default=None, help="PEM file of its key.")
@click.option("--token-file", type=_FILE, default=None, help="File with the token to show; read anew when it changes.")
@click.option("--insecure", is_flag=True, help="Send the token in plain text, also to other machines.")
def add(
    name: str, addr: str, ca: str | None, cert: str | None, key: str | None, token_file: str | None, insecure: bool
) -> None:
    """Add a context, or change it, and use it."""
    if (cert or key) and not ca:
        raise click.UsageError("--cert and --key are for TLS: add --ca.")
    if token_file and not ca and not insecure and (open_to := _open_to(addr)):
        raise click.UsageError(
            f"The token would go to {open_to} in plain text: add --ca, or --insecure where the network is trusted."
        )
    made = Context(addr, ca or "", cert or "", key or "", token_file or "", insecure)
    credentials(made.ca, made.cert, made.key)
    contexts = load()
    _save(Contexts(name, {**contexts.known, name: made}))
    with_ = " and ".join(word for word, given in (("TLS", ca), ("a token", token_file)) if given)
    note(f"Commands now go to {addr}{f' with {with_}' if with_ else ''}.")


@context.command()
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
def ls(output: str) -> None:
    """List the contexts; * is the one in use."""
    contexts = load()
    current = os.environ.get("RINGPOST_CONTEXT") or contexts.current
    rows = [
        ("*" if name == current else "", name, one.addr, one.ca or "plain text", one.cert, one.token_file)
        for name, one in sorted(contexts.known.items())
    ]
    data = [{"name": name, "in_use": name == current, **asdict(one)} for name, one in sorted(contexts.known.items())]
    Output(output).listing(("", "name", "address", "authority", "certificate", "token"), rows, data)


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
