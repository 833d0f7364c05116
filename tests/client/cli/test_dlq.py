"""Dead letters from the command line, against a real node."""

import asyncio
from typing import Any

import pytest

from ringpost.client import connect
from tests.client.cli.conftest import Cli


@pytest.fixture
def channel(cli: Cli, ringpost_session_broker: Any, request: pytest.FixtureRequest) -> str:
    """A channel of the test's own whose group g has given up its three messages, the last one first."""
    name = f"dlq.{request.node.name}"

    async def fill() -> None:
        async with connect(ringpost_session_broker.address) as mq:
            await mq.groups.add(name, "g")
            for number in range(3):
                await mq.publish(name, f"m{number}", key=f"k{number % 2}", headers={"n": f"{number}"})
            await mq.groups.settle(name, "g", (2, 2), reject="no such\ncustomer")
            await mq.groups.settle(name, "g", (0, 1), reject="timeout: 503")

    asyncio.run(fill())
    return name


def test_they_are_listed_and_shown(cli: Cli, channel: str) -> None:
    table = cli("dlq", "ls", channel, "g").out.splitlines()
    assert table[0].split("  ")[0] == "number"
    assert [line.split()[:4] for line in table[1:]] == [
        ["0", "2", "k0", "0"],
        ["1", "0", "k0", "0"],
        ["2", "1", "k1", "0"],
    ]
    assert "no such customer" in table[1]
    listed = cli("dlq", "ls", channel, "g", "--filter", "reason~503", "-o", "json").json
    assert [(one["number"], one["offset"], one["data"]) for one in listed] == [(1, 0, "m0"), (2, 1, "m1")]
    some = cli("dlq", "ls", channel, "g", "--limit", "2", "-o", "json")
    assert (len(some.json), "more than 2" in some.err) == (2, True)
    shown = cli("dlq", "show", channel, "g", "0").json
    assert {name: shown[name] for name in ("number", "offset", "reason", "attempts", "key", "data", "headers")} == {
        "number": 0,
        "offset": 2,
        "reason": "no such\ncustomer",
        "attempts": 0,
        "key": "k0",
        "data": "m2",
        "headers": {"n": "2"},
    }
    assert cli("dlq", "show", channel, "g", "0", "--text").out == "m2"
    missing = cli("dlq", "show", channel, "g", "7")
    assert (missing.code, "keeps no dead letter 7" in missing.err) == (1, True)


def test_they_are_brought_back_and_dropped(cli: Cli, channel: str) -> None:
    assert cli("dlq", "redrive", channel, "g", "--dry-run", "-o", "json").json == {"redriven": 3, "not_kept": 0}
    assert cli("group", "info", channel, "g", "-o", "json").json["dead_letters"] == 3
    assert cli("dlq", "redrive", channel, "g", "0", "-o", "json").json == {"redriven": 1, "not_kept": 0}
    assert cli("dlq", "redrive", channel, "g", "0", "-o", "json").json == {"redriven": 0, "not_kept": 0}
    wet = cli("dlq", "drop", channel, "g", "--filter", "header.n=1", "--dry-run", "-o", "json")
    assert wet.json == {"dropped": 1}
    assert cli("dlq", "drop", channel, "g", "--filter", "header.n=1", "--yes", "-o", "json").json == {"dropped": 1}
    info = cli("group", "info", channel, "g", "-o", "json").json
    assert (info["dead_letters"], info["pending"], info["rejected"], info["next_dead_letter"]) == (1, 1, 3, 3)
    redriven = cli("dlq", "redrive", channel, "g")
    assert "pending again" in redriven.out
    texts = cli("sub", channel, "--group", "g", "--count", "2", "-o", "text").out.split()
    assert texts == ["m0", "m2"]


def test_wrong_use_is_explained(cli: Cli, channel: str) -> None:
    wrong = cli("dlq", "redrive", channel, "g", "--filter", "colour=red")
    assert (wrong.code, "character 1" in wrong.err) == (2, True)
    assert cli("dlq", "ls", channel, "other").code == 1
    assert cli("dlq", "ls", f"{channel}.x", "g").code == 1
    assert cli("dlq", "redrive", channel, "g", "--rate", "0").code == 2


def test_a_wrong_filter_is_told_before_there_is_any_letter(cli: Cli) -> None:
    assert cli("group", "add", "dlq.empty", "g").code == 0
    for command in (("ls",), ("redrive",), ("redrive", "--dry-run")):
        wrong = cli("dlq", command[0], "dlq.empty", "g", "--filter", "colour=red", *command[1:])
        assert wrong.code != 0
        assert "colour" in wrong.err
