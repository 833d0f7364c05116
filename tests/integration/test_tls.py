"""TLS between real processes: clients and nodes prove who they are, and certificates are renewed under load."""

import asyncio
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from ringpost.client import Client, Options, PendingPublish, Unavailable, connect
from tests.certificates import Authority
from tests.etcd_server import EtcdServer, free_ports
from tests.integration.broker import Node

NODES = ("n1", "n2", "n3")
QUICK = Options(connect_timeout=3.0)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("clients"))


def credentials(authority: Authority, *files: Path) -> grpc.ChannelCredentials:
    chain, key = files or (None, None)
    parts = (file.read_bytes() if file else None for file in (authority.file, key, chain))
    return grpc.ssl_channel_credentials(*parts)


async def refused(address: str, tls: grpc.ChannelCredentials | None) -> bool:
    try:
        await connect(address, credentials=tls, options=QUICK)
    except Unavailable:
        return True
    return False


async def test_only_who_trusts_the_authority_and_speaks_tls_gets_through(authority: Authority, tmp_path: Path) -> None:
    cert, key = authority.issue("localhost", as_="server")
    stranger = Authority(tmp_path / "strange")
    with Node(tmp_path / "n", "--tls-cert-file", str(cert), "--tls-key-file", str(key)) as node:
        async with connect(node.address, credentials=credentials(authority)) as mq:
            assert (await mq.publish("orders", "a")).offset == 0
        assert await refused(node.address, None), "plain text"
        assert await refused(node.address, credentials(stranger)), "it is not the node that is meant"


async def test_clients_without_a_certificate_are_refused_where_one_is_wanted(
    authority: Authority, tmp_path: Path
) -> None:
    cert, key = authority.issue("localhost", as_="mutual")
    client, stranger = authority.issue("client"), Authority(tmp_path / "strange").issue("client")
    files = ("--tls-cert-file", str(cert), "--tls-key-file", str(key), "--tls-client-ca-file", str(authority.file))
    with Node(tmp_path / "n", *files) as node:
        async with connect(node.address, credentials=credentials(authority, *client)) as mq:
            await mq.publish("orders", "a")
        assert await refused(node.address, credentials(authority))
        assert await refused(node.address, credentials(authority, *stranger))


async def test_a_certificate_is_renewed_under_load_and_no_message_is_dropped(
    authority: Authority, tmp_path: Path
) -> None:
    """Publishes and deliveries are under way on streams that stand, before, while and after the files are replaced."""
    cert, key = authority.issue("localhost", as_="renewed")
    other = Authority(tmp_path / "other")
    with Node(tmp_path / "n", "--tls-cert-file", str(cert), "--tls-key-file", str(key)) as node:
        async with connect(node.address, credentials=credentials(authority)) as mq:
            load = Load(mq)
            writing, reading = asyncio.create_task(load.write()), asyncio.create_task(load.read())
            await load.goes_on()
            # The next certificate is another authority's: who connects from now on must trust that one.
            for made, path in zip(other.issue("localhost"), (cert, key), strict=True):
                await load.goes_on()
                made.replace(path)
            await load.goes_on()
            assert await refused(node.address, credentials(authority))
            async with connect(node.address, credentials=credentials(other)) as late:
                assert (await late.publish("late", "x")).offset == 0
                await load.goes_on()
                load.over = True
                await asyncio.wait_for(writing, 20)
                await load.goes_on(0)
                reading.cancel()
                assert (await late.channels.get("load")).end_offset == load.written
        assert load.got == [str(number) for number in range(load.written)], "each once, in order"
        assert "certificate.renewed" in node.stderr


class Load:
    """Messages with numbers to "load", several outstanding at any time, and a subscriber of them."""

    def __init__(self, mq: Client) -> None:
        self.over = False
        self.written = 0
        self.got: list[str] = []
        self._mq = mq

    async def write(self) -> None:
        """Until it is over; raises what became of a message that was not stored."""
        pending: deque[PendingPublish] = deque()
        while not self.over:
            pending.append(self._mq.publish_nowait("load", str(self.written)))
            self.written += 1
            if len(pending) > 50:
                await pending.popleft()
            await asyncio.sleep(0.001)
        for one in pending:
            await one

    async def read(self) -> None:
        """Until it is cancelled."""
        async for message in self._mq.subscription("load", start="earliest"):
            self.got.append(message.text())

    async def goes_on(self, more: int = 100) -> None:
        """So many more are published, and they and all before them read."""
        until = self.written + more
        async with asyncio.timeout(20):
            while len(self.got) < until:
                await asyncio.sleep(0.01)


