"""OpenTelemetry spans of what nodes do with a traced batch: publish, store, replicate, deliver, settle.

A batch is traced when its request carries a sampled `traceparent`; for all others this costs one look. What has been
stored is remembered for a while, so that deliveries and settlements join the same trace; a node that restarts forgets.
"""

import time
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

from ringpost.node.config import Config
from ringpost.node.errors import RingpostError

REMEMBERED_MAX = 4_096
FRAMES_MAX = 256  # of a shard: those that followers may not have yet
_TRACEPARENT_LENGTH = 55  # of version 00


class TracingError(Exception):
    """Spans cannot be sent: what is missing, and how to get it."""


def open_provider(config: Config, version: str) -> "TracerProvider | None":
    """What sends spans where OTEL_EXPORTER_OTLP_ENDPOINT and its like say, if that is wanted. Raises TracingError."""
    if not config.tracing:
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise TracingError(f"tracing: install ringpost[tracing] for it ({error})") from error
    facts = {"service.name": "ringpost", "service.instance.id": config.node, "service.version": version}
    provider = TracerProvider(resource=Resource.create(facts))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


def is_sampled(traceparent: str) -> bool:
    """Whether it is of a form that is known, and its producer records the trace."""
    return len(traceparent) == _TRACEPARENT_LENGTH and traceparent[-1] in "13579bdf"


class Open:
    """A span that has begun. `traceparent` makes others its children."""

    __slots__ = ("_span", "traceparent")

    def __init__(self, span: Any, traceparent: str) -> None:
        self._span = span
        self.traceparent = traceparent

    def end(self, error: Exception | None = None) -> None:
        """It is over; with an error it failed."""
        if error is not None:
            self._span.set_attribute("error.type", getattr(error, "reason", type(error).__name__))
        self._span.end()

    def around(self, reply: Callable[[Any], None]) -> Callable[[Any], None]:
        """The same reply, which ends the span."""

        def answer(outcome: Any) -> None:
            self.end(outcome if isinstance(outcome, RingpostError) else None)
            reply(outcome)

        return answer


class _Stored:
    """Traced batches of one channel, by their first offsets, which rise."""

    __slots__ = ("_bases", "_known")

    def __init__(self) -> None:
        self._bases: list[int] = []
        self._known: dict[int, tuple[int, str]] = {}  # count, traceparent

    def add(self, base: int, count: int, traceparent: str) -> None:
        if self._bases and base <= self._bases[-1]:  # another channel of the same name
            self._bases, self._known = [], {}
        self._bases.append(base)
        self._known[base] = count, traceparent

    def drop_below(self, offset: int) -> bool:
        """Whether nothing is left."""
        end = bisect_left(self._bases, offset)
        for base in self._bases[:end]:
            del self._known[base]
        del self._bases[:end]
        return not self._bases

    def within(self, first: int, last: int) -> Iterator[tuple[int, str]]:
        """First offset and traceparent of the batches that have any of these offsets."""
        at = max(0, bisect_right(self._bases, first) - 1)
        while at < len(self._bases) and (base := self._bases[at]) <= last:
            count, traceparent = self._known[base]
            if first < base + count:
                yield base, traceparent
            at += 1


