"""What a node says of its links becomes what is so, whatever happens on the way."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

from ringpost.cluster.coordination import CoordinationError
from ringpost.cluster.embedded import EmbeddedCoordination
from ringpost.cluster.view import NodeRef
from ringpost.node.replicas.link_report import LinkReport


class Store(EmbeddedCoordination):
    """One that has a node's word in its view as soon as it has it."""

    def __init__(self) -> None:
        super().__init__(cluster_id="c", replica_id="r", shard_count=1, boot=1)
        self.told: list[frozenset[str]] = []
        self.broken = 0

    async def report_unreachable(self, nodes: frozenset[str]) -> None:
        self.told.append(nodes)
        if self.broken:
            self.broken -= 1
            raise CoordinationError("it is away")
        self.show(unreachable=nodes)

    def show(self, **changes: Any) -> None:
        assert self._view is not None
        self._view = replace(self._view, nodes={"a": replace(self._view.nodes["a"], **changes)})


async def started() -> tuple[Store, LinkReport, Callable[[], Any]]:
    store, tasks = Store(), []
    await store.start(NodeRef("a", "a:1"))

    def spawn(work: Coroutine[Any, Any, None]) -> None:
        tasks.append(asyncio.create_task(work))

    async def done() -> None:
        await asyncio.gather(*tasks)

    return store, LinkReport(store, "a", spawn), done


async def test_it_is_told_once_and_taken_back_once() -> None:
    store, report, done = await started()
    for so in ("", "b", "b", "bc", "bc", "", ""):
        report.look(frozenset(so))
        await done()
    assert store.told == [{"b"}, {"b", "c"}, frozenset()]


async def test_one_report_at_a_time() -> None:
    store, report, done = await started()
    report.look(frozenset("b"))
    report.look(frozenset("bc"))
    await done()
    assert store.told == [{"b"}]
    report.look(frozenset("bc"))
    await done()
    assert store.view.nodes["a"].unreachable == {"b", "c"}


async def test_a_report_that_failed_is_made_again_as_it_then_is(monkeypatch: Any) -> None:
    monkeypatch.setattr("ringpost.node.replicas.link_report._RETRY_S", 0.01)
    store, report, done = await started()
    store.broken = 1
    report.look(frozenset("b"))
    await done()
    report.look(frozenset("c"))
    await done()
    assert store.told == [{"b"}, {"c"}]


async def test_what_an_earlier_session_said_is_taken_back() -> None:
    store, report, done = await started()
    store.show(session=9, unreachable=frozenset("b"))
    report.look(frozenset())
    await done()
    assert store.view.nodes["a"].unreachable == frozenset()


async def test_without_a_session_nothing_is_told() -> None:
    store, report, done = await started()
    store.show(session=0)
    report.look(frozenset("b"))
    await done()
    assert store.told == []
