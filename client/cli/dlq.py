"""`dlq ls|show|redrive|drop`."""

import asyncio
from collections.abc import Callable
from typing import Any

import click

from ringpost.client.api import Client
from ringpost.client.cli.command import Group, output_option, remote
from ringpost.client.cli.messages import dump, octets
from ringpost.client.cli.output import Output, confirm, note, write
from ringpost.client.cli.params import OFFSET
from ringpost.client.cli.units import counted, show_time
from ringpost.v1 import dead_letter_pb2

Command = Callable[..., Any]
_SHOWN = 40


@click.group(cls=Group)
def dlq() -> None:
    """Dead letters: what a group has given up, with its payload and the reason."""


def _chosen(command: Command) -> Command:
    """Adds NUMBER… and --filter, and --dry-run."""
    command = click.option("--dry-run", is_flag=True, help="Only count.")(command)
    command = _filter_option(command)
    return click.argument("numbers", type=OFFSET, nargs=-1)(command)


def _filter_option(command: Command) -> Command:
    text = "key=TEXT, reason=TEXT or header.NAME=TEXT; != for not, ~ for a part. All that are given must hold."
    return click.option("--filter", "filters", multiple=True, metavar="TERM", help=text)(command)


@dlq.command("ls")
@click.argument("channel")
@click.argument("group")
@_filter_option
@click.option("--limit", type=click.IntRange(min=1), default=100, show_default=True, help="So many at most.")
@output_option
@remote()
async def ls(mq: Client, channel: str, group: str, filters: tuple[str, ...], limit: int, output: Output) -> None:
    """List the dead letters of GROUP on CHANNEL, the oldest first."""
    letters: list[dead_letter_pb2.DeadLetter] = []
    more = False
    async for letter in mq.dead_letters.list(channel, group, filters=filters):
        more = len(letters) == limit
        if more:
            break
        letters.append(letter)
    columns = ("number", "offset", "key", "attempts", "dead since", "reason")
    output.listing(columns, [_row(letter) for letter in letters], [as_json(letter) for letter in letters])
    if more:
        note(f"There are more than {limit}; --limit shows more, --filter chooses.")


@dlq.command()
@click.argument("channel")
@click.argument("group")
@click.argument("number", type=OFFSET)
@click.option("--text", is_flag=True, help="The payload only, byte for byte.")
@remote()
async def show(mq: Client, channel: str, group: str, number: int, text: bool) -> None:
    """Show one dead letter with its payload and its failures, as JSON."""
    letter = await mq.dead_letters.get(channel, group, number)
    if text:
        click.echo(letter.message.data, nl=False)
    else:
        write(dump(as_json(letter)))


@dlq.command()
@click.argument("channel")
@click.argument("group")
@_chosen
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), help="So many messages a second at most.")
@click.option("--as-new", is_flag=True, help="Publish the payloads anew, for all groups, and drop the letters.")
@output_option
@remote()
async def redrive(
    mq: Client,
    channel: str,
    group: str,
    numbers: tuple[int, ...],
    filters: tuple[str, ...],
    dry_run: bool,
    rate: float | None,
    as_new: bool,
    output: Output,
) -> None:
    """Bring dead letters back: of all, of those with these NUMBERS, or of those that match.

    Their messages are pending again for GROUP alone, by their offsets, in front of newer ones. Those that die again
    meanwhile are left alone.
    """
    if as_new:
        done, not_kept = await _publish_anew(mq, channel, group, numbers, filters, rate, dry_run), 0
    else:
        done, not_kept = await mq.dead_letters.redrive(
            channel, group, *numbers, filters=filters, rate=rate, dry_run=dry_run
        )
    words = "would be pending again" if dry_run else "published anew" if as_new else "pending again"
    output.details([(words, done), ("no longer kept", not_kept)], {"redriven": done, "not_kept": not_kept})
    if not_kept:
        note(f"{channel} keeps {counted(not_kept, 'message')} no longer; --as-new publishes what the letters have.")


@dlq.command()
@click.argument("channel")
@click.argument("group")
@_chosen
@click.option("--yes", is_flag=True, help="Do not ask.")
@output_option
@remote()
async def drop(
    mq: Client,
    channel: str,
    group: str,
    numbers: tuple[int, ...],
    filters: tuple[str, ...],
    dry_run: bool,
    yes: bool,
    output: Output,
) -> None:
    """Remove dead letters for good: all, those with these NUMBERS, or those that match."""
    end = (await mq.groups.get(channel, group)).next_dead_letter
    if not dry_run:
        what = "those that match" if filters else f"{len(set(numbers))}" if numbers else "all"
        confirm(f"Remove {what} of the dead letters of {group} on {channel} for good?", yes=yes)
    done = 0
    for first, until in [(number, number + 1) for number in sorted(set(numbers))] or [(0, end)]:
        while first < until:
            part = await mq.dead_letters.drop(
                channel, group, first=first, until=until, filters=filters, dry_run=dry_run
            )
            done += part.dropped
            first = part.next_number or until
    output.details([("would be dropped" if dry_run else "dropped", done)], {"dropped": done})


async def _publish_anew(
    mq: Client,
    channel: str,
    group: str,
    numbers: tuple[int, ...],
    filters: tuple[str, ...],
    rate: float | None,
    dry_run: bool,
) -> int:
    """Each is published before its letter is dropped: what is cut short has it twice, and never not at all."""
    letters = mq.dead_letters.list(channel, group, filters=filters, without_message=True)
    chosen = sorted([(one.offset, one.number) async for one in letters if not numbers or one.number in numbers])
    pace = _Pace(rate)
    for offset, number in () if dry_run else chosen:
        message = (await mq.dead_letters.get(channel, group, number)).message
        headers = {**message.headers, "ringpost-redriven-from": f"{channel}/{offset}"}
        await mq.publish(channel, message.data, key=message.key, headers=headers)
        await mq.dead_letters.drop(channel, group, first=number, until=number + 1)
        await pace.spent(1)
    return len(chosen)


class _Pace:
    """Keeps a rate: who has spent too much waits."""

    def __init__(self, rate: float | None) -> None:
        self._rate = rate
        self._due = asyncio.get_running_loop().time()

    async def spent(self, messages: int) -> None:
        """So many more."""
        if self._rate is None:
            return
        now = asyncio.get_running_loop().time()
        self._due = max(self._due, now - 1.0) + messages / self._rate
        await asyncio.sleep(max(0.0, self._due - now))


def as_json(letter: dead_letter_pb2.DeadLetter) -> dict[str, Any]:
    """Names and units of the API; what is empty is left out."""
    message = letter.message
    return {
        "number": letter.number,
        "offset": letter.offset,
        "append_time_us": letter.append_time_us,
        "dead_time_us": letter.dead_time_us,
        "reason": letter.reason,
        "attempts": letter.attempts,
        "failures": [{"attempt": one.attempt, "time_us": one.time_us, "reason": one.reason} for one in letter.failures],
        **(octets("key", message.key) if message.key else {}),
        **octets("data", message.data),
        **({"headers": dict(message.headers)} if message.headers else {}),
        **({"message_id": message.message_id} if message.message_id else {}),
    }


def _row(letter: dead_letter_pb2.DeadLetter) -> tuple[object, ...]:
    key, reason = letter.message.key.decode(errors="replace"), " ".join(letter.reason.split())
    shown = reason if len(reason) <= _SHOWN else reason[: _SHOWN - 1] + "…"
    return (letter.number, letter.offset, key[:_SHOWN], letter.attempts, show_time(letter.dead_time_us), shown)