class Tracing:
    """One a node. `provider` None: nothing is traced, and nothing of OpenTelemetry is imported."""

    def __init__(self, node: str, provider: "TracerProvider | None" = None) -> None:
        self.on = provider is not None
        self._node = node
        self._provider = provider
        self._stored: dict[str, _Stored] = {}  # by channel
        self._order: deque[tuple[str, int]] = deque()  # the oldest of them first
        self._frames: dict[int, deque[tuple[int, str]]] = {}  # shard → position, traceparent, of what was appended here
        self._following: dict[tuple[int, int], Open] = {}  # the same of what came from a leader and is not fsynced
        if provider is None:
            return
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._tracer = provider.get_tracer("ringpost.node")
        self._form = TraceContextTextMapPropagator()

    def begin(self, name: str, parent: str, *, start_ns: int | None = None, **facts: Any) -> Open:
        """A span below the one that `parent` (a traceparent) names."""
        context = self._form.extract({"traceparent": parent})
        known = {"messaging.system": "ringpost", "ringpost.node": self._node, **facts}
        span = self._tracer.start_span(name, context, attributes=known, start_time=start_ns)
        carrier: dict[str, str] = {}
        from opentelemetry.trace import set_span_in_context

        self._form.inject(carrier, set_span_in_context(span))
        return Open(span, carrier.get("traceparent", parent))

    # -- publish, store ---------------------------------------------------------------------------------------------

    def publish(self, request: Any, reply: Callable[[Any], None]) -> Callable[[Any], None]:
        """A batch of a client has come: the reply that ends the span. What follows is below it."""
        span = self._batch("publish", request)
        request.traceparent = span.traceparent
        return span.around(reply)

    def store(self, request: Any) -> Open:
        """It is about to be appended here."""
        return self._batch("store", request)

    def _batch(self, name: str, request: Any) -> Open:
        facts = {"messaging.destination.name": request.channel, "messaging.message.body.size": len(request.batch)}
        return self.begin(name, request.traceparent, **facts)

    def stored(self, span: Open, channel: str, offset: int, count: int, shard: int, position: int) -> None:
        """It was appended."""
        self._stored.setdefault(channel, _Stored()).add(offset, count, span.traceparent)
        self._order.append((channel, offset))
        if len(self._order) > REMEMBERED_MAX:
            self._forget(*self._order.popleft())
        self._frames.setdefault(shard, deque(maxlen=FRAMES_MAX)).append((position, span.traceparent))

    def _forget(self, channel: str, offset: int) -> None:
        known = self._stored.get(channel)
        if known is not None and known.drop_below(offset + 1):
            del self._stored[channel]

    # -- replicate --------------------------------------------------------------------------------------------------

    def frames(self, shard: int, after: int) -> Iterator[tuple[int, str]]:
        """Positions of traced frames behind one, with their traceparents; the latest first."""
        return takewhile(lambda frame: frame[0] > after, reversed(self._frames.get(shard, ())))

    def follow(self, shard: int, traces: Sequence[Any], end: int) -> None:
        """Frames came from the leader, up to a position; `traces` are those that are traced, perhaps later ones too."""
        for one in traces:
            key = shard, one.position
            if one.position <= end and key not in self._following and is_sampled(one.traceparent):
                span = self.begin("replicate", one.traceparent, **{"ringpost.shard": shard})
                _remember(self._following, key, span)

    def followed(self, shard: int, durable: int) -> None:
        """Up to here they are fsynced."""
        for key in [key for key in self._following if key[0] == shard and key[1] <= durable]:
            self._following.pop(key).end()

    # -- deliver, settle --------------------------------------------------------------------------------------------

    def delivered(self, channel: str, base: int, offset: int, time_us: int) -> None:
        """Messages of a batch leave for a subscriber; the span begins when they were appended."""
        known = self._stored.get(channel)
        for _, trace in known.within(base, base) if known is not None else ():
            facts = {"messaging.destination.name": channel, "ringpost.offset": offset}
            self.begin("deliver", trace, start_ns=time_us * 1_000, **facts).end()

    def settled(self, channel: str, ranges: Sequence[tuple[int, int, Any]], begun_ns: int) -> None:
        """A group has settled offsets, which is durable now."""
        known = self._stored.get(channel)
        if known is None:
            return
        told: set[int] = set()
        for first, last, outcome in ranges:
            for base, trace in known.within(first, last):
                if base not in told:
                    told.add(base)
                    facts = {"messaging.destination.name": channel, "ringpost.outcome": outcome.name}
                    self.begin("settle", trace, start_ns=begun_ns, **facts).end()

    @property
    def remembers(self) -> bool:
        """Whether a delivery may be of a traced batch."""
        return bool(self._stored)

    def close(self) -> None:
        """Sends what is left. Blocks."""
        if self._provider is not None:
            self._provider.shutdown()


def now_ns() -> int:
    """The clock of spans."""
    return time.time_ns()


def _remember(known: dict[Any, Any], key: Any, value: Any) -> None:
    if len(known) >= REMEMBERED_MAX:
        del known[next(iter(known))]
    known[key] = value


OFF = Tracing("")
