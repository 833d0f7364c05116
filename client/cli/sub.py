"""`sub`: print messages as they come."""

import asyncio
import contextlib
import logging
import sys
from collections.abc import Iterator
from typing import Any

import click

from ringpost.client import errors
from ringpost.client.api import Client
from ringpost.client.cli.command import remote, start_of
from ringpost.client.cli.group_settle import token_text
from ringpost.client.cli.messages import as_json, dump
from ringpost.client.cli.output import note
from ringpost.client.cli.params import place
from ringpost.client.cli.units import Place
from ringpost.client.consumer import INTERRUPTED, RESUMED
from ringpost.client.message import Message, MessageBatch
from ringpost.client.modes import MODES
from ringpost.client.places import is_pattern

# An interruption is told when it has lasted so long; another node is found sooner.
_PATIENCE_S = 0.5


def _check(group: str, no_ack: bool, mode: str | None, lease_tokens: bool, **_: object) -> None:
    if lease_tokens and not group:
        raise click.UsageError("--lease-tokens says something only with --group.")
    if mode and not group:
        raise click.UsageError("--mode says something only with --group.")
    if no_ack and not group:
        raise click.UsageError("--no-ack says something only with --group.")


@click.command()
@click.argument("channel")
@click.option("--group", default="", help="Share the messages with the other members of this durable group.")
@click.option(
    "--mode", type=click.Choice(list(MODES)), help="With --group: the mode that it must have, or is made with."
)
@click.option("--filter", help="Only what this lets through, such as 'headers.region == \"eu\"' (a part of CEL).")
@click.option("--consumer", default="", help="A name for this member; needed where the group is in mode broadcast.")
@click.option("--from", "begin", type=place, help="Where to begin (10m: so long ago).")
@click.option("--count", type=click.IntRange(min=1), help="Stop after so many messages.")
@click.option("--text", is_flag=True, help="Payloads only, one a line.")
@click.option("-o", "--output", "form", type=click.Choice(["json", "text"]), default="json", show_default=True)
@click.option("--no-ack", is_flag=True, help="With --group: look only; the messages are delivered again.")
@click.option("--lease-tokens", is_flag=True, help="With --group: print lease_token, for `group settle`.")
@remote(_check)
async def sub(
    mq: Client,
    channel: str,
    group: str,
    mode: str | None,
    filter: str | None,
    consumer: str,
    begin: Place | None,
    count: int | None,
    text: bool,
    form: str,
    no_ack: bool,
    lease_tokens: bool,
) -> None:
    """Print the messages of CHANNEL as they come, one JSON object a line, until Ctrl-C.

    CHANNEL may be a pattern, in quotes: 'orders.*' for one more token, 'orders.>' for any number of them.

    Data that is not UTF-8 appears as data_base64. With --group each message is acknowledged once it is printed.
    """
    if group and begin is not None and not is_pattern(channel):
        await _warn_of_existing(mq, channel, group)
    show = _text if text or form == "text" else _json
    start = None if begin is None else start_of(begin)
    out = sys.stdout.buffer
    left = count
    # Asking for no more than is wanted leaves the rest to the other members of the group.
    prefetch = count and min(count, 1_000)
    with _outages_told():
        how: dict[str, Any] = {
            "mode": mode,
            "filter": filter,
            "consumer": consumer,
            "start": start,
            "prefetch": prefetch,
            "lease_tokens": lease_tokens,
        }
        async with mq.subscription(channel, group=group, **how) as subscription:
            async for batch in subscription.batches():
                messages = batch.messages[:left]
                for message in messages:
                    out.write(show(message))
                out.flush()
                if group and not no_ack:
                    await _ack(batch, messages)
                if left is not None and (left := left - len(messages)) == 0:
                    return


async def _warn_of_existing(mq: Client, channel: str, group: str) -> None:
    with contextlib.suppress(errors.NotFound):
        await mq.groups.get(channel, group)
        note(
            f"{group} on {channel} exists already and goes on where it is: --from is ignored."
            f" `ringpost group seek {channel} {group} PLACE` moves it."
        )


class _Outages(logging.Handler):
    """Says when the subscription stays interrupted, and when it goes on; a change to another node is no news."""

    def __init__(self) -> None:
        super().__init__()
        self._waiting: asyncio.TimerHandle | None = None
        self._told = False

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING:
            note(record.getMessage())
        elif record.msg == INTERRUPTED and self._waiting is None and not self._told:
            self._waiting = asyncio.get_running_loop().call_later(_PATIENCE_S, self._tell)
        elif record.msg == RESUMED:
            self.forget()
            if self._told:
                self._told = False
                note("The node answers again.")

    def forget(self) -> None:
        """Says nothing of an interruption that was not told yet."""
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _tell(self) -> None:
        self._waiting, self._told = None, True
        note("The connection is lost; trying again until the node is back. Ctrl-C ends this.")


@contextlib.contextmanager
def _outages_told() -> Iterator[None]:
    """The SDK mends a broken subscription by itself and tells its log only."""
    log, handler = logging.getLogger("ringpost.client.consumer"), _Outages()
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        handler.forget()


def _text(message: Message) -> bytes:
    return message.data + b"\n"


def _json(message: Message) -> bytes:
    place = (message.channel, message.offset, message.append_time_us)
    more = {
        "attempt": message.attempt,
        "message_id": message.message_id,
        "producer_time_us": message.producer_time_us,
        "lease_token": token_text(message.lease_token),
    }
    return dump(as_json(*place, message.key, message.data, message.headers, more)).encode() + b"\n"


async def _ack(batch: MessageBatch, messages: list[Message]) -> None:
    try:
        if len(messages) == batch.count:
            await batch.ack()
            return
        for settlement in [message.ack() for message in messages]:
            await settlement
    except errors.LeaseLost as error:
        # The connection broke meanwhile. They come again, and are printed again: at least once.
        note(f"offsets {batch.first_offset} to {batch.last_offset} were not acknowledged: {error.message}")
