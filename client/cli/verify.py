"""`verify`: prove that the broker keeps its promises, also while it is killed."""

import contextlib
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from ringpost.client.cli import local, local_cluster, netns
from ringpost.client.cli.cluster_up import await_ready
from ringpost.client.cli.command import addr_option, async_command, output_option
from ringpost.client.cli.faults import Faults
from ringpost.client.cli.ledger import HEAD_BYTES, Report
from ringpost.client.cli.local import LocalNodeError
from ringpost.client.cli.netns import Network, NetworkError
from ringpost.client.cli.output import Output, note, progress
from ringpost.client.cli.params import DURABILITY, duration, size
from ringpost.client.cli.private import private_cluster
from ringpost.client.cli.units import show_seconds
from ringpost.client.cli.verify_run import HEAL_SECONDS, Plan, Run


@click.command()
@click.option("--seconds", type=duration, default="10s", show_default=True, help="How long to publish.")
@click.option("--producers", type=click.IntRange(1, 64), default=4, show_default=True)
@click.option("--channels", type=click.IntRange(1, 256), default=4, show_default=True)
@click.option("--groups", type=click.IntRange(1, 16), default=1, show_default=True, help="Groups on each channel.")
@click.option("--rate", type=click.FloatRange(1), default=1000.0, show_default=True, help="Messages/s of a producer.")
@click.option("--burst", type=click.IntRange(1, 10_000), default=50, show_default=True, help="Messages sent at once.")
@click.option("--size", type=size, default="128B", show_default=True, help=f"Of a message, at least {HEAD_BYTES}B.")
@click.option("--durability", type=DURABILITY, default="quorum", show_default=True)
@click.option("--nodes", type=click.IntRange(2, 9), help="On a cluster of its own, removed at the end.")
@click.option("--kill", is_flag=True, help="SIGKILL and restart local nodes while running.")
@click.option("--kills", type=click.IntRange(1, 1000), help="So many faults (implies --kill; one node: default 3).")
@click.option("--pause", is_flag=True, help="Freeze nodes of a local cluster for 1 to 8 seconds while running.")
@click.option(
    "--partition", is_flag=True, help="Cut links of nodes for 1 to 12 seconds while running; with --nodes, as root."
)
@output_option
@addr_option
@async_command
async def verify(output: Output, nodes: int | None, addr: str, partition: bool, **options: Any) -> None:
    """Publish numbered messages, read them back, and report any that is lost, doubled or out of order.

    Several producers write to channels made for this; a replaying subscriber and durable groups read them. Faults
    strike the node or the cluster of `ringpost up`, or the one of --nodes, one at a time, each healed before the next.
    --partition puts each node of --nodes, and etcd, into a network namespace. Exit code 0: every promise was kept. 1:
    one was broken.
    """
    _check(nodes, partition, options["seconds"], options["size"])
    with contextlib.ExitStack() as stack:
        folder = local.home()
        network = _network(stack) if partition else None
        if nodes is not None:
            place = local_cluster.on_loopback if network is None else network.place
            folder = stack.enter_context(private_cluster(nodes, place=place))
            cluster = local_cluster.of_processes(folder)
            addr = ",".join(cluster.addresses)
            await await_ready(cluster.addresses)
        await _verify(output, folder, network, addr=addr, **options)


def _check(nodes: int | None, partition: bool, seconds: float, size: int) -> None:
    if seconds == 0:
        raise click.UsageError("--seconds: above 0.")
    if size < HEAD_BYTES:
        raise click.UsageError(f"--size: at least {HEAD_BYTES}B, to hold a message's number.")
    if partition and nodes is None:
        raise click.UsageError("--partition needs nodes in a network of their own: say how many with --nodes.")
    if partition and (lacking := netns.missing()):
        raise click.UsageError(f"--partition: {lacking}.")


def _network(stack: contextlib.ExitStack) -> Network:
    """A network for the nodes, removed with the stack."""
    try:
        network = Network()
    except NetworkError as error:
        raise LocalNodeError(str(error)) from None
    stack.callback(network.remove)
    return network


