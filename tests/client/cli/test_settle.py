"""Lease tokens in the Python client and on the command line, with a real node."""

import asyncio
from typing import Any

import click
import pytest

from ringpost.client import InvalidRequest, LeaseLost, Precondition, connect
from ringpost.client.cli import group_settle
from ringpost.v1.subscribe_pb2 import OUTCOME_DONE, OUTCOME_EXPIRED
from tests.client.cli.conftest import Cli


def outcomes(results: Any) -> list[tuple[int, int, int]]:
    return [(one.range.first, one.range.last, one.outcome) for one in results]


async def test_a_message_is_settled_by_its_token_on_another_connection(ringpost_session_broker: Any) -> None:
    address = ringpost_session_broker.address
    async with connect(address) as mq, connect(address) as other, asyncio.timeout(30):
        await mq.publish_many("tok.client", ["a", "b", "c", "d"])
        async with mq.subscription("tok.client", group="g", lease_tokens=True) as subscription:
            batch = await anext(subscription.batches())
            tokens, groups = [batch.messages[0].lease_token], other.groups
            assert tokens == [batch.lease_token]
            extended = await groups.extend("tok.client", "g", tokens=tokens, seconds=60)
            assert outcomes(extended) == [(0, 3, OUTCOME_DONE)]
            nacked = await groups.nack("tok.client", "g", (1, 1), tokens=tokens, delay=3600, reason="no stock")
            assert outcomes(nacked) == [(1, 1, OUTCOME_DONE)]
            acked = await groups.settle("tok.client", "g", (0, 1), tokens=tokens)
            assert outcomes(acked) == [(0, 0, OUTCOME_DONE), (1, 1, OUTCOME_EXPIRED)]
            rejected = await groups.settle("tok.client", "g", (2, 2), tokens=tokens, reject="bad")
            assert outcomes(rejected) == [(2, 2, OUTCOME_DONE)]
        with pytest.raises(LeaseLost):
            await batch.messages[3].ack()
        assert outcomes(await groups.settle("tok.client", "g", (3, 3), tokens=tokens)) == [(3, 3, OUTCOME_DONE)]
        info = await mq.groups.get("tok.client", "g")
        assert (info.pending, info.to_redeliver, info.rejected) == (1, 1, 1)


async def test_tokens_are_there_only_where_they_are_asked_for(ringpost_session_broker: Any) -> None:
    async with connect(ringpost_session_broker.address) as mq, asyncio.timeout(30):
        await mq.publish("tok.plain", "a")
        async with mq.subscription("tok.plain", group="g") as subscription:
            message = await anext(aiter(subscription))
            assert message.lease_token == b""
            with pytest.raises(InvalidRequest, match="open the subscription with lease_tokens=True"):
                await mq.groups.extend("tok.plain", "g", tokens=[message.lease_token])
        with pytest.raises((InvalidRequest, Precondition), match="only with a group"):
            mq.subscription("tok.plain", lease_tokens=True)
        for wrong in ({"delay": -1}, {"fallback": 700_000}, {"reason": "é" * 513}):
            with pytest.raises(InvalidRequest):
                await mq.groups.nack("tok.plain", "g", tokens=[b"t"], **wrong)
        with pytest.raises(InvalidRequest, match="seconds"):
            await mq.groups.extend("tok.plain", "g", tokens=[b"t"], seconds=0.1)
        with pytest.raises(InvalidRequest, match=r"lease_tokens\[0\]: is no lease token of this version"):
            await mq.groups.extend("tok.plain", "g", tokens=[b"t"])


def test_group_settle_speaks_of_offsets_or_of_a_delivery(cli: Cli) -> None:
    cli("pub", "tok.cli", "n{n}", "--count", "6")
    (shown,) = cli("sub", "tok.cli", "--group", "g", "--no-ack", "--count", "1", "--lease-tokens").lines
    token = ("--token", shown["lease_token"])
    settle = ("group", "settle", "tok.cli", "g")
    gone = cli(*settle, "extend", *token, "--for", "1m", "-o", "json")
    assert gone.json == [{"first": 0, "last": 0, "outcome": "expired"}], "its stream has ended"
    assert cli(*settle, "ack", *token, "-o", "json").json == [{"first": 0, "last": 0, "outcome": "done"}]
    assert cli(*settle, "reject", "1-2", "4", "--reason", "bad", "-o", "json").json == [
        {"first": 1, "last": 2, "outcome": "done"},
        {"first": 4, "last": 4, "outcome": "done"},
    ]
    table = cli(*settle, "ack", "0-9").out.splitlines()
    assert [line.split() for line in table[1:]] == [
        ["0", "2", "already"],
        ["3", "3", "done"],
        ["4", "4", "already"],
        ["5", "5", "done"],
        ["6", "9", "unknown"],
    ]


