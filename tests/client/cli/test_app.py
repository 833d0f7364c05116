"""What the commands refuse before they connect, and what they say."""

import os
import sys
from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from ringpost.client import errors
from ringpost.client.cli import main
from ringpost.client.cli.command import Root, failure


def commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        yield (*path, name)


@pytest.mark.parametrize("path", sorted(commands(main)), ids=" ".join)
def test_every_command_explains_itself(path: tuple[str, ...]) -> None:
    command: click.Command = main
    for name in path:
        assert isinstance(command, click.Group)
        command = command.commands[name]
    assert command.help
    assert command.get_short_help_str(limit=60)
    if path == ("serve",):
        return
    result = CliRunner().invoke(main, [*path, "--help"])
    assert result.exit_code == 0
    assert result.output.startswith("Usage: ")


def test_the_product_s_commands_are_all_there() -> None:
    wanted = (
        *("up", "down", "serve", "demo", "pub", "sub", "channel", "group", "dlq", "msg", "node", "cluster", "check"),
        *("bench", "request", "reply", "verify", "completion", "context", "top", "bundle", "token", "certs"),
    )
    assert sorted(main.commands) == sorted(wanted)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["pub", "a"], "Give either DATA or --lines FILE"),
        (["pub", "a", "b", "--lines", "-"], "Give either DATA or --lines FILE"),
        (["pub", "a", "-", "--count", "2"], "--count repeats DATA"),
        (["pub", "a", "b", "--count", "2", "--expect-offset", "1"], "--expect-offset is for one message"),
        (["pub", "a", "b", "--expect-offset", "-1"], "x<=18446744073709551615"),
        (["pub", "a", "--lines", "-", "--id", "x"], "--id names one message"),
        (["pub", "a", "b", "--header", "x"], "write name=value"),
        (["pub", "a", "b", "--durability", "high"], "memory"),
        (["pub", "a", "--lines", "/no/such/file"], "No such file"),
        (["sub", "a", "--from", "yesterday"], "earliest, latest, an offset"),
        (["sub", "a", "--no-ack"], "only with --group"),
        (["sub", "a", "--mode", "failover"], "only with --group"),
        (["group", "add", "a", "g", "--mode", "random"], "key_ordered"),
        (["sub", "a", "--count", "0"], "x>=1"),
        (["channel", "set", "a"], "Nothing to set"),
        (["channel", "add", "a", "--keep-bytes", "many"], "64KiB"),
        (["channel", "add", "a", "--keep-age", "soon"], "1h30m"),
        (["group", "add", "a", "g", "--max-in-flight", "0"], "1<=x<=1000000"),
        (["bench", "pub", "--seconds", "1", "--messages", "1"], "either --seconds or --messages"),
        (["bench", "latency", "--size", "4B"], "at least 8B"),
        (["bench", "fanout", "--channels", "2"], "one channel"),
        (["verify", "--size", "4B"], "to hold a message's number"),
        (["verify", "--seconds", "0"], "above 0"),
        (["completion", "tcsh"], "bash"),
        (["msg", "get", "a", "-1"], "-1"),
        (["msg", "get", "a", "99999999999999999999"], "18446744073709551615"),
        (["sub", "a", "--from", "99999999999999999999"], "18446744073709551615"),
        (["sub", "a", "--from", "99999999d"], "before 1970"),
        (["sub", "a", "--from", "9" * 400 + "d"], "earliest, latest"),
        (["sub", "a", "--from", "1960-01-01"], "before 1970"),
        (["group", "seek", "a", "g", "9" * 5000, "--yes"], "18446744073709551615"),
        (["channel", "purge", "a", "--before", "99999999999999999999", "--yes"], "18446744073709551615"),
        (["channel", "add", "a", "--keep-messages", "99999999999999999999"], "18446744073709551615"),
        (["channel", "add", "a", "--keep-bytes", "99999999TiB"], "18446744073709551615"),
        (["channel", "add", "a", "--keep-age", "999999999d"], "106751991d"),
        (["group", "add", "a", "g", "--ack-deadline", "9" * 30 + "d"], "106751991d"),
        (["bench", "latency", "--rate", "inf"], "10000000"),
        (["bench", "pub", "--size", "1TiB"], "at most 16MiB"),
        (["nonsense"], "No such command"),
    ],
)
def test_wrong_usage_ends_with_2_and_a_sentence_that_helps(arguments: list[str], text: str) -> None:
    result = CliRunner().invoke(main, [*arguments])
    assert result.exit_code == 2
    assert text in result.stderr
    assert not result.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_for_the_shell(shell: str) -> None:
    result = CliRunner().invoke(main, ["completion", shell])
    assert result.exit_code == 0
    assert f"_RINGPOST_COMPLETE={shell}_complete" in result.stdout


