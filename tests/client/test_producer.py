"""The producer's state machine: its rules one by one, then against a broker model under random events."""

import random
from collections import deque

import pytest
from crc32c import crc32c
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ringpost.client.batch import encode_run
from ringpost.client.errors import (
    AlreadyExists,
    Exhausted,
    InvalidRequest,
    OffsetMismatch,
    Precondition,
    RingpostError,
    Timeout,
    Unavailable,
    Violation,
)
from ringpost.client.producer import WINDOW, Failed, Lane, OutBatch, Stored
from ringpost.v1 import publish_pb2

GAP = Precondition("a gap", reason="SEQUENCE_GAP")
UNKNOWN = Precondition("unknown", reason="UNKNOWN_PRODUCER")
FENCED = Precondition("fenced", reason="PRODUCER_FENCED")
BUSY = Exhausted("busy", reason="BUSY", retry_after_ms=100)
INVALID = InvalidRequest("too large")
STORED = publish_pb2.PublishResponse(channel="c")


def batch(deadline: float = 60.0, count: int = 1, messages: list[bytes] | None = None) -> OutBatch:
    messages = [b"payload"] * count if messages is None else messages
    payload = encode_run(messages)
    return OutBatch(payload, len(messages), crc32c(payload), 3, deadline, messages)


def messages_of(payload: bytes) -> list[bytes]:
    return [message.data for message in publish_pb2.Batch.FromString(payload).messages]


class Sender:
    """Feeds a lane and keeps what it sends."""

    def __init__(self) -> None:
        ids = iter(range(1, 1_000))
        self.lane = Lane("c", lambda: next(ids))
        self.now = 0.0
        self.correlation = 0

    def enqueue(self, *batches: OutBatch) -> None:
        for one in batches:
            self.lane.enqueue(one)

    def send(self) -> list[tuple[int, OutBatch]]:
        sent = []
        while (one := self.lane.take(self.correlation + 1, self.now)) is not None:
            self.correlation += 1
            sent.append((self.correlation, one))
        return sent

    def answer(self, correlation: int, answer) -> list:
        return self.lane.answered(correlation, answer, self.now)


@pytest.fixture
def sender() -> Sender:
    return Sender()


def test_batches_are_numbered_by_their_messages(sender: Sender) -> None:
    sender.enqueue(batch(count=3), batch(count=2), batch())
    assert [one.sequence for _, one in sender.send()] == [0, 3, 5]


def test_no_more_than_the_window_is_unanswered(sender: Sender) -> None:
    sender.enqueue(*(batch() for _ in range(WINDOW + 5)))
    sent = sender.send()
    assert (len(sent), len(sender.lane.outstanding)) == (WINDOW, WINDOW)
    assert [type(e) for e in sender.answer(sent[0][0], STORED)] == [Stored]
    assert len(sender.send()) == 1


def test_a_lost_stream_sends_the_same_numbers_again_in_order(sender: Sender) -> None:
    sender.enqueue(batch(), batch(), batch())
    before = [one.sequence for _, one in sender.send()]
    sender.lane.stream_lost()
    again = sender.send()
    assert [one.sequence for _, one in again] == before == [0, 1, 2]
    assert sender.answer(1, STORED) == []  # an answer of the first stream


def test_a_busy_answer_holds_all_back_and_then_repeats_them(sender: Sender) -> None:
    sender.enqueue(*(batch() for _ in range(3)))
    first, second, third = (correlation for correlation, _ in sender.send())
    sender.enqueue(batch())
    assert sender.answer(first, BUSY) == []
    assert sender.send() == []
    sender.answer(second, UNKNOWN)
    sender.answer(third, UNKNOWN)
    assert sender.send() == []
    sender.now = 0.1
    assert [one.sequence for _, one in sender.send()] == [0, 1, 2, 3]
    assert sender.lane.producer_epoch == 0