class TlsCluster:
    """Three nodes whose peer ports speak mutual TLS; clients use plain text on loopback."""

    def __init__(self, folder: Path) -> None:
        self.authority = Authority(folder / "peers")
        self.etcd = EtcdServer(folder / "etcd").start()
        self.nodes = {name: self._node(folder, name) for name in NODES}

    def _node(self, folder: Path, name: str) -> Node:
        cert, key = self.authority.issue(name)
        client, peer = (f"127.0.0.1:{port}" for port in free_ports(2))
        return Node(
            folder / name,
            *("--node", name, "--listen", client, "--peer-listen", peer, "--stop-grace-ms", "500"),
            *("--coordination", "etcd", "--etcd-endpoints", ",".join(self.etcd.endpoints)),
            *("--peer-tls-cert-file", str(cert), "--peer-tls-key-file", str(key)),
            *("--peer-tls-ca-file", str(self.authority.file)),
        )

    async def whole(self, mq: Client) -> None:
        async with asyncio.timeout(60):
            while True:
                status, members = await mq.cluster.status(), await mq.cluster.nodes()
                alive = sum(member.alive for member in members)
                lacking = status.offline_shards or status.under_replicated_shards
                if status.shard_count and alive == len(NODES) and not lacking:
                    return
                await asyncio.sleep(0.1)

    def close(self) -> None:
        for node in self.nodes.values():
            node.kill()
        self.etcd.close()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsCluster]:
    made = TlsCluster(tmp_path_factory.mktemp("cluster"))
    try:
        for node in made.nodes.values():
            node.spawn()
        for node in made.nodes.values():
            node.wait_until_serving()
        yield made
    finally:
        made.close()


@pytest.mark.slow
async def test_nodes_replicate_and_forward_over_mutual_tls(cluster: TlsCluster) -> None:
    # One address, and no other is used: two of three channels are led elsewhere.
    async with connect(cluster.nodes["n1"].address, options=Options(routing="any")) as mq:
        await cluster.whole(mq)
        receipts = [await mq.publish(f"c{n}", "x") for n in range(12)]
        assert {receipt.owner for receipt in receipts} == set(NODES)
        assert all(len(receipt.replicas) >= 2 for receipt in receipts)
        assert {(await mq.node.info(node=name)).node for name in NODES} == set(NODES)


@pytest.mark.slow
async def test_certificates_of_nodes_are_renewed_and_streams_are_made_anew_with_them(cluster: TlsCluster) -> None:
    async with connect(cluster.nodes["n1"].address, options=Options(routing="any")) as mq:
        await cluster.whole(mq)
        for name in NODES:
            cluster.authority.issue(name)
        victim = cluster.nodes["n3"]
        pending = [mq.publish_nowait(f"c{n % 12}", "y") for n in range(600)]
        await asyncio.to_thread(victim.kill)
        pending += [mq.publish_nowait(f"c{n % 12}", "z") for n in range(600)]
        await asyncio.to_thread(victim.start)
        for one in pending:
            await one
        await cluster.whole(mq)
    assert all("certificate.renewed" in cluster.nodes[name].stderr for name in ("n1", "n2"))


@pytest.mark.slow
async def test_a_node_that_shows_another_name_or_none_takes_no_part(cluster: TlsCluster) -> None:
    wrong = cluster.nodes["n3"]
    async with connect(cluster.nodes["n1"].address, options=Options(routing="any")) as mq:
        await cluster.whole(mq)
        await asyncio.to_thread(wrong.kill)
        cluster.authority.issue("n9", as_="n3")
        await asyncio.to_thread(wrong.start)
        await asyncio.sleep(5)
        members = {member.node: member for member in await mq.cluster.nodes()}
        status = await mq.cluster.status()
        assert members["n3"].alive, "etcd takes it"
        assert members["n3"].in_sync_count == members["n3"].leader_count == 0, "the nodes do not"
        assert len(status.under_replicated_shards) == status.shard_count
        await mq.publish("c1", "goes on")
        await asyncio.to_thread(wrong.kill)
        cluster.authority.issue("n3")
        await asyncio.to_thread(wrong.start)
        await cluster.whole(mq)
