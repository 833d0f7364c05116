"""ExplainMessage where time stands still: what is on its way to the log, what is lost, what cannot be read."""

import pytest

from ringpost.node.errors import NotFound
from ringpost.node.groups.changes import Ack
from ringpost.node.services.explain import GROUPS_MAX, explained
from ringpost.node.shard.channel import Channel
from ringpost.node.shard.group_frames import add_group, delete_group, seek_group
from ringpost.node.shard.group_settings import GroupSettings
from ringpost.v1 import message_pb2 as api
from tests.node.delivery.test_lost import lose
from tests.node.shard.fakes import Outcomes, Rig
from tests.node.shard.test_group import made, settle, take


async def told(rig: Rig, channel: Channel, offset: int) -> tuple[str, list[str]]:
    """The names of the state and of the groups' causes."""
    answer = await explained(rig.store, rig.reading, channel.name, offset, "")
    causes = [api.Cause.Name(group.cause).removeprefix("CAUSE_") for group in answer.groups]
    return api.MessageState.Name(answer.state).removeprefix("MESSAGE_STATE_"), causes


async def test_what_is_on_its_way_to_the_log() -> None:
    rig = Rig()
    group = made(rig, messages=3)
    channel = group.channel
    take(rig, group, 2)
    settle(group, Ack(), (0, 0))
    assert await told(rig, channel, 0) == ("STORED", ["SETTLING"])
    assert await told(rig, channel, 1) == ("STORED", ["LEASED"])
    assert await told(rig, channel, 2) == ("STORED", ["IN_LINE"])
    seek_group(group, 2, Outcomes())
    assert await told(rig, channel, 1) == ("STORED", ["MOVING"])
    rig.commit()
    assert await told(rig, channel, 1) == ("STORED", ["SETTLED"])
    rig.publish(channel, "more", commit=False)
    assert await told(rig, channel, 3) == ("NOT_COMMITTED", ["NO_MESSAGE"])
    assert await told(rig, channel, 4) == ("NOT_PUBLISHED", ["NO_MESSAGE"])
    rig.commit()
    assert await told(rig, channel, 3) == ("STORED", ["IN_LINE"])


async def test_what_is_lost_and_what_cannot_be_read() -> None:
    rig = Rig(cache_bytes=0)
    group = made(rig, messages=2)
    channel = group.channel
    rig.publish(channel, "more")
    lose(rig, channel, 0)
    assert await told(rig, channel, 1) == ("LOST", ["NO_MESSAGE"])
    rig.read_error = OSError(5, "Input/output error")
    assert await told(rig, channel, 2) == ("UNREADABLE", ["IN_LINE"])
    rig.read_error = None
    assert await told(rig, channel, 2) == ("STORED", ["IN_LINE"])


async def test_a_message_that_is_trimmed_while_it_is_read() -> None:
    rig = Rig(cache_bytes=0)
    channel = made(rig, messages=2).channel
    rig.publish(channel, "more")
    fetch = rig.reading._fetch

    async def trimmed_meanwhile(*row):
        channel.shard.trim(channel, 2, Outcomes())
        rig.commit()
        return await fetch(*row)

    rig.reading._fetch = trimmed_meanwhile
    assert await told(rig, channel, 1) == ("REMOVED", ["NO_MESSAGE"])


async def test_a_group_that_is_deleted_while_the_message_is_read() -> None:
    rig = Rig(cache_bytes=0)
    group = made(rig, messages=1)
    fetch = rig.reading._fetch

    async def deleted_meanwhile(*row):
        delete_group(group, Outcomes())
        return await fetch(*row)

    rig.reading._fetch = deleted_meanwhile
    with pytest.raises(NotFound):
        await explained(rig.store, rig.reading, "a", 0, "g")
    assert await told(rig, group.channel, 0) == ("STORED", [])


async def test_a_channel_that_is_made_anew_while_the_message_is_read() -> None:
    rig = Rig(cache_bytes=0)
    channel = made(rig, messages=1).channel
    fetch = rig.reading._fetch

    async def made_anew_meanwhile(*row):
        rig.reading._fetch = fetch
        rig.store.delete(channel, Outcomes())
        rig.channel()
        return await fetch(*row)

    rig.reading._fetch = made_anew_meanwhile
    answer = await explained(rig.store, rig.reading, "a", 0, "")
    assert (answer.state, answer.append_time_us) == (api.MESSAGE_STATE_NOT_PUBLISHED, 0)
    assert answer.sentence == "Nobody has published it yet: the next message gets offset 0."


async def test_groups_come_by_name_and_not_without_end() -> None:
    rig = Rig()
    channel = made(rig, messages=1).channel
    for number in range(GROUPS_MAX):
        add_group(channel, f"n{number:04}", GroupSettings(), 0, Outcomes())
    rig.commit()
    answer = await explained(rig.store, rig.reading, channel.name, 0, "")
    assert [group.group for group in answer.groups] == ["g", *(f"n{n:04}" for n in range(GROUPS_MAX - 1))]
