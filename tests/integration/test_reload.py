"""SIGHUP: a running node takes up what may change, names what may not, and keeps what it has when the file is wrong."""

import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest

from ringpost.v1.channel_pb2 import AddChannelRequest
from tests.integration.broker import Client, Node, publish, told_by_status, until


class Rig(NamedTuple):
    node: Node
    client: Client
    file: Path

    async def reload(self, text: str) -> dict[str, Any]:
        """What the node says of the newest settings."""
        self.file.write_text(text)
        before = len(self._said())
        self.node.signal(signal.SIGHUP)
        await until(lambda: len(self._said()) > before, "it has read them")
        return self._said()[-1]

    def _said(self) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.node.stderr.splitlines()]
        return [line for line in lines if line["event"] in ("config.reloaded", "config.not_reloaded")]


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    file = tmp_path / "ringpost.toml"
    file.write_text("")
    with Node(tmp_path / "n", "--config", str(file)) as node:
        async with Client(node.address) as client:
            yield Rig(node, client, file)


async def test_what_may_change_counts_at_once_and_the_rest_is_named(rig: Rig) -> None:
    stream = rig.client.publish_stream()
    await stream.write(publish("orders", b"x"))
    await stream.read()
    said = await rig.reload('streams_max = 1\nmax_channels = 1\nretention_messages = 7\ntail_cache_bytes = "64MiB"\n')
    assert sorted(said["changed"]) == ["max_channels", "retention_messages", "streams_max"]
    assert said["need_a_restart"] == ["tail_cache_bytes"]
    second = rig.client.publish_stream()
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await second.read()
    assert told_by_status(raised.value).reason == "STREAM_LIMIT"
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await rig.client.channels.AddChannel(AddChannelRequest(name="another"))
    assert told_by_status(raised.value).reason == "CHANNEL_LIMIT"
    await stream.write(publish("orders", b"goes on"))
    assert (await stream.read()).results[0].HasField("stored")
    assert (await rig.reload(""))["changed"] != []
    made = await rig.client.channels.AddChannel(AddChannelRequest(name="another"))
    assert made.channel.config.retention_messages == 0


async def test_settings_that_cannot_be_used_change_nothing(rig: Rig) -> None:
    await rig.reload("max_channels = 1\n")
    for text, told in (("max_channels = -1", "max_channels"), ("max_chanels = 3", "max_chanels"), ("x = ", "not TOML")):
        said = await rig.reload(text)
        assert said["event"] == "config.not_reloaded"
        assert told in said["problem"]
    await rig.client.publisher.Publish(publish("orders", b"x").publish)
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await rig.client.channels.AddChannel(AddChannelRequest(name="another"))
    assert told_by_status(raised.value).reason == "CHANNEL_LIMIT"


async def test_the_level_of_the_log_changes(rig: Rig) -> None:
    await rig.reload('log_level = "error"\nmax_groups = 5\n')
    # The line about it was the last one of its level.
    rig.file.write_text("")
    rig.node.signal(signal.SIGHUP)
    await until(lambda: rig.node.stderr.count("config.reloaded") == 2, "the level is what it was")
