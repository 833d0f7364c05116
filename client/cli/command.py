"""What every command shares: its connection, its output form, and how an error becomes a sentence and an exit code."""

import functools
import os
import re
import sys
from collections.abc import Awaitable, Callable
from typing import Any, ParamSpec
from urllib.parse import unquote

import click

from ringpost.client import errors
from ringpost.client.api import DEFAULT_TARGET
from ringpost.client.cli import contexts, local, local_cluster
from ringpost.client.cli.local import LocalNodeError
from ringpost.client.cli.output import Output
from ringpost.client.cli.running import run_to_end
from ringpost.client.cli.units import Place
from ringpost.client.options import Options
from ringpost.v1 import common_pb2

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130
# As a program that SIGPIPE ended.
EXIT_UNREAD = 141

# A person who waits for an answer gives up sooner than a program. Commands wait for their answers themselves, so only
# Ctrl-C and errors leave something to wait for when the client is closed.
PATIENCE = Options(connect_timeout=3.0, close_timeout=1.0)

_NO_CONNECTION = re.compile(r"failed to connect to all addresses; last error: \w+: (?:ipv[46]:)?(\S+): (?:.*: )?(.+)")
_NO_ADDRESS = re.compile(r"errors resolving (\S+): \[(?:.*lookup error:)?(.+)\]", re.IGNORECASE)
_ALIASES = {"list": "ls", "get": "info", "show": "info", "create": "add", "delete": "rm", "remove": "rm"}

P = ParamSpec("P")
Command = Callable[..., Any]


class Unreachable(click.ClickException):
    """No node answers."""

    exit_code = 3


class Wrong(click.ClickException):
    """The broker would never take what was asked, whatever its state: wrong usage."""

    exit_code = 2


class Group(click.Group):
    """A group of commands that knows what else people call them."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return super().get_command(ctx, cmd_name) or super().get_command(ctx, _ALIASES.get(cmd_name, ""))


class Root(click.Group):
    """The root command: whatever goes wrong below it ends here as one sentence on stderr."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            ctx.exit(EXIT_INTERRUPTED)
        except click.Abort as abort:
            # click has no other sign of whether the question was answered by "no" or by Ctrl-C.
            ctx.exit(EXIT_INTERRUPTED if isinstance(abort.__context__, KeyboardInterrupt) else EXIT_FAILED)
        except errors.RingpostError as error:
            raise failure(error) from None
        except (LocalNodeError, TimeoutError) as error:
            raise click.ClickException(str(error)) from None
        except UnicodeEncodeError as error:
            raise click.UsageError(f"{error.object!r} is not valid UTF-8.") from None
        except BrokenPipeError:
            # What is still buffered would raise it once more at the end of the program.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(EXIT_UNREAD)
        except OSError as error:
            raise click.ClickException(str(error)) from None


def output_option(command: Command) -> Command:
    """Adds -o table|json; the command gets an `Output`."""
    return click.option(
        "-o",
        "--output",
        "output",
        type=click.Choice(["table", "json"]),
        default="table",
        show_default=True,
        callback=lambda _ctx, _param, value: Output(value),
        help="How to print the result.",
    )(command)


def _default_addr() -> str:
    """Those of the context in use; else the local cluster's while it runs: the first node need not be alive."""
    if (context := contexts.in_use()) is not None:
        return context.addr
    cluster = local_cluster.remembered(local.home())
    return ",".join(cluster.addresses) if cluster is not None and cluster.running else DEFAULT_TARGET


def addr_option(command: Command) -> Command:
    """Adds --addr."""
    return click.option(
        "--addr",
        envvar="RINGPOST_ADDR",
        default=_default_addr,
        show_default="of the context in use, or the cluster of `ringpost up`, or localhost:7400",
        show_envvar=True,
        metavar="HOST:PORT",
        help="A node of the cluster, or several, separated by commas.",
    )(command)


def async_command(command: Callable[P, Awaitable[None]]) -> Callable[P, None]:
    """Runs a coroutine function as a command. Ctrl-C cancels it, so that it can clean up."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        async def body() -> None:
            await command(*args, **kwargs)

        run_to_end(body())

    return run


def remote(check: Callable[..., None] | None = None) -> Callable[[Callable[..., Awaitable[None]]], Command]:
    """A command that gets a connected client as its first argument. Adds --addr.

    `check` gets the command's other arguments before anything is connected, to refuse wrong usage.
    """

    def add(command: Callable[..., Awaitable[None]]) -> Command:
        @addr_option
        @functools.wraps(command)
        def run(addr: str, **options: Any) -> None:
            if check is not None:
                check(**options)

            async def connected() -> None:
                async with contexts.dial(addr, PATIENCE) as mq:
                    await command(mq, **options)

            run_to_end(connected())

        return run

    return add


def start_of(place: Place) -> common_pb2.Start:
    """The place as the protocol says it."""
    match place.kind:
        case "earliest":
            return common_pb2.Start(earliest=True)
        case "latest":
            return common_pb2.Start(latest=True)
        case "offset":
            return common_pb2.Start(offset=place.value)
    return common_pb2.Start(time_us=place.value)


def failure(error: errors.RingpostError) -> click.ClickException:
    """The sentence and the exit code of an error of the broker or of the connection to it."""
    text, never_sent = _plain(error.message)
    # Not where it begins with the name of a field.
    if not text.split(" ", 1)[0].endswith(":"):
        text = text[:1].upper() + text[1:]
    for violation in error.violations:
        if violation.description not in text:
            text += f" ({violation.field}: {violation.description})"
    if error.outcome_open and not never_sent:
        text += " (it may have been carried out all the same)"
    if isinstance(error, errors.Unavailable):
        return Unreachable(
            text.rstrip(".") + ". Is a node running there? `ringpost up` starts one; --addr names another."
        )
    if isinstance(error, errors.InvalidRequest):
        return Wrong(text)
    return click.ClickException(text)


def _plain(message: str) -> tuple[str, bool]:
    """gRPC's own words for a node that was never reached, as a sentence, and True; other messages as they are."""
    if found := _NO_CONNECTION.match(message):
        return f"no connection to {unquote(found[1])}: {found[2][:1].lower()}{found[2][1:]}", True
    if found := _NO_ADDRESS.match(message):
        return f"there is no {found[1]}: {found[2][:1].lower()}{found[2][1:]}", True
    return message, False
