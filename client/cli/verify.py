"""`verify`: prove that the broker keeps its promises, also while it is killed."""

from dataclasses import asdict
from typing import Any

import click

from ringpost.client.cli import local
from ringpost.client.cli.command import addr_option, async_command, output_option
from ringpost.client.cli.ledger import HEAD_BYTES, Report
from ringpost.client.cli.output import Output, progress
from ringpost.client.cli.params import DURABILITY, duration, size
from ringpost.client.cli.units import show_seconds
from ringpost.client.cli.verify_run import Plan, Run


@click.command()
@click.option("--seconds", type=duration, default="10s", show_default=True, help="How long to publish.")
@click.option("--producers", type=click.IntRange(1, 64), default=4, show_default=True)
@click.option("--channels", type=click.IntRange(1, 256), default=4, show_default=True)
@click.option("--rate", type=click.FloatRange(1), default=1000.0, show_default=True, help="Messages/s of a producer.")
@click.option("--burst", type=click.IntRange(1, 10_000), default=50, show_default=True, help="Messages sent at once.")
@click.option("--size", type=size, default="128B", show_default=True, help=f"Of a message, at least {HEAD_BYTES}B.")
@click.option("--durability", type=DURABILITY, default="quorum", show_default=True)
@click.option("--kill", is_flag=True, help="SIGKILL and restart the node of `ringpost up` while running.")
@click.option("--kills", type=click.IntRange(1, 1000), help="So many times (implies --kill; default 3).")
@output_option
@addr_option
@async_command
async def verify(output: Output, kill: bool, kills: int | None, size: int, **options: Any) -> None:
    """Publish numbered messages, read them back, and report any that is lost, doubled or out of order.

    Several producers write to channels made for this; a replaying subscriber and a durable group read them. Exit
    code 0: every promise was kept. 1: one was broken.
    """
    if options["seconds"] == 0:
        raise click.UsageError("--seconds: above 0.")
    if size < HEAD_BYTES:
        raise click.UsageError(f"--size: at least {HEAD_BYTES}B, to hold a message's number.")
    times = kills or (3 if kill else 0)
    plan = Plan(**options, size=size, kills=times)
    killer = _killer(plan.addr) if times else None
    if times and plan.durability == "memory":
        raise click.UsageError("Memory durability promises nothing when the node is killed; use leader or quorum.")
    with progress() as bar:
        task = bar.add_task("verifying", total=round(plan.seconds * plan.rate * plan.producers), extra="")
        run = Run(plan, kill=killer)
        run.tick = lambda run: bar.update(
            task, completed=run.ledger.tried, extra=f"node killed: {run.killed}" if times else ""
        )
        await run.execute()
    report = run.ledger.report(run.unsettled)
    _print(report, plan, run.killed, output)
    if not report.ok:
        raise click.exceptions.Exit(1)


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


def _print(report: Report, plan: Plan, killed: int, output: Output) -> None:
    rows: list[tuple[str, object]] = [
        ("published", f"{report.acked:,} acknowledged of {report.tried:,}"),
        ("without an answer", report.unanswered),
        ("refused", report.refused),
        ("replayed", report.replayed),
        ("redelivered in the group", report.redelivered),
        ("node killed", f"{killed} times" if killed != 1 else "once"),
        ("longest pause", f"{show_seconds(report.longest_publish_pause)} between two acknowledgements"),
        ("", f"{show_seconds(report.longest_delivery_pause)} between two deliveries"),
        ("lost", report.lost),
        ("lost in the group", report.lost_in_group + report.unsettled),
        ("duplicated", report.duplicated),
        ("out of order", report.reordered),
        ("at another offset", report.misplaced),
        ("damaged", report.damaged),
        ("stored though refused", report.phantom),
        ("again after its ack", report.redelivered_after_ack),
        ("verdict", "OK: every promise was kept" if report.ok else _fault(report)),
    ]
    output.details(rows, {"ok": report.ok, "killed": killed, **asdict(report), "parameters": asdict(plan)})


def _fault(report: Report) -> str:
    return "FAILED: a promise was broken" if report.acked else "FAILED: nothing was acknowledged, so nothing is proved"
