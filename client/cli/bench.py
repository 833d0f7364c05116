"""`bench pub|sub|pubsub|latency|fanout`: measure a node from this machine."""

from collections.abc import Awaitable, Callable
from typing import Any

import click

from ringpost.client.cli import bench_loads
from ringpost.client.cli.bench_parts import Load, Watch
from ringpost.client.cli.bench_report import Result
from ringpost.client.cli.command import addr_option, async_command, output_option
from ringpost.client.cli.output import Output, progress
from ringpost.client.cli.params import DURABILITY, duration, size

_SIZE_MAX = 16 << 20


@click.group()
def bench() -> None:
    """Measure throughput, latency and CPU per message.

    Each run makes channels of its own and removes them afterwards. Payloads are random and so incompressible. The
    broker's CPU is what its process used meanwhile; on a node with other work it is not this run's alone. Client and
    broker share this machine's cores when both run here.
    """


def load_options(*, batch: int, window: int, seconds: str = "5s") -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The options that make a `Load`, with a benchmark's own defaults."""

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in (
            click.option("--durability", type=DURABILITY, default="quorum", show_default=True),
            click.option(
                "--window",
                type=click.IntRange(1),
                default=window,
                show_default=True,
                help="Calls of one producer on their way at a time.",
            ),
            click.option("--producers", type=click.IntRange(1, 256), default=1, show_default=True),
            click.option("--channels", type=click.IntRange(1, 10_000), default=1, show_default=True),
            click.option("--seconds", type=duration, help=f"Publish so long. [default: {seconds}]"),
            click.option("--messages", type=click.IntRange(1), help="Publish so many, in place of --seconds."),
            click.option(
                "--batch",
                type=click.IntRange(1, 65_535),
                default=batch,
                show_default=True,
                help="Messages handed over per call.",
            ),
            click.option("--size", type=size, default="128B", show_default=True, help="Payload of a message."),
        ):
            command = option(command)
        return command

    return add


def make_load(seconds: float | None, messages: int | None, default_seconds: float = 5.0, **rest: Any) -> Load:
    """Raises `click.UsageError` when both ends are named."""
    if seconds is not None and messages is not None:
        raise click.UsageError("Give either --seconds or --messages.")
    if seconds == 0:
        raise click.UsageError("--seconds: above 0.")
    if rest["size"] > _SIZE_MAX:
        raise click.UsageError("--size: at most 16MiB.")
    return Load(seconds=0.0 if messages else seconds or default_seconds, messages=messages or 0, **rest)


async def run(name: str, load: Load, output: Output, job: Callable[[Watch], Awaitable[Result]]) -> None:
    """Runs one benchmark under a progress bar and prints it."""
    with progress() as bar:
        total = load.messages or round(load.seconds * load.rate) or None
        task = bar.add_task(name, total=total, extra="")
        result = await job(lambda count: bar.advance(task, count))
    result.print(output)


@bench.command()
@load_options(batch=100, window=16)
@output_option
@addr_option
@async_command
async def pub(addr: str, output: Output, **options: Any) -> None:
    """Publish as fast as the window allows."""
    load = make_load(**options)
    await run("publishing", load, output, lambda watch: bench_loads.publish(addr, load, watch))


@bench.command()
@load_options(batch=1000, window=16, seconds="2s")
@click.option("--group", is_flag=True, help="Read as a durable group, with acks.")
@output_option
@addr_option
@async_command
async def sub(addr: str, output: Output, group: bool, **options: Any) -> None:
    """Read what was published before: a cold replay. --seconds is how long to fill the channels."""
    load = make_load(default_seconds=2.0, **options)
    await run("filling, then reading", load, output, lambda watch: bench_loads.subscribe(addr, load, watch, group))


@bench.command()
@load_options(batch=100, window=16)
@click.option("--group", is_flag=True, help="Read as a durable group, with acks.")
@output_option
@addr_option
@async_command
async def pubsub(addr: str, output: Output, group: bool, **options: Any) -> None:
    """Publish and read live at the same time."""
    load = make_load(**options)
    await run("publishing and reading", load, output, lambda watch: bench_loads.both(addr, load, watch, group))


@bench.command()
@load_options(batch=100, window=4)
@click.option("--subscribers", type=click.IntRange(1, 10_000), default=10, show_default=True)
@output_option
@addr_option
@async_command
async def fanout(addr: str, output: Output, **options: Any) -> None:
    """One channel, many subscribers that each get everything."""
    if options["channels"] != 1:
        raise click.UsageError("fanout uses one channel.")
    load = make_load(**options)
    await run("fanning out", load, output, lambda watch: bench_loads.fan_out(addr, load, watch))


@bench.command()
@click.option(
    "--rate", type=click.FloatRange(1, 10_000_000), default=1000.0, show_default=True, help="Messages a second."
)
@click.option("--size", type=size, default="128B", show_default=True, help="Payload, at least 8B.")
@click.option("--seconds", type=duration, help="Publish so long. [default: 5s]")
@click.option("--messages", type=click.IntRange(1), help="Publish so many, in place of --seconds.")
@click.option("--durability", type=DURABILITY, default="quorum", show_default=True)
@output_option
@addr_option
@async_command
async def latency(addr: str, output: Output, size: int, **options: Any) -> None:
    """Time from the intended moment of sending to the ack and to the delivery, at a fixed rate (open loop)."""
    if size < bench_loads.STAMP_BYTES:
        raise click.UsageError(f"--size: at least {bench_loads.STAMP_BYTES}B, to hold the time of sending.")
    load = make_load(**options, size=size, batch=1, channels=1, producers=1, window=0)
    await run("measuring", load, output, lambda watch: bench_loads.latency(addr, load, watch))
