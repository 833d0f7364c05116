"""Searching boxes: pages that are complete, bounded work a call, letters that are lost or gone."""

from typing import Any

import pytest

from ringpost.internal.v1.record_pb2 import LetterChange
from ringpost.node.errors import Exhausted, NotFound
from ringpost.node.groups.changes import Reject
from ringpost.node.groups.policy import RetryPolicy
from ringpost.node.services import dead_letters as service
from ringpost.node.services.dead_letters import DeadLetters
from ringpost.node.shard.boxes import box_of
from ringpost.node.shard.dead_letters import change
from ringpost.node.shard.group import Group
from ringpost.v1 import dead_letter_pb2 as api
from tests.node.shard.fakes import Rig
from tests.node.shard.test_group import made


@pytest.fixture
def rig() -> Rig:
    """Group g of channel a has given up eight messages, three or two a frame."""
    rig = Rig(cache_bytes=0)
    group = made(rig, messages=8, policy=RetryPolicy(dead_letters=True))
    for first, last in ((0, 2), (3, 5), (6, 7)):
        group.settle_any(Reject(f"from {first}"), [(first, last)], lambda _: None)
        rig.time.turn()
        rig.commit()
    return rig


def group_of(rig: Rig) -> Group:
    return rig.store.find_group(rig.store.find("a"), "g")


async def called(rig: Rig, method: str, request: Any) -> Any:
    """Without gRPC: errors come as they are."""
    return await getattr(DeadLetters, method).__wrapped__(DeadLetters(rig.store, rig.reading), request, None)


async def listed(rig: Rig, **select: Any) -> tuple[list[int], int]:
    """The numbers that a call gives, and where it says to go on."""
    request = api.ListDeadLettersRequest(channel="a", group="g", select=api.DeadLetterSelection(**select))
    answer = await called(rig, "ListDeadLetters", request)
    return [letter.number for letter in answer.letters], answer.next_number


async def walked(rig: Rig, **select: Any) -> list[int]:
    """All of them, by as many calls as it takes."""
    found, number = await listed(rig, **select)
    while number:
        more, number = await listed(rig, **{**select, "from_number": number})
        found += more
    return found


async def test_pages_follow_one_another(rig: Rig) -> None:
    assert await listed(rig) == ([0, 1, 2, 3, 4, 5, 6, 7], 0)
    assert await listed(rig, max_letters=4) == ([0, 1, 2, 3], 4)
    assert await listed(rig, from_number=4, until_number=7) == ([4, 5, 6], 0)
    assert await walked(rig, max_letters=1) == list(range(8))
    assert await listed(rig, from_number=99) == ([], 0)


async def test_a_call_looks_at_so_much_and_goes_on_in_the_next(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "READ_BYTES_MAX", 1)
    assert await listed(rig, filters=["reason=from 6"]) == ([], 3)
    assert await walked(rig, filters=["reason=from 6"]) == [6, 7]
    monkeypatch.setattr(service, "RESPONSE_BYTES_MAX", 1)
    assert await walked(rig) == list(range(8))


async def test_what_is_gone_or_lost_is_passed_over(rig: Rig) -> None:
    group = group_of(rig)
    box = box_of(group)
    assert box is not None
    change(group, LetterChange(dropped=[0, 0, 6, 6]), lambda _: None)
    rig.commit()
    box.index.lose(box.index.find(3))
    box.lossy = True
    assert await walked(rig, max_letters=1) == [1, 2, 7]
    with pytest.raises(NotFound, match="no dead letter 4"):
        await called(rig, "GetDeadLetter", api.GetDeadLetterRequest(channel="a", group="g", number=4))


async def redriven(rig: Rig, *numbers: int, **how: bool) -> api.RedriveDeadLettersResponse:
    request = api.RedriveDeadLettersRequest(channel="a", group="g", numbers=numbers, **how)
    answer: api.RedriveDeadLettersResponse = await called(rig, "RedriveDeadLetters", request)
    return answer


async def test_named_letters_are_dealt_with_in_their_order_as_far_as_a_call_goes(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "READ_BYTES_MAX", 1)
    answer = await redriven(rig, 7, 6, 1, 0, dry_run=True)
    assert (answer.redriven, answer.numbers_done) == (2, 2)
    answer = await redriven(rig, 99, 7, dry_run=True)
    assert (answer.redriven, answer.numbers_done) == (1, 2)
    assert group_of(rig).core.pending(8) == 0


async def test_too_many_gaps_are_refused_and_nothing_changes(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "GAPS_MAX", 1)
    change(group_of(rig), LetterChange(dropped=[4, 4]), lambda _: None)
    rig.commit()
    with pytest.raises(Exhausted, match="low end"):
        await redriven(rig, 1)
    assert len(await walked(rig)) == 7
