"""Measures Ringpost beside the gRPC ceiling and NATS JetStream: interleaved, repeated, median and range.

Writes `.benchmarks/compare.json` (every single figure) and `.benchmarks/compare.md`, and prints the latter.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from measure import SCRATCH, scratch
from table import markdown

from ringpost.client.testing.broker import BrokerProcess

HERE = Path(__file__).resolve().parent
PYTHON = Path(sys.executable)


class Case(NamedTuple):
    """One load of one system. `contract` is the durability, as the table's heading says it.

    `batch` messages are handed over per call, at most `window` calls wait for their answer.
    """

    system: str
    contract: str
    load: str
    size: int
    batch: int
    window: int
    command: tuple[str, ...]


def output(command: tuple[str, ...], **environment: str) -> dict[str, Any]:
    """The JSON object that a program prints."""
    done = subprocess.run(command, env={**os.environ, **environment}, check=False, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)} exited {done.returncode}\n{done.stdout}{done.stderr}")
    return dict(json.loads(done.stdout))


def ringpost_cases(seconds: float, quick: bool) -> Iterator[Case]:
    contracts = {"memory": "T0 volatile", "quorum": "T2 fsynced on one node"}
    tool = str(PYTHON.with_name("ringpost"))
    for durability, contract in contracts.items():
        for load in ("pub", "pubsub"):
            for size in (128,) if quick else (128, 1024):
                for batch in (1, 1_000) if quick else (1, 100, 1_000):
                    # Single messages wait for their answers as those of JetStream do.
                    window = 1_000 if batch == 1 else 16
                    options = {"size": size, "batch": batch, "window": window, "durability": durability}
                    flags = [part for name, value in options.items() for part in (f"--{name}", str(value))]
                    command = (tool, "bench", load, *flags, "--seconds", f"{seconds}s", "-o", "json")
                    yield Case("ringpost", contract, load, size, batch, window, command)
    # Like JetStream's consumers: a durable group, every message acknowledged, in ranges.
    command = (tool, "bench", "pubsub", "--size", "128", "--batch", "1000", "--window", "16", "--group")
    command += ("--durability", "quorum", "--seconds", f"{seconds}s", "-o", "json")
    yield Case("ringpost", contracts["quorum"], "group", 128, 1_000, 16, command)


def jetstream_cases(quick: bool) -> Iterator[Case]:
    if shutil.which("nats-server") is None and os.geteuid() == 0 and shutil.which("apt-get"):
        subprocess.run(("apt-get", "install", "-y", "-qq", "nats-server"), check=False, stdout=sys.stderr)
    if shutil.which("nats-server") is None:
        print("nats-server is not installed (Debian: apt-get install nats-server); going on without", file=sys.stderr)
        return
    for size in (128,) if quick else (128, 1024):
        command = (str(PYTHON), str(HERE / "jetstream.py"), "--size", str(size))
        command += ("--count", "20000" if quick else "60000")
        yield Case("nats JetStream", "T1 written to the OS", "pub, then sub with acks", size, 1, 1_000, command)


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """All cases in turn, as often as asked: A B C A B C."""
    cases = [*jetstream_cases(arguments.quick), *ringpost_cases(arguments.seconds, arguments.quick)]
    ceiling = (str(PYTHON), str(HERE / "ceiling.py"), "--scale", "0.5" if arguments.quick else "1")
    ceilings: list[dict[str, Any]] = []
    figures: list[list[dict[str, Any]]] = [[] for _ in cases]
    for turn in range(arguments.repeat):
        ceilings.append(output(ceiling))
        for case, found in zip(cases, figures, strict=True):
            print(
                f"{turn + 1}/{arguments.repeat} {case.system} {case.load} {case.size} B x {case.batch}", file=sys.stderr
            )
            if case.system == "ringpost":
                with scratch() as folder, BrokerProcess(folder / "data") as broker:
                    found.append(output(case.command, RINGPOST_ADDR=broker.address))
            else:
                found.append(output(case.command))
    return {
        "machine": {
            "cores": os.cpu_count(),
            "system": f"{platform.system()} {platform.release().split('-')[0]}",
            "python": platform.python_version(),
        },
        "versions": {"ringpost": version("ringpost"), "grpcio": version("grpcio"), "nats": nats_version()},
        "ceiling": ceilings,
        "cases": [{**case._asdict(), "runs": runs} for case, runs in zip(cases, figures, strict=True)],
    }


def nats_version() -> str:
    if shutil.which("nats-server") is None:
        return "none"
    server = subprocess.run(("nats-server", "--version"), check=True, capture_output=True, text=True).stdout.split()[-1]
    return f"{server} under nats-py {version('nats-py')}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer loads, two repetitions: to see that it works")
    parser.add_argument("--repeat", type=int, help="repetitions (default 5)")
    parser.add_argument("--seconds", type=float, help="length of each Ringpost load (default 4)")
    arguments = parser.parse_args()
    arguments.repeat = arguments.repeat or (2 if arguments.quick else 5)
    arguments.seconds = arguments.seconds or (2 if arguments.quick else 4)
    result = measure(arguments)
    text = markdown(result)
    (SCRATCH / "compare.json").write_text(json.dumps(result, indent=1) + "\n")
    (SCRATCH / "compare.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
