"""Ctrl-C, a node that dies, a reader that leaves: what a person at the terminal meets."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import psutil
import pytest
from click.testing import CliRunner

from ringpost.client.cli import demo_run, main
from ringpost.client.cli.proof import Comparison

SECONDS = 30
# Less than any of the SDK's own timeouts: nothing of a command's end may wait for one of them.
PROMPT_SECONDS = 6


@contextlib.contextmanager
def begun(*arguments: str, addr: str, stdin: Any = subprocess.DEVNULL) -> Iterator["subprocess.Popen[bytes]"]:
    """`ringpost …` in the background; killed at the end if it still runs."""
    process = subprocess.Popen(
        [sys.executable, "-m", "ringpost.client.cli", *arguments],
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "RINGPOST_ADDR": addr},
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def line(stream: IO[bytes] | None) -> str:
    assert stream is not None
    return stream.readline().decode()


def interrupt(process: "subprocess.Popen[bytes]", number: int = signal.SIGINT) -> tuple[int, float, str]:
    """Ctrl-C, or another signal: exit code, seconds until the end, the rest of stderr."""
    begin = time.monotonic()
    process.send_signal(number)
    _, err = process.communicate(timeout=SECONDS)
    return process.returncode, time.monotonic() - begin, err.decode()


def test_a_waiting_subscriber_ends_at_once_and_says_nothing(ringpost_session_broker: Any, cli: Any) -> None:
    cli("pub", "int.a", "hello")
    with begun("sub", "int.a", "--from", "earliest", addr=ringpost_session_broker.address) as sub:
        assert "hello" in line(sub.stdout)
        code, seconds, err = interrupt(sub)
    assert (code, err) == (130, "")
    assert seconds < PROMPT_SECONDS


@pytest.mark.parametrize("sign", ["SIGKILL", "SIGSTOP"])
def test_a_publisher_whose_node_is_gone_ends_soon(ringpost_broker_factory: Any, sign: str) -> None:
    broker = ringpost_broker_factory()
    with begun("pub", "int.b", "--lines", "-", addr=broker.address, stdin=subprocess.PIPE) as pub:
        with begun("sub", "int.b", "--from", "earliest", "--count", "1", addr=broker.address) as sub:
            assert pub.stdin is not None
            pub.stdin.write(b"first\n")
            pub.stdin.flush()
            assert "first" in line(sub.stdout)
        os.kill(broker.pid, getattr(signal, sign))
        pub.stdin.write(b"never answered\n")
        pub.stdin.flush()
        code, seconds, err = interrupt(pub)
    broker.kill()
    assert code == 130
    assert "Traceback" not in err
    assert seconds < PROMPT_SECONDS


def test_a_publisher_carries_on_when_its_node_comes_back(ringpost_broker: Any) -> None:
    with begun("pub", "int.c", "--lines", "-", addr=ringpost_broker.address, stdin=subprocess.PIPE) as pub:
        assert pub.stdin is not None
        pub.stdin.write(b"before\n")
        pub.stdin.flush()
        with begun("sub", "int.c", "--from", "earliest", "--count", "1", addr=ringpost_broker.address) as sub:
            assert "before" in line(sub.stdout)
        ringpost_broker.kill()
        pub.stdin.write(b"meanwhile\n")
        pub.stdin.flush()
        ringpost_broker.start()
        out, _ = pub.communicate(b"after\n", timeout=SECONDS)
    assert pub.returncode == 0
    assert b"3 messages, offsets 0 to 2" in out


@pytest.mark.parametrize("end", ["kill", "terminate"])
def test_a_subscriber_tells_that_its_node_is_away_and_back(ringpost_broker: Any, end: str) -> None:
    address = ringpost_broker.address
    with begun("pub", "int.d", "one", addr=address) as pub:
        assert pub.wait(SECONDS) == 0
    with begun("sub", "int.d", "--from", "0", "--count", "2", "--text", addr=address) as sub:
        assert line(sub.stdout) == "one\n"
        getattr(ringpost_broker, end)()
        assert "connection is lost" in line(sub.stderr)
        ringpost_broker.start()
        assert "answers again" in line(sub.stderr)
        with begun("pub", "int.d", "two", addr=address) as pub:
            assert pub.wait(SECONDS) == 0
        out, err = sub.communicate(timeout=SECONDS)
    assert (sub.returncode, out, err) == (0, b"two\n", b"")


def test_a_subscriber_whose_reader_left_ends_quietly_and_acknowledges_nothing(
    ringpost_session_broker: Any, cli: Any
) -> None:
    cli("pub", "int.e", "one")
    cli("group", "add", "int.e", "g", "--from", "latest")
    with begun("sub", "int.e", "--group", "g", addr=ringpost_session_broker.address) as sub:
        assert sub.stdout is not None
        sub.stdout.close()
        sub.stdout = None
        cli("pub", "int.e", "two")
        _, err = sub.communicate(timeout=SECONDS)
    assert (sub.returncode, err) == (141, b"")
    assert cli("group", "info", "int.e", "g", "-o", "json").json["pending"] == 1


@pytest.mark.parametrize(
    "load",
    [
        ["pub", "--batch", "1", "--window", "2000"],
        ["pub", "--batch", "1000", "--window", "64", "--channels", "4", "--producers", "2"],
        ["sub", "--batch", "1000", "--window", "64"],
        ["pubsub", "--batch", "1000", "--window", "64", "--group"],
        ["fanout", "--batch", "1000", "--window", "64"],
        ["latency", "--rate", "5000"],
    ],
    ids=" ".join,
)
def test_an_interrupted_bench_leaves_no_channel_and_no_traceback(
    ringpost_session_broker: Any, cli: Any, load: list[str]
) -> None:
    with begun("bench", *load, "--seconds", "60", addr=ringpost_session_broker.address) as bench:
        deadline = time.monotonic() + SECONDS
        while not any(channel["end_offset"] > 1_000 for channel in bench_channels(cli)):
            assert bench.poll() is None
            assert time.monotonic() < deadline
        code, _, err = interrupt(bench)
    assert code == 130
    assert "Traceback" not in err
    assert "never retrieved" not in err
    assert bench_channels(cli) == []


def bench_channels(cli: Any) -> Any:
    return cli("channel", "ls", "bench.", "-o", "json").json


def test_an_existing_group_keeps_its_place_and_says_how_to_move_it(cli: Any) -> None:
    cli("pub", "int.f", "n{n}", "--count", "3")
    first = cli("sub", "int.f", "--group", "g", "--from", "1", "--count", "1", "--text")
    assert (first.out, first.err) == ("n2\n", "")
    again = cli("sub", "int.f", "--group", "g", "--from", "0", "--count", "1", "--text")
    assert again.out == "n3\n"
    assert "`ringpost group seek int.f g PLACE`" in again.err


def lives(process: psutil.Process) -> bool:
    """Where nobody reaps orphans, a dead one stays as a zombie."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_demo_leaves_no_process_and_no_file(tmp_path: Path, number: int) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "ringpost.client.cli", "demo"],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    with process:
        try:
            deadline = time.monotonic() + SECONDS
            # Its journal grows: the demo is in the middle of its work.
            while sum(file.stat().st_size for file in tmp_path.rglob("*.journal")) < 1 << 20:
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
            nodes = psutil.Process(process.pid).children(recursive=True)
            assert nodes
            code, _, err = interrupt(process, number)
        finally:
            process.kill()
    assert code == 130
    assert "Traceback" not in err
    assert [node for node in nodes if lives(node)] == []
    assert list(tmp_path.iterdir()) == []


def test_a_demo_that_proves_nothing_ends_with_1(monkeypatch: pytest.MonkeyPatch) -> None:
    compare = demo_run.compare

    def one_byte_off(originals: Any, channels: Any) -> Comparison:
        path = min(originals)
        return compare({**originals, path: bytes(32)}, channels)

    monkeypatch.setattr(demo_run, "compare", one_byte_off)
    result = CliRunner().invoke(main, ["demo", "--quick"])
    assert result.exit_code == 1
    assert "FAILED" in result.stdout
    assert "PROVED" not in result.stdout
    assert "different: " in result.stderr
