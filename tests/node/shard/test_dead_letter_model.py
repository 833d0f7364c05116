"""Whatever happens, each message is acked, dead once, or pending; attempts keep their bound; acks stay.

A plain model follows the answers that clients got, a crash replays the log; the group's own books are not believed.
"""

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from ringpost.internal.v1.record_pb2 import DeadLetterFrame, LetterChange
from ringpost.node.errors import RingpostError
from ringpost.node.groups.changes import Ack, Nack, Outcome, Reject
from ringpost.node.groups.policy import Backoff, RetryPolicy
from ringpost.node.shard.boxes import Changed, box_of, count
from ringpost.node.shard.dead_letters import change
from ringpost.node.shard.group import Group
from ringpost.node.shard.group_frames import add_group
from ringpost.node.shard.group_settings import GroupSettings
from tests.node.shard.fakes import Outcomes, Rig, replayed
from tests.node.shard.histories import Member

MESSAGES, ATTEMPTS, S = 12, 3, 1_000_000
SETTINGS = GroupSettings(2_000, 8, RetryPolicy(Backoff.CONSTANT, 300_000, max_attempts=ATTEMPTS, dead_letters=True))


class LettersMachine(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.rig = Rig()
        channel = self.rig.channel()
        self.rig.publish(channel, *(f"m{n}" for n in range(MESSAGES)))
        add_group(channel, "g", SETTINGS, 0, Outcomes()).join(1, Member())
        self.rig.commit()
        self.acked: set[int] = set()  # confirmed, and not brought back since
        self.asked: set[int] = set()  # an ack of them is, or was, on its way: it may have come true
        self.dropped: set[int] = set()
        self.next_letter = 0

    @property
    def group(self) -> Group:
        return self.rig.store.find_group(self.rig.store.find("a"), "g")

    @rule(limit=st.integers(1, 6))
    def take(self, limit: int) -> None:
        for lease in self.group.take(1, limit, self.rig.time.now_us):
            assert lease.attempt <= ATTEMPTS
            assert not self.acked & set(range(lease.first, lease.last + 1)), "a confirmed ack came back"

    @rule(
        action=st.sampled_from([Ack(), Nack(), Nack(100_000, "own"), Reject("bad")]),
        first=st.integers(0, MESSAGES - 1),
        length=st.integers(0, 5),
        anybody=st.booleans(),
    )
    def settle(self, action: Any, first: int, length: int, anybody: bool) -> None:
        span = (first, min(first + length, MESSAGES - 1))
        if isinstance(action, Ack):
            self.asked |= set(range(span[0], span[1] + 1))

        def answered(outcome: list[tuple[int, int, Outcome]] | RingpostError) -> None:
            if isinstance(action, Ack) and not isinstance(outcome, RingpostError):
                for low, high, verdict in outcome:
                    if verdict == Outcome.DONE:
                        self.acked |= set(range(low, high + 1)) - self.dead()

        if anybody and not isinstance(action, Nack):
            self.group.settle_any(action, [span], answered)
        else:
            self.group.settle(1, action, [span], False, answered)

    @rule(microseconds=st.sampled_from([1_000, 400_000, 3 * S]))
    def wait(self, microseconds: int) -> None:
        self.rig.time.pass_us(microseconds)

    @rule(frames=st.sampled_from([None, None, 1]))
    def commit(self, frames: int | None) -> None:
        self.rig.commit(frames)

    @rule(number=st.integers(0, 15), redrive=st.booleans())
    def letters_leave(self, number: int, redrive: bool) -> None:
        self.stored()
        letters = self.letters()
        if number not in letters:
            return
        offset = letters[number]
        answers: list[Changed | RingpostError] = []
        asked = LetterChange(redriven=[number, offset]) if redrive else LetterChange(dropped=[number, number])
        for _ in range(2):  # sent twice
            change(self.group, asked, answers.append)
        self.rig.commit()
        assert answers == [Changed(int(redrive), int(not redrive)), Changed(0, 0)]
        if redrive:
            self.acked.discard(offset)
            self.asked.discard(offset)
        else:
            self.dropped.add(offset)

    @rule()
    def crash(self) -> None:
        """What is not durable is gone; a new node reads the rest."""
        self.rig.abandon()
        durable = [frame for frame in self.rig.journal.frames if frame.address < self.rig.journal.durable]
        again, quarantined = replayed(durable)
        assert quarantined == []
        end = self.rig.journal.durable
        again.time.now_us = self.rig.time.now_us
        again.journal.frames, again.journal.end, again.journal.durable = durable, end, end
        self.rig = again
        for shard in again.store.shards:
            shard.lead(shard.started_epoch + 1, shard.started_epoch + 1)
        self.group.join(1, Member())

    def stored(self) -> None:
        for _ in range(4):
            self.rig.time.turn()
            self.rig.commit()

    def letters(self) -> dict[int, int]:
        """Offsets by number of the letters that are there, read from the log as a client would."""
        box = box_of(self.group)
        if box is None:
            return {}
        found: dict[int, int] = {}
        for frame in self.rig.journal.frames:
            header = frame.decoded
            if header.channel == box.number and header.count and header.base_offset < box.end_offset:
                parsed = DeadLetterFrame.FromString(frame.body).letters
                found |= {header.base_offset + n: letter.offset for n, letter in enumerate(parsed)}
        gone = self.group.letters_gone
        return {n: at for n, at in found.items() if box.first_offset <= n < box.end_offset and not gone.contains(n)}

    def dead(self) -> set[int]:
        return set(self.letters().values())

    def teardown(self) -> None:
        if not hasattr(self, "rig"):
            return
        self.stored()
        letters = self.letters()
        assert count(self.group) == len(letters)
        assert len(set(letters.values())) == len(letters), "dead twice"
        self.rig.time.pass_us(10 * S)
        self.stored()
        letters = self.letters()
        self.group.leave(1)
        self.group.join(2, Member())
        pending: set[int] = set()
        while leases := self.group.core.take(2, 100, MESSAGES, self.rig.time.now_us + 10 * S):
            for lease in leases:
                pending |= set(range(lease.first, lease.last + 1))
                self.group.core.apply(self.group.core.settle(2, Ack(), [lease[:2]], False, 0).change)  # type: ignore[arg-type]
        dead = set(letters.values())
        assert not pending & dead
        assert not pending & self.acked
        assert pending | dead | self.asked | self.dropped >= set(range(MESSAGES)), "lost"
        self.rig.abandon()


TestLetters = LettersMachine.TestCase
TestLetters.settings = settings(max_examples=120, stateful_step_count=40, deadline=None)
