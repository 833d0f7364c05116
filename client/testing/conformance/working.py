"""Checks of a group's member: acks that hold, redelivery, and what becomes of both when a stream breaks."""

from collections import Counter
from typing import Any

from ringpost.client.testing.conformance.bench import Bench
from ringpost.client.testing.conformance.contract import Broken, Printed, odd_messages, require, spans
from ringpost.client.testing.conformance.gate import Cut, Stream
from ringpost.client.testing.conformance.recorder import Breaking, Recorder
from ringpost.client.testing.conformance.registry import check
from ringpost.client.testing.conformance.subscribing import as_published, credit_kept
from ringpost.v1 import group_pb2, subscribe_pb2

COUNT, CREDIT = 100, 20
GROUP = "workers"
_MESSAGES = odd_messages(COUNT, seed=2)
_NACKED = 7


async def run(bench: Bench, name: str, tap: Recorder, **options: Any) -> tuple[str, Printed]:
    """Works through COUNT odd messages through the gate. It must succeed."""
    channel = await bench.channel(name, _MESSAGES, GROUP)
    async with bench.gate(tap) as gate, bench.working(gate.addresses[:1], channel, **options) as program:
        return channel, await program.success()


async def all_settled(bench: Bench, channel: str, printed: Printed, count: int = COUNT) -> None:
    """The broker says so, and so does the program."""
    settled_by(await bench.mq.groups.get(channel, GROUP), printed, count)


def settled_by(group: group_pb2.GroupInfo, printed: Printed, count: int = COUNT) -> None:
    """The group has nothing pending, and the program has told of every ack."""
    require(sorted(set(printed.acked)) == list(range(count)), f"printed as acked: {spans(sorted(printed.acked))}")
    require(group.pending == 0, f"ended with 0; the broker has {group.pending} messages not settled")


async def plain(bench: Bench) -> tuple[Recorder, str, Printed, group_pb2.GroupInfo]:
    """A run that nothing disturbs, and the group just after it."""
    tap = Recorder()
    channel, printed = await run(bench, "work", tap)
    return tap, channel, printed, await bench.mq.groups.get(channel, GROUP)


@check("group.ack")
async def ack(bench: Bench) -> str:
    """Each message is received once, acked, and the ack confirmed by the broker."""
    tap, _, printed, group = await bench.once(plain)
    as_published(printed.got, _MESSAGES)
    attempts = {one.attempt for one in printed.got}
    require(attempts == {1}, f"attempts {sorted(attempts)}; each was delivered once")
    settled_by(group, printed)
    ranges = [len(settle.ranges) for settle in tap.settles]
    require(max(ranges, default=0) <= 1_000, f"{max(ranges, default=0)} ranges in one Settle")
    return f"{COUNT} messages, {len(tap.settles)} settlements"


@check("group.credit")
async def credit(bench: Bench) -> str:
    """Credit bounds what is leased to a member and on its way to it."""
    tap, _, _, _ = await bench.once(plain)
    most = credit_kept(tap, CREDIT)
    return f"{len(tap.grants)} grants, at most {most} on their way"


@check("group.durable")
async def durable(bench: Bench) -> str:
    """What was acked does not come to the next run, which gets what is new."""
    _, channel, _, _ = await bench.once(plain)
    (new,) = odd_messages(3, seed=3)[2:]
    await bench.publish(channel, [new])
    async with bench.working(bench.target.addresses, channel, count=1) as program:
        printed = await program.success()
    as_published(printed.got, [new], COUNT)
    return f"only offset {COUNT} came"


@check("group.nack")
async def nack(bench: Bench) -> str:
    """A nacked message comes again with attempt 2, and is acked then."""
    channel, printed = await run(bench, "nack", Recorder(), nack=_NACKED)
    attempts = [one.attempt for one in printed.got if one.offset == _NACKED]
    require(attempts == [1, 2], f"offset {_NACKED} came with attempts {attempts}, not 1 and 2")
    others = Counter(one.offset for one in printed.got if one.offset != _NACKED)
    require(
        set(others.values()) == {1}, f"others came more than once: {spans(sorted(o for o in others if others[o] > 1))}"
    )
    await all_settled(bench, channel, printed)
    return f"offset {_NACKED} twice, 99 others once"


class _LostAnswers(Recorder):
    """The second answer to a settlement is lost, with the stream. Its acks are stored and will not come again."""

    def __init__(self) -> None:
        super().__init__()
        self._answers = 0
        self.lost: list[subscribe_pb2.SettledRange] = []

    async def event(self, stream: Stream, response: subscribe_pb2.SubscribeResponse) -> bool:
        if response.HasField("settled"):
            self._answers += 1
            if self._answers == 2:
                self.lost = list(response.settled.results)
                raise Cut
        return await super().event(stream, response)


@check("group.lost-answer")
async def lost_answer(bench: Bench) -> str:
    """Acks whose answer is lost with the stream are confirmed by the unary Settle."""
    tap = _LostAnswers()
    channel, printed = await run(bench, "lost-ack", tap)
    if not tap.lost:
        raise Broken("there were fewer than two settlements: no answer to lose")
    await all_settled(bench, channel, printed)
    count = sum(result.range.last - result.range.first + 1 for result in tap.lost)
    asked = [path for path, _ in tap.calls if path.endswith("/Settle")]
    require(len(asked) > 0, "the answer was lost; nobody asked what became of it")
    return f"{count} acks confirmed on another way"


@check("group.moved")
async def moved(bench: Bench) -> str:
    """A subscription that is closed with UNAVAILABLE (GROUP_MOVED) is opened again."""
    channel = await bench.channel("moved", _MESSAGES, GROUP)
    async with bench.working(bench.target.addresses, channel, count=2 * COUNT) as program:
        await program.until(lambda printed: len(printed.acked) >= COUNT, f"acked {COUNT} messages")
        await bench.mq.groups.seek(channel, GROUP, "earliest")
        printed = await program.success()
    await all_settled(bench, channel, printed)
    times = Counter(one.offset for one in printed.got)
    require(set(times.values()) == {2}, "the group was moved back to its beginning; not everything came again, once")
    return f"{COUNT} messages came again after the group was moved back"


@check("group.resume")
async def resume(bench: Bench) -> str:
    """After a break it opens again, and everything is settled in the end; nothing comes after its ack was confirmed."""
    tap = Breaking(streams=2, after=30)
    channel, printed = await run(bench, "resume-work", tap)
    await all_settled(bench, channel, printed)
    require(not printed.after_ack, f"came again after the ack was confirmed: {spans(printed.after_ack)}")
    require({one.offset for one in printed.got} == set(range(COUNT)), "not every message was received")
    require(len(tap.opens) > 1, "it never opened again")
    credit_kept(tap, CREDIT)
    return f"{len(tap.opens)} streams, {len(printed.got) - COUNT} messages delivered again"
