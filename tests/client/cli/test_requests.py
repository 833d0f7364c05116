"""`request` and `reply` from the command line, against a real node."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .conftest import Cli

Replying = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def replying(ringpost_session_broker: Any, tmp_path: Path) -> Iterator[Replying]:
    """Begins `ringpost reply …` and waits until it answers."""
    begun: list[subprocess.Popen[str]] = []

    def begin(*arguments: str) -> "subprocess.Popen[str]":
        environment = {"RINGPOST_ADDR": ringpost_session_broker.address, "RINGPOST_HOME": str(tmp_path)}
        process = subprocess.Popen(
            [sys.executable, "-m", "ringpost.client.cli", "reply", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **environment},
            text=True,
        )
        begun.append(process)
        assert process.stderr is not None
        assert "Answering on" in process.stderr.readline()
        return process

    yield begin
    for process in begun:
        process.kill()
        process.communicate()


def told(process: "subprocess.Popen[str]") -> list[dict[str, Any]]:
    """What it has told when it has ended by itself."""
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    return [json.loads(line) for line in out.splitlines()]


def test_an_echo(cli: Cli, replying: Replying) -> None:
    process = replying("req-cli.echo", "--echo", "--count", "2")
    asked = cli("request", "req-cli.echo", "hello", "--timeout", "30s")
    assert (asked.code, asked.out) == (0, "hello\n")
    shown = cli("request", "req-cli.echo", "-", "-o", "json", "--timeout", "30s", stdin="from stdin").json
    assert shown["data"] == "from stdin"
    assert shown["channel"].startswith("_inbox.")
    assert [line["offset"] for line in told(process)] == [0, 1]
    assert cli("channel", "ls", shown["channel"], "-o", "json").json == [], "the inbox is gone"


def test_a_command_answers_or_refuses(cli: Cli, replying: Replying) -> None:
    command = 'read what; test "$what" = bad && { echo "no $RINGPOST_KEY" >&2; exit 3; }; printf "%s!" "$what"'
    process = replying("req-cli.exec", "--exec", command, "--count", "2")
    assert cli("request", "req-cli.exec", "good\n", "--timeout", "30s").out == "good!\n"
    refused = cli("request", "req-cli.exec", "bad\n", "--key", "XAU", "--timeout", "30s")
    assert (refused.code, refused.out) == (1, "")
    assert "he command ended with 3: no XAU" in refused.err
    assert [line.get("failure") for line in told(process)] == [None, "the command ended with 3: no XAU"]


def test_nobody_answers(cli: Cli) -> None:
    asked = cli("request", "req-cli.nobody", "x", "--timeout", "100ms")
    assert (asked.code, asked.out) == (1, "")
    assert "0.1 s" in asked.err


@pytest.mark.parametrize("arguments", [["c"], ["c", "--echo", "--exec", "cat"]])
def test_a_responder_says_how_it_answers(cli: Cli, arguments: list[str]) -> None:
    ran = cli("reply", *arguments)
    assert ran.code == 2
    assert "Give either --exec COMMAND or --echo" in ran.err
