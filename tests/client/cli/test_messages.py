"""Publishing and reading from the command line, against a real node."""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from ringpost.client import connect

from .conftest import Cli


def test_a_message_goes_in_and_comes_out_with_key_and_headers(cli: Cli) -> None:
    put = cli("pub", "msg.a", "hello", "--key", "42", "--header", "source=web", "--header", "x=a=b", "-o", "json")
    assert (put.code, put.json["offset"], put.json["durability"]) == (0, 0, "quorum")
    assert put.json["replicas"] == [put.json["owner"]]
    (got,) = cli("sub", "msg.a", "--from", "earliest", "--count", "1").lines
    assert (got["data"], got["key"], got["headers"]) == ("hello", "42", {"source": "web", "x": "a=b"})
    assert "offset 1 · owner" in cli("pub", "msg.a", "again").out


def test_a_message_may_ask_for_its_place(cli: Cli) -> None:
    assert cli("pub", "msg.expected", "a", "--expect-offset", "0", "-o", "json").json["offset"] == 0
    late = cli("pub", "msg.expected", "b", "--expect-offset", "0")
    assert (late.code, late.out) == (1, "")
    assert "next message gets 1" in late.err
    assert cli("pub", "msg.expected", "b", "--expect-offset", "1").code == 0


def test_an_id_is_stored_once_where_there_is_a_window(cli: Cli) -> None:
    made = cli("channel", "add", "msg.ids", "--dedup-window", "1h", "-o", "json").json
    assert made["config"]["dedup_window_ms"] == 3_600_000
    assert "dedup window      1 h\n" in cli("channel", "info", "msg.ids").out
    assert cli("pub", "msg.ids", "x", "--id", "a-2", "-o", "json").json["duplicates"] == 0
    many = cli("pub", "msg.ids", "n{n}", "--id", "a-{n}", "--count", "3", "-o", "json").json
    assert (many["duplicates"], many["count"]) == (1, 3)
    assert "3 stored before" in cli("pub", "msg.ids", "n{n}", "--id", "a-{n}", "--count", "3").out
    found = cli("sub", "msg.ids", "--from", "earliest", "--count", "3").lines
    assert [one["message_id"] for one in found] == ["a-2", "a-1", "a-3"]
    assert "stored before" in cli("pub", "msg.ids", "x", "--id", "a-3").out


def test_the_producer_s_time_is_shown(ringpost_session_broker: Any, cli: Cli) -> None:
    async def publish() -> None:
        async with connect(ringpost_session_broker.address) as mq:
            await mq.publish("msg.time", "x", time=datetime(2026, 1, 31, 12, tzinfo=UTC))

    asyncio.run(publish())
    for shown in (
        cli("sub", "msg.time", "--from", "0", "--count", "1", "-o", "json"),
        cli("msg", "get", "msg.time", "0"),
    ):
        assert shown.lines[0]["producer_time_us"] == 1_769_860_800_000_000


async def test_a_cumulative_ack_is_kept_by_a_real_node(ringpost_session_broker: Any) -> None:
    async with connect(ringpost_session_broker.address) as mq:
        await mq.publish_many("msg.cumulative", ["a", "b", "c", "d"])
        async with mq.subscription("msg.cumulative", group="g") as subscription:
            async for message in subscription:
                if message.data == b"c":
                    await message.ack(cumulative=True)
                    break
        assert (await mq.groups.get("msg.cumulative", "g")).settled_below == 3


def test_lines_and_templates_keep_their_order(cli: Cli, tmp_path: Path) -> None:
    source = tmp_path / "lines"
    source.write_bytes(b"one\r\n\ntwo\nlast without end")
    assert cli("pub", "msg.b", "--lines", str(source), "-o", "json").json["count"] == 4
    assert cli("pub", "msg.b", "--lines", "-", "-o", "json", stdin="three\nfour\n").json["first_offset"] == 4
    assert cli("pub", "msg.b", "n{n}", "--count", "2500", "--key", "k{n}", "-o", "json").json["last_offset"] == 2505
    wanted = ["one", "", "two", "last without end", "three", "four", *(f"n{n}" for n in range(1, 2501))]
    assert cli("sub", "msg.b", "--from", "0", "--count", "2506", "--text").out.splitlines() == wanted
    assert cli("sub", "msg.b", "--from", "2505", "--count", "1").lines[0]["key"] == "k2500"


def test_a_pattern_shows_whose_each_message_is(cli: Cli) -> None:
    for channel in ("msg.many.a", "msg.many.b", "msg.many.b.c"):
        cli("pub", channel, f"to {channel}")
    found = cli("sub", "msg.many.*", "--from", "earliest", "--count", "2").lines
    assert {line["channel"]: line["data"] for line in found} == {f"msg.many.{x}": f"to msg.many.{x}" for x in "ab"}
    assert len(cli("sub", "msg.many.>", "--group", "g", "--count", "3").lines) == 3
    assert cli("group", "info", "msg.many.b.c", "g", "-o", "json").json["settled_below"] == 1
    refused = cli("sub", "msg.many.>", "--from", "7")
    assert (refused.code, refused.out) == (2, "")
    assert "open.start.offset" in refused.err


