"""Dead letters on every copy of a shard: followers, a new leader, and a copy that is made from a snapshot."""

import asyncio
from pathlib import Path
from typing import Any

from ringpost.node.groups.changes import Reject
from ringpost.node.services.dead_letters import DeadLetters
from ringpost.node.shard.boxes import count
from ringpost.node.shard.group import Group
from ringpost.node.shard.group_frames import add_group
from ringpost.node.shard.group_settings import GroupSettings
from ringpost.node.shard.snapshot import snapshot_shard
from ringpost.v1.dead_letter_pb2 import (
    DeadLetterSelection,
    ListDeadLettersRequest,
    RedriveDeadLettersRequest,
)
from ringpost.v1.group_pb2 import GroupConfig
from tests.node.replicas.rig import Cluster, Node
from tests.node.replicas.test_snapshot import NAMES, sent, taken

NAME = NAMES[0]
Context: Any = None


async def grouped(leader: Node) -> Group:
    """A group of a channel with six messages, of which it has given up three."""
    await leader.publish(NAME, *(f"m{number}" for number in range(6)))
    loop = asyncio.get_running_loop()
    made: asyncio.Future[None] = loop.create_future()
    channel = leader.storage.store.find(NAME)
    group = add_group(channel, "g", GroupSettings.of(GroupConfig()), 0, lambda error: made.set_result(None))
    await made
    done: asyncio.Future[Any] = loop.create_future()
    group.settle_any(Reject("bad"), [(1, 3)], done.set_result)
    assert [tuple(one) for one in await done] == [(1, 3, 1)]
    return group


def states(node: Node) -> Any:
    """What the copy of the shard says of the group and its box."""
    shown = snapshot_shard(node.shards[1])
    groups = [(group.settled, group.rejected, group.letters_gone) for row in shown.channels for group in row.groups]
    return groups, [(row.name, row.first_offset, row.end_offset, row.box_of) for row in shown.channels]


def group_at(node: Node) -> Group:
    return node.storage.store.find_group(node.storage.store.find(NAME), "g")


async def test_the_next_leader_has_the_letters_and_brings_them_back(tmp_path: Path) -> None:
    async with Cluster(tmp_path) as cluster:
        leader = cluster.leader(1)
        assert leader is not None
        await grouped(leader)
        await cluster.until(
            lambda: all(states(node) == states(leader) for node in cluster.nodes.values()), "the copies are the same"
        )
        await leader.stop()
        await cluster.until(lambda: cluster.leader(1) is not None, "another node leads")
        successor = cluster.leader(1)
        assert successor is not None
        service = DeadLetters(successor.storage.store, successor.storage.reading)
        listed = await service.ListDeadLetters(ListDeadLettersRequest(channel=NAME, group="g"), Context)
        assert [(one.number, one.offset, one.message.data, one.reason) for one in listed.letters] == [
            (number, number + 1, f"m{number + 1}".encode(), "bad") for number in range(3)
        ]
        select = DeadLetterSelection(from_number=1, until_number=2)
        request = RedriveDeadLettersRequest(channel=NAME, group="g", select=select)
        answer = await service.RedriveDeadLetters(request, Context)
        assert (answer.redriven, answer.not_kept, answer.next_number) == (1, 0, 0)
        group = group_at(successor)
        assert (count(group), group.core.pending(6)) == (2, 4)
        await cluster.until(
            lambda: all(states(node) == states(successor) for node in cluster.nodes.values() if node.running),
            "the copies that are left are the same",
        )


async def test_a_copy_that_is_made_anew_has_the_box(tmp_path: Path) -> None:
    async with Cluster(tmp_path) as cluster:
        leader = cluster.leader(1)
        assert leader is not None
        await grouped(leader)
        other = next(node for node in cluster.nodes.values() if node is not leader)

        async def nothing() -> None:
            """Meanwhile."""

        parts = await sent(leader, leader.shards[1], after=1, then=nothing)
        assert await taken(other, parts) == {NAME: (0, 6), f"$dead.g.{NAME}": (0, 3)}
