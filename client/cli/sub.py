"""`sub`: print messages as they come."""

import asyncio
import contextlib
import logging
import sys
import time
from collections.abc import Iterator

import click

from ringpost.client import errors
from ringpost.client.api import Client
from ringpost.client.cli.command import remote, start_of
from ringpost.client.cli.messages import as_json, dump
from ringpost.client.cli.output import note
from ringpost.client.cli.params import place
from ringpost.client.cli.units import Place
from ringpost.client.message import Message, MessageBatch
from ringpost.v1 import cluster_pb2

# When the node answers again, the subscription may be at an attempt that still fails; the next comes within 2 s.
_RESUMED_S = 3.0
_LOOK_S = 0.1


def _check(group: str, no_ack: bool, **_: object) -> None:
    if no_ack and not group:
        raise click.UsageError("--no-ack says something only with --group.")


@click.command()
@click.argument("channel")
@click.option("--group", default="", help="Share the messages with the other members of this durable group.")
@click.option("--from", "begin", type=place, help="Where to begin (10m: so long ago).")
@click.option("--count", type=click.IntRange(min=1), help="Stop after so many messages.")
@click.option("--text", is_flag=True, help="Payloads only, one a line.")
@click.option("-o", "--output", "form", type=click.Choice(["json", "text"]), default="json", show_default=True)
@click.option("--no-ack", is_flag=True, help="With --group: look only; the messages are delivered again.")
@remote(_check)
async def sub(
    mq: Client, channel: str, group: str, begin: Place | None, count: int | None, text: bool, form: str, no_ack: bool
) -> None:
    """Print the messages of CHANNEL as they come, one JSON object a line, until Ctrl-C.

    Data that is not UTF-8 appears as data_base64. With --group each message is acknowledged once it is printed.
    """
    if group and begin is not None:
        await _warn_of_existing(mq, channel, group)
    show = _text if text or form == "text" else _json
    start = None if begin is None else start_of(begin)
    out = sys.stdout.buffer
    left = count
    # Asking for no more than is wanted leaves the rest to the other members of the group.
    prefetch = count and min(count, 1_000)
    with _outages_told(mq):
        async with mq.subscription(channel, group=group, start=start, prefetch=prefetch) as subscription:
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
    """Says when the subscription is interrupted, and when a node answers again."""

    def __init__(self, mq: Client) -> None:
        super().__init__()
        self._mq = mq
        self.waiting: asyncio.Task[None] | None = None
        self._quiet_until = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING:
            note(record.getMessage())
        elif (self.waiting is None or self.waiting.done()) and time.monotonic() >= self._quiet_until:
            note("The connection is lost; trying again until the node is back. Ctrl-C ends this.")
            self.waiting = asyncio.get_running_loop().create_task(self._await_node())

    async def _await_node(self) -> None:
        while True:
            try:
                found = await self._mq.node.info()
            except (errors.Denied, errors.InvalidRequest):
                return  # The subscription meets the same and says so.
            except errors.RingpostError:
                await asyncio.sleep(_LOOK_S)
                continue
            if found.state == cluster_pb2.NODE_STATE_SERVING:
                self._quiet_until = time.monotonic() + _RESUMED_S
                note("The node answers again.")
                return
            await asyncio.sleep(_LOOK_S)  # It is about to stop, and answers until then.


@contextlib.contextmanager
def _outages_told(mq: Client) -> Iterator[None]:
    """The SDK mends a broken subscription by itself and tells its log only."""
    log, handler = logging.getLogger("ringpost.client.consumer"), _Outages(mq)
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        if handler.waiting is not None:
            handler.waiting.cancel()


def _text(message: Message) -> bytes:
    return message.data + b"\n"


def _json(message: Message) -> bytes:
    place = (message.channel, message.offset, message.append_time_us)
    more = {"attempt": message.attempt, "message_id": message.message_id, "producer_time_us": message.producer_time_us}
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
