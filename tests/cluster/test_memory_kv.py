"""The store inside a process: time is an argument, and a file outlives the process."""

import asyncio
import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from ringpost.cluster.kv import Change, Compare, Delete, Field, KvError, Put
from ringpost.cluster.memory_kv import REVISIONS_RESERVED, MemoryKv, MemoryStore
from tests.cluster.kv_support import Ear


class Waiting:
    def __init__(self, when: float, callback: Callable[[], None]) -> None:
        self.when, self.callback, self.cancelled = when, callback, False

    def cancel(self) -> None:
        self.cancelled = True


class HandTimers:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0
        self.waiting: list[Waiting] = []
        self.soon: list[Callable[[], None]] = []

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, callback: Callable[[], None]) -> Waiting:
        self.waiting.append(Waiting(when, callback))
        return self.waiting[-1]

    def call_soon(self, callback: Callable[[], None]) -> None:
        self.soon.append(callback)

    def move(self, seconds: float) -> None:
        """Time passes, and everything due is called."""
        self.now += seconds
        for call in [call for call in self.waiting if call.when <= self.now]:
            self.waiting.remove(call)
            if not call.cancelled:
                call.callback()
        self.turn()

    def turn(self) -> None:
        soon, self.soon = self.soon, []
        for call in soon:
            call()


@pytest.fixture
def timers() -> HandTimers:
    return HandTimers()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "coordination.json"


def test_a_lease_ends_when_its_time_is_over(timers: HandTimers) -> None:
    store = MemoryStore(timers)
    kept, left = store.grant(6), store.grant(6)
    store.txn([], [Put("kept", b"", kept), Put("left", b"", left), Put("left2", b"", left)])
    timers.move(5.9)
    assert store.keep_alive(kept) == 6.0
    timers.move(0.1)
    assert [item.key for item in store.range("").items] == ["kept"]
    assert store.keep_alive(left) == 0.0
    timers.move(5.8)
    assert len(store.range("").items) == 1
    timers.move(0.2)
    assert store.range("").items == ()


def test_changes_come_in_a_later_turn_and_in_order(timers: HandTimers) -> None:
    store, heard = MemoryStore(timers), list[Change]()
    store.watch("", lambda picture: None, heard.append)
    for name in ("a", "b"):
        store.txn([], [Put(name, b"")])
    assert heard == []
    timers.turn()
    assert [key for change in heard for key, _ in change.items] == ["a", "b"]


def test_a_transaction_that_changes_nothing_makes_no_revision(timers: HandTimers) -> None:
    store = MemoryStore(timers)
    before = store.revision
    assert store.txn([], [Delete("a")]).revision == before
    assert not store.txn([Compare("a", Field.CREATE, 7)], [Put("a", b"")]).succeeded
    assert store.revision == before


async def test_who_is_cut_off_hears_later(timers: HandTimers) -> None:
    store = MemoryStore(timers)
    kv, other, ear = MemoryKv(store), MemoryKv(store), Ear()
    await ear.listen(kv, "")
    kv.cut = True
    await other.txn([], [Put("a", b"1")])
    await other.txn([], [Put("a", b"2")])
    timers.turn()
    assert ear.values == {}
    with pytest.raises(KvError, match="cannot be reached"):
        await kv.range("")
    kv.cut = False
    assert ear.values == {"a": b"2"}
    assert len(ear.changes) == 2


def test_a_file_keeps_permanent_keys_and_revisions_rise(timers: HandTimers, path: Path) -> None:
    store = MemoryStore(timers, path)
    lease = store.grant(6)
    created = store.txn([], [Put("a", b"\x00\xff"), Put("live", b"", lease)]).revision
    modified = store.txn([], [Put("a", b"\x01\xfe"), Put("b", b"")]).revision
    store.txn([], [Delete("b")])
    last = store.revision
    again = MemoryStore(timers, path)
    (item,) = again.range("").items
    assert (item.key, item.value, item.create_revision, item.mod_revision) == ("a", b"\x01\xfe", created, modified)
    assert again.revision > last
    assert again.grant(6) > lease


