"""What a node remembers of traced batches: a bounded number, and quickly found."""

from collections.abc import Iterator
from enum import Enum

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from ringpost.node import tracing
from ringpost.node.tracing import Open, Tracing, is_sampled


class Outcome(Enum):
    DONE = 1


def context(number: int, flags: str = "01") -> str:
    return f"00-{number:032x}-{number:016x}-{flags}"


class Rig:
    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracing = Tracing("n1", provider)

    def store(self, channel: str, offset: int, count: int, position: int) -> None:
        span: Open = self.tracing.begin("store", context(offset + 1))
        self.tracing.stored(span, channel, offset, count, 3, position)
        span.end()

    def traces(self, name: str) -> list[int]:
        """The numbers of the traces that have such a span, since the last time."""
        spans = self.exporter.get_finished_spans()
        self.exporter.clear()
        return [span.context.trace_id for span in spans if span.name == name]


@pytest.fixture
def rig() -> Iterator[Rig]:
    made = Rig()
    yield made
    made.tracing.close()


@pytest.mark.parametrize(
    ("traceparent", "sampled"),
    [(context(1), True), (context(1, "00"), False), (context(1, "03"), True), ("", False), ("x" * 55, False)],
)
def test_only_a_sampled_context_of_a_known_form_is_traced(traceparent: str, sampled: bool) -> None:
    assert is_sampled(traceparent) == sampled


def test_a_settlement_belongs_to_every_batch_that_has_one_of_its_offsets(rig: Rig) -> None:
    for offset in (0, 10, 20, 40):
        rig.store("orders", offset, 10, offset)
    rig.traces("store")
    rig.tracing.settled("orders", [(5, 12, Outcome.DONE), (19, 19, Outcome.DONE), (30, 39, Outcome.DONE)], 1)
    assert rig.traces("settle") == [1, 11]
    rig.tracing.settled("another", [(0, 100, Outcome.DONE)], 1)
    assert rig.traces("settle") == []


def test_a_delivery_belongs_to_the_batch_that_begins_there(rig: Rig) -> None:
    rig.store("orders", 10, 10, 1)
    rig.tracing.delivered("orders", 10, 15, 7)
    rig.tracing.delivered("orders", 20, 20, 7)
    assert rig.traces("deliver") == [11]


def test_frames_that_a_follower_has_are_not_told_again(rig: Rig) -> None:
    for position in (1, 2, 5):
        rig.store("orders", position, 1, position)
    assert [position for position, _ in rig.tracing.frames(3, 1)] == [5, 2]
    assert list(rig.tracing.frames(4, 0)) == []


def test_no_more_is_remembered_than_it_may(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "REMEMBERED_MAX", 10)
    for number in range(30):
        rig.store(f"c{number % 3}", number, 1, number)
    rig.traces("store")
    for number in range(30):
        rig.tracing.delivered(f"c{number % 3}", number, number, 7)
    assert rig.traces("deliver") == list(range(21, 31)), "the latest ten"
    rig.store("c0", 0, 1, 31)  # the channel was deleted and made again
    rig.traces("store")
    rig.tracing.delivered("c0", 27, 27, 7)
    assert rig.traces("deliver") == []