def test_a_refused_batch_renumbers_the_rest_under_a_greater_epoch(sender: Sender) -> None:
    sender.enqueue(*(batch() for _ in range(4)))
    sent = sender.send()
    sender.answer(sent[0][0], STORED)
    effects = sender.answer(sent[1][0], INVALID)
    assert effects == [Failed(sent[1][1], INVALID)]
    assert sender.send() == []
    sender.answer(sent[2][0], GAP)
    sender.answer(sent[3][0], GAP)
    again = sender.send()
    assert [one for _, one in again] == [sent[2][1], sent[3][1]]
    assert ([one.sequence for _, one in again], sender.lane.producer_epoch) == ([0, 1], 1)


def test_the_halves_of_a_refused_batch_go_out_in_its_place(sender: Sender) -> None:
    sender.enqueue(batch(messages=[b"a", b"bad", b"c"]), batch(messages=[b"d"]))
    whole, behind = sender.send()
    assert sender.answer(whole[0], INVALID) == []
    sender.answer(behind[0], UNKNOWN)
    left, right, last = sender.send()
    assert [messages_of(one.payload) for _, one in (left, right, last)] == [[b"a"], [b"bad", b"c"], [b"d"]]
    assert [(one.sequence, one.first) for _, one in (left, right, last)] == [(0, 0), (1, 1), (3, 0)]
    assert sender.lane.producer_epoch == 1

    assert len(sender.answer(left[0], STORED)) == 1
    assert sender.answer(right[0], INVALID) == []
    sender.answer(last[0], GAP)
    bad, good, last = sender.send()
    assert [messages_of(one.payload) for _, one in (bad, good, last)] == [[b"bad"], [b"c"], [b"d"]]
    (failed,) = sender.answer(bad[0], INVALID)
    assert (failed.batch, failed.error, failed.batch.first) == (bad[1], INVALID, 1)


@pytest.mark.parametrize("lost", [False, True])
def test_a_batch_with_stored_ids_is_cut_where_the_broker_says(sender: Sender, lost: bool) -> None:
    sender.enqueue(batch(messages=[b"a", b"b", b"c", b"known", b"e"]), batch(messages=[b"f"]))
    sent = sender.send()
    if lost:
        sender.lane.stream_lost()
        sent = sender.send()
    whole, behind = sent
    some = AlreadyExists("some are stored", reason="DUPLICATE_IDS", metadata={"index": "3", "prefix": "3"})
    assert sender.answer(whole[0], some) == []
    sender.answer(behind[0], GAP)
    again = [one for _, one in sender.send()]
    assert [messages_of(one.payload) for one in again] == [[b"a", b"b", b"c"], [b"known", b"e"], [b"f"]]
    assert ([one.sequence for one in again], sender.lane.producer_epoch) == ([0, 3, 5], 1)


def test_a_batch_with_stored_ids_that_must_stay_whole_fails(sender: Sender) -> None:
    one = batch(count=3)
    one.expected_offset = 7
    sender.enqueue(one)
    ((correlation, _),) = sender.send()
    (failed,) = sender.answer(correlation, AlreadyExists("some are stored", reason="DUPLICATE_IDS"))
    assert (failed.batch, failed.error.reason) == (one, "DUPLICATE_IDS")


@pytest.mark.parametrize(("next_offset", "still_open"), [(9, False), (7, True)])
def test_a_place_that_is_taken_stays_so_for_late_transmissions(
    sender: Sender, next_offset: int, still_open: bool
) -> None:
    one, behind = batch(), batch()
    one.expected_offset = 8
    sender.enqueue(one, behind)
    sender.send()
    sender.lane.stream_lost()
    (first, _), (second, _) = sender.send()
    mismatch = OffsetMismatch("another offset is next", metadata={"next_offset": str(next_offset)})
    (failed,) = sender.answer(first, mismatch)
    assert (failed.batch, failed.error.outcome_open) == (one, still_open)
    lost = sender.answer(second, GAP)
    assert [effect.batch for effect in lost] == ([behind] if still_open else [])
    assert [again for _, again in sender.send()] == ([] if still_open else [behind])


