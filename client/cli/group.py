"""`group add|ls|info|set|seek|pause|resume|settle|rm`."""

from typing import Any

import click

from ringpost.client.api import Client
from ringpost.client.cli.command import Group, output_option, remote, start_of
from ringpost.client.cli.group_options import config_json, config_of, config_options, config_rows
from ringpost.client.cli.group_settle import settle
from ringpost.client.cli.output import Output, confirm, note
from ringpost.client.cli.params import place
from ringpost.client.cli.units import Place, counted, show_bytes, show_seconds, show_time
from ringpost.client.modes import MODES, mode_name
from ringpost.v1 import group_pb2


@click.group(cls=Group)
def group() -> None:
    """Groups: durable subscriptions whose members share a channel's messages."""


@group.command()
@click.argument("channel")
@click.argument("name")
@click.option("--from", "begin", type=place, default="earliest", show_default=True, help="Where it begins.")
@click.option("--mode", type=click.Choice(list(MODES)), default="shared", show_default=True, help="How it shares them.")
@config_options
@output_option
@remote()
async def add(mq: Client, channel: str, name: str, begin: Place, mode: str, output: Output, **options: Any) -> None:
    """Make a group. One is also made by its first use.

    \b
    shared       each message to one of the members
    key_ordered  the same, but messages of one key one at a time and in order
    exclusive    one member; a second one is refused
    failover     one active member; the next takes over when it leaves
    broadcast    every consumer, by its name, gets every message and has its own place
    """
    config = config_of(**options)
    show(await mq.groups.add(channel, name, start=start_of(begin), mode=mode, config=config), output)


@group.command("set")
@click.argument("channel")
@click.argument("name")
@config_options
@output_option
@remote()
async def set_(mq: Client, channel: str, name: str, output: Output, **options: Any) -> None:
    """Change a group's configuration; what is not named stays. It counts for what is leased or fails from then on."""
    show(await mq.groups.set(channel, name, config_of(**options)), output)


