"""Checks of a subscriber: what it makes of deliveries, how much it lets come, where it goes on after a break."""

from typing import Any

import grpc

from ringpost.client import wire
from ringpost.client.testing.conformance.bench import Bench
from ringpost.client.testing.conformance.contract import Got, Printed, odd_messages, require, same, spans
from ringpost.client.testing.conformance.gate import Cut, Stream
from ringpost.client.testing.conformance.recorder import Breaking, Recorder
from ringpost.client.testing.conformance.registry import check
from ringpost.v1 import publish_pb2, subscribe_pb2

COUNT, CREDIT = 300, 50
_MESSAGES = odd_messages(COUNT, seed=1)
_GRACE_MS = 300
# Of the field number and the length before a message's data.
_ENVELOPE_BYTES = 8


async def run(bench: Bench, name: str, tap: Recorder, **options: Any) -> Printed:
    """Reads COUNT odd messages through the gate. It must succeed."""
    channel = await bench.channel(name, _MESSAGES)
    async with bench.gate(tap) as gate, bench.subscribing(gate.addresses[:1], channel, **options) as program:
        return await program.success()


def as_published(got: list[Got], messages: list[publish_pb2.Message], first: int = 0) -> None:
    """Every message once, in order, with its content."""
    offsets = [one.offset for one in got]
    wanted = list(range(first, first + len(messages)))
    require(offsets == wanted, f"printed offsets {spans(offsets)}; wanted {spans(wanted)}")
    for one, expected in zip(got, messages, strict=True):
        same(f"offset {one.offset} printed as", one.message, expected)


def credit_kept(tap: Recorder, credit: int) -> int:
    """Never more than `credit` messages were allowed to be on their way; the most there were."""
    require(len(tap.grants) > 0, "no credit was granted on a Subscribe stream")
    most = max(grant.window for grant in tap.grants)
    require(most <= credit, f"up to {most} messages were allowed to be on their way, asked for {credit}")
    return most


async def plain(bench: Bench) -> tuple[Recorder, Printed]:
    """A run that nothing disturbs."""
    tap = Recorder()
    return tap, await run(bench, "subscribe", tap)


@check("subscribe.content")
async def content(bench: Bench) -> str:
    """Whatever other programs published comes out byte for byte, in order, once."""
    _, printed = await bench.once(plain)
    as_published(printed.got, _MESSAGES)
    return f"{COUNT} messages, empty ones and bytes that are no text among them"


@check("subscribe.credit")
async def credit(bench: Bench) -> str:
    """Credit is granted as running totals, and never for more than may be on its way."""
    tap, _ = await bench.once(plain)
    most = credit_kept(tap, CREDIT)
    totals = [grant.total for grant in tap.grants]
    require(totals == sorted(totals), f"a total that falls: {totals}")
    require(totals[-1] >= COUNT, f"the last total is {totals[-1]}; all of {COUNT} messages came")
    return f"{len(totals)} grants, at most {most} on their way"


@check("subscribe.from")
async def from_offset(bench: Bench) -> str:
    """Reading begins at the offset that was asked for, and ends after the count."""
    channel = await bench.channel("from", _MESSAGES)
    async with bench.subscribing(bench.target.addresses, channel, start=123, count=10) as program:
        printed = await program.success()
    as_published(printed.got, _MESSAGES[123:133], 123)
    return "offsets 123..132 of 300"


@check("subscribe.resume")
async def resume(bench: Bench) -> str:
    """After a break it opens again behind the last message that came: nothing twice, nothing missing."""
    tap = Breaking(streams=3, after=70)
    printed = await run(bench, "resume", tap)
    as_published(printed.got, _MESSAGES)
    starts = [opened.start.offset for _, opened in tap.opens]
    require(len(starts) > 1, "it never opened again")
    require(starts == sorted(set(starts)), f"opened at offsets {starts}: some more than once")
    credit_kept(tap, CREDIT)
    return f"opened at offsets {', '.join(map(str, starts))}"


