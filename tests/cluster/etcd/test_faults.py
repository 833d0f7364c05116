"""The client of etcd while members die, freeze, forget, and answers get lost. A real etcd."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from ringpost.cluster.etcd.client import EtcdKv
from ringpost.cluster.kv import Compare, Field, Kv, KvError, OutcomeUnknown, Put, StoreChanged
from tests.cluster.kv_support import Ear, until
from tests.etcd_server import EtcdServer, Proxy, free_ports

Make = Callable[..., EtcdServer]
Connect = Callable[..., EtcdKv]


async def put(kv: Kv, key: str, value: bytes = b"") -> int:
    return (await kv.txn([], [Put(key, value)])).revision


async def surely_put(kv: Kv, key: str, value: bytes) -> None:
    """Puts although answers are missing; the same again does no harm."""
    async with asyncio.timeout(20):
        while True:
            try:
                await put(kv, key, value)
                return
            except KvError:
                await asyncio.sleep(0.05)


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[EtcdServer]:
    """Three members; a test puts back what it stops."""
    server = EtcdServer(tmp_path_factory.mktemp("three"), 3)
    try:
        yield server.start()
    finally:
        server.close()


@pytest.fixture
async def proxy(shared_etcd: EtcdServer) -> AsyncIterator[Proxy]:
    made = Proxy(shared_etcd.endpoints[0])
    try:
        yield made
    finally:
        await made.close()


async def test_every_member_may_die_in_turn(three: EtcdServer, connect: Connect) -> None:
    """A lease, a watch and writes go on while one member after the other is killed and comes back."""
    kv, ear = connect(*three.endpoints, progress_interval_s=0.5), Ear()
    lease = await kv.grant(10)
    await kv.txn([], [Put("/die/live", b"", lease)])
    await ear.listen(kv, "/die/")
    expected = {"/die/live": b""}
    for member in three.members:
        member.kill()
        expected[f"/die/{member.name}"] = b"1"
        await surely_put(kv, f"/die/{member.name}", b"1")
        assert await kv.keep_alive(lease) > 5
        await ear.hears(expected)
        assert {i.key: i.value for i in (await kv.range("/die/")).items} == expected
        member.start()
        await asyncio.to_thread(three.wait)
    assert await kv.keep_alive(lease) > 5


async def test_a_frozen_member_is_left(three: EtcdServer, connect: Connect) -> None:
    """It keeps its connections and says nothing. Only the first client meets it; the second one shows what it hears."""
    frozen, *others = three.members
    kv = connect(frozen.endpoint, *(m.endpoint for m in others), progress_interval_s=0.3, call_timeout_s=1.0)
    other, ear, lease = connect(*(m.endpoint for m in others)), Ear(), await kv.grant(10)
    await ear.listen(kv, "/freeze/")
    assert await kv.keep_alive(lease) > 0
    frozen.freeze()
    try:
        await surely_put(other, "/freeze/k", b"1")
        await ear.hears({"/freeze/k": b"1"}, 8)
        async with asyncio.timeout(5):
            assert await kv.keep_alive(lease) > 0
            assert len((await kv.range("/freeze/")).items) == 1
    finally:
        frozen.thaw()


async def test_without_a_majority_nothing_is_promised(three: EtcdServer, connect: Connect) -> None:
    kv = connect(*three.endpoints, call_timeout_s=0.5)
    lease = await kv.grant(30)
    for member in three.members[:2]:
        member.freeze()
    try:
        with pytest.raises(KvError):
            await kv.range("/majority/")
        with pytest.raises(KvError):
            await put(kv, "/majority/k")
        with pytest.raises(KvError):
            await kv.keep_alive(lease)
    finally:
        for member in three.members:
            member.thaw()
    await surely_put(kv, "/majority/k", b"1")
    assert len((await kv.range("/majority/")).items) == 1
    assert await kv.keep_alive(lease) > 0


async def test_a_stopped_etcd_comes_back(make_etcd: Make, connect: Connect) -> None:
    server = make_etcd()
    kv, ear = connect(*server.endpoints, progress_interval_s=0.3, call_timeout_s=0.5), Ear()
    lease = await kv.grant(30)
    await kv.txn([], [Put("/a/live", b"", lease)])
    await ear.listen(kv, "/a/")
    (member,) = server.members
    member.freeze()
    with pytest.raises(OutcomeUnknown):
        await put(kv, "/a/frozen")
    with pytest.raises(KvError):
        await kv.keep_alive(lease)
    member.thaw()
    await surely_put(kv, "/a/thawed", b"1")
    await until(lambda: "/a/thawed" in ear.items)  # and /a/frozen perhaps: that is what unknown means
    assert await kv.keep_alive(lease) > 0
    # Killed: what is tried now is surely not done.
    member.kill()
    await _fails_for_sure(kv)
    member.start()
    await asyncio.to_thread(server.wait)
    await surely_put(kv, "/a/k", b"2")
    await until(lambda: "/a/k" in ear.items)
    assert "/a/surely" not in ear.items
    assert await kv.keep_alive(lease) > 0


async def _fails_for_sure(kv: Kv) -> None:
    async with asyncio.timeout(5):
        while True:
            try:
                await put(kv, "/a/surely")
            except OutcomeUnknown:
                continue  # the connection was just being lost
            except KvError:
                return


async def test_compaction_behind_a_watcher(make_etcd: Make, connect: Connect) -> None:
    """What the watcher missed is gone: it gets everything anew, and goes on."""
    server = make_etcd()
    proxy = Proxy(server.endpoints[0])
    try:
        kv, direct, ear = connect(await proxy.start(), call_timeout_s=0.5), connect(*server.endpoints), Ear()
        for name in ("gone", "changed", "same"):
            await put(direct, f"/c/{name}", b"1")
        await ear.listen(kv, "/c/")
        proxy.close_listener()
        proxy.cut()
        await asyncio.to_thread(server.ctl, "del", "/c/gone")
        await put(direct, "/c/changed", b"2")
        revision = await put(direct, "/c/new", b"1")
        await asyncio.to_thread(server.ctl, "compact", str(revision))
        await proxy.listen_again()
        await ear.hears({"/c/changed": b"2", "/c/same": b"1", "/c/new": b"1"})
        assert (len(ear.pictures), len(ear.changes)) == (2, 0)
        await put(direct, "/c/new", b"2")
        await until(lambda: ear.values["/c/new"] == b"2")
        assert len(ear.changes) == 1
    finally:
        await proxy.close()


async def test_a_transaction_without_its_answer_is_unknown(
    proxy: Proxy, shared_etcd: EtcdServer, connect: Connect
) -> None:
    kv, direct = connect(await proxy.start(), call_timeout_s=0.3), connect(*shared_etcd.endpoints)
    await kv.range("/lost/")
    proxy.answers_pass = False
    with pytest.raises(OutcomeUnknown):
        await kv.txn([Compare("/lost/k", Field.CREATE, 0)], [Put("/lost/k", b"1")])
    assert len((await direct.range("/lost/")).items) == 1, "it was done"
    proxy.cut()
    proxy.answers_pass = True
    await until_answered(kv)
    again = await kv.txn([Compare("/lost/k", Field.CREATE, 0)], [Put("/lost/k", b"2")])
    assert not again.succeeded


async def until_answered(kv: Kv) -> None:
    async with asyncio.timeout(5):
        while True:
            try:
                await kv.range("/")
                return
            except KvError:
                await asyncio.sleep(0.02)


async def test_a_connection_cut_in_the_middle_is_unknown(
    proxy: Proxy, shared_etcd: EtcdServer, connect: Connect
) -> None:
    kv = connect(await proxy.start())
    await kv.range("/cut/")
    proxy.answers_pass = False
    writing = asyncio.create_task(put(kv, "/cut/k"))
    ear = Ear()
    await ear.listen(connect(*shared_etcd.endpoints), "/cut/")
    await until(lambda: "/cut/k" in ear.items)
    proxy.cut()
    with pytest.raises(OutcomeUnknown):
        await writing


async def test_a_silent_watch_is_opened_elsewhere(proxy: Proxy, shared_etcd: EtcdServer, connect: Connect) -> None:
    """The stream lives and brings nothing: without its progress nobody would notice."""
    (address,) = shared_etcd.endpoints
    kv, ear = connect(await proxy.start(), address, progress_interval_s=0.2), Ear()
    await ear.listen(kv, "/silent/")
    proxy.answers_pass = False
    await put(connect(address), "/silent/k", b"1")
    await ear.hears({"/silent/k": b"1"})


async def test_a_keep_alive_goes_elsewhere_in_half_a_second(
    proxy: Proxy, shared_etcd: EtcdServer, connect: Connect
) -> None:
    kv = connect(await proxy.start(), *shared_etcd.endpoints)
    lease = await kv.grant(10)
    assert await kv.keep_alive(lease) > 9
    proxy.answers_pass = False
    assert 8 < await kv.keep_alive(lease) <= 10


async def test_the_answer_to_an_abandoned_keep_alive_is_not_taken_for_a_later_one(
    proxy: Proxy, shared_etcd: EtcdServer, connect: Connect
) -> None:
    kv, direct = connect(await proxy.start(), keep_alive_timeout_s=1.0), connect(*shared_etcd.endpoints)
    lease = await kv.grant(10)
    assert await kv.keep_alive(lease) > 9
    proxy.released.clear()
    abandoned = asyncio.create_task(kv.keep_alive(lease))
    await asyncio.sleep(0.1)  # it is on its way
    abandoned.cancel()
    with pytest.raises(asyncio.CancelledError):
        await abandoned
    await direct.revoke(lease)
    asked = asyncio.create_task(kv.keep_alive(lease))
    await asyncio.sleep(0.1)
    proxy.released.set()
    assert await asked == 0.0


async def test_a_lost_watch_of_many_keys_comes_in_pieces(
    proxy: Proxy, shared_etcd: EtcdServer, connect: Connect
) -> None:
    """Longer than one answer of etcd may be: 6 MB while nobody listened, cut within revisions."""
    kv, direct, ear = connect(await proxy.start()), connect(*shared_etcd.endpoints), Ear()
    await ear.listen(kv, "/big/")
    proxy.close_listener()
    proxy.cut()
    values = {f"/big/{i:02}": bytes([i]) * 100_000 for i in range(30)}
    revisions = []
    for _ in range(2):
        for i in range(0, 30, 6):
            puts = [Put(f"/big/{j:02}", values[f"/big/{j:02}"]) for j in range(i, i + 6)]
            revisions.append((await direct.txn([], puts)).revision)
    await proxy.listen_again()
    await until(lambda: ear.changes and ear.revision == revisions[-1])
    assert ear.values == values
    assert [change.revision for change in ear.changes] == revisions
    assert {len(change.items) for change in ear.changes} == {6}, "revisions are whole"


async def test_nobody_there_is_a_definite_failure(connect: Connect) -> None:
    kv = connect(f"127.0.0.1:{free_ports(1)[0]}")
    for attempt in (kv.range("/"), put(kv, "/k"), kv.grant(5), kv.keep_alive(1), kv.revoke(1)):
        with pytest.raises(KvError, match="no etcd endpoint can be reached") as raised:
            await attempt
        assert not isinstance(raised.value, OutcomeUnknown)
    with pytest.raises(KvError):
        await Ear().listen(kv, "/")


async def test_a_wiped_etcd_is_noticed(make_etcd: Make, connect: Connect) -> None:
    server = make_etcd()
    kv, ear = connect(*server.endpoints), Ear()
    for i in range(5):
        await put(kv, f"/w/{i}")
    await ear.listen(kv, "/w/")
    (member,) = server.members
    member.wipe()
    member.start()
    await asyncio.to_thread(server.wait)
    with pytest.raises(StoreChanged, match="revision fell from 6 to 1"):
        await range_when_connected(kv)
    await put(connect(*server.endpoints), "/w/5")
    assert ear.changes == []
    assert len(ear.items) == 5


async def range_when_connected(kv: Kv) -> None:
    async with asyncio.timeout(5):
        while True:
            try:
                await kv.range("/w/")
                return
            except StoreChanged:
                raise
            except KvError:
                await asyncio.sleep(0.02)


async def test_another_cluster_behind_an_endpoint_is_noticed(make_etcd: Make, connect: Connect) -> None:
    """Cluster ids come from the members' addresses."""
    one, other = make_etcd(), make_etcd()
    kv = connect(one.endpoints[0], other.endpoints[0])
    await put(kv, "/k")
    one.members[0].kill()
    with pytest.raises(StoreChanged, match="cluster id was"):
        await range_when_connected(kv)
