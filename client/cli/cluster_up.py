"""`up --nodes` and `down` of a local cluster."""

import asyncio
from dataclasses import asdict
from pathlib import Path

import click

from ringpost.client.api import Client, connect
from ringpost.client.cli import etcd, local, local_cluster
from ringpost.client.cli.local_cluster import LocalCluster, Wanted
from ringpost.client.cli.output import Output, confirm, note
from ringpost.client.cli.units import counted
from ringpost.client.errors import RingpostError, Unavailable
from ringpost.client.options import Options

# How long a new cluster may take until every shard has a leader.
READY_SECONDS = 60.0
_POLL_S = 0.1


def up_cluster(folder: Path, wanted: Wanted, in_process: bool, output: Output) -> None:
    """Starts the cluster, or says that it runs. Raises `LocalNodeError`."""
    with local.exclusive(folder):
        if local.running(local.remembered(folder)):
            raise local.LocalNodeError(
                "A single node runs in this home. `ringpost down` stops it; another RINGPOST_HOME runs a cluster"
                " beside it."
            )
        cluster = local_cluster.remembered(folder)
        already = cluster is not None and cluster.running
        if cluster is None or not already:
            cluster = _start(folder, wanted, in_process)
        elif len(cluster.nodes) != wanted.nodes:
            raise local.LocalNodeError(
                f"A cluster of {len(cluster.nodes)} nodes runs already. `ringpost down` stops it; its messages stay."
            )
    asyncio.run(await_ready(cluster.addresses))
    _tell(cluster, already, output)


def _start(folder: Path, wanted: Wanted, in_process: bool) -> LocalCluster:
    if in_process:
        return local_cluster.start_together(folder, wanted)
    program = etcd.find()
    if program is None:
        raise local.LocalNodeError(etcd.HOW_TO_GET)
    return local_cluster.start(folder, wanted, program)


async def await_ready(addresses: list[str], seconds: float = READY_SECONDS) -> None:
    """Until every shard has a leader. Raises `LocalNodeError` after `seconds`."""
    last = "no answer"
    try:
        async with asyncio.timeout(seconds):
            async with connect(addresses, options=Options(connect_timeout=seconds)) as mq:
                while (last := await _unready(mq)) != "":
                    await asyncio.sleep(_POLL_S)
    except TimeoutError:
        raise local.LocalNodeError(f"The cluster is not ready after {seconds:.0f} s: {last}.") from None


async def _unready(mq: Client) -> str:
    """What is missing; empty when nothing is."""
    try:
        status = await mq.cluster.status()
    except Unavailable as error:
        return error.message
    except RingpostError as error:
        raise local.LocalNodeError(f"The nodes cannot say how the cluster is: {error.message}") from None
    if not status.shard_count:
        return "there are no shards yet"
    return f"{counted(len(status.offline_shards), 'shard')} without a leader" if status.offline_shards else ""


def _tell(cluster: LocalCluster, already: bool, output: Output) -> None:
    if output.is_json:
        output.line("", {**asdict(cluster), "already_running": already})
        return
    state = "already serves" if already else "serves"
    click.echo(f"A cluster of {counted(len(cluster.nodes), 'node')} {state}.")
    columns = ("node", "address", "zone", "process", "metrics")
    rows = [(n.node, n.address, n.zone, str(n.pid), f"http://{n.http_address}/metrics") for n in cluster.nodes]
    output.listing(columns, rows, ())
    store = f"etcd: {cluster.etcd.address}" if cluster.etcd is not None else "all nodes are in one process"
    note(f"{store} · data and logs: {Path(cluster.nodes[0].data_dir).parent}")
    kill = "  ringpost node kill 2 && ringpost verify --seconds 20\n" if cluster.etcd is not None else ""
    note(
        "\nTry next:\n"
        "  ringpost sub orders.eu --group billing      # in another terminal\n"
        "  ringpost pub orders.eu hello --key 42\n"
        "  ringpost node ls\n" + kill + "  ringpost down"
    )


def down_cluster(folder: Path, *, purge: bool, yes: bool) -> bool:
    """Stops the local cluster. False when there is none, so that there may be a single node to stop."""
    cluster = local_cluster.remembered(folder)
    if cluster is None or not (cluster.running or purge):
        return False
    if purge:
        confirm(f"Remove all messages of {counted(len(cluster.nodes), 'node')} in {folder / 'data'}?", yes=yes)
    if cluster.running:
        killed = local_cluster.stop(cluster)
        note(f"Stopped the cluster of {counted(len(cluster.nodes), 'node')}.")
        if killed:
            note(f"Killed, since they did not stop in time: {', '.join(killed)}.")
    if purge:
        local_cluster.purge(folder, cluster)
        note(f"Removed the data in {folder / 'data'}.")
    return True
