"""From parts to services, and over gRPC."""

import asyncio
from collections.abc import AsyncIterator

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ringpost.node.health import AS_READY, PARTS, SERVICES, Health
from ringpost.node.services.health import HealthService

States = health_pb2.HealthCheckResponse


def well() -> Health:
    health = Health()
    for part in PARTS:
        health.set_part(part, True)
    return health


def serving(health: Health) -> set[str]:
    return {service for service in ("live", "startup", "ready", "storage") if health.serving(service)}


def test_a_node_that_starts_is_only_alive() -> None:
    health = Health()
    assert serving(health) == {"live"}
    assert health.report("startup")["parts"]["recovery"] == {"ok": False, "why": "not started yet"}
    assert serving(well()) == {"live", "startup", "ready", "storage"}


@pytest.mark.parametrize(
    ("part", "lost"),
    [
        ("journal", {"ready", "storage"}),
        ("disk", {"storage"}),
        ("access", {"storage"}),
        ("shards", {"storage"}),
        ("coordination", {"ready"}),
        ("loop", {"ready"}),
        # Startup happens once.
        ("recovery", {"ready", "storage"}),
    ],
)
def test_a_part_that_is_not_well_takes_its_services(part: str, lost: set[str]) -> None:
    health = well()
    health.set_part(part, False, "broken")
    assert serving(health) == {"live", "startup", "ready", "storage"} - lost
    health.set_part(part, True)
    assert serving(health) == {"live", "startup", "ready", "storage"}


def test_the_drain_is_for_good() -> None:
    health = well()
    health.drain()
    health.set_part("loop", False, "late")
    health.set_part("loop", True)
    assert serving(health) == {"live", "startup", "storage"}
    assert not any(health.serving(service) for service in AS_READY)
    assert health.report("ready")["draining"]


def test_unknown_services_are_unknown() -> None:
    assert well().serving("readiness") is None
    assert all(well().serving(service) for service in SERVICES)


def test_the_report_names_only_what_counts() -> None:
    health = well()
    health.set_part("disk", False, "98 % used")
    assert health.report("storage") == {
        "service": "storage",
        "status": "NOT_SERVING",
        "draining": False,
        "parts": {
            "recovery": {"ok": True},
            "journal": {"ok": True},
            "frames": {"ok": True},
            "disk": {"ok": False, "why": "98 % used"},
            "access": {"ok": True},
            "shards": {"ok": True},
        },
    }
    assert health.report("live")["parts"] == {}


def test_listeners_hear_of_changed_services_only() -> None:
    health = well()
    heard: list[int] = []
    end = health.listen(lambda: heard.append(1))
    health.set_part("disk", False, "98 % used")
    health.set_part("disk", False, "99 % used")
    health.set_part("shards", False, "shard 7")
    assert heard == [1]
    end()
    end()
    health.drain()
    assert heard == [1]


def test_wrong_parts_are_our_own_bugs() -> None:
    with pytest.raises(AssertionError, match="no part"):
        Health().set_part("teeth", True)
    with pytest.raises(AssertionError, match="why"):
        Health().set_part("disk", False)


@pytest.fixture
async def served() -> AsyncIterator[tuple[Health, health_pb2_grpc.HealthStub]]:
    health = well()
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((HealthService(health).handlers(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield health, health_pb2_grpc.HealthStub(channel)
    await server.stop(None)
    async with asyncio.timeout(5):
        while health._listeners:  # a cancelled handler has its last turn after the server's stop
            await asyncio.sleep(0)


async def test_check_every_service(served) -> None:
    health, stub = served
    for service in SERVICES:
        assert (await stub.Check(health_pb2.HealthCheckRequest(service=service))).status == States.SERVING
    health.drain()
    answer = await stub.Check(health_pb2.HealthCheckRequest(service="ringpost.v1.PublisherService"))
    assert answer.status == States.NOT_SERVING


async def test_check_an_unknown_service(served) -> None:
    _, stub = served
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await stub.Check(health_pb2.HealthCheckRequest(service="x"))
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND
    assert "storage" in (raised.value.details() or "")


async def test_list_all(served) -> None:
    health, stub = served
    health.set_part("disk", False, "full")
    statuses = (await stub.List(health_pb2.HealthListRequest())).statuses
    assert set(statuses) == set(SERVICES)
    assert statuses["storage"].status == States.NOT_SERVING
    assert statuses[""].status == States.SERVING


async def test_watch_tells_changes(served) -> None:
    health, stub = served
    call = stub.Watch(health_pb2.HealthCheckRequest(service="storage"))
    assert (await call.read()).status == States.SERVING
    # Not of this service: says nothing.
    health.set_part("loop", False, "late")
    health.set_part("disk", False, "full")
    assert (await call.read()).status == States.NOT_SERVING
    health.set_part("disk", True)
    assert (await call.read()).status == States.SERVING
    call.cancel()


async def test_a_watch_of_an_unknown_service_ends_with_that_and_keeps_nothing(served) -> None:
    health, stub = served
    for name in ("x", "x" * 3_000_000):
        unknown = stub.Watch(health_pb2.HealthCheckRequest(service=name))
        assert (await unknown.read()).status == States.SERVICE_UNKNOWN
        assert await unknown.code() is grpc.StatusCode.NOT_FOUND
    assert not health._listeners


async def test_one_address_has_so_many_watches_and_may_check(served, monkeypatch: pytest.MonkeyPatch) -> None:
    _, stub = served
    monkeypatch.setattr("ringpost.node.services.health.ADDRESS_WATCHERS_MAX", 1)
    first = stub.Watch(health_pb2.HealthCheckRequest(service=""))
    assert (await first.read()).status == States.SERVING
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await stub.Watch(health_pb2.HealthCheckRequest(service="")).read()
    assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (await stub.Check(health_pb2.HealthCheckRequest(service=""))).status == States.SERVING
    first.cancel()


async def test_of_too_many_watches_one_of_who_has_most_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ringpost.node.services.health.WATCHERS_MAX", 3)
    made = HealthService(well())
    ended: dict[str, str] = {}

    class Context:
        def __init__(self, peer: str) -> None:
            self.peer = lambda: peer

        async def write(self, message: bytes) -> None:
            assert States.FromString(message).status == States.SERVING

        async def abort(self, code: grpc.StatusCode, text: str) -> None:
            ended[self.peer()] = f"{code.name} {text}"

    peers = ("ipv4:10.0.0.9:1", "ipv6:%5B2001:db8::1%5D:1", "ipv6:%5B2001:db8::2%5D:1", "ipv4:10.0.0.8:1")
    watches = []
    for peer in peers:
        watches.append(asyncio.create_task(made.watch("ready", Context(peer))))
        await asyncio.sleep(0)
    await asyncio.wait({watches[1]}, timeout=5)
    assert list(ended) == [peers[1]], "the older of the two that share half of an IPv6 address"
    assert ended[peers[1]].startswith("UNAVAILABLE the node has its 3 watches")
    made.close()
    await asyncio.gather(*watches)
    assert made._watchers == {}
