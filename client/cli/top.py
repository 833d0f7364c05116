"""`top`: what every node does, again and again."""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from heapq import nlargest
from typing import Any

import click

from ringpost.client import errors
from ringpost.client.api import Client
from ringpost.client.cli.command import output_option, remote
from ringpost.client.cli.members import desired_of
from ringpost.client.cli.nodes import state_of
from ringpost.client.cli.output import Output, write
from ringpost.client.cli.params import duration
from ringpost.client.cli.units import counted, show_bytes
from ringpost.v1 import cluster_pb2, group_pb2

# Groups that are looked at each time, and those of them that are shown.
_GROUPS_MAX, _GROUPS_SHOWN = 2_000, 5


@dataclass(frozen=True)
class Row:
    """One node. Rates are a second's; `cpu` is in cores. None: not known, since it did not answer, or not twice."""

    node: str
    state: str
    leads: int
    copies: int
    in_sync: int
    published: float | None = None
    delivered: float | None = None
    cpu: float | None = None
    memory_bytes: int | None = None
    journal_bytes: int | None = None
    subscriptions: int | None = None


@dataclass(frozen=True)
class Picture:
    """The cluster at one time (seconds of a monotonic clock). `infos`: of the nodes that answered."""

    at: float
    status: cluster_pb2.GetClusterResponse
    members: list[cluster_pb2.Member]
    infos: Mapping[str, cluster_pb2.NodeInfo]
    groups: list[group_pb2.GroupInfo] = field(default_factory=list)


def rows(now: Picture, before: Picture | None) -> list[Row]:
    """A row for each member. A process that was started meanwhile has no rates yet."""
    return [_row(member, now, before) for member in now.members]


def _row(member: cluster_pb2.Member, now: Picture, before: Picture | None) -> Row:
    info = now.infos.get(member.node)
    state = "gone" if not member.alive else "silent" if info is None else state_of(info)
    if member.desired != cluster_pb2.DESIRED_ACTIVE:
        state = f"{state}, {desired_of(member)}"
    row = Row(member.node, state, member.leader_count, member.replica_count, member.in_sync_count)
    if info is None:
        return row
    then = None if before is None else before.infos.get(member.node)
    if before is None or then is None or then.started_time_us != info.started_time_us:
        published = delivered = cpu = None
    else:
        seconds = max(now.at - before.at, 1e-9)
        published = (info.published_messages - then.published_messages) / seconds
        delivered = (info.delivered_messages - then.delivered_messages) / seconds
        cpu = (info.cpu_seconds - then.cpu_seconds) / seconds
    return Row(
        *(row.node, row.state, row.leads, row.copies, row.in_sync),
        published=published,
        delivered=delivered,
        cpu=cpu,
        memory_bytes=info.resident_bytes,
        journal_bytes=info.journal_bytes,
        subscriptions=info.subscription_count,
    )


def headline(status: cluster_pb2.GetClusterResponse, members: list[cluster_pb2.Member]) -> str:
    """The cluster in one line."""
    alive = sum(member.alive for member in members)
    parts = [f"{alive} of {counted(len(members), 'node')} alive", counted(status.shard_count, "shard")]
    for name, number in (
        ("without a leader", len(status.offline_shards)),
        ("under-replicated", len(status.under_replicated_shards)),
        ("moving", len(status.moves)),
    ):
        if number:
            parts.append(f"{number:,} {name}")
    return " · ".join([*parts, f"controller {status.controller or 'none'}"])


async def look(mq: Client) -> Picture:
    """Asks for everything at once."""
    status, members = await mq.cluster.status(), await mq.cluster.nodes()
    alive = [member.node for member in members if member.alive]
    answers = await asyncio.gather(*(mq.node.info(within=2.0, node=node) for node in alive), return_exceptions=True)
    infos = {}
    for node, answer in zip(alive, answers, strict=True):
        if isinstance(answer, cluster_pb2.NodeInfo):
            infos[node] = answer
        elif not isinstance(answer, errors.RingpostError):
            raise answer
    return Picture(time.monotonic(), status, members, infos, await _groups(mq))


async def _groups(mq: Client) -> list[group_pb2.GroupInfo]:
    found: list[group_pb2.GroupInfo] = []
    async for group in mq.groups.list():
        found.append(group)
        if len(found) == _GROUPS_MAX:
            break
    return [group for group in nlargest(_GROUPS_SHOWN, found, key=lambda group: group.pending) if group.pending]


@click.command()
@click.option("--every", type=duration, default="2s", show_default=True, help="Between two looks.")
@click.option("--count", type=click.IntRange(1), help="Look so often, then end.")
@output_option
@remote()
async def top(mq: Client, every: float, count: int | None, output: Output) -> None:
    """Watch what every node does: rates, CPU, memory, shards; and the groups that lag most. Ctrl-C ends it."""
    every = max(every, 0.1)
    before: Picture | None = None
    number = 0
    while count is None or number < count:
        now = await look(mq)
        _show(now, before, output, clear=number > 0)
        before = now
        number += 1
        if number != count:
            await asyncio.sleep(every)


def _show(now: Picture, before: Picture | None, output: Output, *, clear: bool) -> None:
    found = rows(now, before)
    if output.is_json:
        groups = [{"channel": g.channel, "group": g.name, "pending": g.pending} for g in now.groups]
        output.line("", {"nodes": [asdict(row) for row in found], "groups": groups, **_facts(now.status)})
        return
    if clear:
        click.clear()  # nothing where there is no terminal
    write(headline(now.status, now.members))
    columns = ("node", "state", "leads", "copies", "in sync", "pub/s", "sub/s", "CPU", "memory", "journal", "subs")
    output.listing(columns, [_cells(row) for row in found], ())
    if now.groups:
        write("")
        lagging = [(g.channel, g.name, g.pending, g.in_flight, len(g.members)) for g in now.groups]
        output.listing(("channel", "group", "waiting", "in flight", "members"), lagging, ())


def _facts(status: cluster_pb2.GetClusterResponse) -> dict[str, Any]:
    return {
        "controller": status.controller,
        "offline_shards": len(status.offline_shards),
        "under_replicated_shards": len(status.under_replicated_shards),
        "moves": len(status.moves),
    }


def _cells(row: Row) -> tuple[object, ...]:
    def rate(value: float | None) -> str:
        return "" if value is None else f"{value:,.0f}"

    return (
        *(row.node, row.state, row.leads, row.copies, row.in_sync, rate(row.published), rate(row.delivered)),
        "" if row.cpu is None else f"{row.cpu:.0%}",
        "" if row.memory_bytes is None else show_bytes(row.memory_bytes),
        "" if row.journal_bytes is None else show_bytes(row.journal_bytes),
        "" if row.subscriptions is None else row.subscriptions,
    )
