"""`pub`: publish one message, a file of lines, or many made from a template."""

import asyncio
import os
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import IO, Any

import click

from ringpost.client.api import Client
from ringpost.client.batch import OutMessage
from ringpost.client.cli.command import output_option, remote
from ringpost.client.cli.output import Output, progress
from ringpost.client.cli.params import DURABILITY, OFFSET, duration, header, moment
from ringpost.client.cli.units import counted, show_time
from ringpost.client.receipts import BatchReceipt

CHUNK = 1_000
_BLOCK_BYTES = 256 * 1024


def _check(
    data: str | None,
    lines: IO[bytes] | None,
    count: int | None,
    message_id: str | None,
    expect_offset: int | None,
    delay: float | None,
    deliver_at: int | None,
    **_: object,
) -> None:
    if (data is None) == (lines is None):
        raise click.UsageError("Give either DATA or --lines FILE.")
    if count is not None and (lines is not None or data == "-"):
        raise click.UsageError("--count repeats DATA; it does not go with --lines or stdin.")
    if message_id is not None and lines is not None:
        raise click.UsageError("--id names one message, or with {n} each of --count; it does not go with --lines.")
    if expect_offset is not None and (lines is not None or count is not None):
        raise click.UsageError("--expect-offset is for one message; it does not go with --lines or --count.")
    if delay is not None and deliver_at is not None:
        raise click.UsageError("Give either --delay or --deliver-at.")
    if expect_offset is not None and (delay is not None or deliver_at is not None):
        raise click.UsageError("--expect-offset does not go with a delay: the offset is known when it is over.")


@click.command()
@click.argument("channel")
@click.argument("data", required=False)
@click.option("--lines", type=click.File("rb"), metavar="FILE", help="Publish every line of FILE (- for stdin).")
@click.option("--count", type=click.IntRange(min=1), help="Publish so many; {n} in DATA and --key counts from 1.")
@click.option("--key", help="Messages with one key keep their order in key-ordered groups.")
@click.option("--id", "message_id", metavar="ID", help="The message's id, with {n} as DATA; see `channel set -h`.")
@click.option("--header", "headers", type=header, multiple=True, metavar="NAME=VALUE", help="May be repeated.")
@click.option("--durability", type=DURABILITY, default="quorum", show_default=True, help="What to wait for.")
@click.option("--expect-offset", type=OFFSET, help="Publish only if the message gets exactly this offset.")
@click.option("--delay", type=duration, help="Deliver so much later, such as 10s or 1h30m; at most 366d.")
@click.option("--deliver-at", type=moment, metavar="TIME", help="Deliver at a time, such as 2026-01-31T12:00:00Z.")
@click.option("--ttl", type=duration, help="Of use for so long, and not delivered later; such as 30s.")
@output_option
@remote(_check)
async def pub(
    mq: Client,
    channel: str,
    data: str | None,
    lines: IO[bytes] | None,
    count: int | None,
    key: str | None,
    message_id: str | None,
    headers: tuple[tuple[str, str], ...],
    durability: str,
    expect_offset: int | None,
    delay: float | None,
    deliver_at: int | None,
    ttl: float | None,
    output: Output,
) -> None:
    """Publish DATA to CHANNEL; DATA "-" is all of stdin.

    \b
    ringpost pub orders.eu hello --key 42 --header source=web
    ringpost pub orders.eu 'order {n}' --count 1000
    ringpost pub logs --lines access.log
    ringpost pub reminders 'call back' --delay 1h30m
    """

    def message(data: bytes, number: str = "{n}") -> OutMessage:
        """`number` takes the place of each {n}."""
        own_key, own_id = (text and text.replace("{n}", number) for text in (key, message_id))
        return OutMessage(data.replace(b"{n}", number.encode()), own_key, dict(headers), own_id)

    when: dict[str, Any] = {"delay": delay, "deliver_at": deliver_at, "ttl": ttl}
    begin = time.perf_counter()
    if lines is not None:
        chunks = _line_chunks(lines.fileno(), message)
        receipts = await _publish_all(mq, channel, chunks, None, durability, when)
    elif count is not None:
        chunks = _template_chunks(os.fsencode(data or ""), count, message)
        receipts = await _publish_all(mq, channel, chunks, count, durability, when)
    else:
        content = sys.stdin.buffer.read() if data == "-" else os.fsencode(data or "")
        receipts = await mq.publish_many(channel, [message(content)], durability, expect_offset, **when)
    _report(channel, receipts, time.perf_counter() - begin, output)


