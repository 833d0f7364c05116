"""What a leader has begun to do to a group, and may not end, when another takes the lead."""

from pathlib import Path

from ringpost.node.delivery.opening import make_group
from ringpost.node.errors import RingpostError
from ringpost.node.groups.changes import Ack
from ringpost.node.shard.group_frames import delete_group
from ringpost.node.shard.group_settings import GroupSettings
from ringpost.node.shard.leadership import stop_leading
from ringpost.node.shard.shard import apply_trim
from tests.node.replicas.rig import Cluster
from tests.node.replicas.test_group_modes import joined, settled, taken


async def test_a_group_whose_deletion_may_yet_be_lost_is_kept_with_its_acks(tmp_path: Path) -> None:
    async with Cluster(tmp_path) as cluster:
        leader = cluster.leader_of("orders")
        assert leader is not None
        await leader.publish("orders", "one", "two", "three")
        group = joined(leader, await make_group(leader.storage.store.find("orders"), "g", GroupSettings(), 0))
        assert await taken(group) == [(0, 2)]
        await settled(group, Ack(), 0)
        await settled(group, Ack(), 1)
        shard, answers = group.channel.shard, list[RingpostError | None]()
        delete_group(group, answers.append)

        stop_leading(leader.storage.store, shard, "another")  # before the frame has come to anybody

        assert [getattr(answer, "reason", "") for answer in answers] == ["LEADER_CHANGED"]
        groups = shard.channels[group.channel.number].groups or {}
        assert set(groups) == {"g"}
        assert groups["g"].core.settled_below == 2, "what was confirmed stays so"


async def test_a_trim_counts_for_a_group_whose_deletion_may_yet_be_lost(tmp_path: Path) -> None:
    async with Cluster(tmp_path) as cluster:
        leader = cluster.leader_of("orders")
        assert leader is not None
        await leader.publish("orders", "one", "two", "three")
        group = await make_group(leader.storage.store.find("orders"), "g", GroupSettings(), 0)
        shard = group.channel.shard
        delete_group(group, lambda error: None)

        apply_trim(group.channel, 2)  # which was appended before, and has committed
        stop_leading(leader.storage.store, shard, "another")

        groups = shard.channels[group.channel.number].groups or {}
        assert groups["g"].core.settled_below == 2, "what is gone is settled"
