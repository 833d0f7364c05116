"""`demo`: the broker's main job on real input, with a crash in the middle and a proof at the end."""

import platform
import time
from dataclasses import asdict
from typing import Any

import click

from ringpost.client.cli import corpus
from ringpost.client.cli.command import output_option
from ringpost.client.cli.demo_run import Demo, Verdict
from ringpost.client.cli.demo_stage import Stage, stage
from ringpost.client.cli.output import Output, progress
from ringpost.client.cli.proof import Comparison
from ringpost.client.cli.running import run_to_end
from ringpost.client.cli.units import show_bytes, show_seconds
from ringpost.client.testing.broker import BrokerFailed

_WORKERS = 3
_QUICK_CHANNELS = 12


@click.command()
@click.option("--quick", is_flag=True, help="A dozen packages only.")
@click.option(
    "--workers", type=click.IntRange(1, 16), default=_WORKERS, show_default=True, help="Members of each group."
)
@output_option
def demo(quick: bool, workers: int, output: Output) -> None:
    """Send Python's own standard library through a cluster that loses a node, and prove that nothing was lost.

    Starts three private nodes and an etcd (without one, three nodes in one process); publishes every source line, one
    channel for each top-level package; reads all of it back through durable groups and through a replaying
    subscriber; kills the owner of a busy channel with SIGKILL in the middle, and starts it again later; then compares
    every file by SHA-256. Leaves nothing behind.
    """
    begin = time.perf_counter()
    sources = _sources(quick)
    try:
        with stage() as played:
            run = Demo(played.address, sources, workers, crash=played.crash)
            run_to_end(_play(run))
            verdict = run.verdict()
            _report(run, verdict, played, time.perf_counter() - begin, output)
    except BrokerFailed as error:
        raise click.ClickException(str(error)) from None
    if not verdict.ok:
        raise click.exceptions.Exit(1)


def _sources(quick: bool) -> list[corpus.Source]:
    """The whole library without its own tests; for a quick look the dozen smallest channels above 1,000 lines."""
    sources = list(corpus.read(corpus.library(), with_tests=False))
    if not quick:
        return sources
    sizes: dict[str, int] = {}
    for source in sources:
        sizes[source.channel] = sizes.get(source.channel, 0) + source.content.count(b"\n")
    chosen = sorted((lines, channel) for channel, lines in sizes.items() if lines >= 1_000)[:_QUICK_CHANNELS]
    names = {channel for _, channel in chosen}
    return [source for source in sources if source.channel in names]


async def _play(run: Demo) -> None:
    """The run, with a progress bar."""
    with progress() as bar:
        names = ("published", "replayed", "through groups")
        tasks = [bar.add_task(name, total=run.lines, extra="") for name in names]

        def tick(run: Demo) -> None:
            extra = "  node killed" if run.crashed else ""
            for task, count in zip(tasks, (run.published.total(), run.replayed, run.shared), strict=True):
                bar.update(task, completed=count, extra=extra)

        run.tick = tick
        await run.execute()


def _report(run: Demo, verdict: Verdict, played: Stage, seconds: float, output: Output) -> None:
    size = sum(len(source.content) for source in run.sources)
    files = sum(1 for source in run.sources if source.content)
    acks = run.ack_times.summary()
    levels = " / ".join(f"{level} on {count} node{'s' if count > 1 else ''}" for level, count in sorted(run.durability))
    rows: list[tuple[str, object]] = [
        ("stage", played.title),
        ("input", f"{files:,} files of Python {platform.python_version()}, {run.lines:,} lines, {show_bytes(size)}"),
        ("channels", f"{len(run.channels)}, each with a durable group of {run.workers} workers and a replaying reader"),
        (
            "published",
            f"{run.published.total():,} in {show_seconds(run.publish_seconds)},"
            f" {run.published.total() / run.publish_seconds:,.0f} msg/s, crash included",
        ),
        ("durability", f"{levels}: every acknowledged line was fsynced"),
        ("ack time", f"p50 {show_seconds(acks.p50)}, p99 {show_seconds(acks.p99)} for up to 1,000 lines"),
        (
            "crash",
            f"SIGKILL to {run.victim} while publishing and reading; it served again after"
            f" {show_seconds(run.crash_seconds)}, longest pause {show_seconds(run.pauses.longest)},"
            f" of that channel {show_seconds(run.victim_pauses.longest)}",
        ),
        (
            "read back",
            f"{run.replayed:,} replayed and {run.shared:,} through groups in {show_seconds(run.read_seconds)},"
            f" {(run.replayed + run.shared) / run.read_seconds:,.0f} msg/s",
        ),
        ("the log", _log_sentence(verdict)),
        ("the groups", _group_sentence(verdict)),
        ("SHA-256", f"replay {_files(verdict.replay, files)}; groups {_files(verdict.group, files)}"),
        ("total", show_seconds(seconds)),
        ("result", "PROVED: nothing lost, doubled or out of order" if verdict.ok else "FAILED"),
    ]
    output.details(rows, {"stage": played.title, **_as_json(run, verdict, seconds)})
    for comparison in (verdict.replay, verdict.group):
        for what in ("missing", "different", "unexpected"):
            for path in getattr(comparison, what)[:10]:
                click.echo(f"{what}: {path}", err=True)


def _log_sentence(verdict: Verdict) -> str:
    faults = {
        "missing": verdict.missing,
        "doubled": verdict.surplus,
        "repeated": verdict.repeated,
        "skipped": verdict.skipped,
    }
    found = [f"{count:,} {name}" for name, count in faults.items() if count]
    return ", ".join(found) or "exactly one message for each line, offsets without a gap"


def _group_sentence(verdict: Verdict) -> str:
    text = f"all settled, {verdict.redelivered:,} delivered again after the crash (at least once)"
    if verdict.unsettled or verdict.changed:
        text = (
            f"{verdict.unsettled:,} not settled, {verdict.changed:,} changed, {verdict.redelivered:,} delivered again"
        )
    return text


def _files(comparison: Comparison, total: int) -> str:
    return f"{comparison.identical:,} of {total:,} files identical"


def _as_json(run: Demo, verdict: Verdict, seconds: float) -> dict[str, Any]:
    return {
        "ok": verdict.ok,
        "files": len(run.sources),
        "lines": run.lines,
        "channels": len(run.channels),
        "workers": run.workers,
        "publish_seconds": round(run.publish_seconds, 3),
        "read_seconds": round(run.read_seconds, 3),
        "total_seconds": round(seconds, 3),
        "crash_seconds": round(run.crash_seconds, 3),
        "longest_pause_seconds": round(run.pauses.longest, 3),
        "victim": run.victim,
        "victim_pause_seconds": round(run.victim_pauses.longest, 3),
        "ack_ms": run.ack_times.summary().as_ms(),
        "durability": sorted(level for level, _ in run.durability),
        **asdict(verdict),
    }
