"""`request` and `reply`: ask on a channel and wait for the answer; answer what is asked."""

import asyncio
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import click

from ringpost.client import errors
from ringpost.client.api import Client
from ringpost.client.cli.command import remote
from ringpost.client.cli.messages import as_json, dump
from ringpost.client.cli.output import note
from ringpost.client.cli.params import DURABILITY, duration, header
from ringpost.client.message import Message

_STDERR_BYTES = 512


@click.command()
@click.argument("channel")
@click.argument("data")
@click.option("--timeout", type=duration, default=5.0, show_default="5s", help="How long to wait for the answer.")
@click.option("--key", help="As of any message.")
@click.option("--header", "headers", type=header, multiple=True, metavar="NAME=VALUE", help="May be repeated.")
@click.option("--durability", type=DURABILITY, default="quorum", show_default=True, help="Of the request.")
@click.option("-o", "--output", "form", type=click.Choice(["text", "json"]), default="text", show_default=True)
@remote()
async def request(
    mq: Client,
    channel: str,
    data: str,
    timeout: float,
    key: str | None,
    headers: tuple[tuple[str, str], ...],
    durability: str,
    form: str,
) -> None:
    """Publish DATA to CHANNEL and print the answer of whoever responds there; DATA "-" is all of stdin.

    \b
    ringpost request prices 'XAU' --timeout 2s
    """
    content = sys.stdin.buffer.read() if data == "-" else os.fsencode(data)
    how: dict[str, Any] = {"timeout": timeout, "key": key, "headers": dict(headers), "durability": durability}
    answer = await mq.request(channel, content, **how)
    if form == "json":
        place = (answer.channel, answer.offset, answer.append_time_us)
        click.echo(dump(as_json(*place, answer.key, answer.data, answer.headers, {})))
    else:
        sys.stdout.buffer.write(answer.data + b"\n")


def _check_reply(echo: bool, command: str | None, **_: object) -> None:
    if echo == (command is not None):
        raise click.UsageError("Give either --exec COMMAND or --echo.")


@click.command()
@click.argument("channel")
@click.option(
    "--exec", "command", metavar="COMMAND", help="Run by the shell for each request: its stdout is the answer."
)
@click.option("--echo", is_flag=True, help="Answer with what was asked.")
@click.option("--group", default="responders", show_default=True, help="Responders of one group share the requests.")
@click.option("--max-concurrency", type=click.IntRange(1, 1_000), default=10, show_default=True, help="At a time.")
@click.option("--count", type=click.IntRange(min=1), help="Stop after so many requests.")
@remote(_check_reply)
async def reply(
    mq: Client, channel: str, command: str | None, echo: bool, group: str, max_concurrency: int, count: int | None
) -> None:
    """Answer requests on CHANNEL, one JSON object a line for each, until Ctrl-C.

    COMMAND has the data on its stdin, and RINGPOST_CHANNEL, RINGPOST_OFFSET and RINGPOST_KEY in its environment.
    When it fails, the request is refused with the end of what it wrote to stderr.

    \b
    ringpost reply prices --exec './price.sh'
    ringpost reply ping --echo
    """
    left = asyncio.Semaphore(count) if count else None
    done = asyncio.Event()
    threads = ThreadPoolExecutor(max_concurrency)
    told = 0

    async def handle(message: Message) -> bytes:
        nonlocal told
        if left is not None:
            await left.acquire()  # the others are for other responders
        begin, failure = time.perf_counter(), ""
        try:
            if echo:
                return message.data
            return await asyncio.get_running_loop().run_in_executor(threads, _run, command or "", message)
        except errors.RequestFailed as refused:
            failure = refused.message
            raise
        finally:
            facts = {"channel": channel, "offset": message.offset, "seconds": round(time.perf_counter() - begin, 6)}
            click.echo(dump({**facts, **({"failure": failure} if failure else {})}))
            told += 1
            if told == count:
                done.set()

    # Asking for no more than is wanted leaves the rest to the other responders.
    prefetch = min(2 * max_concurrency, count or sys.maxsize)
    pool = await mq.respond(channel, handle, group=group, max_concurrency=max_concurrency, prefetch=prefetch)
    note(f"Answering on {channel} as one of {group}. Ctrl-C ends this.")
    waits = [asyncio.create_task(pool.wait()), asyncio.create_task(done.wait())]
    ended, _ = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for one in ended:
        one.result()
    await pool.close()
    for one in waits:
        one.cancel()


def _run(command: str, message: Message) -> bytes:
    """What the command makes of a request. Raises `RequestFailed`."""
    facts = {"RINGPOST_CHANNEL": message.channel, "RINGPOST_OFFSET": str(message.offset)}
    key = {"RINGPOST_KEY": os.fsdecode(message.key)} if message.key and b"\0" not in message.key else {}
    environment = {**os.environ, **facts, **key}
    done = subprocess.run(command, shell=True, input=message.data, capture_output=True, env=environment, check=False)
    if done.returncode:
        said = done.stderr[-_STDERR_BYTES:].decode(errors="replace").strip()
        raise errors.RequestFailed(f"the command ended with {done.returncode}{': ' + said if said else ''}")
    return done.stdout