def test_what_only_leases_hold_costs_no_write_but_revisions_still_rise(timers: HandTimers, path: Path) -> None:
    store = MemoryStore(timers, path)
    store.txn([], [Put("a", b"")])
    written = path.stat()
    lease = store.grant(6)
    for _ in range(50):
        store.txn([], [Put("live", b"", lease)])
    assert path.stat() == written
    assert MemoryStore(timers, path).revision > store.revision
    for _ in range(REVISIONS_RESERVED):
        store.txn([], [Put("live", b"", lease)])
    assert MemoryStore(timers, path).revision > store.revision


def test_a_write_that_fails_changes_nothing(timers: HandTimers, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore(timers, path)
    store.txn([], [Put("a", b"1")])

    def fail(descriptor: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("os.fsync", fail)
    before = store.range("")
    with pytest.raises(OSError, match="Input/output"):
        store.txn([], [Put("a", b"2")])
    assert store.range("") == before
    monkeypatch.undo()
    assert MemoryStore(timers, path).range("").items == before.items


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{}",
        '{"format": 2, "reserved": 5, "items": []}',
        '{"format": 1, "reserved": 5, "items": [["a", "?", 1, 1]]}',
    ],
)
def test_a_file_that_is_not_ours_is_refused(timers: HandTimers, path: Path, content: str) -> None:
    path.write_text(content)
    with pytest.raises(ValueError, match=r"coordination\.json"):
        MemoryStore(timers, path)


def test_the_file_can_be_read_by_people(timers: HandTimers, path: Path) -> None:
    store = MemoryStore(timers, path)
    store.txn([], [Put("/ringpost/meta", b"value")])
    assert json.loads(path.read_text())["items"] == [["/ringpost/meta", "dmFsdWU=", 2, 2]]


async def test_in_a_thread_nobody_sees_what_is_not_on_the_disk(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop goes on while the file is written, and everything that waits is one write."""
    store = MemoryStore(None, path, in_thread=True)
    kv, other = MemoryKv(store), MemoryKv(store)
    ear = Ear()
    await other.watch("", ear.picture, ear.change)
    gate, writes = threading.Event(), list[bytes]()

    def slow(target: Path, content: bytes) -> None:
        gate.wait(10)
        writes.append(content)
        target.write_bytes(content)

    monkeypatch.setattr("ringpost.cluster.memory_kv._replace", slow)
    putting = [asyncio.ensure_future(kv.txn([], [Put(f"k{n}", b"1")])) for n in range(50)]
    losing = asyncio.ensure_future(kv.txn([Compare("k0", Field.CREATE, 0)], [Put("k0", b"2")]))
    await asyncio.sleep(0.05)
    assert not any(put.done() for put in (*putting, losing)), "also who lost against it has seen it"
    assert (await other.range("")).items == ()
    assert ear.values == {}
    gate.set()
    results = await asyncio.gather(*putting)
    assert [result.revision for result in results] == list(range(2, 52))
    assert not (await losing).succeeded
    await asyncio.sleep(0)
    assert ear.values == {f"k{n}": b"1" for n in range(50)}
    assert len(writes) == 1
    assert len(MemoryStore(None, path).range("").items) == 50


async def test_in_a_thread_a_write_that_fails_undoes_all_that_waited(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = MemoryStore(None, path, in_thread=True)
    kv = MemoryKv(store)
    lease = await kv.grant(60)
    await kv.txn([], [Put("a", b"1"), Put("live", b"", lease)])
    before = await kv.range("")

    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("ringpost.cluster.memory_kv._replace", fail)
    tried = await asyncio.gather(*(kv.txn([], [Put("a", b"2")]) for _ in range(3)), return_exceptions=True)
    assert all(isinstance(one, KvError) for one in tried), tried
    assert await kv.range("") == before
    monkeypatch.undo()
    assert (await kv.txn([Compare("a", Field.MOD, before.revision)], [Put("a", b"3")])).succeeded
    await kv.revoke(lease)
    assert [item.key for item in (await kv.range("")).items] == ["a"]
