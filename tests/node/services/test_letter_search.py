"""The dead letter of a message is found wherever it lies in its box, and within bounds."""

import asyncio
from typing import Any

import pytest

from ringpost.node.groups.changes import Reject
from ringpost.node.services import letter_search
from ringpost.node.services.letter_search import LetterSearch
from ringpost.node.shard.boxes import box_of
from ringpost.node.shard.group import Group
from ringpost.node.shard.group_frames import add_group, seek_group
from ringpost.node.shard.group_settings import GroupSettings
from ringpost.v1.group_pb2 import GroupConfig
from tests.node.shard.fakes import Outcomes, Rig


def buried(rig: Rig, *offsets: int, messages: int = 40) -> Group:
    """A group that has rejected these, in this order, a frame each."""
    channel = rig.channel()
    rig.publish(channel, *(f"m{n}" for n in range(messages)))
    group = add_group(channel, "g", GroupSettings.of(GroupConfig()), 0, Outcomes())
    rig.commit()
    for offset in offsets:
        group.settle_any(Reject(f"because of {offset}"), [(offset, offset)], lambda _: None)
        rig.time.turn()
        rig.commit()
    return group


def number_of(rig: Rig, group: Group, offset: int) -> tuple[int | None, bool]:
    search = LetterSearch(rig.reading)
    asyncio.run(search.look(group, offset))
    found = search.letter(group)
    assert found is None or found.reason == f"because of {offset}"
    return None if found is None else found.number, search.unfinished(group)


@pytest.mark.parametrize(
    "order", [range(12), range(11, -1, -1), [5, 0, 11, 3, 4, 9, 1, 2, 10, 6, 8, 7]], ids=["up", "down", "mixed"]
)
def test_every_letter_is_found(order: Any) -> None:
    rig = Rig()
    group = buried(rig, *order)
    assert [number_of(rig, group, offset) for offset in order] == [(number, False) for number in range(12)]


def test_what_is_no_dead_letter_has_none() -> None:
    rig = Rig()
    group = buried(rig, 3, 5)
    assert number_of(rig, group, 4) == (None, False)
    assert number_of(rig, buried(Rig()), 4) == (None, False)


def test_a_letter_that_a_seek_made_void_is_none() -> None:
    rig = Rig()
    group = buried(rig, 3, 5)
    seek_group(group, 4, Outcomes())
    rig.commit()
    seek_group(group, 6, Outcomes())
    rig.commit()
    assert [number_of(rig, group, offset)[0] for offset in (3, 5)] == [0, None]


def test_it_stops_when_it_has_read_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    rig = Rig()
    group = buried(rig, *range(20, 0, -1))
    box = box_of(group)
    assert box is not None
    monkeypatch.setattr(letter_search, "READ_BYTES_MAX", 5 * box.index.row(0).length)
    assert number_of(rig, group, 19) == (None, True)