async def _template_chunks(
    data: bytes, count: int, message: Callable[..., OutMessage]
) -> AsyncIterator[list[OutMessage]]:
    for first in range(1, count + 1, CHUNK):
        yield [message(data, str(n)) for n in range(first, min(first + CHUNK, count + 1))]


async def _line_chunks(file: int, message: Callable[..., OutMessage]) -> AsyncIterator[list[OutMessage]]:
    """The lines that are there, as they come: a pipe's lines are published when they arrive."""
    blocks: asyncio.Queue[bytes] = asyncio.Queue(2)
    loop = asyncio.get_running_loop()

    def read() -> None:
        while block := os.read(file, _BLOCK_BYTES):
            asyncio.run_coroutine_threadsafe(blocks.put(block), loop).result()
        asyncio.run_coroutine_threadsafe(blocks.put(b""), loop).result()

    # A daemon and os.read: after Ctrl-C nobody waits for a pipe that stays silent.
    threading.Thread(target=read, daemon=True).start()
    rest = b""
    while block := await blocks.get():
        *whole, rest = (rest + block).split(b"\n")
        if whole:
            yield [message(line.removesuffix(b"\r")) for line in whole]
    if rest:
        yield [message(rest)]


async def _publish_all(
    mq: Client,
    channel: str,
    chunks: AsyncIterator[list[OutMessage]],
    total: int | None,
    durability: str,
    when: Mapping[str, Any],
) -> list[BatchReceipt]:
    """Chunk by chunk: reads no more of the input than is published."""
    receipts: list[BatchReceipt] = []
    with progress() as bar:
        task = bar.add_task(f"publishing to {channel}", total=total, extra="")
        async for chunk in chunks:
            receipts += await mq.publish_many(channel, chunk, durability, **when)
            bar.advance(task, len(chunk))
    return receipts


def _report(channel: str, receipts: list[BatchReceipt], seconds: float, output: Output) -> None:
    count = sum(receipt.count for receipt in receipts)
    if not count:
        raise click.ClickException("There was nothing to publish: the input is empty.")
    first, last = receipts[0], receipts[-1]
    data: dict[str, Any]
    reached = {"owner": last.owner, "replicas": list(last.replicas), "durability": last.durability}
    if first.scheduled_time_us:
        where = f"{counted(count, 'message')} for {show_time(first.scheduled_time_us)}"
        data = {"channel": channel, "count": count, "scheduled_time_us": first.scheduled_time_us, **reached}
    elif count == 1:
        where = f"offset {first.first_offset}"
        data = {"channel": channel, "offset": first.first_offset, **reached}
    else:
        where = f"{count:,} messages, offsets {first.first_offset} to {last.last_offset}"
        place = {"first_offset": first.first_offset, "last_offset": last.last_offset}
        data = {"channel": channel, **place, "count": count, "seconds": round(seconds, 3), **reached}
    before = sum(receipt.count for receipt in receipts if receipt.duplicate)
    data["duplicates"] = before
    again = f" · {before:,} stored before" if before else ""
    rate = f" · {count / seconds:,.0f} msg/s" if count > 1 else ""
    replicas = ", ".join(last.replicas)
    output.line(
        f"{channel} {where} · owner {last.owner} · on {replicas} · durability {last.durability}{again}{rate}", data
    )