async def _verify(
    output: Output,
    folder: Path,
    network: Network | None,
    *,
    kill: bool,
    kills: int | None,
    pause: bool,
    size: int,
    **options: Any,
) -> None:
    wanted = (("kill", kill or kills), ("pause", pause), ("partition", network is not None))
    kinds = [kind for kind, yes in wanted if yes]
    faults = _faults(folder, options["addr"], kinds, network) if kinds else None
    if pause and faults is None:
        raise click.UsageError("--pause needs a local cluster of several nodes: `ringpost up --nodes 3`.")
    times = kills or (3 if kill and faults is None else 0)
    plan = Plan(**options, size=size, kills=times)
    killer = _killer(plan.addr) if times and faults is None else None
    if kinds and plan.durability == "memory":
        raise click.UsageError("Memory durability promises nothing when the node is killed; use leader or quorum.")
    with progress() as bar:
        task = bar.add_task("verifying", total=round(plan.seconds * plan.rate * plan.producers), extra="")
        run = Run(plan, kill=killer, faults=faults)
        run.tick = lambda run: bar.update(task, completed=run.ledger.tried, extra=_so_far(run, bool(kinds)))
        await run.execute()
    report = run.ledger.report(run.unsettled)
    _print(report, run, output)
    for channel in run.left:
        note(f"Could not be removed: {channel}")
    if not report.ok or run.unhealed:
        raise click.exceptions.Exit(1)


def _so_far(run: Run, disturbed: bool) -> str:
    if run.faults is not None:
        return f"faults: {len(run.struck)}"
    return f"node killed: {run.killed}" if disturbed else ""


def _faults(folder: Path, addr: str, kinds: list[str], network: Network | None) -> Faults | None:
    """The faults of the local cluster; None when there is none, so that there may be a single node to kill."""
    cluster = local_cluster.remembered(folder)
    if cluster is None or not cluster.running:
        return None
    if not {one.rpartition(":")[2] for one in addr.split(",")} <= {a.rpartition(":")[2] for a in cluster.addresses}:
        raise click.UsageError(f"The faults would strike the local cluster, but --addr is {addr}.")
    faults = Faults(folder, kinds, network=network)
    if dead := faults.dead():
        raise click.UsageError(f"{', '.join(dead)} must run before more is broken: `ringpost node start {dead[0]}`.")
    return faults


def _killer(addr: str) -> Any:
    folder = local.home()
    node = local.remembered(folder)
    if node is None or not local.running(node):
        raise click.UsageError("--kill needs the local node of `ringpost up`, and none is running.")
    if addr.rpartition(":")[2] != node.address.rpartition(":")[2]:
        raise click.UsageError(f"--kill would kill the local node on {node.address}, but --addr is {addr}.")

    def restart() -> None:
        with local.exclusive(folder):
            local.restart(folder)

    return restart


def _print(report: Report, run: Run, output: Output) -> None:
    rows: list[tuple[str, object]] = [
        ("published", f"{report.acked:,} acknowledged of {report.tried:,}"),
        ("without an answer", report.unanswered),
        ("refused", report.refused),
        ("replayed", report.replayed),
        ("redelivered in groups", report.redelivered),
        *_disturbances(run),
        ("longest pause", f"{show_seconds(report.longest_publish_pause)} between two acknowledgements"),
        ("", f"{show_seconds(max(report.channel_pauses.values(), default=0.0))} between two of the same channel"),
        ("", f"{show_seconds(report.longest_delivery_pause)} between two deliveries"),
        ("lost", report.lost),
        ("lost in groups", report.lost_in_group + report.unsettled),
        ("duplicated", report.duplicated),
        ("out of order", report.reordered),
        ("at another offset", report.misplaced),
        ("damaged", report.damaged),
        ("stored though refused", report.phantom),
        ("again after its ack", report.redelivered_after_ack),
        ("verdict", _verdict(report, run)),
    ]
    data = {
        "ok": report.ok and not run.unhealed,
        "killed": run.killed + sum(fault.kind == "kill" for fault in run.struck),
        "faults": [asdict(fault) for fault in run.struck],
        "longest_healing": run.longest_healing,
        "unhealed": run.unhealed,
        **asdict(report),
        "parameters": asdict(run.plan),
    }
    output.details(rows, data)


def _disturbances(run: Run) -> list[tuple[str, object]]:
    if run.faults is None:
        return [("node killed", f"{run.killed} times" if run.killed != 1 else "once")]
    counts = Counter(fault.kind for fault in run.struck)
    struck = ", ".join(f"{count} {kind}{'s' if count != 1 else ''}" for kind, count in sorted(counts.items()))
    healed = f"all copies in sync again within {show_seconds(run.longest_healing)}"
    if run.unhealed:
        healed = f"{run.unhealed} not healed within {show_seconds(HEAL_SECONDS)}"
    return [("faults", f"{struck}; {healed}" if struck else "none")]


def _verdict(report: Report, run: Run) -> str:
    if report.ok and run.unhealed:
        return "FAILED: nothing was lost, but the cluster did not become whole again"
    return "OK: every promise was kept" if report.ok else _fault(report)


def _fault(report: Report) -> str:
    return "FAILED: a promise was broken" if report.acked else "FAILED: nothing was acknowledged, so nothing is proved"
