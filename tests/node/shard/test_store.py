"""Channels by name: finding, making by first use, listing, limits."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringpost.cluster.keys import shard_of
from ringpost.node.errors import AlreadyExists, DataLoss, Exhausted, InvalidRequest, NotFound
from ringpost.node.journal.disk import DiskState
from ringpost.node.journal.frame import FrameType
from ringpost.node.shard.channel import ChannelLimits
from ringpost.node.shard.group_frames import add_group
from ringpost.node.shard.group_settings import GroupSettings
from tests.node.shard.fakes import Outcomes, Rig


def test_a_channel_is_made_by_first_use_in_its_shard() -> None:
    rig = Rig(shards=16, new_channel=ChannelLimits(retention_messages=7))
    channel = rig.store.find_or_add("orders.eu")
    assert channel.shard.number == shard_of("orders.eu", 16)
    assert channel.limits.retention_messages == 7
    assert rig.store.find_or_add("orders.eu") is channel
    assert rig.store.find("orders.eu") is channel
    assert len(rig.store) == 1
    assert list(rig.store) == [channel]


def test_an_inbox_is_not_made_by_first_use() -> None:
    rig = Rig()
    with pytest.raises(NotFound) as caught:
        rig.store.find_or_add("_inbox.a")
    assert caught.value.reason == "CHANNEL_NOT_FOUND"
    assert rig.store.find_or_add("_inboxes").name == "_inboxes"
    rig.store.add("_inbox.a", ChannelLimits(), Outcomes())
    assert rig.store.find_or_add("_inbox.a").name == "_inbox.a"


def test_first_use_can_be_forbidden() -> None:
    rig = Rig(auto_create_channels=False)
    with pytest.raises(NotFound) as caught:
        rig.store.find_or_add("orders")
    assert caught.value.reason == "CHANNEL_NOT_FOUND"
    assert rig.journal.frames == []
    added = rig.store.add("orders", ChannelLimits(), Outcomes())
    assert rig.store.find_or_add("orders") is added


@pytest.mark.parametrize("name", ["", "$internal", "a..b", "a b", "ä", "x" * 256])
def test_a_bad_name_is_told_before_anything_else(name: str) -> None:
    rig = Rig()
    for call in (rig.store.find, rig.store.find_or_add):
        with pytest.raises(InvalidRequest) as caught:
            call(name, "place")
        assert caught.value.violations[0].field == "place"
    assert rig.journal.frames == []


def test_a_name_is_taken_once_and_free_after_a_delete() -> None:
    rig = Rig()
    first = rig.store.add("a", ChannelLimits(), Outcomes())
    with pytest.raises(AlreadyExists):
        rig.store.add("a", ChannelLimits(), Outcomes())
    rig.store.delete(first, Outcomes())
    with pytest.raises(NotFound):
        rig.store.find("a")
    second = rig.store.add("a", ChannelLimits(), Outcomes())
    rig.commit()
    assert rig.store.find("a") is second
    assert list(rig.shard.channels.values()) == [second]


def test_there_are_only_so_many_channels() -> None:
    rig = Rig(max_channels=2)
    a = rig.store.find_or_add("a")
    rig.store.find_or_add("b")
    frames = len(rig.journal.frames)
    with pytest.raises(Exhausted) as caught:
        rig.store.find_or_add("c")
    assert caught.value.reason == "CHANNEL_LIMIT"
    assert len(rig.journal.frames) == frames
    rig.store.delete(a, Outcomes())
    rig.store.find_or_add("c")


@pytest.mark.parametrize("state", list(DiskState))
def test_a_full_disk_takes_no_new_channels(state: DiskState) -> None:
    rig = Rig()
    kept = rig.channel("kept")
    rig.store.disk_state = state
    if state < DiskState.REFUSE:
        rig.store.check_disk()
        rig.store.find_or_add("new")
        return
    with pytest.raises(Exhausted) as caught:
        rig.store.find_or_add("new")
    assert caught.value.reason == "DISK_FULL"
    assert caught.value.retry_after_ms > 0
    assert rig.store.find_or_add("kept") is kept, "publishes ask for themselves"
    rig.store.delete(kept, Outcomes())


def test_a_damaged_shard_answers_for_its_channels_known_or_not() -> None:
    rig = Rig()
    rig.channel("a")
    rig.shard.quarantined = "rotten"
    for call in (rig.store.find, rig.store.find_or_add):
        for name in ("a", "never-seen"):
            with pytest.raises(DataLoss) as caught:
                call(name)
            assert caught.value.reason == "SHARD_QUARANTINED"


def test_only_channels_that_let_messages_go_are_looked_at_for_retention() -> None:
    rig = Rig()
    a = rig.store.add("a", ChannelLimits(retention_messages=1), Outcomes())
    rig.store.find_or_add("b")
    assert rig.store.retaining == {a}
    rig.store.delete(a, Outcomes())
    assert rig.store.retaining == set()


def test_groups_are_found_and_counted() -> None:
    rig = Rig()
    channel = rig.channel()
    group = add_group(channel, "g", GroupSettings(), 0, Outcomes())
    assert rig.store.find_group(channel, "g") is group
    assert list(rig.store.groups()) == [group]
    assert rig.store.group_count == 1
    with pytest.raises(NotFound) as caught:
        rig.store.find_group(channel, "h")
    assert caught.value.reason == "GROUP_NOT_FOUND"
    rig.store.delete(channel, Outcomes())
    rig.commit()
    assert rig.store.group_count == 0
    assert rig.journal.kinds()[-1] == FrameType.CONFIG


names = st.text("ab.", min_size=1, max_size=4).filter(lambda name: all(name.split(".")))


@given(
    st.lists(st.tuples(st.booleans(), names), max_size=40),
    st.text("ab.", max_size=2),
    st.one_of(st.just(""), names),
    st.integers(1, 5),
)
@settings(deadline=None)
def test_a_page_is_a_slice_of_the_sorted_names(
    changes: list[tuple[bool, str]], prefix: str, after: str, size: int
) -> None:
    """Whatever was made, deleted and made again, and listed in between."""
    rig = Rig(shards=4)
    model: set[str] = set()
    for add, name in changes:
        if add:
            rig.store.find_or_add(name)
            model.add(name)
        elif name in model:
            rig.store.delete(rig.store.find(name), Outcomes())
            model.discard(name)
        else:
            rig.store.page("", "", 1)
    expected = [name for name in sorted(model) if name.startswith(prefix) and name > after][:size]
    assert [channel.name for channel in rig.store.page(prefix, after, size)] == expected
    assert sorted(channel.name for channel in rig.store) == sorted(model)