@pytest.mark.parametrize("text", ["x", "", "-3", "3-", "1-2-3", "9-3", str(1 << 64)])
def test_what_are_no_offsets_is_said(text: str) -> None:
    with pytest.raises(click.BadParameter, match="offset"):
        group_settle.offsets(text)


@pytest.mark.parametrize(
    ("verb", "ranges", "options", "says"),
    [
        ("nack", ((1, 1),), {}, "nack needs --token"),
        ("extend", ((1, 1),), {}, "extend needs --token"),
        ("ack", (), {}, "Name OFFSETS, or a delivery by --token."),
        ("ack", ((1, 1),), {"delay": 5.0}, "--delay says something only with nack."),
        ("ack", ((1, 1),), {"reason": "x"}, "--reason says something only with nack and reject."),
        ("reject", ((1, 1),), {"time": 5.0}, "--for says something only with extend."),
    ],
)
def test_what_does_not_go_together_is_said(verb: str, ranges: Any, options: dict[str, Any], says: str) -> None:
    given = {"delay": 0.0, "reason": "", "time": 0.0} | options
    with pytest.raises(click.UsageError) as caught:
        group_settle._check(verb, ranges, (), **given)
    assert says in caught.value.message


def test_a_token_is_read_as_it_was_printed() -> None:
    every_byte = bytes(range(256))
    assert group_settle.token(group_settle.token_text(every_byte)) == every_byte
    with pytest.raises(click.BadParameter, match="not base64"):
        group_settle.token("***")


def test_wrong_use_ends_before_anything_is_done(cli: Cli) -> None:
    ran = cli("group", "settle", "tok.wrong", "g", "nack", "1")
    assert (ran.code, "nack needs --token" in ran.err) == (2, True)
    refused = cli("sub", "tok.wrong", "--lease-tokens")
    assert (refused.code, "--lease-tokens says something only with --group." in refused.err) == (2, True)


def test_a_broadcast_group_keeps_a_place_for_each_consumer(cli: Cli) -> None:
    made = cli("group", "add", "tok.cast", "g", "--mode", "broadcast", "--max-consumers", "5", "-o", "json")
    config = made.json["config"]
    assert (config["mode"], config["max_consumers"], config["consumer_expiry_ms"]) == ("broadcast", 5, 604_800_000)
    assert config["dead_letters"] is False
    cli("pub", "tok.cast", "n{n}", "--count", "4")
    sub = ("sub", "tok.cast", "--group", "g", "--text")
    assert cli(*sub, "--consumer", "ann", "--count", "3").out.split() == ["n1", "n2", "n3"]
    assert cli(*sub, "--consumer", "bob", "--count", "1").out.split() == ["n1"]
    nameless = cli(*sub, "--count", "1")
    assert (nameless.code, "open.consumer: is empty" in nameless.err) == (2, True)
    cli("group", "seek", "tok.cast", "g", "2", "--consumer", "bob", "--yes")
    assert "bob: 2 pending, settled below 2, away" in cli("group", "info", "tok.cast", "g").out
    assert cli("group", "rm", "tok.cast", "g", "--consumer", "bob", "--yes").code == 0
    consumers = cli("group", "info", "tok.cast", "g", "-o", "json").json["consumers"]
    assert [(one["consumer"], one["pending"]) for one in consumers] == [("ann", 1)]


async def test_the_python_client_names_its_place(ringpost_session_broker: Any) -> None:
    async with connect(ringpost_session_broker.address) as mq, asyncio.timeout(30):
        await mq.publish_many("tok.cast.py", ["a", "b"])
        for name in ("ann", "bob"):
            async with mq.subscription("tok.cast.py", group="g", mode="broadcast", consumer=name) as subscription:
                message = await anext(aiter(subscription))
                await message.ack()
        results = await mq.groups.settle("tok.cast.py", "g", (1, 1), consumer="ann")
        assert outcomes(results) == [(1, 1, OUTCOME_DONE)]
        found = (await mq.groups.get("tok.cast.py", "g")).consumers
        assert [(one.consumer, one.settled_below) for one in found] == [("ann", 2), ("bob", 1)]
        await mq.groups.seek("tok.cast.py", "g", 0, consumer="ann")
        await mq.groups.delete_consumer("tok.cast.py", "g", "bob")
        found = (await mq.groups.get("tok.cast.py", "g")).consumers
        assert [(one.consumer, one.settled_below) for one in found] == [("ann", 0)]
        with pytest.raises(InvalidRequest, match="consumer: is needed"):
            mq.subscription("tok.cast.py", group="g", mode="broadcast")