def test_serve_becomes_the_node_with_the_same_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[object] = []
    monkeypatch.setattr(os, "execv", lambda *arguments: called.append(arguments))
    CliRunner().invoke(main, ["serve", "--data-dir", "x", "--help", "-v"])
    assert called == [(sys.executable, [sys.executable, "-m", "ringpost.node", "--data-dir", "x", "--help", "-v"])]


def ending_with(error: BaseException) -> Root:
    def fail() -> None:
        raise error

    return Root("root", commands={"do": click.Command("do", callback=fail)})


def asked_and_interrupted() -> click.Abort:
    abort = click.Abort()
    abort.__context__ = KeyboardInterrupt()
    return abort


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (KeyboardInterrupt(), 130, ""),
        (asked_and_interrupted(), 130, ""),
        (click.Abort(), 1, ""),
        (errors.NotFound("channel x does not exist"), 1, "Error: Channel x does not exist"),
        (errors.InvalidRequest("channel: contains ' '"), 2, "Error: channel: contains ' '"),
        (errors.Unavailable("nobody listens"), 3, "`ringpost up` starts one"),
        (OSError(28, "No space left on device"), 1, "No space left on device"),
    ],
)
def test_an_error_becomes_a_sentence_and_an_exit_code(error: BaseException, code: int, text: str) -> None:
    result = CliRunner().invoke(ending_with(error), ["do"])
    assert result.exit_code == code
    assert text in result.stderr
    assert not result.stdout


def test_a_sentence_names_the_field_at_fault_once_and_an_open_outcome() -> None:
    violation = errors.Violation("name", "at most 255 bytes")
    assert failure(errors.InvalidRequest("bad request", violations=[violation])).message == (
        "Bad request (name: at most 255 bytes)"
    )
    told = errors.InvalidRequest("name: at most 255 bytes", violations=[violation])
    assert failure(told).message == "name: at most 255 bytes"
    assert "may have been carried out" in failure(errors.Timeout("late", outcome_open=True)).message


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:1: Failed to connect to remote"
            " host: Connection refused",
            "No connection to 127.0.0.1:1: connection refused. Is a node",
        ),
        (
            "failed to connect to all addresses; last error: UNKNOWN: ipv6:%5B::1%5D:9: Failed to connect to remote"
            " host: Connection refused",
            "No connection to [::1]:9: connection refused. Is a node",
        ),
        (
            "Errors resolving localhost:no: [field:hostname lookup error:Failed to parse port in name: localhost:no]",
            "There is no localhost:no: failed to parse port in name: localhost:no. Is a node",
        ),
    ],
)
def test_a_node_that_was_never_reached_is_told_without_grpc_s_own_words(words: str, sentence: str) -> None:
    told = failure(errors.Unavailable(words, outcome_open=True))
    assert told.message.startswith(sentence)
    assert told.exit_code == 3


@pytest.mark.parametrize(("group", "typed", "meant"), [("channel", "list", "ls"), ("group", "get", "info")])
def test_other_names_of_a_command_find_it(group: str, typed: str, meant: str) -> None:
    helps = [CliRunner().invoke(main, [group, name, "--help"]) for name in (typed, meant)]
    assert [result.exit_code for result in helps] == [0, 0]
    assert helps[0].output.splitlines()[1:] == helps[1].output.splitlines()[1:]