def test_a_refused_batch_that_may_be_stored_is_not_cut(sender: Sender) -> None:
    sender.enqueue(batch(count=2))
    sender.send()
    sender.lane.stream_lost()
    ((correlation, one),) = sender.send()
    (failed,) = sender.answer(correlation, INVALID)
    assert (failed.batch, failed.error.outcome_open) == (one, True)


@pytest.mark.parametrize(
    "error",
    [
        InvalidRequest("bad name", violations=[Violation("channel", "bad name")]),
        Precondition("damaged", reason="SHARD_QUARANTINED"),
    ],
)
def test_a_batch_refused_for_something_else_is_not_cut(sender: Sender, error: RingpostError) -> None:
    sender.enqueue(batch(count=2))
    ((correlation, one),) = sender.send()
    assert sender.answer(correlation, error) == [Failed(one, error)]


def test_an_open_batch_behind_the_halves_is_proved_first(sender: Sender) -> None:
    sender.enqueue(batch(count=2), batch())
    whole, behind = sender.send()
    sender.answer(whole[0], INVALID)
    sender.lane.stream_lost()
    ((probe, one),) = sender.send()
    assert (one, one.sequence) == (behind[1], 2)
    assert sender.answer(probe, UNKNOWN) == []
    assert [one.sequence for _, one in sender.send()] == [0, 1, 2]
    assert sender.lane.producer_epoch == 1


def test_a_stricter_node_gets_smaller_batches(sender: Sender) -> None:
    sender.enqueue(batch(messages=[b"aa", b"bb", b"c" * 20]), batch(messages=[b"dd"]))
    effects = sender.lane.bound(10)
    assert [(messages_of(e.batch.payload), e.error.reason) for e in effects] == [([b"c" * 20], "MESSAGE_TOO_LARGE")]
    sent = sender.send()
    assert [(messages_of(one.payload), one.sequence) for _, one in sent] == [([b"aa"], 0), ([b"bb"], 1), ([b"dd"], 2)]


def test_an_open_batch_is_proved_not_stored_before_it_gets_another_number(sender: Sender) -> None:
    sender.enqueue(batch(), batch())
    (first, _) = sender.send()
    assert len(sender.answer(first[0], INVALID)) == 1
    sender.lane.stream_lost()
    sender.enqueue(batch())
    ((correlation, probe),) = sender.send()
    assert (probe.sequence, sender.lane.producer_epoch) == (1, 0)
    sender.answer(correlation, GAP)
    assert [one.sequence for _, one in sender.send()] == [0, 1]
    assert sender.lane.producer_epoch == 1


def test_an_open_batch_behind_one_that_may_still_arrive_fails_openly(sender: Sender) -> None:
    sender.enqueue(batch(deadline=1.0), batch())
    sender.send()
    sender.lane.stream_lost()
    sender.now = 1.0
    (expired,) = sender.lane.expire(sender.now)
    assert expired.error.outcome_open
    sender.enqueue(batch())
    ((correlation, probe),) = sender.send()
    (failed,) = sender.answer(correlation, GAP)
    assert (failed.batch, failed.error.outcome_open) == (probe, True)
    assert [one.sequence for _, one in sender.send()] == [0]
    assert sender.lane.producer_epoch == 1


def test_a_forgotten_producer_goes_on_with_what_is_surely_not_stored(sender: Sender) -> None:
    sender.enqueue(batch(), batch())
    first, second = sender.send()
    assert sender.answer(first[0], UNKNOWN) == []
    assert sender.answer(second[0], UNKNOWN) == []
    assert [one.sequence for _, one in sender.send()] == [0, 1]
    assert (sender.lane.producer_id, sender.lane.producer_epoch) == (2, 0)


def test_a_forgotten_producer_gives_up_what_may_be_stored(sender: Sender) -> None:
    open_batch, later = batch(), batch()
    sender.enqueue(open_batch)
    sender.send()
    sender.lane.stream_lost()
    sender.enqueue(later)
    first, second = sender.send()
    sender.answer(first[0], GAP)
    (failed,) = sender.answer(second[0], GAP)
    assert (failed.batch, failed.error.outcome_open) == (open_batch, True)
    assert [one for _, one in sender.send()] == [later]


