"""`up`, `down`, `serve`: nodes on this machine."""

import contextlib
import os
import sys
from dataclasses import asdict
from pathlib import Path

import click
from click.core import ParameterSource

from ringpost.client.api import connect
from ringpost.client.cli import local, local_cluster
from ringpost.client.cli.cluster_up import down_cluster, up_cluster
from ringpost.client.cli.command import PATIENCE, output_option
from ringpost.client.cli.local_cluster import Wanted
from ringpost.client.cli.nodes import damage
from ringpost.client.cli.output import Output, confirm, note
from ringpost.client.cli.running import run_to_end
from ringpost.client.cli.units import counted
from ringpost.client.errors import RingpostError
from ringpost.v1.cluster_pb2 import NodeInfo

DEFAULT_PORT = 7400


@click.command()
@click.option(
    "--port",
    type=click.IntRange(0, 65533),
    default=DEFAULT_PORT,
    show_default=True,
    help="Port for clients; metrics and health get the port + 2. Each further node: 10 more. 0: any free ports.",
)
@click.option(
    "--data-dir", type=click.Path(file_okay=False, path_type=Path), help="Where messages are kept (one node)."
)
@click.option("--nodes", type=click.IntRange(1, 64), help="Start a cluster of so many nodes, and an etcd for it.")
@click.option("--zones", metavar="A,B,…", help="Zones that the cluster's nodes are in, in turn.")
@click.option("--replication-factor", type=click.IntRange(1, 9), help="Copies of each shard in the cluster. [3]")
@click.option("--in-process", is_flag=True, help="All nodes of the cluster in one process, without etcd.")
@click.argument("settings", nargs=-1, type=click.UNPROCESSED, metavar="[-- SETTING...]")
@output_option
@click.pass_context
def up(
    ctx: click.Context,
    port: int,
    data_dir: Path | None,
    nodes: int | None,
    zones: str | None,
    replication_factor: int | None,
    in_process: bool,
    settings: tuple[str, ...],
    output: Output,
) -> None:
    """Start a node, or a cluster of several, in the background.

    Its state is kept in $RINGPOST_HOME (default ~/.local/state/ringpost). When it runs already, this says so, and
    fails if another port or directory was asked for. What follows -- goes to the node as it is: see `ringpost serve
    --help`; for example `ringpost up -- --accept-loss` or `ringpost up -- --segment-bytes 64MiB`.
    """
    wanted_port = None if ctx.get_parameter_source("port") is ParameterSource.DEFAULT else port
    folder = local.home()
    if nodes is not None:
        if data_dir is not None:
            raise click.UsageError("--data-dir is for one node; a cluster keeps its data in $RINGPOST_HOME.")
        if in_process and (zones or replication_factor):
            raise click.UsageError("--in-process takes neither --zones nor --replication-factor.")
        if settings:
            raise click.UsageError("settings after -- are for one node.")
        named = [zone.strip() for zone in (zones or "").split(",") if zone.strip()]
        up_cluster(folder, Wanted(nodes, port, named, replication_factor or 0), in_process, output)
        return
    if zones or replication_factor or in_process:
        raise click.UsageError("--zones, --replication-factor and --in-process are for a cluster: add --nodes 3.")
    with local.exclusive(folder):
        _check_no_cluster(folder)
        node = local.remembered(folder)
        already = node is not None and local.running(node)
        if node is None or not already:
            listen, http = f"127.0.0.1:{port}", f"127.0.0.1:{port + 2 if port else 0}"
            node = local.start(folder, (data_dir or folder / "data").absolute(), listen, http, settings)
        else:
            _check_same(node, wanted_port, data_dir, settings)
    _warn_of_damage(node)
    if output.is_json:
        output.line("", {**asdict(node), "already_running": already})
        return
    click.echo(f"A node {'already serves' if already else 'serves'} on {node.address} (process {node.pid}).")
    note(f"data: {node.data_dir} · log: {node.log} · metrics: http://{node.http_address}/metrics")
    note(_what_next(node.address))


def _check_no_cluster(folder: Path) -> None:
    cluster = local_cluster.remembered(folder)
    if cluster is not None and cluster.running:
        raise local.LocalNodeError(
            f"A cluster of {len(cluster.nodes)} nodes runs in this home. `ringpost down` stops it; another"
            " RINGPOST_HOME runs a node beside it."
        )


def _warn_of_damage(node: local.LocalNode) -> None:
    """A node with damaged shards serves the others, so nothing else would say it here."""

    async def ask() -> NodeInfo | None:
        async with connect(node.address, options=PATIENCE) as mq:
            return mq.connected_to

    with contextlib.suppress(RingpostError):  # it has said that it serves
        found = run_to_end(ask())
        for sentence in damage(found) if found is not None else ():
            note(
                f"Warning: {sentence}\nThe log says what is damaged. Restore the data from a backup, or go on without"
                f" it: ringpost down && ringpost up -- {local.ACCEPT_LOSS}"
            )
        if found is not None and found.lost_messages:
            note(f"Warning: {counted(found.lost_messages, 'message')} lost to damage; the log of the start says which.")


def _check_same(node: local.LocalNode, port: int | None, data_dir: Path | None, settings: tuple[str, ...]) -> None:
    """Raises `LocalNodeError` when the running node is not the one that was asked for. Port 0 is any."""
    same_port = not port or node.address.rpartition(":")[2] == str(port)
    same_settings = not settings or list(settings) == list(node.settings)
    if not (same_port and same_settings) or (
        data_dir is not None and data_dir.resolve() != Path(node.data_dir).resolve()
    ):
        raise local.LocalNodeError(
            f"A node of this home already serves on {node.address} with its data in {node.data_dir}."
            " `ringpost down` stops it; another RINGPOST_HOME runs one beside it."
        )


def _what_next(address: str) -> str:
    export = "" if address == f"127.0.0.1:{DEFAULT_PORT}" else f"  export RINGPOST_ADDR={address}\n"
    return (
        f"\nTry next:\n{export}"
        "  ringpost sub orders.eu --group billing      # in another terminal\n"
        "  ringpost pub orders.eu hello --key 42\n"
        "  ringpost verify --seconds 10 --kill\n"
        "  ringpost down"
    )


@click.command()
@click.option("--purge", is_flag=True, help="Also remove all of its messages.")
@click.option("--yes", is_flag=True, help="Do not ask before removing.")
def down(purge: bool, yes: bool) -> None:
    """Stop the node or the cluster that `up` started.

    It finishes what it is doing first. Its messages stay, unless --purge is given.
    """
    folder = local.home()
    with local.exclusive(folder):
        if down_cluster(folder, purge=purge, yes=yes):
            return
        node = local.remembered(folder)
        data_dir = Path(node.data_dir) if node else folder / "data"
        if purge and data_dir.exists():
            confirm(f"Remove all messages in {data_dir}?", yes=yes)
        if node is not None and local.running(node):
            clean = local.stop(node)
            note(f"Stopped the node on {node.address}." if clean else "It did not stop in time and was killed.")
        else:
            note("No node of `ringpost up` is running.")
        if purge:
            local.purge(folder, data_dir)
            note(f"Removed {data_dir}.")


@click.command(
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    add_help_option=False,
    short_help="Run a node in the foreground (see `ringpost serve --help`).",
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def serve(arguments: tuple[str, ...]) -> None:
    """Run a node in the foreground: `python -m ringpost.node` with the same arguments."""
    # A new program in place of this one: signals reach the node itself, and the client package needs no node code.
    os.execv(sys.executable, [sys.executable, "-m", "ringpost.node", *arguments])