class _Damaging(Recorder):
    """One bit of the second delivery is wrong, once."""

    def __init__(self) -> None:
        super().__init__()
        self.damaged = range(0)

    async def event(self, stream: Stream, response: subscribe_pb2.SubscribeResponse) -> bool:
        if response.HasField("deliver") and self.delivered.total() and not self.damaged:
            batch = response.deliver.batches[0]
            raw = bytearray(wire.batch_bytes(batch))
            raw[-1] ^= 1
            setattr(batch, "batch", bytes(raw))  # noqa: B010 - the type knows only messages
            self.damaged = range(batch.first_offset, batch.first_offset + batch.count)
        return await super().event(stream, response)


@check("subscribe.checksum")
async def checksum(bench: Bench) -> str:
    """A delivery that does not match its CRC-32C is not handed on: fetched again, or an error that says so."""
    tap = _Damaging()
    channel = await bench.channel("checksum", _MESSAGES)
    async with bench.gate(tap) as gate, bench.subscribing(gate.addresses[:1], channel) as program:
        code = await program.end()
        got = program.printed.got
        require(bool(tap.damaged), "there was no second delivery to damage")
        if code == 0:
            as_published(got, _MESSAGES)
            return "fetched again"
        handed_on = [one.offset for one in got if one.offset >= tap.damaged.start]
        require(not handed_on, f"offsets {tap.damaged.start}.. were damaged, printed all the same: {spans(handed_on)}")
        require(program.errors.strip() != "", "ended without a sentence on standard error")
    return "ended with an error"


class _Silent(Recorder):
    """The first stream falls silent after 40 messages, as a node that is frozen or cut off does."""

    async def event(self, stream: Stream, response: subscribe_pb2.SubscribeResponse) -> bool:
        if stream.number == 0 and self.delivered[0] >= 40:
            return False
        return await super().event(stream, response)


@check("subscribe.silence")
async def silence(bench: Bench) -> str:
    """A stream that misses its heartbeats is left, and another one opened."""
    tap = _Silent()
    printed = await run(bench, "silence", tap)
    as_published(printed.got, _MESSAGES)
    require(len(tap.opens) > 1, "it never opened again")
    asked = tap.opens[0][1].heartbeat_interval_ms
    return f"heartbeats asked for every {asked} ms"


@check("subscribe.gap")
async def gap(bench: Bench) -> str:
    """Messages that retention or a purge has removed are passed over, as the Gap says."""
    channel = await bench.channel("gap", _MESSAGES)
    await bench.mq.channels.purge(channel, 100)
    async with bench.subscribing(bench.target.addresses, channel, count=COUNT - 100) as program:
        printed = await program.success()
    as_published(printed.got, _MESSAGES[100:], 100)
    return "offsets 0..99 are gone, 100..299 came"


@check("subscribe.large")
async def large(bench: Bench) -> str:
    """The greatest message that a node takes comes through, though it may be above what gRPC takes by default."""
    limits = (await bench.mq.node.info()).limits
    size = min(limits.max_message_bytes, limits.max_batch_bytes - _ENVELOPE_BYTES) - _ENVELOPE_BYTES
    messages = [publish_pb2.Message(data=bytes(size)), publish_pb2.Message(data=b"and a small one")]
    channel = await bench.channel("large", messages)
    async with bench.subscribing(bench.target.addresses, channel, count=2) as program:
        printed = await program.success()
    as_published(printed.got, messages)
    return f"{size:,} bytes"


class _Draining(Recorder):
    """The first stream is told to leave after 60 messages and cut off after 150."""

    def __init__(self) -> None:
        super().__init__()
        self._told = False

    async def event(self, stream: Stream, response: subscribe_pb2.SubscribeResponse) -> bool:
        if stream.number == 0 and self.delivered[0] >= 60 and not self._told:
            self._told = True
            notice = subscribe_pb2.SubscribeResponse()
            notice.drain.message = "The node is about to stop."
            notice.drain.grace_ms = _GRACE_MS
            await stream.send(notice)
        if stream.number == 0 and self.delivered[0] >= 150:
            raise Cut(grpc.StatusCode.UNAVAILABLE, "The node is stopping.")
        return await super().event(stream, response)


@check("subscribe.drain")
async def drain(bench: Bench) -> str:
    """After a drain notice the stream's end costs nothing."""
    tap = _Draining()
    printed = await run(bench, "drain-subscribe", tap)
    as_published(printed.got, _MESSAGES)
    require(len(tap.opens) > 1, "it never opened again")
    return f"{len(tap.opens)} streams"
