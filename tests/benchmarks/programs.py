"""Programs beside this suite that measure by themselves, through the same command."""

import json
import re
import subprocess
import sys
from collections.abc import Sequence

from tests.benchmarks.lean import ROOT
from tests.benchmarks.suite import Suite

_LINES = 30


def _run(suite: Suite, name: str, command: Sequence[str], wanted: str) -> None:
    """Its exit code is a fault if it is not 0; the lines that match are the figures."""
    done = subprocess.run((sys.executable, *command), cwd=ROOT, check=False, capture_output=True, text=True)
    lines = [line.strip() for line in done.stdout.splitlines() if re.search(wanted, line)][-_LINES:]
    if done.returncode:
        suite.faults.append(
            f"{name}: {' '.join(command)} exited {done.returncode}: {done.stdout[-500:]}{done.stderr[-500:]}"
        )
    rows = [{"what": line.partition(": ")[0], "values": [line.partition(": ")[2]]} for line in lines]
    suite.figures[name] = {"columns": ["seconds"], "rows": rows, "note": f"`python {' '.join(command)}`"}


def failover(suite: Suite) -> None:
    """B10: the longest time without an acknowledgement around a fault."""
    kinds = ("kill", "freeze", "transfer") if suite.plan.full else ("kill", "transfer")
    runs = "5" if suite.plan.full else "2"
    only = [word for kind in kinds for word in ("--only", kind)]
    _run(suite, "B10", ("-m", "tests.system.failover", "--runs", runs, *only), r"^\w+: min")


def moves(suite: Suite) -> None:
    """B11: a fourth node joins under load and leaves again."""
    test = "tests/system/test_operations.py::test_a_fourth_node_joins_and_leaves"
    _run(suite, "B11", ("-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", test), r"^(join|leave): ")


def channels(suite: Suite) -> None:
    """B5: what a channel costs, and how long a start takes with so many."""
    _figures(suite, "B5", "tests.benchmarks.scale_channels", "--channels", "1000000" if suite.plan.full else "100000")


def connections(suite: Suite) -> None:
    """B6: what an idle subscriber costs, and how long it takes until all that were dropped are back."""
    count = "10000" if suite.plan.full else "1000"
    _figures(suite, "B6", "tests.benchmarks.scale_connections", "--subscribers", count)


def _figures(suite: Suite, name: str, module: str, *arguments: str) -> None:
    """A program that prints one JSON object."""
    command = ("-m", module, *arguments)
    done = subprocess.run((sys.executable, *command), cwd=ROOT, check=False, capture_output=True, text=True)
    if done.returncode:
        suite.faults.append(f"{name}: {module} exited {done.returncode}: {done.stdout[-500:]}{done.stderr[-500:]}")
        return
    found = {what: value for what, value in json.loads(done.stdout).items() if what != "machine"}
    rows = [{"what": what.replace("_", " "), "values": [value]} for what, value in found.items()]
    suite.figures[name] = {"columns": ["figure"], "rows": rows, "note": f"`python {' '.join(command)}`"}
