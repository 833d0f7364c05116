"""`msg get|explain`, and how a message looks as JSON."""

import base64
import json
from collections.abc import Mapping
from typing import Any

import click

from ringpost.client.api import Client
from ringpost.client.cli.command import output_option, remote
from ringpost.client.cli.output import Output, note, write
from ringpost.client.cli.params import OFFSET
from ringpost.client.cli.units import show_bytes, show_time
from ringpost.client.modes import mode_name
from ringpost.v1 import message_pb2


def octets(name: str, value: bytes) -> dict[str, str]:
    """`{name: text}`, or `{name_base64: …}` for bytes that are no UTF-8."""
    try:
        return {name: value.decode()}
    except UnicodeDecodeError:
        return {f"{name}_base64": base64.b64encode(value).decode()}


def as_json(
    channel: str,
    offset: int,
    append_time_us: int,
    key: bytes,
    data: bytes,
    headers: Mapping[str, str],
    more: Mapping[str, object],
) -> dict[str, Any]:
    """One message; `key`, `headers` and whatever is empty in `more` are left out."""
    return {
        "channel": channel,
        "offset": offset,
        "append_time_us": append_time_us,
        **(octets("key", key) if key else {}),
        **octets("data", data),
        **({"headers": dict(headers)} if headers else {}),
        **{name: value for name, value in more.items() if value},
    }


def dump(value: Mapping[str, Any]) -> str:
    """One line of NDJSON."""
    return json.dumps(value, ensure_ascii=False, separators=(", ", ": "))


@click.group()
def msg() -> None:
    """Single messages."""


@msg.command()
@click.argument("channel")
@click.argument("offset", type=OFFSET)
@click.option("--count", type=click.IntRange(min=1), default=1, show_default=True, help="So many from there on.")
@click.option("--text", is_flag=True, help="The payload only, byte for byte.")
@remote()
async def get(mq: Client, channel: str, offset: int, count: int, text: bool) -> None:
    """Read messages of CHANNEL from OFFSET on, without a subscription."""
    left = count
    while left:
        stored = await mq.messages.get(channel, offset, min(left, 1000))
        for one in stored:
            message = one.message
            if text:
                click.echo(message.data, nl=count > 1)
                continue
            more = {
                "producer_time_us": message.producer_time_us,
                "message_id": message.message_id,
                "producer_id": one.producer_id,
                "sequence": one.sequence if one.producer_id else 0,
            }
            place = (one.channel, one.offset, one.append_time_us)
            write(dump(as_json(*place, message.key, message.data, message.headers, more)))
        offset, left = offset + len(stored), left - len(stored)
        if left and offset >= (await mq.channels.get(channel)).end_offset:
            note(f"{channel} ends at offset {offset - 1}.")
            break


@msg.command()
@click.argument("channel")
@click.argument("offset", type=OFFSET)
@click.option("--group", default="", help="Only this group (default: all of the channel).")
@output_option
@remote()
async def explain(mq: Client, channel: str, offset: int, group: str, output: Output) -> None:
    """Tell where the message at OFFSET of CHANNEL is, and why no group, or one, is being given it now."""
    told = await mq.messages.explain(channel, offset, group)
    rows: list[tuple[str, object]] = [
        ("message", f"{told.channel} {told.offset}: {_name(message_pb2.MessageState, told.state)}"),
        ("", told.sentence),
        ("shard", f"{told.shard}, owned by {told.owner} in epoch {told.epoch}"),
        ("in sync", ", ".join(told.in_sync)),
        ("kept", f"{told.first_offset} to {told.end_offset - 1}" if told.end_offset > told.first_offset else "nothing"),
    ]
    if told.append_time_us:
        rows += [("appended", show_time(told.append_time_us)), ("size", show_bytes(told.size_bytes))]
    if told.key:
        rows.append(("key", next(iter(octets("key", told.key).values()))))
    for one in told.groups:
        rows += [(f"group {one.group}", f"{_name(message_pb2.Cause, one.cause)} ({mode_name(one.mode)})")]
        rows += [("", one.sentence)]
    output.details(rows, explanation_json(told))


def _name(kind: Any, value: int) -> str:
    """An enum's value as people write it; its number when this version does not know it."""
    prefix = {"MessageState": "MESSAGE_STATE_"}.get(kind.DESCRIPTOR.name, f"{kind.DESCRIPTOR.name.upper()}_")
    known = kind.DESCRIPTOR.values_by_number.get(value)
    return str(value) if known is None else str(known.name).removeprefix(prefix).lower()


def explanation_json(told: message_pb2.ExplainMessageResponse) -> dict[str, Any]:
    """Names and units of the API; enums by their names. Times, sizes and keys that are not there are left out."""
    about = {"append_time_us": told.append_time_us, "size_bytes": told.size_bytes}
    return {
        "channel": told.channel,
        "offset": told.offset,
        "state": _name(message_pb2.MessageState, told.state),
        "sentence": told.sentence,
        "shard": told.shard,
        "owner": told.owner,
        "epoch": told.epoch,
        "in_sync": list(told.in_sync),
        "first_offset": told.first_offset,
        "end_offset": told.end_offset,
        **{name: value for name, value in about.items() if told.append_time_us},
        **(octets("key", told.key) if told.key else {}),
        "groups": [_group_json(one) for one in told.groups],
    }


def _group_json(one: message_pb2.GroupExplanation) -> dict[str, Any]:
    more: dict[str, object] = {
        "consumer": one.consumer,
        "until_time_us": one.until_time_us,
        "active_consumer": one.active_consumer,
        "since_time_us": one.since_time_us,
    }
    return {
        "group": one.group,
        "mode": mode_name(one.mode),
        "cause": _name(message_pb2.Cause, one.cause),
        "also": [_name(message_pb2.Cause, cause) for cause in one.also],
        "sentence": one.sentence,
        "attempt": one.attempt,
        **{name: value for name, value in more.items() if value},
        **({"behind_offset": one.behind_offset} if one.HasField("behind_offset") else {}),
        **({"dead_letter": one.dead_letter} if one.HasField("dead_letter") else {}),
        "failures": [
            {"attempt": failure.attempt, "time_us": failure.time_us, "reason": failure.reason}
            for failure in one.failures
        ],
        "consumers": one.consumers,
    }
