"""`group add|ls|info|seek|rm`."""

from typing import Any

import click

from ringpost.client.api import Client
from ringpost.client.cli.command import Group, output_option, remote, start_of
from ringpost.client.cli.output import Output, confirm, note
from ringpost.client.cli.params import duration, place
from ringpost.client.cli.units import Place, counted, show_seconds, show_time
from ringpost.v1 import group_pb2


@click.group(cls=Group)
def group() -> None:
    """Groups: durable subscriptions whose members share a channel's messages."""


@group.command()
@click.argument("channel")
@click.argument("name")
@click.option("--from", "begin", type=place, default="earliest", show_default=True, help="Where it begins.")
@click.option("--ack-deadline", type=duration, help="How long a member may work on a message (default 30s).")
@click.option("--max-in-flight", type=click.IntRange(1, 1_000_000), help="Most messages out at a time.")
@output_option
@remote()
async def add(
    mq: Client,
    channel: str,
    name: str,
    begin: Place,
    ack_deadline: float | None,
    max_in_flight: int | None,
    output: Output,
) -> None:
    """Make a group. One is also made by its first use."""
    deadline_ms = None if ack_deadline is None else round(ack_deadline * 1000)
    config = group_pb2.GroupConfig(ack_deadline_ms=deadline_ms, max_in_flight=max_in_flight)
    show(await mq.groups.add(channel, name, start=start_of(begin), config=config), output)


@group.command("ls")
@click.argument("channel", default="")
@output_option
@remote()
async def ls(mq: Client, channel: str, output: Output) -> None:
    """List the groups of CHANNEL, or of all channels."""
    infos = [info async for info in mq.groups.list(channel)]
    columns = ("channel", "group", "pending", "in flight", "to redeliver", "rejected", "settled below", "members")
    output.listing(columns, [_row(info) for info in infos], [as_json(info) for info in infos])


@group.command()
@click.argument("channel")
@click.argument("name")
@output_option
@remote()
async def info(mq: Client, channel: str, name: str, output: Output) -> None:
    """Show one group."""
    show(await mq.groups.get(channel, name), output)


@group.command()
@click.argument("channel")
@click.argument("name")
@click.argument("to", type=place)
@click.option("--yes", is_flag=True, help="Do not ask.")
@output_option
@remote()
async def seek(mq: Client, channel: str, name: str, to: Place, yes: bool, output: Output) -> None:
    """Move a group: what is below TO counts as settled, the rest is delivered again.

    TO is earliest, latest, an offset, a time, or a duration such as 10m (so long ago).
    """
    before = await mq.groups.get(channel, name)
    confirm(f"Move {name} on {channel}, which has {counted(before.pending, 'message')} pending?", yes=yes)
    show(await mq.groups.seek(channel, name, start_of(to)), output)


@group.command()
@click.argument("channel")
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@remote()
async def rm(mq: Client, channel: str, name: str, yes: bool) -> None:
    """Remove a group. The channel's messages stay."""
    before = await mq.groups.get(channel, name)
    confirm(f"Remove the group {name} of {channel}, which has {counted(before.pending, 'message')} pending?", yes=yes)
    await mq.groups.delete(channel, name)
    note(f"Removed the group {name} of {channel}.")


def show(info: group_pb2.GroupInfo, output: Output) -> None:
    """One group in full."""
    members = [f"{member.consumer or '(no name)'}: {member.in_flight:,} in flight" for member in info.members]
    rows = [
        ("group", info.name),
        ("channel", info.channel),
        ("pending", info.pending),
        ("in flight", info.in_flight),
        ("to redeliver", info.to_redeliver),
        ("rejected", info.rejected),
        ("settled below", info.settled_below),
        ("end offset", info.end_offset),
        ("ack deadline", show_seconds(info.config.ack_deadline_ms / 1000)),
        ("max in flight", info.config.max_in_flight),
        ("made", show_time(info.created_time_us)),
        ("members", "\n".join(members) or "none"),
    ]
    output.details(rows, as_json(info))


def as_json(info: group_pb2.GroupInfo) -> dict[str, Any]:
    """Names and units of the API; numbers as numbers."""
    return {
        "channel": info.channel,
        "name": info.name,
        "config": {
            "mode": "shared",
            "ack_deadline_ms": info.config.ack_deadline_ms,
            "max_in_flight": info.config.max_in_flight,
        },
        "settled_below": info.settled_below,
        "end_offset": info.end_offset,
        "pending": info.pending,
        "in_flight": info.in_flight,
        "to_redeliver": info.to_redeliver,
        "rejected": info.rejected,
        "members": [{"consumer": member.consumer, "in_flight": member.in_flight} for member in info.members],
        "created_time_us": info.created_time_us,
    }


def _row(info: group_pb2.GroupInfo) -> tuple[object, ...]:
    return (
        info.channel,
        info.name,
        info.pending,
        info.in_flight,
        info.to_redeliver,
        info.rejected,
        info.settled_below,
        len(info.members),
    )
