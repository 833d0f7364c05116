"""How far a group is behind, on a real node: after a restart too, when nothing is in memory."""

import asyncio
import time
from pathlib import Path

from ringpost.v1.common_pb2 import OffsetRange
from ringpost.v1.group_pb2 import AddGroupRequest, GetGroupRequest, GroupInfo, ListGroupsRequest, SettleMessagesRequest
from ringpost.v1.publish_pb2 import PublishRequest
from ringpost.v1.subscribe_pb2 import Ack
from tests.integration.broker import Client, Node, batch_of, until

LAG = "ringpost_group_lag{orders/g}"
LAG_BYTES = "ringpost_group_lag_bytes{orders/g}"
LAG_SECONDS = "ringpost_group_lag_seconds{orders/g}"


async def group(client: Client) -> GroupInfo:
    shown = (await client.groups.GetGroup(GetGroupRequest(channel="orders", name="g"))).group
    (listed,) = (await client.groups.ListGroups(ListGroupsRequest(channel="orders"))).groups
    assert (listed.lag_bytes, listed.HasField("lag_ms")) == (shown.lag_bytes, shown.HasField("lag_ms"))
    return shown


async def test_lag_in_messages_bytes_and_time(tmp_path: Path) -> None:
    before = time.monotonic()
    with Node(tmp_path / "n") as node:
        async with Client(node.address) as client:
            await client.publisher.Publish(PublishRequest(channel="orders", batch=batch_of(b"x" * 1_000, b"x" * 1_000)))
            await client.groups.AddGroup(AddGroupRequest(channel="orders", name="g"))
            info = await group(client)
            assert info.pending == 2
            assert 2_000 < info.lag_bytes < 2_500
            assert info.lag_ms <= (time.monotonic() - before) * 1_000
            metrics = await asyncio.to_thread(node.metrics)
            assert (metrics[LAG], metrics[LAG_BYTES]) == (2, info.lag_bytes)
            assert 0 <= metrics[LAG_SECONDS] <= time.monotonic() - before
        node.stop()
        node.start()
        async with Client(node.address) as client:

            async def learned() -> bool:
                return LAG_SECONDS in await asyncio.to_thread(node.metrics)

            await until(learned, "the node has looked how old the oldest message is")
            assert 0 < (await group(client)).lag_ms <= (time.monotonic() - before) * 1_000
            done = SettleMessagesRequest(channel="orders", group="g", ranges=[OffsetRange(first=0, last=1)], ack=Ack())
            await client.groups.Settle(done)
            info = await group(client)
            assert (info.pending, info.lag_bytes, info.HasField("lag_ms"), info.lag_ms) == (0, 0, True, 0)
            assert LAG not in await asyncio.to_thread(node.metrics)
        assert node.faults() == []
