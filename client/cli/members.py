"""`node ls|kill|start|pause|resume|drain|rest|activate|rm`: members of the cluster, local processes."""

import asyncio
import signal
import time
from typing import Any

import click

from ringpost.client.api import Client
from ringpost.client.cli import local, local_cluster
from ringpost.client.cli.command import output_option, remote
from ringpost.client.cli.local_cluster import ClusterNode, LocalCluster
from ringpost.client.cli.nodes import node as node
from ringpost.client.cli.output import Output, confirm, note, progress
from ringpost.client.cli.params import duration
from ringpost.client.cli.units import counted
from ringpost.v1 import cluster_pb2

_POLL_S = 0.25


def desired_of(member: cluster_pb2.Member) -> str:
    """active, drain or rest."""
    return cluster_pb2.Desired.Name(member.desired).removeprefix("DESIRED_").lower()


def as_json(member: cluster_pb2.Member) -> dict[str, Any]:
    """Names of the API."""
    plain = {field.name: getattr(member, field.name) for field in member.DESCRIPTOR.fields}
    return {**plain, "desired": desired_of(member)}


@node.command("ls")
@output_option
@remote()
async def ls(mq: Client, output: Output) -> None:
    """List the cluster's nodes and their shares of the shards."""
    members = await mq.cluster.nodes()
    columns = ("node", "address", "zone", "alive", "desired", "leads", "replicas", "in sync", "controller")
    output.listing(columns, [_row(member) for member in members], [as_json(member) for member in members])


def _row(member: cluster_pb2.Member) -> tuple[object, ...]:
    return (
        member.node,
        member.address,
        member.zone,
        "yes" if member.alive else "no",
        desired_of(member),
        member.leader_count,
        member.replica_count,
        member.in_sync_count,
        "yes" if member.controller else "",
    )


# -- processes of `up` ------------------------------------------------------------------------------------------------


def _local(name: str) -> tuple[LocalCluster, ClusterNode]:
    cluster = local_cluster.of_processes(local.home())
    return cluster, local_cluster.find(cluster, name)


def _alive(name: str) -> ClusterNode:
    _, found = _local(name)
    if not local.running(found):
        raise local.LocalNodeError(f"{found.node} does not run; `ringpost node start {found.node}` starts it again.")
    return found


@node.command()
@click.argument("name", metavar="N|ID")
def kill(name: str) -> None:
    """Kill a node of `ringpost up` with SIGKILL, as a crash would. N counts from 1."""
    with local.exclusive(local.home()):
        found = _alive(name)
        local.kill(found)
    note(f"Killed {found.node} (process {found.pid}). `ringpost node start {found.node}` starts it again.")


@node.command()
@click.argument("name", metavar="N|ID")
def start(name: str) -> None:
    """Start a node of `ringpost up` again that was killed, with its data and addresses."""
    folder = local.home()
    with local.exclusive(folder):
        cluster, found = _local(name)
        again = local_cluster.restart(folder, cluster, found)
    note(f"{again.node} serves on {again.address} (process {again.pid}).")


@node.command()
@click.argument("name", metavar="N|ID")
def pause(name: str) -> None:
    """Freeze a node of `ringpost up` with SIGSTOP."""
    found = _alive(name)
    local.send(found, signal.SIGSTOP)
    note(f"{found.node} is frozen. `ringpost node resume {found.node}` lets it go on.")


@node.command()
@click.argument("name", metavar="N|ID")
def resume(name: str) -> None:
    """Let a frozen node go on (SIGCONT)."""
    found = _alive(name)
    local.send(found, signal.SIGCONT)
    note(f"{found.node} goes on.")


# -- what is wanted of members ----------------------------------------------------------------------------------------


@node.command()
@click.argument("name", metavar="ID")
@click.option("--wait", is_flag=True, help="Until it holds nothing.")
@output_option
@remote()
async def drain(mq: Client, name: str, wait: bool, output: Output) -> None:
    """Make a node hand over all that it holds; afterwards it may be stopped and removed."""
    member = await mq.cluster.set_node(name, "drain")
    if wait:
        member = await _await_empty(mq, member)
    _show(member, output)


async def _await_empty(mq: Client, member: cluster_pb2.Member) -> cluster_pb2.Member:
    """Until the member leads nothing and has no copy. Raises `LocalNodeError` when it is removed meanwhile."""
    total = member.replica_count
    with progress() as bar:
        task = bar.add_task(f"draining {member.node}", total=total, extra="")
        while member.leader_count or member.replica_count:
            await asyncio.sleep(_POLL_S)
            now = [one for one in await mq.cluster.nodes() if one.node == member.node]
            if not now:
                raise local.LocalNodeError(f"{member.node} is no member any more.")
            (member,) = now
            if member.desired != cluster_pb2.DESIRED_DRAIN:
                raise local.LocalNodeError(f"Somebody set {member.node} to {desired_of(member)} meanwhile.")
            total = max(total, member.replica_count)
            left = f"  leads {member.leader_count}"
            bar.update(task, total=total, completed=total - member.replica_count, extra=left)
    return member


@node.command()
@click.argument("name", metavar="[ID]", default="")
@click.option("--wait", is_flag=True, help="Until it leads nothing.")
@click.option("--within", type=duration, default="60s", show_default=True, help="How long to wait at most.")
@output_option
@remote()
async def rest(mq: Client, name: str, wait: bool, within: float, output: Output) -> None:
    """Make a node (default: the one that answers) lead nothing and keep its copies: before a restart."""
    member = await mq.cluster.set_node(name or (await mq.node.info()).node, "rest")
    end = time.monotonic() + within
    while wait and member.leader_count and time.monotonic() < end:
        await asyncio.sleep(_POLL_S)
        member = next((one for one in await mq.cluster.nodes() if one.node == member.node), member)
    _show(member, output)
    if wait and member.leader_count:
        raise local.LocalNodeError(f"{member.node} still leads {counted(member.leader_count, 'shard')}.")


@node.command()
@click.argument("name", metavar="ID")
@output_option
@remote()
async def activate(mq: Client, name: str, output: Output) -> None:
    """Let a node take its share again."""
    _show(await mq.cluster.set_node(name, "active"), output)


@node.command()
@click.argument("name", metavar="ID")
@click.option("--yes", is_flag=True, help="Do not ask.")
@remote()
async def rm(mq: Client, name: str, yes: bool) -> None:
    """Remove a member that is stopped and holds nothing."""
    confirm(f"Remove {name} from the cluster?", yes=yes)
    await mq.cluster.remove_node(name)
    note(f"Removed {name}.")


def _show(member: cluster_pb2.Member, output: Output) -> None:
    if output.is_json:
        output.line("", as_json(member))
        return
    copies = "1 copy" if member.replica_count == 1 else f"{member.replica_count:,} copies"
    led = counted(member.leader_count, "shard")
    output.line(f"{member.node}: {desired_of(member)}, {led} led, {copies}", {})