def test_an_empty_input_is_an_error_and_publishes_nothing(cli: Cli) -> None:
    ran = cli("pub", "msg.c", "--lines", "-")
    assert (ran.code, ran.out) == (1, "")
    assert "nothing to publish" in ran.err


def test_bytes_that_are_no_text_appear_as_base64(cli: Cli) -> None:
    assert cli("pub", "msg.d", "-", stdin="\x00ÿ").code == 0
    assert cli("msg", "get", "msg.d", "0").lines[0]["data"] == "\x00ÿ"
    source = cli("pub", "msg.d", "\udcff")
    assert source.code == 0
    assert cli("msg", "get", "msg.d", "1").lines[0]["data_base64"] == "/w=="


@pytest.mark.parametrize("ack", [True, False])
def test_a_group_gets_each_message_again_only_when_it_was_not_acknowledged(cli: Cli, ack: bool) -> None:
    channel = f"msg.group.{ack}"
    cli("pub", channel, "n{n}", "--count", "5")
    first = cli("sub", channel, "--group", "g", "--count", "3", "--text", *([] if ack else ["--no-ack"]))
    assert first.out.split() == ["n1", "n2", "n3"]
    again = cli("sub", channel, "--group", "g", "--count", "2", "--text")
    assert again.out.split() == (["n4", "n5"] if ack else ["n1", "n2"])
    assert cli("group", "info", channel, "g", "-o", "json").json["pending"] == (0 if ack else 3)


def test_messages_are_read_by_offset_up_to_the_end(cli: Cli) -> None:
    cli("pub", "msg.e", "n{n}", "--count", "3")
    ran = cli("msg", "get", "msg.e", "1", "--count", "10")
    assert [line["data"] for line in ran.lines] == ["n2", "n3"]
    assert "ends at offset 2" in ran.err
    beyond = cli("msg", "get", "msg.e", "3")
    assert (beyond.code, beyond.out) == (1, "")
    assert "Error: " in beyond.err


def test_a_message_is_explained(cli: Cli) -> None:
    cli("pub", "msg.why", "hello", "--key", "k")
    for group in ("g", "f", "h"):
        assert cli("group", "add", "msg.why", group).code == 0
    assert cli("group", "pause", "msg.why", "g").code == 0
    shown = cli("msg", "explain", "msg.why", "0").out
    assert "msg.why 0: stored" in shown
    assert [line.split()[1] for line in shown.splitlines() if line.startswith("group ")] == ["f", "g", "h"]
    assert (
        "It is held back because the group is paused, and waits for a consumer, of which the group has none." in shown
    )
    told = cli("msg", "explain", "msg.why", "0", "--group", "g", "-o", "json").json
    assert (told["state"], told["key"], told["first_offset"], told["end_offset"]) == ("stored", "k", 0, 1)
    (group,) = told["groups"]
    assert (group["group"], group["mode"], group["cause"], group["also"]) == ("g", "shared", "paused", ["no_consumers"])
    ahead = cli("msg", "explain", "msg.why", "7", "-o", "json").json
    assert (ahead["state"], ahead["groups"][0]["cause"]) == ("not_published", "no_message")
    assert "append_time_us" not in ahead
    unknown = cli("msg", "explain", "msg.why", "0", "--group", "x")
    assert (unknown.code, unknown.out) == (1, "")
    assert "'x'" in unknown.err


def test_a_message_may_come_later(cli: Cli) -> None:
    told = cli("pub", "msg.later", "hour", "--delay", "1h", "-o", "json").json
    assert (told["count"], "offset" in told, told["scheduled_time_us"] > 0) == (1, False, True)
    at = datetime.now(UTC).replace(microsecond=0) + timedelta(days=1)
    told = cli("pub", "msg.later", "day {n}", "--count", "3", "--deliver-at", at.isoformat(), "-o", "json").json
    assert told["scheduled_time_us"] == round(at.timestamp() * 1e6)
    info = cli("channel", "info", "msg.later", "-o", "json").json
    assert (info["messages"], info["scheduled"]) == (0, 4)
    assert "delayed messages  4, the first at 20" in cli("channel", "info", "msg.later").out
    cli("pub", "msg.later", "soon", "--delay", "10ms")
    (got,) = cli("sub", "msg.later", "--from", "earliest", "--count", "1").lines
    assert (got["data"], got["offset"]) == ("soon", 0)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("--delay", "1s", "--deliver-at", "2030-01-01T00:00:00Z"), "either --delay or --deliver-at"),
        (("--delay", "1s", "--expect-offset", "0"), "--expect-offset does not go with a delay"),
        (("--deliver-at", "tomorrow"), "is not a time; write it as"),
        (("--delay", "400d"), "366 days"),
    ],
)
def test_wrong_times_are_refused(cli: Cli, arguments: tuple[str, ...], why: str) -> None:
    told = cli("pub", "msg.wrong", "x", *arguments)
    assert told.code != 0
    assert why in told.err
