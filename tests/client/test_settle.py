"""Gathering settlements into rounds, without a stream."""

import asyncio
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringpost.client.errors import Exhausted, LeaseLost
from ringpost.client.settle import ACK, ACK_UP_TO, MAX_RANGES, Action, Leases, merge
from ringpost.v1 import common_pb2, subscribe_pb2


def leases() -> Leases:
    return Leases(1, lambda urgent: None)


def answer(request: subscribe_pb2.SubscribeRequest, outcome=subscribe_pb2.OUTCOME_DONE) -> subscribe_pb2.Settled:
    results = [subscribe_pb2.SettledRange(range=asked, outcome=outcome) for asked in request.settle.ranges]
    return subscribe_pb2.Settled(subscription_id=1, correlation=request.settle.correlation, results=results)


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 5))))
def test_merging_keeps_the_offsets_and_leaves_no_neighbours(parts) -> None:
    ranges = [(first, first + more) for first, more in parts]
    merged = merge(ranges)
    assert {o for first, last in merged for o in range(first, last + 1)} == {
        o for first, last in ranges for o in range(first, last + 1)
    }
    assert all(first > before + 1 for (_, before), (first, _) in itertools.pairwise(merged))


async def test_one_request_for_each_action() -> None:
    held = leases()
    for offset in (3, 1, 2, 7):
        held.settle(ACK, offset, offset)
    held.settle(Action("nack", 500), 4, 5)
    held.settle(Action("reject", 0, "bad"), 6, 6)
    ack, nack, reject = (request.settle for request in held.flush())

    assert [(r.first, r.last) for r in ack.ranges] == [(1, 3), (7, 7)]
    assert (nack.nack.delay_ms, reject.reject.reason) == (500, "bad")
    assert held.flush() == []


async def test_a_cumulative_ack_goes_out_behind_what_was_said_before_it() -> None:
    held = leases()
    held.settle(ACK_UP_TO, 2, 2)
    held.settle(Action("nack"), 3, 3)
    held.settle(ACK_UP_TO, 5, 5)
    nack, ack = (request.settle for request in held.flush())
    assert (nack.WhichOneof("action"), nack.cumulative) == ("nack", False)
    assert (ack.WhichOneof("action"), ack.cumulative) == ("ack", True)
    assert [(r.first, r.last) for r in ack.ranges] == [(2, 2), (5, 5)]


async def test_many_ranges_are_split_and_awaited_together() -> None:
    held = leases()
    settlements = [held.settle(ACK, offset, offset) for offset in range(0, 2 * (MAX_RANGES + 1), 2)]
    requests = held.flush()
    assert [len(request.settle.ranges) for request in requests] == [MAX_RANGES, 1]
    for request in reversed(requests):
        held.answered(answer(request))
    for settlement in settlements:
        await settlement
    assert held.idle


async def test_each_waiter_gets_its_own_outcome() -> None:
    held = leases()
    good, bad, both = held.settle(ACK, 1, 1), held.settle(ACK, 2, 2), held.settle(ACK, 1, 2)
    (request,) = held.flush()
    settled = subscribe_pb2.Settled(subscription_id=1, correlation=request.settle.correlation)
    settled.results.add(range=common_pb2.OffsetRange(first=1, last=1), outcome=subscribe_pb2.OUTCOME_ALREADY)
    settled.results.add(range=common_pb2.OffsetRange(first=2, last=2), outcome=subscribe_pb2.OUTCOME_EXPIRED)
    held.answered(settled)

    await good
    for lost in (bad, both):
        with pytest.raises(LeaseLost):
            await lost
    assert held.lost == 1


async def test_a_settlement_that_could_not_be_stored_says_why() -> None:
    held = leases()
    settlement = held.settle(ACK, 1, 1)
    (request,) = held.flush()
    failure = common_pb2.Failure(code=8, reason="BUSY", message="later")
    held.answered(subscribe_pb2.Settled(correlation=request.settle.correlation, failure=failure))
    with pytest.raises(Exhausted, match="BUSY"):
        await settlement


async def test_the_end_of_the_stream_ends_what_waits_and_what_comes() -> None:
    held = leases()
    sent = held.settle(ACK, 1, 1)
    held.flush()
    unsent = held.settle(ACK, 2, 2)
    held.end(LeaseLost("over"))
    late = held.settle(ACK, 3, 3)
    for settlement in (sent, unsent, late):
        with pytest.raises(LeaseLost):
            await settlement
    assert held.flush() == []


async def test_a_thread_s_settlement_reaches_the_loop() -> None:
    held = leases()
    settlement = await asyncio.to_thread(held.settle, ACK, 1, 1)
    (request,) = held.flush()
    held.answered(answer(request))
    await settlement
