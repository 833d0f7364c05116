"""`node info` and `check`."""

from dataclasses import replace
from typing import Any

import click
import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ringpost.client import errors
from ringpost.client.api import Client
from ringpost.client.cli import contexts
from ringpost.client.cli.command import PATIENCE, Group, addr_option, async_command, output_option, remote
from ringpost.client.cli.output import Output
from ringpost.client.cli.units import counted, show_bytes, show_time
from ringpost.v1 import cluster_pb2

# What other nodes say is no answer here.
_THIS_NODE = replace(PATIENCE, routing="any")


@click.group(cls=Group)
def node() -> None:
    """Nodes: the one that answers, all of the cluster, and the processes of `ringpost up`."""


@node.command()
@click.argument("name", metavar="[ID]", default="")
@output_option
@remote()
async def info(mq: Client, name: str, output: Output) -> None:
    """Show a node (default: the one that answers): state, durability, counts, memory, limits."""
    found = await mq.node.info(node=name)
    limits = found.limits
    rows = [
        ("node", found.node),
        ("address", found.address),
        ("cluster", found.cluster_id),
        ("version", found.version),
        ("state", state_of(found)),
        ("disk", found.disk),
        ("durability", found.durability),
        ("started", f"{show_time(found.started_time_us)} (boot {found.boot})"),
        ("channels", found.channel_count),
        ("groups", found.group_count),
        ("subscriptions", found.subscription_count),
        ("published", found.published_messages),
        ("delivered", found.delivered_messages),
        ("journal", show_bytes(found.journal_bytes)),
        ("memory", show_bytes(found.resident_bytes)),
        ("CPU seconds", found.cpu_seconds),
        ("greatest message", show_bytes(limits.max_message_bytes)),
        ("greatest batch", f"{show_bytes(limits.max_batch_bytes)}, {limits.max_batch_messages:,} messages"),
        ("channels by first use", limits.auto_create_channels),
    ]
    if found.quarantined_shards:
        rows.append(("quarantined shards", ", ".join(map(str, found.quarantined_shards))))
    if found.lost_messages:
        rows.append(("lost messages", f"{found.lost_messages:,}: damaged, given up by --accept-loss, not purged yet"))
    output.details(rows, as_json(found))


def state_of(found: cluster_pb2.NodeInfo) -> str:
    """starting, serving or draining."""
    return cluster_pb2.NodeState.Name(found.state).removeprefix("NODE_STATE_").lower()


def as_json(found: cluster_pb2.NodeInfo) -> dict[str, Any]:
    """Names and units of the API; numbers as numbers."""
    plain = {
        field.name: getattr(found, field.name)
        for field in found.DESCRIPTOR.fields
        if field.name not in ("state", "limits", "quarantined_shards")
    }
    limits = {field.name: getattr(found.limits, field.name) for field in found.limits.DESCRIPTOR.fields}
    return {**plain, "state": state_of(found), "limits": limits, "quarantined_shards": list(found.quarantined_shards)}


def damage(found: cluster_pb2.NodeInfo) -> list[str]:
    """One sentence when shards are damaged, none otherwise."""
    shards = found.quarantined_shards
    if not shards:
        return []
    named = ", ".join(map(str, shards[:8])) + (", …" if len(shards) > 8 else "")
    return [
        f"{counted(len(shards), 'shard')} of node {found.node} (number {named}): damaged, all work is refused there."
    ]


def verdict(found: cluster_pb2.NodeInfo, unhealthy: list[str]) -> tuple[int, list[str]]:
    """(0 fine, 1 works with faults, 2 does not work; the reasons). `unhealthy`: parts whose health is not SERVING.

    The empty name stands for the node as a whole.
    """
    broken, faults = [], []
    if found.state != cluster_pb2.NODE_STATE_SERVING:
        broken.append(f"the node is {state_of(found)}")
    if "" in unhealthy:
        broken.append("the node's health is not SERVING")
    if found.disk == "failed":
        broken.append("the disk has failed")
    elif found.disk not in ("ok", ""):
        faults.append(f"disk: {found.disk}")
    if found.quarantined_shards:
        are = "is" if len(found.quarantined_shards) == 1 else "are"
        faults.append(f"{counted(len(found.quarantined_shards), 'shard')} {are} damaged, all work is refused there")
    faults += [f"health of {part} is not SERVING" for part in unhealthy if part]
    return (2 if broken else 1 if faults else 0), broken + faults


@click.command()
@output_option
@addr_option
@async_command
async def check(addr: str, output: Output) -> None:
    """Check the node, for scripts; of several addresses the first that answers.

    Exit code 0: it works. 1: it works with faults, such as a disk that fills. 2: it does not work or does not
    answer (where every other command ends with 3). The reasons are printed.
    """
    found, text = None, ""
    code, reasons, state = 2, [f"no answer from {addr}"], "unreachable"
    for one in addr.split(","):
        try:
            async with contexts.dial(one, _THIS_NODE) as mq:
                found = await mq.node.info()
            code, reasons = verdict(found, await _unhealthy(one, contexts.credentials_for(one)))
        except errors.RingpostError as error:
            reasons = [*reasons, error.message]
            continue
        state = state_of(found)
        text = f"{found.node} serves on {found.address}, disk ok"
        break
    word = ("ok", "faults", "broken")[code]
    text = "; ".join(reasons) or text
    output.line(f"{word}: {text}", {"status": word, "state": state, "reasons": reasons})
    if code:
        raise click.exceptions.Exit(code)


async def _unhealthy(addr: str, tls: grpc.ChannelCredentials | None) -> list[str]:
    """The services of grpc.health.v1, of those that matter here, that are not SERVING. Raises `RingpostError`."""
    async with grpc.aio.insecure_channel(addr) if tls is None else grpc.aio.secure_channel(addr, tls) as channel:
        ask = health_pb2_grpc.HealthStub(channel).Check
        found = []
        for service in ("", "storage"):
            try:
                answer = await ask(health_pb2.HealthCheckRequest(service=service), timeout=PATIENCE.connect_timeout)
            except grpc.aio.AioRpcError as error:
                raise errors.from_rpc_error(error) from None
            if answer.status != health_pb2.HealthCheckResponse.SERVING:
                found.append(service)
    return found
