"""What the log holds is told by who surely leads, and only of what is committed."""

import asyncio
from typing import Any

import pytest

from ringpost.node.errors import NotLeader, Precondition, RingpostError, Unavailable
from ringpost.node.services.refusals import SureRefusals

MISMATCH = Precondition("the channel has gone on", reason="OFFSET_MISMATCH", metadata={"next_offset": "3"})


class Log:
    """What a replicated log says of its uncommitted end."""

    def __init__(self) -> None:
        self.waiting: list[Any] = []

    def after_tail(self, action: Any, *args: Any) -> None:
        self.waiting.append(lambda error: action(error, *args))


class Shard:
    """One that is replicated."""

    number = 5

    def __init__(self) -> None:
        self.replicated = Log()


class Router:
    """Leads until told otherwise; `word` is what the followers say."""

    def __init__(self) -> None:
        self.word = True
        self.leads = True
        self.asked = asyncio.Event()

    def sure(self, shard: int) -> bool:
        self.asked.set()
        return self.word

    def here(self, shard: int) -> bool:
        return self.leads

    def refusal(self, shard: int) -> NotLeader:
        return NotLeader.of("somebody else leads", shard=shard, leader="n2", epoch=4)


class Told:
    """One batch that does not fit, told of by a leader."""

    def __init__(self) -> None:
        self.router, self.shard = Router(), Shard()
        self.answers: list[RingpostError] = []
        self.answered = asyncio.Event()
        self.refusals = SureRefusals(self.router)  # type: ignore[arg-type]
        self.refusals.tell(self.shard, MISMATCH, self._reply)  # type: ignore[arg-type]

    def _reply(self, answer: Any) -> None:
        self.answers.append(answer)
        self.answered.set()

    def commit(self, error: RingpostError | None = None) -> None:
        for action in self.shard.replicated.waiting:
            action(error)


async def test_it_waits_until_what_is_appended_is_committed() -> None:
    told = Told()
    assert told.answers == []
    told.commit()
    assert told.answers == [MISMATCH]


async def test_who_lost_what_it_counted_sends_the_batch_on() -> None:
    told = Told()
    told.commit(Unavailable("the shard moved", reason="LEADER_CHANGED"))
    assert [answer.reason for answer in told.answers] == ["NOT_LEADER"]


async def test_it_waits_for_the_word_of_the_followers() -> None:
    told = Told()
    told.router.word = False
    told.commit()
    await told.router.asked.wait()
    assert told.answers == []
    told.router.word = True
    await asyncio.wait_for(told.answered.wait(), 5)
    assert told.answers == [MISMATCH]


@pytest.mark.parametrize("leads", [True, False])
async def test_who_gets_no_word_says_nothing_of_offsets(leads: bool) -> None:
    told = Told()
    told.router.word, told.router.leads = False, leads
    told.commit()
    await asyncio.wait_for(told.answered.wait(), 5)
    assert [answer.reason for answer in told.answers] == ["NOT_LEADER"]