def test_a_fenced_producer_gives_up_everything_sent(sender: Sender) -> None:
    sender.enqueue(batch(), batch())
    first, second = sender.send()
    sender.answer(first[0], FENCED)
    assert len(sender.answer(second[0], FENCED)) == 2
    sender.enqueue(batch())
    assert [one.sequence for _, one in sender.send()] == [0]
    assert sender.lane.producer_id == 2


def test_an_old_duplicate_fails_without_a_hole(sender: Sender) -> None:
    sender.enqueue(batch(), batch())
    first, second = sender.send()
    (failed,) = sender.answer(first[0], AlreadyExists("stored long ago"))
    assert isinstance(failed.error, AlreadyExists)
    sender.answer(second[0], STORED)
    sender.enqueue(batch())
    assert [one.sequence for _, one in sender.send()] == [2]


def test_an_open_failure_is_sent_again_under_the_same_number(sender: Sender) -> None:
    sender.enqueue(batch(deadline=5.0))
    ((correlation, one),) = sender.send()
    sender.answer(correlation, Unavailable("fsync failed", outcome_open=True))
    sender.now = 1.0
    ((_, again),) = sender.send()
    assert (again, again.sequence, again.open) == (one, 0, True)


def test_what_was_never_sent_expires_definitely(sender: Sender) -> None:
    sender.enqueue(batch(deadline=1.0))
    (failed,) = sender.lane.expire(1.0)
    assert isinstance(failed.error, Timeout)
    assert not failed.error.outcome_open


def test_an_unanswered_batch_asks_for_the_stream_to_be_cut(sender: Sender) -> None:
    sender.enqueue(batch(deadline=1.0))
    sender.send()
    assert not sender.lane.unanswered_since(0.9)
    assert sender.lane.unanswered_since(1.0)
    assert sender.lane.expire(1.0) == []


class Broker:
    """The protocol's rules for one channel, for any number of producers. `log` holds payloads of messages."""

    def __init__(self) -> None:
        self.log: list[bytes] = []
        self.producers: dict[int, tuple[int, int]] = {}

    def publish(self, producer: int, epoch: int, sequence: int, payload: bytes) -> object:
        known = self.producers.get(producer)
        if known is None and sequence > 0:
            return UNKNOWN
        known_epoch, expected = known or (epoch, 0)
        if epoch < known_epoch:
            return FENCED
        expected = 0 if epoch > known_epoch else expected
        if sequence > expected:
            return GAP
        if sequence == expected:
            messages = messages_of(payload)
            self.producers[producer] = (epoch, sequence + len(messages))
            self.log += messages
        return STORED