@group.command("ls")
@click.argument("channel", default="")
@output_option
@remote()
async def ls(mq: Client, channel: str, output: Output) -> None:
    """List the groups of CHANNEL, or of all channels."""
    infos = [info async for info in mq.groups.list(channel)]
    columns = (
        "channel",
        "group",
        "mode",
        "pending",
        "lag",
        "oldest",
        "in flight",
        "to redeliver",
        "dead letters",
        "settled below",
        "members",
        "paused",
    )
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
@click.option("--consumer", default="", help="broadcast: whom to move; without, where new consumers begin.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@output_option
@remote()
async def seek(mq: Client, channel: str, name: str, to: Place, consumer: str, yes: bool, output: Output) -> None:
    """Move a group: what is below TO counts as settled, the rest is delivered again.

    TO is earliest, latest, an offset, a time, or a duration such as 10m (so long ago).
    """
    before = await mq.groups.get(channel, name)
    confirm(f"Move {name} on {channel}, which has {counted(before.pending, 'message')} pending?", yes=yes)
    show(await mq.groups.seek(channel, name, start_of(to), consumer=consumer), output)


@group.command()
@click.argument("channel")
@click.argument("name")
@output_option
@remote()
async def pause(mq: Client, channel: str, name: str, output: Output) -> None:
    """Let a group hand out nothing until it is resumed. What is leased can be settled as ever."""
    show(await mq.groups.pause(channel, name), output)


@group.command()
@click.argument("channel")
@click.argument("name")
@output_option
@remote()
async def resume(mq: Client, channel: str, name: str, output: Output) -> None:
    """End a group's pause."""
    show(await mq.groups.resume(channel, name), output)


@group.command()
@click.argument("channel")
@click.argument("name")
@click.option("--consumer", default="", help="broadcast: only this consumer and its place.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@remote()
async def rm(mq: Client, channel: str, name: str, consumer: str, yes: bool) -> None:
    """Remove a group. The channel's messages stay."""
    before = await mq.groups.get(channel, name)
    if consumer:
        confirm(f"Remove the consumer {consumer} of {name} on {channel}, with its place?", yes=yes)
        await mq.groups.delete_consumer(channel, name, consumer)
        note(f"Removed the consumer {consumer} of {name} on {channel}.")
        return
    confirm(f"Remove the group {name} of {channel}, which has {counted(before.pending, 'message')} pending?", yes=yes)
    await mq.groups.delete(channel, name)
    note(f"Removed the group {name} of {channel}.")


group.add_command(settle)


def show(info: group_pb2.GroupInfo, output: Output) -> None:
    """One group in full."""
    members = [_member(member) for member in info.members]
    rows = [
        ("group", info.name),
        ("channel", info.channel),
        ("mode", mode_name(info.config.mode)),
        ("paused", info.paused),
        ("pending", info.pending),
        ("lag", _lag(info)),
        ("in flight", info.in_flight),
        ("to redeliver", info.to_redeliver),
        ("rejected", info.rejected),
        ("filtered out", info.filtered),
        ("dead letters", f"{info.dead_letters:,} ({show_bytes(info.dead_letter_bytes)})"),
        ("settled below", info.settled_below),
        ("end offset", info.end_offset),
        *config_rows(info.config),
        ("made", show_time(info.created_time_us)),
        ("members", "\n".join(members) or "none"),
        *([("consumers", "\n".join(map(_consumer, info.consumers)))] if info.consumers else []),
    ]
    output.details(rows, as_json(info))


def _lag(info: group_pb2.GroupInfo) -> str:
    """Bytes and age of what is pending."""
    return f"about {show_bytes(info.lag_bytes)}, the oldest {_age(info)} old" if info.pending else "none"


def _age(info: group_pb2.GroupInfo) -> str:
    if not info.pending:
        return "-"
    return show_seconds(info.lag_ms / 1000) if info.HasField("lag_ms") else "?"


def _member(member: group_pb2.GroupMember) -> str:
    held = f"{member.in_flight:,} in flight" if member.active else "waits to take over"
    return f"{member.consumer or '(no name)'}: {held}"


def _consumer(one: group_pb2.GroupConsumer) -> str:
    here = "connected" if one.subscriptions else "away"
    return f"{one.consumer}: {one.pending:,} pending, settled below {one.settled_below}, {here}"


def as_json(info: group_pb2.GroupInfo) -> dict[str, Any]:
    """Names and units of the API; numbers as numbers."""
    return {
        "channel": info.channel,
        "name": info.name,
        "config": config_json(info.config),
        "settled_below": info.settled_below,
        "end_offset": info.end_offset,
        "pending": info.pending,
        "lag_bytes": info.lag_bytes,
        "lag_ms": info.lag_ms if info.HasField("lag_ms") else None,
        "in_flight": info.in_flight,
        "to_redeliver": info.to_redeliver,
        "rejected": info.rejected,
        "filtered": info.filtered,
        "dead_letters": info.dead_letters,
        "dead_letter_bytes": info.dead_letter_bytes,
        "next_dead_letter": info.next_dead_letter,
        "members": [
            {"consumer": member.consumer, "in_flight": member.in_flight, "active": member.active}
            for member in info.members
        ],
        "created_time_us": info.created_time_us,
        "paused": info.paused,
        **({"consumers": [_consumer_json(one) for one in info.consumers]} if info.consumers else {}),
    }


def _consumer_json(one: group_pb2.GroupConsumer) -> dict[str, Any]:
    return {
        "consumer": one.consumer,
        "settled_below": one.settled_below,
        "pending": one.pending,
        "in_flight": one.in_flight,
        "to_redeliver": one.to_redeliver,
        "rejected": one.rejected,
        "subscriptions": one.subscriptions,
    }


def _row(info: group_pb2.GroupInfo) -> tuple[object, ...]:
    return (
        info.channel,
        info.name,
        mode_name(info.config.mode),
        info.pending,
        show_bytes(info.lag_bytes),
        _age(info),
        info.in_flight,
        info.to_redeliver,
        info.dead_letters,
        info.settled_below,
        len(info.members),
        info.paused,
    )
