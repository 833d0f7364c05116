"""`msg get`, and how a message looks as JSON."""

import base64
import json
from collections.abc import Mapping
from typing import Any

import click

from ringpost.client.api import Client
from ringpost.client.cli.command import remote
from ringpost.client.cli.output import note, write
from ringpost.client.cli.params import OFFSET


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
