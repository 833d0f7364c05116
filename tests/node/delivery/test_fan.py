"""A subscription to a pattern at its client's node."""

from typing import Any

import grpc
import pytest

from ringpost.node.delivery import fan
from ringpost.v1.subscribe_pb2 import SubscribeResponse
from tests.node.delivery.fakes import Stream, code, hub_of, reason_of, turns
from tests.node.shard.fakes import Outcomes, Rig


async def test_who_does_not_read_is_not_kept_the_comings_and_goings_of_channels_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(fan, "HELD_BYTES_MAX", 20_000, raising=False)
    rig = Rig()
    rig.store._led = [shard.epoch for shard in rig.store.shards]
    hub = hub_of(rig, queue_bytes=1_000)
    stream = Stream(hub)
    stream.open(channel="", pattern="a.*")
    await turns()
    held: Any = stream.session.subscriptions[1]
    for number in range(1_000):
        name = f"a.{number}"
        rig.channel(name)
        rig.commit()
        await turns(6)
        rig.store.delete(rig.store.find(name), Outcomes())
        rig.commit()
        await turns(3)
        assert sum(map(len, held._out)) + 20 * len(held._marks) < 25_000
        if not stream.session.subscriptions:
            break
    assert (held.closed, hub.subscriptions, hub.catalog.patterns) == (True, 0, [])
    last = SubscribeResponse()
    while stream.session.queued_bytes:
        last = SubscribeResponse.FromString(await stream.session.next_message() or b"")
    assert reason_of(last) == (code(grpc.StatusCode.UNAVAILABLE), "PATTERN_UNREAD")
