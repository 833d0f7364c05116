"""What a responder does with its handler's result, whatever the request says: without a broker."""

from collections.abc import Mapping
from typing import Any

import grpc
import pytest

from ringpost.client.errors import Denied, InvalidRequest, RingpostError, Unavailable
from ringpost.client.message import Message
from ringpost.client.replies import ResponderPool
from ringpost.client.requests import CORRELATION, ERROR, REPLY_TO


class Request:
    """A message as far as a responder looks at it."""

    append_time_us = 0

    def __init__(self, reply_to: str) -> None:
        self.headers = {REPLY_TO: reply_to, CORRELATION: "7"}


class Responder(ResponderPool):
    """Answers each request with b"done"; publishing raises what `refusals` has, one a time."""

    def __init__(self, *refusals: RingpostError) -> None:
        self.answered = self.failed = self.late = self.gone = self.astray = self.undeliverable = 0
        self.sent: list[tuple[str, bytes, Mapping[str, str]]] = []
        self._refusals = list(refusals)
        self._durability = "quorum"
        self._publish = self._record

    async def _result(self, message: Message) -> object:
        return b"done"

    async def _record(self, channel: str, data: Any, key: Any, headers: Mapping[str, str], *, durability: str) -> None:
        if self._refusals:
            raise self._refusals.pop(0)
        self.sent.append((channel, data, headers))

    async def works_on(self, reply_to: str) -> None:
        await self._call(Request(reply_to))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["orders", "_inbox", "_inboxes.a", "not a name", "x._inbox.a"])
async def test_nothing_is_published_where_a_request_has_no_inbox(name: str) -> None:
    responder = Responder()
    await responder.works_on(name)
    assert (responder.sent, responder.astray, responder.answered) == ([], 1, 0)


async def test_below_the_prefix_it_is_answered() -> None:
    responder = Responder()
    await responder.works_on("_inbox.shop.a")
    assert responder.sent == [("_inbox.shop.a", b"done", {CORRELATION: "7"})]
    assert (responder.answered, responder.astray) == (1, 0)


async def test_an_answer_that_is_too_large_becomes_a_refusal() -> None:
    responder = Responder(InvalidRequest("data: 9 bytes, allowed are 8"))
    await responder.works_on("_inbox.a")
    ((channel, data, headers),) = responder.sent
    assert (channel, data, headers[CORRELATION]) == ("_inbox.a", b"", "7")
    assert headers[ERROR] == "the answer was refused: data: 9 bytes, allowed are 8"
    assert (responder.failed, responder.answered, responder.undeliverable) == (1, 0, 0)


@pytest.mark.parametrize("refusals", [(Denied("no"),), (InvalidRequest("name"), InvalidRequest("name"))])
async def test_what_is_refused_for_good_is_not_worked_on_again(refusals: tuple[RingpostError, ...]) -> None:
    responder = Responder(*refusals)
    await responder.works_on("_inbox.a")
    assert (responder.sent, responder.undeliverable, responder.answered, responder.failed) == ([], 1, 0, 0)


@pytest.mark.parametrize("error", [Unavailable("no node"), Denied("expired", code=grpc.StatusCode.UNAUTHENTICATED)])
async def test_what_may_succeed_later_is_worked_on_again(error: RingpostError) -> None:
    with pytest.raises(type(error)):
        await Responder(error).works_on("_inbox.a")
