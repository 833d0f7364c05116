"""`cluster status|ring|moves|accept-loss`."""

import asyncio
from typing import Any

import click

from ringpost.client.api import Client
from ringpost.client.cli.command import Group, output_option, remote
from ringpost.client.cli.messages import dump
from ringpost.client.cli.output import Output, confirm, note, write
from ringpost.v1 import cluster_pb2

_POLL_S = 0.5
_SHOWN = 20
_PLAIN = ("cluster_id", "view", "shard_count", "replication_factor", "min_isr", "controller", "coordination")


@click.group(cls=Group)
def cluster() -> None:
    """The cluster: how it is, who leads what, what is on its way."""


@cluster.command()
@output_option
@remote()
async def status(mq: Client, output: Output) -> None:
    """Show how the cluster is: controller, shards without a leader or with too few copies."""
    found = await mq.cluster.status()
    members = await mq.cluster.nodes()
    alive = sum(member.alive for member in members)
    rows = [
        ("state", state_of(found)),
        ("nodes", f"{alive} of {len(members)} alive"),
        ("controller", found.controller or "none"),
        ("shards", found.shard_count),
        ("copies", f"{found.replication_factor} each, at least {found.min_isr} in sync to publish at quorum"),
        ("without a leader", shards_text(list(found.offline_shards))),
        ("too few copies", shards_text(list(found.under_replicated_shards))),
        ("moves", len(found.moves)),
        ("coordination", found.coordination),
        ("cluster", found.cluster_id),
        ("view", found.view),
    ]
    data = {
        "state": state_of(found),
        "nodes": len(members),
        "alive": alive,
        **{name: getattr(found, name) for name in _PLAIN},
        "offline_shards": list(found.offline_shards),
        "under_replicated_shards": list(found.under_replicated_shards),
        "moves": [move_json(move) for move in found.moves],
    }
    output.details(rows, data)


def state_of(found: cluster_pb2.GetClusterResponse) -> str:
    """One word: broken, degraded, moving or whole."""
    if found.offline_shards or not found.shard_count:
        return "broken"
    if found.under_replicated_shards:
        return "degraded"
    return "moving" if found.moves else "whole"


def shards_text(shards: list[int]) -> str:
    """ "none", "3, 8", "256 (0, 1, 2, …)"."""
    if not shards:
        return "none"
    if len(shards) <= _SHOWN:
        return ", ".join(map(str, shards))
    return f"{len(shards)} ({', '.join(map(str, shards[:_SHOWN]))}, …)"


@cluster.command()
@click.option("--channel", help="Only the shard that this channel lives in.")
@output_option
@remote()
async def ring(mq: Client, channel: str | None, output: Output) -> None:
    """Show who leads each shard, who is in sync and who has a copy."""
    found = await mq.cluster.routes(*([channel] if channel else []))
    rows = [(r.shard, r.owner or "none", r.epoch, " ".join(r.in_sync), " ".join(r.replicas)) for r in found.shards]
    data = [
        {
            "shard": route.shard,
            "leader": route.owner,
            "epoch": route.epoch,
            "in_sync": list(route.in_sync),
            "replicas": list(route.replicas),
        }
        for route in found.shards
    ]
    output.listing(("shard", "leader", "epoch", "in sync", "replicas"), rows, data)


@cluster.command()
@click.option("--watch", is_flag=True, help="Go on until nothing moves any more; as JSON one object a line.")
@output_option
@remote()
async def moves(mq: Client, watch: bool, output: Output) -> None:
    """Show what is on its way: copies that catch up, are handed over or leave."""
    if watch:
        await _watch(mq, output)
        return
    found = (await mq.cluster.status()).moves
    rows = [(move.shard, move.kind, move.leader, move.node) for move in found]
    output.listing(("shard", "kind", "leader", "node"), rows, [move_json(move) for move in found])


async def _watch(mq: Client, output: Output) -> None:
    """Prints each move when it is first seen and when it is over."""
    before: dict[tuple[int, str, str], cluster_pb2.ShardMove] = {}
    while True:
        now = {(move.shard, move.kind, move.node): move for move in (await mq.cluster.status()).moves}
        for key in sorted(before.keys() - now.keys()):
            _print_move("done", before[key], output)
        for key in sorted(now.keys() - before.keys()):
            _print_move("began", now[key], output)
        before = now
        if not now:
            break
        await asyncio.sleep(_POLL_S)
    note("Nothing moves.")


def _print_move(event: str, move: cluster_pb2.ShardMove, output: Output) -> None:
    if output.is_json:
        write(dump({"event": event, **move_json(move)}))
    else:
        write(f"{event:<5}  shard {move.shard}  {move.kind}  {move.leader or 'none'} → {move.node}")


def move_json(move: cluster_pb2.ShardMove) -> dict[str, Any]:
    """Names of the API."""
    return {"shard": move.shard, "kind": move.kind, "leader": move.leader, "node": move.node}


@cluster.command("accept-loss")
@click.argument("shard", type=click.IntRange(min=0))
@click.argument("node")
@click.option("--yes", is_flag=True, help="Do not ask.")
@remote()
async def accept_loss(mq: Client, shard: int, node: str, yes: bool) -> None:
    """Let the copy on NODE lead a SHARD whose in-sync copies are all gone.

    Acknowledged messages that only those had are lost for ever. Only while the shard has no leader. The other copies
    are made anew from this one, whatever they hold: to look into them, stop their nodes and copy the data directories
    before.
    """
    confirm(f"Lose what {node} does not have of shard {shard}?", yes=yes)
    await mq.cluster.accept_loss(shard, node)
    note(f"{node}'s copy of shard {shard} counts from now on.")
