"""The SDK's token: shown with each call and stream, and renewed under a client that runs."""

import asyncio
import time
from pathlib import Path

import pytest

from ringpost.client import Denied, InvalidRequest, Options, Unavailable, connect, token_file
from tests.integration.broker import Node
from tests.node.access.issuing import Issuer


@pytest.fixture
def issuer(tmp_path: Path) -> Issuer:
    made = Issuer(tmp_path / "keys.json")
    made.add("k1")
    made.publish()
    (tmp_path / "access.toml").write_text(
        '[roles.all]\npublish = [">"]\nconsume = [">"]\n' + made.section(roles_claim="roles")
    )
    return made


def renew(file: Path, token: str) -> None:
    draft = file.with_suffix(".new")
    draft.write_text(token + "\n")
    draft.replace(file)


def test_a_token_file_is_read_again_when_it_has_changed_and_keeps_the_last_good_one(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="cannot be read"):
        token_file(tmp_path / "none")
    file = tmp_path / "token"
    renew(file, "one")
    read = token_file(file)
    assert read() == "one"
    renew(file, "two")
    assert read() == "two"
    file.unlink()
    assert read() == "two"


async def test_who_shows_no_token_or_a_wrong_one_does_not_connect(tmp_path: Path, issuer: Issuer) -> None:
    with Node(tmp_path / "n", "--access-file", str(tmp_path / "access.toml")) as node:
        for token in (None, "wrong"):
            with pytest.raises(Denied):
                await connect(node.address, token=token)
        async with connect(node.address, token=issuer.token("k1", roles=["all"])) as mq:
            await mq.publish("orders", "a")
            with pytest.raises(Denied) as raised:
                await mq.channels.delete("orders")
        assert (raised.value.reason, raised.value.metadata["verb"]) == ("NOT_PERMITTED", "manage")


async def test_streams_go_on_with_a_renewed_token_and_no_message_is_lost_or_doubled(
    tmp_path: Path, issuer: Issuer
) -> None:
    """Tokens live for two seconds (with the node's leeway), and are renewed while messages flow."""
    file = tmp_path / "token"

    async def renew_in_time() -> None:
        while True:
            await asyncio.sleep(1.4)
            renew(file, issuer.token("k1", roles=["all"], exp=time.time() - 8))

    with Node(tmp_path / "n", "--access-file", str(tmp_path / "access.toml")) as node:
        renew(file, issuer.token("k1", roles=["all"], exp=time.time() - 8))
        async with connect(node.address, token=token_file(file)) as mq:
            got: list[str] = []
            async with mq.subscription("orders", start="earliest") as messages:
                reading = asyncio.create_task(_read(messages, got, 200))
                renewing = asyncio.create_task(renew_in_time())
                for number in range(200):
                    await mq.publish("orders", str(number))
                    await asyncio.sleep(0.03)
                await asyncio.wait_for(reading, 30)
                renewing.cancel()
            assert got == [str(number) for number in range(200)]
        assert node.stderr.count("TOKEN_EXPIRED") >= 2, "streams really ended"


async def _read(messages: object, got: list[str], count: int) -> None:
    async for message in messages:  # type: ignore[attr-defined]
        got.append(message.text())
        if len(got) == count:
            return


BAD = {"sec\nret": "at 3 of 7", "secr\u00e9t": "at 4 of 6", "sec\x01ret": "at 3", "sec ret": "at 3"}


@pytest.mark.parametrize("bad", BAD)
async def test_a_token_that_no_header_may_hold_is_refused_at_once_and_not_shown(bad: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        await connect("localhost:1", token=bad)
    assert BAD[bad] in raised.value.message
    assert raised.value.violations[0].field == "token"
    assert "sec" not in str(raised.value)


async def test_a_token_that_becomes_such_a_one_is_told_to_whoever_publishes_or_reads(
    tmp_path: Path, issuer: Issuer
) -> None:
    """The client goes on with a good one."""
    good = shown = issuer.token("k1", roles=["all"])
    with Node(tmp_path / "n", "--access-file", str(tmp_path / "access.toml")) as node:
        async with connect(node.address, token=lambda: shown) as mq:
            shown = "sec\nret"
            with pytest.raises(InvalidRequest, match="token: may hold"):
                await asyncio.wait_for(mq.publish("orders", "a"), 10)
            with pytest.raises(InvalidRequest, match="token: may hold"):
                await asyncio.wait_for(mq.channels.get("orders"), 10)
            with pytest.raises(InvalidRequest, match="token: may hold"):
                await asyncio.wait_for(_read(mq.subscription("orders"), [], 1), 10)
            shown = good
            assert (await mq.publish("orders", "a")).offset == 0


@pytest.mark.parametrize(("address", "count"), [("broker.invalid:1", 1), ("localhost:1", 0), ("unix:/nowhere", 0)])
async def test_a_token_in_plain_text_for_another_machine_is_warned_of_once(
    address: str, count: int, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(Unavailable):
        await connect(address, token="secret", options=Options(connect_timeout=0.5))
    with pytest.raises(Unavailable):
        await connect(address, options=Options(connect_timeout=0.5))
    told = [record.getMessage() for record in caplog.records if "in plain text" in record.getMessage()]
    assert len(told) == count
    assert "secret" not in "".join(told)
