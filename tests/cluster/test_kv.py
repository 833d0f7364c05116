"""What every coordination store promises: the same stories for etcd and for the one in this process."""

import asyncio
import itertools
from collections.abc import Callable

import pytest

from ringpost.cluster.etcd.client import EtcdKv
from ringpost.cluster.kv import Compare, Delete, Field, Item, Kv, KvError, Picture, Put
from ringpost.cluster.memory_kv import MemoryKv, MemoryStore
from tests.cluster.kv_support import Ear, until

Open = Callable[[], Kv]
_numbers = itertools.count()


@pytest.fixture(params=["memory", "etcd"])
async def open_kv(request: pytest.FixtureRequest, connect: Callable[..., EtcdKv]) -> Open:
    """Opens one more connection to the same store."""
    if request.param == "etcd":
        server = request.getfixturevalue("shared_etcd")
        return lambda: connect(*server.endpoints)
    store = MemoryStore()
    return lambda: MemoryKv(store)


@pytest.fixture
async def kv(open_kv: Open) -> Kv:
    return open_kv()


@pytest.fixture
def at() -> str:
    """A prefix that no other test uses."""
    return f"/test-{next(_numbers)}/"


def absent(key: str) -> Compare:
    return Compare(key, Field.CREATE, 0)


async def put(kv: Kv, key: str, value: bytes, lease: int = 0) -> int:
    done = await kv.txn([], [Put(key, value, lease)])
    assert done.succeeded
    return done.revision


async def test_what_is_put_is_read(kv: Kv, at: str) -> None:
    first = await put(kv, f"{at}b", b"1")
    second = await put(kv, f"{at}a", b"2")
    picture = await kv.range(at)
    assert picture == Picture(second, (Item(f"{at}a", b"2", second, second, 0), Item(f"{at}b", b"1", first, first, 0)))
    third = await put(kv, f"{at}b", b"3")
    assert (await kv.range(f"{at}b")).items == (Item(f"{at}b", b"3", first, third, 0),)
    assert second < third


async def test_a_prefix_ends_where_it_ends(kv: Kv, at: str) -> None:
    for name in ("a/1", "a/2", "b", "a0"):
        await put(kv, f"{at}{name}", b"")
    assert [item.key for item in (await kv.range(f"{at}a/")).items] == [f"{at}a/1", f"{at}a/2"]


async def test_a_transaction_does_all_or_nothing(kv: Kv, at: str) -> None:
    made = await kv.txn([absent(f"{at}x"), absent(f"{at}y")], [Put(f"{at}x", b"1"), Put(f"{at}y", b"1")])
    assert made.succeeded
    again = await kv.txn([absent(f"{at}z"), absent(f"{at}y")], [Put(f"{at}z", b"1"), Delete(f"{at}x")])
    assert not again.succeeded
    assert again.revision >= made.revision
    picture = await kv.range(at)
    assert [(item.key, item.mod_revision) for item in picture.items] == [
        (f"{at}x", made.revision),
        (f"{at}y", made.revision),
    ]


async def test_mod_and_create_revisions_are_compared(kv: Kv, at: str) -> None:
    key = f"{at}k"
    created = await put(kv, key, b"1")
    modified = await put(kv, key, b"2")
    assert not (await kv.txn([Compare(key, Field.MOD, created)], [Put(key, b"3")])).succeeded
    assert not (await kv.txn([Compare(key, Field.CREATE, modified)], [Put(key, b"3")])).succeeded
    both = [Compare(key, Field.MOD, modified), Compare(key, Field.CREATE, created)]
    assert (await kv.txn(both, [Put(key, b"3")])).succeeded


async def test_a_key_made_again_has_another_create_revision(kv: Kv, at: str) -> None:
    first = await put(kv, f"{at}k", b"1")
    await kv.txn([], [Delete(f"{at}k")])
    assert (await kv.range(at)).items == ()
    second = await put(kv, f"{at}k", b"1")
    assert first < second
    assert (await kv.range(at)).items[0].create_revision == second


async def test_deleting_what_is_not_there_is_fine(kv: Kv, at: str) -> None:
    assert (await kv.txn([], [Delete(f"{at}k")])).succeeded


async def test_a_hundred_operations_are_one_revision(kv: Kv, at: str) -> None:
    keys = [f"{at}{i:03}" for i in range(100)]
    done = await kv.txn([absent(key) for key in keys], [Put(key, b"v") for key in keys])
    assert {item.mod_revision for item in (await kv.range(at)).items} == {done.revision}


async def test_a_key_twice_in_a_transaction_is_surely_not_done(kv: Kv, at: str) -> None:
    with pytest.raises(KvError) as raised:
        await kv.txn([], [Put(f"{at}k", b"1"), Put(f"{at}k", b"2")])
    assert type(raised.value).__name__ != "OutcomeUnknown"
    assert (await kv.range(at)).items == ()


