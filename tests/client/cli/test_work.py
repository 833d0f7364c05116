"""bench, verify and demo, small, against a real node."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import Cli


@pytest.mark.parametrize(
    "arguments",
    [
        ["pub", "--messages", "2000", "--channels", "3", "--producers", "2", "--batch", "100"],
        ["pub", "--messages", "500", "--batch", "1", "--window", "100", "--durability", "memory"],
        ["sub", "--messages", "3000", "--group"],
        ["pubsub", "--messages", "2000", "--channels", "2", "--size", "1KiB"],
        ["fanout", "--messages", "500", "--subscribers", "4"],
        ["latency", "--messages", "100", "--rate", "500"],
    ],
    ids=" ".join,
)
def test_a_benchmark_reports_all_messages_with_its_parameters_and_cleans_up(cli: Cli, arguments: list[str]) -> None:
    report = cli("bench", *arguments, "-o", "json").json
    count = int(arguments[arguments.index("--messages") + 1])
    kind = arguments[0]
    assert report["benchmark"] == kind
    assert report["published"] == (0 if kind == "sub" else count)
    assert report["delivered"] == {"pub": 0, "fanout": count * 4}.get(kind, count)
    assert report["broker_cpu_us_per_message"] > 0
    assert report["parameters"]["messages"] == count
    assert cli("channel", "ls", "bench.", "-o", "json").json == []


def test_verify_finds_a_healthy_node_healthy_and_cleans_up(cli: Cli) -> None:
    ran = cli("verify", "--seconds", "1", "--producers", "2", "--channels", "2", "-o", "json")
    assert ran.code == 0
    assert ran.json["ok"]
    assert ran.json["acked"] == ran.json["tried"] == ran.json["replayed"] > 0
    assert cli("channel", "ls", "verify.", "-o", "json").json == []


def test_verify_kills_only_a_node_of_its_own_home(cli: Cli) -> None:
    ran = cli("verify", "--kill")
    assert ran.code == 2
    assert "needs the local node of `ringpost up`" in ran.err


def test_the_demo_proves_itself_through_a_crash_and_leaves_nothing(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "ringpost.client.cli", "demo", "--quick"],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        timeout=120,
        check=False,
    )
    report = ran.stdout.decode()
    assert ran.returncode == 0, report + ran.stderr.decode()
    assert "PROVED" in report
    assert "SIGKILL" in report
    assert not list(tmp_path.iterdir())
