"""One trace over three nodes: what each of them does with a batch that its producer traces."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from ringpost.client import Client, Options, connect
from ringpost.cluster.memory_kv import MemoryKv, MemoryStore
from ringpost.node.config import Config
from ringpost.node.server import Server
from ringpost.v1.publish_pb2 import PublishRequest
from tests.integration.broker import Client as Raw
from tests.integration.broker import batch_of, until

NAMES = ("n1", "n2", "n3")


class Rig(NamedTuple):
    servers: dict[str, Server]
    exporter: InMemorySpanExporter
    provider: TracerProvider

    def client(self, node: str) -> Client:
        """One that keeps to that node, and traces."""
        return connect(f"127.0.0.1:{self.servers[node].port}", options=Options(routing="any", tracing=True))

    def leader(self, channel: str) -> str:
        view = self.servers["n1"].coordination.view
        record = view.of_channel(channel)
        assert record.leader is not None
        return record.leader.node

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.exporter.get_finished_spans() if span.name == name]


def provider_to(exporter: InMemorySpanExporter) -> TracerProvider:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    store, exporter = MemoryStore(), InMemorySpanExporter()
    async with AsyncExitStack() as stack:
        servers = {}
        for name in NAMES:
            config = Config(
                node=name,
                data_dir=tmp_path / name,
                listen="127.0.0.1:0",
                peer_listen="127.0.0.1:0",
                http_listen="",
                shard_count=12,
                segment_bytes=16 << 20,
                drain_grace_ms=0,
                stop_grace_ms=100,
            )
            server = Server(config, kv=MemoryKv(store), provider=provider_to(exporter))
            await server.start()
            stack.push_async_callback(server.stop)
            servers[name] = server
        made = Rig(servers, exporter, provider_to(exporter))

        def whole() -> bool:
            view = servers["n1"].coordination.view
            return bool(view.shards) and all(
                record.leader is not None
                and len(record.in_sync) == 3
                and servers[record.leader.node].storage.store.leads(record.shard)
                for record in view.shards
            )

        await until(whole, "three nodes have all shards")
        yield made


async def test_publish_store_replicate_deliver_and_settle_are_one_trace(rig: Rig) -> None:
    channel = next(name for name in (f"c{n}" for n in range(100)) if rig.leader(name) != "n1")
    owner = rig.leader(channel)
    tracer = rig.provider.get_tracer("shop")
    async with rig.client("n1") as mq:
        with tracer.start_as_current_span("order"):
            await mq.publish(channel, "one")
        async with mq.subscription(channel, group="billing") as messages:
            async for message in messages:
                context = message.headers["traceparent"]
                await message.ack()
                break
    await until(lambda: len(rig.named("replicate")) == 2 and rig.named("settle"), "all spans are there")
    spans = {name: rig.named(name) for name in ("order", "publish", "store", "replicate", "deliver", "settle")}
    (order,), (publish,), (store,) = spans["order"], spans["publish"], spans["store"]
    assert {span.context.trace_id for found in spans.values() for span in found} == {order.context.trace_id}
    assert context.split("-")[1] == f"{order.context.trace_id:032x}", "the consumer can join, too"
    del spans["order"]
    by_node = {name: sorted(str(_facts(span)["ringpost.node"]) for span in found) for name, found in spans.items()}
    followers, at_owner = sorted(set(NAMES) - {owner}), {key: [owner] for key in ("store", "deliver", "settle")}
    assert by_node == {"publish": ["n1"], "replicate": followers, **at_owner}
    assert (_parent(publish), _parent(store)) == (order.context.span_id, publish.context.span_id)
    for name in ("replicate", "deliver", "settle"):
        assert all(_parent(span) == store.context.span_id for span in spans[name])
    assert _facts(store)["messaging.destination.name"] == channel


def _facts(span: ReadableSpan) -> Any:
    return span.attributes


def _parent(span: ReadableSpan) -> int:
    assert span.parent is not None
    return span.parent.span_id


async def test_what_is_not_traced_or_not_sampled_leaves_no_span(rig: Rig) -> None:
    async with rig.client("n1") as mq:
        await mq.publish("orders", "without a span")
        nothing = trace.NonRecordingSpan(trace.SpanContext(7, 8, is_remote=False))
        with trace.use_span(nothing):
            await mq.publish("orders", "not sampled")
    odd = ["00-zz", "x" * 10_000, f"00-{'0' * 32}-{'0' * 16}-01", "é" * 55]
    async with Raw(f"127.0.0.1:{rig.servers['n2'].port}") as raw:
        for traceparent in odd:
            request = PublishRequest(channel="orders", batch=batch_of(b"x"), traceparent=traceparent)
            await raw.publisher.Publish(request)
    spans = rig.exporter.get_finished_spans()
    assert {span.name for span in spans} <= {"publish", "store", "replicate"}
    assert {f"{span.context.trace_id:x}" for span in spans}.isdisjoint({"7", "0"})


async def test_a_batch_that_is_refused_has_a_span_that_says_why(rig: Rig) -> None:
    context = f"00-{'1' * 32}-{'2' * 16}-01"
    async with Raw(f"127.0.0.1:{rig.servers['n1'].port}") as raw:
        request = PublishRequest(channel="orders", batch=batch_of(b"x"), count=7, traceparent=context)
        with pytest.raises(Exception, match="has 1 messages"):
            await raw.publisher.Publish(request)
    (publish,) = rig.named("publish")
    assert _facts(publish)["error.type"] == "INVALID_ARGUMENT"
    assert f"{publish.context.trace_id:032x}" == "1" * 32
