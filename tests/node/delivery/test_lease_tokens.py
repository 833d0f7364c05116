"""Lease tokens on streams: given where they are asked for, good on any stream of the group."""

import grpc

from ringpost.v1.common_pb2 import Start
from ringpost.v1.subscribe_pb2 import Ack, Extend, Nack, Outcome, Reject
from tests.node.delivery.fakes import (
    Stream,
    batches_of,
    code,
    events,
    hub_of,
    numbered,
    ranges,
    reason_of,
    spans,
    stored,
    with_group,
)
from tests.node.shard.fakes import Rig

S = 1_000_000
DONE, EXPIRED, UNKNOWN = Outcome.OUTCOME_DONE, Outcome.OUTCOME_EXPIRED, Outcome.OUTCOME_UNKNOWN


async def results(rig: Rig, stream: Stream) -> list[tuple[int, int, int]]:
    said = await stream.said()
    stored(rig)
    (answer,) = [one for one in said + await stream.said() if one.WhichOneof("event") == "settled"]
    assert not answer.settled.HasField("failure"), answer
    return [(one.range.first, one.range.last, one.outcome) for one in answer.settled.results]


async def refused(stream: Stream) -> str:
    (answer,) = await stream.said()
    assert answer.settled.failure.code == code(grpc.StatusCode.INVALID_ARGUMENT)
    assert not answer.settled.results
    return answer.settled.failure.message


async def test_every_batch_has_its_own_token_where_asked_and_none_elsewhere() -> None:
    rig = Rig()
    with_group(rig, 3, 2)
    hub = hub_of(rig)
    plain, asking = Stream(hub), Stream(hub)
    plain.open(group="g", messages=2)
    assert [batch.lease_token for batch in batches_of(await plain.said())] == [b""]
    asking.open(group="g", lease_tokens=True)
    tokens = [batch.lease_token for batch in batches_of(await asking.said())]
    assert len(set(tokens)) == len(tokens) > 1
    assert {len(token) for token in tokens} == {57}


async def test_a_stream_settles_what_another_one_was_given() -> None:
    rig = Rig()
    group = with_group(rig, 5)
    hub = hub_of(rig)
    ann, bob = Stream(hub), Stream(hub)
    ann.open(group="g", lease_tokens=True)
    (batch,) = batches_of(await ann.said())
    bob.open(group="g")
    await bob.said()
    bob.settle(lease_token=batch.lease_token, ranges=ranges((0, 1), (9, 9)), ack=Ack())
    assert await results(rig, bob) == [(0, 1, DONE), (9, 9, UNKNOWN)]
    bob.settle(lease_token=batch.lease_token, ranges=ranges((2, 2)), nack=Nack(delay_ms=1_000))
    assert await results(rig, bob) == [(2, 2, DONE)]
    bob.settle(lease_token=batch.lease_token, ranges=ranges((3, 3)), extend=Extend(deadline_ms=60_000))
    assert await results(rig, bob) == [(3, 3, DONE)]
    ann.close()
    await ann.said()
    bob.settle(lease_token=batch.lease_token, ranges=ranges((4, 4)), reject=Reject())
    assert await results(rig, bob) == [(4, 4, EXPIRED)], "bob has it now"
    assert group.core.in_flight_of(2) == 2


async def test_an_old_token_is_not_good_for_the_next_delivery() -> None:
    rig = Rig()
    with_group(rig, 2, ack_deadline_ms=1_000)
    stream = Stream(hub_of(rig))
    stream.open(group="g", lease_tokens=True)
    (first,) = batches_of(await stream.said())
    rig.time.pass_us(2 * S)
    rig.commit()
    (second,) = batches_of(await stream.said())
    assert (first.attempt, second.attempt) == (1, 2)
    for verb in ({"ack": Ack()}, {"nack": Nack()}, {"extend": Extend()}, {"reject": Reject()}):
        stream.settle(lease_token=first.lease_token, **verb)
        assert await results(rig, stream) == [(0, 1, EXPIRED)]
    stream.settle(lease_token=second.lease_token, ack=Ack())
    assert await results(rig, stream) == [(0, 1, DONE)]


async def test_what_makes_no_sense_is_refused() -> None:
    rig = Rig()
    with_group(rig, 2)
    hub = hub_of(rig)
    stream = Stream(hub)
    stream.open(group="g", lease_tokens=True)
    (batch,) = batches_of(await stream.said())
    stream.settle(lease_token=batch.lease_token, cumulative=True, ack=Ack())
    assert "settle.cumulative: is set with a lease_token" in await refused(stream)
    stream.settle(lease_token=batch.lease_token[:-1] + b"?", ack=Ack())
    assert "settle.lease_token: is damaged" in await refused(stream)
    numbered(rig, 1, name="b")
    other = Stream(hub)
    other.open(group="g", channel="b")
    rig.time.turn()
    await other.said()
    rig.commit()
    await other.said()
    other.settle(lease_token=batch.lease_token, ack=Ack())
    assert "settle.lease_token: is of another channel than 'b'" in await refused(other)


async def test_without_a_group_there_are_no_leases() -> None:
    rig = Rig()
    numbered(rig, 1)
    stream = Stream(hub_of(rig))
    stream.open(start=Start(earliest=True), lease_tokens=True)
    (closed,) = await stream.said()
    assert events([closed]) == ["closed"]
    assert reason_of(closed) == (code(grpc.StatusCode.INVALID_ARGUMENT), "INVALID_ARGUMENT")
    assert "open.lease_tokens: is set without a group" in closed.closed.failure.message


async def test_a_cancelled_stream_gives_a_thousand_leases_back_at_once_and_counts_no_attempt() -> None:
    rig = Rig()
    with_group(rig, *[100] * 10)
    hub = hub_of(rig)
    ann, bob = Stream(hub), Stream(hub)
    ann.open(group="g")
    assert sum(last - first + 1 for first, last, _ in spans(await ann.said())) == 1_000
    bob.open(group="g")
    assert spans(await bob.said()) == []
    ann.session.close()
    again = spans(await bob.said())
    assert sum(last - first + 1 for first, last, _ in again) == 1_000
    assert {attempt for *_, attempt in again} == {1}
