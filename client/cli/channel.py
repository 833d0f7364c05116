"""`channel add|ls|info|set|purge|rm`."""

from collections.abc import Callable
from typing import Any

import click

from ringpost.client.api import Client
from ringpost.client.cli.command import Group, output_option, remote
from ringpost.client.cli.nodes import damage
from ringpost.client.cli.output import Output, confirm, note
from ringpost.client.cli.params import OFFSET, duration, size
from ringpost.client.cli.units import counted, show_bytes, show_seconds, show_time
from ringpost.v1 import channel_pb2


@click.group(cls=Group)
def channel() -> None:
    """Channels: named, ordered logs."""


def limits(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that make a ChannelConfig."""
    for option in (
        click.option(
            "--dedup-window", type=duration, help="Take a message id once in so long, 1s to 1d; 0: no matter."
        ),
        click.option("--max-message", type=size, help="Greatest message; 0: the node's limit."),
        click.option("--keep-messages", type=OFFSET, help="Keep at most so many; 0: all."),
        click.option("--keep-bytes", type=size, help="Keep at most so much, such as 10GiB; 0: all."),
        click.option("--keep-age", type=duration, help="Keep messages so long, such as 7d; 0: for ever."),
    ):
        command = option(command)
    return command


def config_of(
    keep_age: float | None,
    keep_bytes: int | None,
    keep_messages: int | None,
    max_message: int | None,
    dedup_window: float | None,
) -> channel_pb2.ChannelConfig:
    """The options of `limits`; a field is present when its option was given."""
    return channel_pb2.ChannelConfig(
        retention_age_ms=None if keep_age is None else round(keep_age * 1000),
        retention_bytes=keep_bytes,
        retention_messages=keep_messages,
        max_message_bytes=max_message,
        dedup_window_ms=None if dedup_window is None else round(dedup_window * 1000),
    )


@channel.command()
@click.argument("name")
@limits
@output_option
@remote()
async def add(mq: Client, name: str, output: Output, **options: Any) -> None:
    """Make a channel. One is also made by its first use."""
    show(await mq.channels.add(name, config_of(**options)), output)


@channel.command("ls")
@click.argument("prefix", default="")
@output_option
@remote()
async def ls(mq: Client, prefix: str, output: Output) -> None:
    """List channels whose names begin with PREFIX."""
    infos = [info async for info in mq.channels.list(prefix)]
    columns = ("channel", "messages", "first", "end", "stored", "groups", "subscribers", "owner")
    output.listing(columns, [_row(info) for info in infos], [as_json(info) for info in infos])
    if mq.connected_to is not None:
        for sentence in damage(mq.connected_to):
            note(f"Warning: {sentence} Channels in them may be missing here, or not show their newest messages.")


@channel.command()
@click.argument("name")
@output_option
@remote()
async def info(mq: Client, name: str, output: Output) -> None:
    """Show one channel."""
    show(await mq.channels.get(name), output)


def _check_set(**options: object) -> None:
    if all(value is None for name, value in options.items() if name not in ("name", "output")):
        raise click.UsageError("Nothing to set; name at least one limit, such as --keep-age 7d.")


@channel.command("set")
@click.argument("name")
@limits
@output_option
@remote(_check_set)
async def set_(mq: Client, name: str, output: Output, **options: Any) -> None:
    """Change a channel's limits; those not named stay."""
    show(await mq.channels.set(name, config_of(**options)), output)


@channel.command()
@click.argument("name")
@click.option("--before", "before_offset", type=OFFSET, help="Only messages below this offset.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@output_option
@remote()
async def purge(mq: Client, name: str, before_offset: int | None, yes: bool, output: Output) -> None:
    """Remove a channel's messages, all or the oldest. Offsets are not used again."""
    before = await mq.channels.get(name)
    if before_offset is not None and before_offset > before.end_offset:
        raise click.ClickException(f"--before: {before_offset} is beyond the end offset {before.end_offset} of {name}.")
    wanted = before.end_offset if before_offset is None else before_offset
    count = max(0, min(wanted, before.end_offset) - before.first_offset)
    if count:
        confirm(f"Remove {counted(count, 'message')} of {name}?", yes=yes)
    show(await mq.channels.purge(name, before_offset), output)


@channel.command()
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
@remote()
async def rm(mq: Client, name: str, yes: bool) -> None:
    """Remove a channel, its messages and its groups."""
    before = await mq.channels.get(name)
    count = before.end_offset - before.first_offset
    what = f"{counted(count, 'message')} and {counted(before.group_count, 'group')}"
    confirm(f"Remove {name} with {what}?", yes=yes)
    await mq.channels.delete(name)
    note(f"Removed {name}.")


def show(info: channel_pb2.ChannelInfo, output: Output) -> None:
    """One channel in full."""
    config = info.config
    rows = [
        ("channel", info.name),
        ("messages", info.end_offset - info.first_offset),
        ("offsets", f"{info.first_offset} to {info.end_offset - 1}" if info.end_offset > info.first_offset else "none"),
        ("next offset", info.end_offset),
        ("stored", show_bytes(info.stored_bytes)),
        ("keep age", show_seconds(config.retention_age_ms / 1000) if config.retention_age_ms else "for ever"),
        ("keep bytes", show_bytes(config.retention_bytes) if config.retention_bytes else "no limit"),
        ("keep messages", config.retention_messages or "no limit"),
        ("greatest message", show_bytes(config.max_message_bytes) if config.max_message_bytes else "the node's limit"),
        ("dedup window", show_seconds(config.dedup_window_ms / 1000) if config.dedup_window_ms else "none"),
        ("delayed messages", _scheduled(info)),
        ("groups", info.group_count),
        ("subscribers", info.subscription_count),
        ("made", show_time(info.created_time_us)),
        ("owner", f"{info.owner} (shard {info.shard}, epoch {info.epoch})"),
    ]
    output.details(rows, as_json(info))


def as_json(info: channel_pb2.ChannelInfo) -> dict[str, Any]:
    """Names and units of the API; numbers as numbers."""
    config = info.config
    return {
        "name": info.name,
        "first_offset": info.first_offset,
        "end_offset": info.end_offset,
        "messages": info.end_offset - info.first_offset,
        "stored_bytes": info.stored_bytes,
        "config": {
            "retention_age_ms": config.retention_age_ms,
            "retention_bytes": config.retention_bytes,
            "retention_messages": config.retention_messages,
            "max_message_bytes": config.max_message_bytes,
            "dedup_window_ms": config.dedup_window_ms,
        },
        "group_count": info.group_count,
        "subscription_count": info.subscription_count,
        "created_time_us": info.created_time_us,
        "shard": info.shard,
        "owner": info.owner,
        "epoch": info.epoch,
        "damaged": info.damaged,
        "scheduled": info.scheduled,
        "next_scheduled_time_us": info.next_scheduled_time_us,
    }


def _scheduled(info: channel_pb2.ChannelInfo) -> str:
    if not info.scheduled:
        return "none"
    first = f", the first at {show_time(info.next_scheduled_time_us)}" if info.next_scheduled_time_us else ""
    return f"{info.scheduled:,}{first}"


def _row(info: channel_pb2.ChannelInfo) -> tuple[object, ...]:
    return (
        info.name,
        info.end_offset - info.first_offset,
        info.first_offset,
        info.end_offset,
        show_bytes(info.stored_bytes),
        info.group_count,
        info.subscription_count,
        info.owner + (" (damaged: refuses work)" if info.damaged else ""),
    )
