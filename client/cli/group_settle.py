"""`group settle`: ack, nack, extend or reject without a stream."""

import base64
import binascii
from typing import Any

import click

from ringpost.client.api import Client
from ringpost.client.checks import MAX_UINT64
from ringpost.client.cli.command import output_option, remote
from ringpost.client.cli.output import Output
from ringpost.client.cli.params import duration
from ringpost.v1 import subscribe_pb2

VERBS = ("ack", "nack", "extend", "reject")
_ALLOWED = {
    "delay": ("--delay", ("nack",)),
    "reason": ("--reason", ("nack", "reject")),
    "time": ("--for", ("extend",)),
}


def offsets(text: str | tuple[int, int]) -> tuple[int, int]:
    """17, or 17-25 with both ends."""
    if isinstance(text, tuple):
        return text
    first, dash, last = text.partition("-")
    if not first.isdecimal() or not (last.isdecimal() if dash else not last):
        raise click.BadParameter(f"{text!r} is no offset and no range of offsets; write 17 or 17-25.")
    found = int(first), int(last or first)
    if not found[0] <= found[1] <= MAX_UINT64:
        raise click.BadParameter(f"{text!r}: the last offset is at least the first, and below 2^64.")
    return found


def token(text: str | bytes) -> bytes:
    """A lease token, as `sub --lease-tokens` prints it."""
    if isinstance(text, bytes):
        return text
    try:
        return base64.b64decode(text, altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise click.BadParameter("it is not base64; copy the whole lease_token that `sub` printed.") from None


def token_text(value: bytes) -> str:
    """The inverse."""
    return base64.urlsafe_b64encode(value).decode()


def _check(verb: str, ranges: tuple[tuple[int, int], ...], tokens: tuple[bytes, ...], **options: Any) -> None:
    if verb in {"nack", "extend"} and not tokens:
        raise click.UsageError(f"{verb} needs --token: `sub --lease-tokens` prints the tokens of deliveries.")
    if not ranges and not tokens:
        raise click.UsageError("Name OFFSETS, or a delivery by --token.")
    for name, (flag, verbs) in _ALLOWED.items():
        if options[name] and verb not in verbs:
            raise click.UsageError(f"{flag} says something only with {' and '.join(verbs)}.")


@click.command()
@click.argument("channel")
@click.argument("name")
@click.argument("verb", type=click.Choice(VERBS))
@click.argument("ranges", metavar="[OFFSETS]...", type=offsets, nargs=-1)
@click.option("--token", "tokens", type=token, multiple=True, help="Of a delivery; may be given several times.")
@click.option("--delay", type=duration, default=0.0, help="nack: deliver it again after so long.")
@click.option("--reason", default="", help="nack, reject: why.")
@click.option("--for", "time", type=duration, default=0.0, help="extend: so long from now; else the ack deadline.")
@output_option
@remote(_check)
async def settle(
    mq: Client,
    channel: str,
    name: str,
    verb: str,
    ranges: tuple[tuple[int, int], ...],
    tokens: tuple[bytes, ...],
    delay: float,
    reason: str,
    time: float,
    output: Output,
) -> None:
    """Settle messages of a group without a subscription, on any node.

    OFFSETS are 17, or 17-25. With --token it speaks of that delivery, of all of it when no OFFSETS are named, and
    never touches what somebody else has now. Without, ack and reject settle whoever has the messages.
    """
    how: dict[str, Any] = {"tokens": tokens}
    if verb == "nack":
        results = await mq.groups.nack(channel, name, *ranges, delay=delay, reason=reason, **how)
    elif verb == "extend":
        results = await mq.groups.extend(channel, name, *ranges, seconds=time, **how)
    else:
        results = await mq.groups.settle(channel, name, *ranges, reject=reason if verb == "reject" else None, **how)
    rows = [(one.range.first, one.range.last, _outcome(one)) for one in results]
    shown = [{"first": first, "last": last, "outcome": outcome} for first, last, outcome in rows]
    output.listing(("first", "last", "outcome"), rows, shown)


def _outcome(result: subscribe_pb2.SettledRange) -> str:
    return subscribe_pb2.Outcome.Name(result.outcome).removeprefix("OUTCOME_").lower()
