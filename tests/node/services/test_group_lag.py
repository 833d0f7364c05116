"""GetGroup and ListGroups tell how old the oldest pending message is; a list reads the disk only so often."""

from typing import Any

from ringpost.node.services.groups import Groups
from ringpost.node.shard.group_frames import add_group
from ringpost.node.shard.group_settings import GroupSettings
from ringpost.v1.group_pb2 import GetGroupRequest, GroupInfo, ListGroupsRequest
from tests.node.shard.fakes import Outcomes, Rig

Context: Any = None
COUNT = 105  # more than a list looks at


async def test_a_list_leaves_out_what_would_take_too_many_reads() -> None:
    rig = Rig(cache_bytes=0)
    channel = rig.channel()
    for number in range(COUNT):
        rig.publish(channel, "x")
        add_group(channel, f"g{number:03}", GroupSettings(), number, Outcomes())
    rig.commit()
    rig.time.pass_us(2_000_000)
    groups = Groups(rig.store, rig.reading)

    async def listed() -> list[GroupInfo]:
        return list((await groups.ListGroups(ListGroupsRequest(channel="a", page_size=1_000), Context)).groups)

    first = await listed()
    assert [group.name for group in first if not group.HasField("lag_ms")] == [f"g{n}" for n in range(100, COUNT)]
    assert {group.lag_ms for group in first[:100]} == {2_000}
    assert len(rig.reads) == 100
    one = (await groups.GetGroup(GetGroupRequest(channel="a", name="g104"), Context)).group
    assert (one.lag_ms, one.pending, len(rig.reads)) == (2_000, 1, 101)
    assert all(group.HasField("lag_ms") for group in await listed()), "the next list goes on"
    await listed()
    assert len(rig.reads) == COUNT