class ProducerMachine(RuleBasedStateMachine):
    """Streams break with requests still on their way (they may arrive late), answers get lost, the broker refuses."""

    @initialize(seed=st.integers(0, 1_000))
    def begin(self, seed: int) -> None:
        rng = random.Random(seed)
        self.lane = Lane("c", lambda: rng.randrange(1, 1 << 62))
        self.broker = Broker()
        self.now = 0.0
        self.correlation = 0
        self.made = 0
        self.requests: deque[tuple[int, int, int, int, bytes]] = deque()
        self.late: deque[tuple[int, int, int, int, bytes]] = deque()
        self.answers: deque[tuple[int, object]] = deque()
        self.acked: list[bytes] = []
        self.failed: dict[bytes, RingpostError] = {}

    def note(self, effects: list) -> None:
        for effect in effects:
            messages = messages_of(effect.batch.payload)
            assert len(messages) == effect.batch.count
            assert effect.batch.crc32c == crc32c(effect.batch.payload)
            for number, message in enumerate(messages, start=effect.batch.first):
                assert effect.batch.ticket[number] == message
                assert message not in self.failed
                assert message not in self.acked
                if isinstance(effect, Stored):
                    self.acked.append(message)
                    assert message in self.broker.log
                else:
                    self.failed[message] = effect.error

    @rule(patience=st.sampled_from([1.0, 5.0, 1_000.0]), count=st.integers(1, 4))
    def enqueue(self, patience: float, count: int) -> None:
        messages = [b"%d" % n for n in range(self.made, self.made + count)]
        self.made += count
        self.lane.enqueue(batch(self.now + patience, messages=messages))

    @rule(most=st.integers(1, 5))
    def send(self, most: int) -> None:
        for _ in range(most):
            one = self.lane.take(self.correlation + 1, self.now)
            if one is None:
                return
            self.correlation += 1
            assert one.sequence is not None
            ids = (self.lane.producer_id, self.lane.producer_epoch)
            self.requests.append((self.correlation, *ids, one.sequence, one.payload))

    @precondition(lambda self: self.requests)
    @rule(how=st.sampled_from(["store", "store", "store", "busy", "invalid", "open"]))
    def arrive(self, how: str) -> None:
        correlation, *ids, payload = self.requests.popleft()
        if how == "store":
            answer: object = self.broker.publish(*ids, payload)
        elif how == "open":
            self.broker.publish(*ids, payload)
            answer = Unavailable("outcome open", outcome_open=True)
        else:
            # The broker knows what it has before it looks at anything else.
            answer = BUSY if how == "busy" else INVALID
            known = self.broker.producers.get(ids[0])
            if messages_of(payload)[0] in self.broker.log and known is not None and known[0] == ids[1]:
                answer = self.broker.publish(*ids, payload)
        self.answers.append((correlation, answer))

    @precondition(lambda self: self.answers)
    @rule()
    def answer(self) -> None:
        correlation, answer = self.answers.popleft()
        self.note(self.lane.answered(correlation, answer, self.now))

    @rule()
    def lose_stream(self) -> None:
        self.late += self.requests
        self.requests.clear()
        self.answers.clear()
        self.note(self.lane.stream_lost())

    @rule(max_bytes=st.sampled_from([5, 10, 15]))
    def move_to_a_stricter_node(self, max_bytes: int) -> None:
        self.lose_stream()
        self.note(self.lane.bound(max_bytes))

    @precondition(lambda self: self.late)
    @rule()
    def arrive_late(self) -> None:
        _, *ids, payload = self.late.popleft()
        self.broker.publish(*ids, payload)

    @rule(seconds=st.sampled_from([0.1, 1.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        if self.lane.unanswered_since(self.now):
            self.lose_stream()
        self.note(self.lane.expire(self.now))

    @invariant()
    def nothing_is_doubled_or_reordered(self) -> None:
        numbers = [int(message) for message in self.broker.log]
        assert len(set(numbers)) == len(numbers)
        kept = [n for n in numbers if b"%d" % n not in self.failed]
        assert kept == sorted(kept)
        assert len(self.lane.outstanding) <= WINDOW

    @invariant()
    def a_definite_failure_is_not_stored(self) -> None:
        stored = set(self.broker.log)
        assert not [p for p, error in self.failed.items() if not error.outcome_open and p in stored]

    def teardown(self) -> None:
        """Once nothing goes wrong any more, everything left is stored."""
        for _ in range(2_000):
            if not self.lane.pending:
                break
            self.send(5)
            while self.requests:
                correlation, *ids, payload = self.requests.popleft()
                self.answers.append((correlation, self.broker.publish(*ids, payload)))
            while self.answers:
                self.answer()
            self.now += 0.01
        assert self.lane.pending == 0
        self.nothing_is_doubled_or_reordered()
        self.a_definite_failure_is_not_stored()
        assert set(self.acked) | set(self.failed) == {b"%d" % n for n in range(self.made)}


# A run has far more steps than shrinking could make sense of in a test's time.
PHASES = [Phase.explicit, Phase.reuse, Phase.generate, Phase.target]
ProducerMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None, phases=PHASES)
TestProducerMachine = ProducerMachine.TestCase
