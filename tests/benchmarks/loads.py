"""The cases of B1, B3, B4 and of the unbatched publishes: which system, which durability, which load.

T0 volatile, T1 written to the OS, T2 fsynced on one node. Ringpost has no T1: beside a peer's T1 stands its T2.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from tests.benchmarks import servers
from tests.benchmarks.job import Job
from tests.benchmarks.suite import Group, Suite

T0, T1, T2, T3 = "T0", "T1", "T2", "T3"
LEVELS = {T0: "memory", T2: "quorum"}

# (batch, window, producers)
Shape = tuple[int, int, int]
BATCHED: tuple[Shape, ...] = ((1, 1, 1), (1, 1_000, 1), (100, 16, 1), (1_000, 16, 1), (100, 4, 8), (1_000, 4, 8))
SINGLE: tuple[Shape, ...] = ((1, 1, 1), (1, 1_000, 1), (1, 125, 8))
PIPELINES: tuple[Shape, ...] = ((1, 1, 1), (100, 1, 1), (1_000, 1, 1), (100, 1, 8))
LEAN_PIPELINES: tuple[Shape, ...] = ((1, 1, 1), (100, 10, 1), (1_000, 4, 1), (100, 10, 8))


def publishing(system: str, shapes: Sequence[Shape], durability: str = "quorum", size: int = 128) -> list[Job]:
    return [
        Job(system=system, load="publish", size=size, batch=b, window=w, producers=p, durability=durability)
        for b, w, p in shapes
    ]


def _sizes(suite: Suite, system: str, durability: str) -> list[Job]:
    """Other payloads than 128 B, one producer, about 1 MiB unanswered."""
    shapes = {1_024: (1_000, 4, 1)}
    if suite.plan.full:
        shapes |= {16: (1_000, 16, 1), 16 << 10: (64, 4, 1), 256 << 10: (4, 4, 1)}
    return [job for size, shape in shapes.items() for job in publishing(system, [shape], durability, size)]


def b1(suite: Suite) -> Iterator[Group]:
    """Publish; one in flight, a window of 1,000, batches."""
    yield Group("–", "grpc", servers.raw_grpc, lean=publishing("grpc", [(1, 1, 1), *BATCHED[2:4], (1_000, 4, 8)]))
    for tier, level in LEVELS.items():
        jobs = [*publishing("ringpost", BATCHED, level), *(_sizes(suite, "ringpost", level) if tier == T2 else ())]
        yield Group(tier, "ringpost", servers.ringpost, jobs, jobs)
    if suite.peers["nats"]:
        core = publishing("nats", [(1, 1, 1), (1_000, 1, 1)])
        yield Group(T0, "nats core", servers.nats, core, publishing("nats", [(1, 1, 1), (1_000, 4, 1), (1_000, 4, 8)]))
        lean = publishing("jetstream", [(1, 1, 1), (100, 10, 1), (100, 10, 8)])
        python = [*publishing("jetstream", SINGLE), *publishing("jetstream", [(1, 1_000, 1)], size=1_024)]
        yield Group(T1, "nats JetStream", servers.nats, python, lean)
    if suite.peers["redis"]:
        start = partial(servers.redis, fsync="no")
        yield Group(
            T0, "redis pub/sub", start, publishing("pubsub", PIPELINES[:3]), publishing("pubsub", LEAN_PIPELINES)
        )
        for tier, fsync in ((T1, "everysec"), (T2, "always")):
            start = partial(servers.redis, fsync=fsync)
            yield Group(
                tier, "redis streams", start, publishing("streams", PIPELINES), publishing("streams", LEAN_PIPELINES)
            )
    if suite.peers["rabbitmq"]:
        for tier, kind in ((T1, "classic"), (T2, "quorum")):
            lean = publishing(kind, [(1, 1, 1), (100, 10, 1), (100, 10, 8)])
            yield Group(tier, f"rabbitmq {kind}", suite.rabbitmq, publishing(kind, SINGLE), lean)


def replicated(suite: Suite) -> Iterator[Group]:
    """Three copies. Ringpost fsyncs on a majority before it answers, JetStream on none."""
    yield Group(T3, "ringpost", servers.ringpost_cluster, publishing("ringpost", BATCHED[1:4]))
    if suite.peers["nats"]:
        jobs = [replace(job, replicas=3) for job in publishing("jetstream", [(1, 1_000, 1)])]
        lean = [replace(job, replicas=3) for job in publishing("jetstream", [(100, 10, 1)])]
        yield Group("T3-without-fsync", "nats JetStream R3", partial(servers.nats, nodes=3), jobs, lean)


def consuming(system: str, messages: float, **rest: Any) -> Job:
    return Job(system=system, load="consume", messages=max(1_000, int(messages)), **rest)


def b4(suite: Suite) -> Iterator[Group]:
    """A work queue, filled before in batches of 1,000: explicit acks; 1 and 4 workers, 1 % returned, single acks."""
    scale = suite.plan.scale
    lean = [
        consuming("ringpost", 300_000 * scale),
        consuming("ringpost", 100_000 * scale, batch=100),
        consuming("ringpost", 300_000 * scale, subscribers=4),
        consuming("ringpost", 100_000 * scale, subscribers=4, returned_percent=1),
        consuming("ringpost", 3_000 * scale, single_acks=True),
    ]
    python = [consuming("ringpost", 200_000 * scale), consuming("ringpost", 200_000 * scale, subscribers=4)]
    yield Group(T2, "ringpost", servers.ringpost, python, lean)
    if suite.peers["nats"]:
        python = [consuming("jetstream", 20_000 * scale), consuming("jetstream", 20_000 * scale, subscribers=4)]
        lean = [consuming("jetstream", 40_000 * scale), consuming("jetstream", 40_000 * scale, subscribers=4)]
        yield Group(T1, "nats JetStream", servers.nats, python, lean)
    for tier, fsync in ((T1, "everysec"), (T2, "always")) if suite.peers["redis"] else ():
        python = [consuming("streams", 40_000 * scale), consuming("streams", 40_000 * scale, subscribers=4)]
        lean = [consuming("streams", 100_000 * scale), consuming("streams", 100_000 * scale, subscribers=4)]
        start = partial(servers.redis, fsync=fsync)
        yield Group(tier, "redis streams", start, python, lean)
    if suite.peers["rabbitmq"]:
        for tier, kind in ((T1, "classic"), (T2, "quorum")):
            jobs = [consuming(kind, 10_000 * scale)]
            yield Group(tier, f"rabbitmq {kind}", suite.rabbitmq, jobs, jobs)


def fanning(suite: Suite, system: str, durability: str = "quorum", batches: Sequence[int] = (100,)) -> list[Job]:
    to = (1, 10, 100, 1_000) if suite.plan.full else (1, 10, 100)
    return [
        Job(system=system, load="fanout", batch=batch, window=4, subscribers=n, durability=durability)
        for batch in batches
        for n in to
    ]


def b3(suite: Suite) -> Iterator[Group]:
    """One producer, many subscribers on connections of their own; at most four batches have not reached everybody."""
    yield Group("–", "grpc", servers.raw_grpc, lean=fanning(suite, "grpc", batches=(100, 1_000)))
    for tier, level in LEVELS.items():
        yield Group(tier, "ringpost", servers.ringpost, lean=fanning(suite, "ringpost", level, (100, 1_000)))
    if suite.peers["nats"]:
        yield Group(T0, "nats core", servers.nats, lean=fanning(suite, "nats"))
        yield Group(T1, "nats JetStream", servers.nats, lean=fanning(suite, "jetstream")[:2])
    if suite.peers["redis"]:
        start = partial(servers.redis, fsync="no")
        yield Group(T0, "redis pub/sub", start, lean=fanning(suite, "pubsub"))


def unbatched(suite: Suite) -> Iterator[Group]:
    """Clients with a connection each that publish one message by a unary call and wait for its answer."""
    clients = 1_000 if suite.plan.scale >= 1 else 50
    yield Group("–", "grpc", servers.raw_grpc, lean=[Job(system="grpc", load="unary", producers=clients)])
    for tier, level in LEVELS.items():
        job = Job(system="ringpost", load="unary", producers=clients, durability=level)
        yield Group(tier, "ringpost", servers.ringpost, lean=[job])