async def test_keys_vanish_with_their_lease(kv: Kv, at: str) -> None:
    lease = await kv.grant(60)
    await put(kv, f"{at}a", b"", lease)
    await put(kv, f"{at}b", b"", lease)
    await put(kv, f"{at}c", b"")
    assert [item.lease for item in (await kv.range(at)).items] == [lease, lease, 0]
    assert 55 < await kv.keep_alive(lease) <= 60
    await kv.revoke(lease)
    assert [item.key for item in (await kv.range(at)).items] == [f"{at}c"]
    assert await kv.keep_alive(lease) == 0.0
    await kv.revoke(lease)
    with pytest.raises(KvError):
        await put(kv, f"{at}d", b"", lease)


async def test_a_lease_that_is_not_kept_alive_ends(kv: Kv, at: str) -> None:
    ear = Ear()
    kept, left = await kv.grant(1), await kv.grant(1)
    await put(kv, f"{at}kept", b"", kept)
    await put(kv, f"{at}left", b"", left)
    await ear.listen(kv, at)
    async with asyncio.timeout(10):
        while f"{at}left" in ear.items:
            assert await kv.keep_alive(kept) > 0
            await asyncio.sleep(0.2)
    assert list(ear.items) == [f"{at}kept"]


async def test_a_key_can_leave_its_lease(kv: Kv, at: str) -> None:
    lease = await kv.grant(60)
    await put(kv, f"{at}k", b"1", lease)
    await put(kv, f"{at}k", b"2")
    await kv.revoke(lease)
    assert [item.value for item in (await kv.range(at)).items] == [b"2"]


async def test_a_watch_gives_the_picture_and_then_each_revision_whole(open_kv: Open, at: str) -> None:
    mine, other, ear = open_kv(), open_kv(), Ear()
    await put(mine, f"{at}a", b"0")
    await ear.listen(mine, at)
    assert ear.values == {f"{at}a": b"0"}
    both = await other.txn([], [Put(f"{at}b", b"1"), Delete(f"{at}a")])
    await put(other, f"{at}c", b"2")
    await ear.hears({f"{at}b": b"1", f"{at}c": b"2"})
    assert ear.changes[0].revision == both.revision
    assert dict(ear.changes[0].items)[f"{at}a"] is None
    assert dict(ear.changes[0].items)[f"{at}b"] == Item(f"{at}b", b"1", both.revision, both.revision, 0)
    assert len(ear.changes) == 2


async def test_a_watch_misses_nothing_of_a_burst(open_kv: Open, at: str) -> None:
    mine, other, ear = open_kv(), open_kv(), Ear()
    writing = asyncio.create_task(_burst(other, at))
    await asyncio.sleep(0.01)
    await ear.listen(mine, at)
    await writing
    await ear.hears({f"{at}{i % 7}": str(i).encode() for i in range(93, 100)})
    before = max((int(item.value) + 1 for item in ear.pictures[0].items), default=0)
    heard = [int(item.value) for change in ear.changes for _, item in change.items if item is not None]
    assert heard == list(range(before, 100))


async def _burst(kv: Kv, at: str) -> None:
    for i in range(100):
        await put(kv, f"{at}{i % 7}", str(i).encode())


async def test_a_watch_hears_only_its_prefix_and_nothing_once_closed(kv: Kv, at: str) -> None:
    ear, deaf = Ear(), Ear()
    await ear.listen(kv, f"{at}a/")
    watch = await deaf.listen(kv, f"{at}a/")
    await watch.close()
    await put(kv, f"{at}b/1", b"")
    await put(kv, f"{at}a/1", b"")
    await until(lambda: ear.changes)
    assert [key for change in ear.changes for key, _ in change.items] == [f"{at}a/1"]
    assert deaf.changes == []


async def test_of_many_writers_one_wins(open_kv: Open, at: str) -> None:
    async def take(kv: Kv) -> bool:
        return (await kv.txn([absent(f"{at}k")], [Put(f"{at}k", b"")])).succeeded

    assert sorted(await asyncio.gather(*(take(open_kv()) for _ in range(4)))) == [False, False, False, True]


async def test_a_closed_store_cannot_be_asked(open_kv: Open, at: str) -> None:
    kv, ear = open_kv(), Ear()
    await ear.listen(kv, at)
    await kv.close()
    await kv.close()
    with pytest.raises(KvError):
        await kv.range(at)
    with pytest.raises(KvError):
        await kv.txn([], [Put(f"{at}k", b"")])


async def test_it_has_a_name(kv: Kv) -> None:
    assert kv.name in ("etcd", "memory")
