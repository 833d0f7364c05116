"""Idempotent producers: who has stored what, and what a batch is answered."""

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringpost.node.errors import AlreadyExists, Precondition, RingpostError
from ringpost.node.shard.producers import PRODUCERS_MAX, RUNS_MAX, SILENCE_US_MAX, Producer, ProducerTable, Run

NOW = 1_700_000_000_000_000
P = 77


def outcome(table: ProducerTable, epoch: int, first: int, count: int, now_us: int = NOW, producer: int = P) -> Any:
    """What `check` says: None, an offset, or the reason of the refusal."""
    try:
        return table.check(producer, epoch, first, count, now_us)
    except RingpostError as error:
        return error.reason


def test_the_first_batch_begins_at_zero() -> None:
    table = ProducerTable()
    assert outcome(table, 1, 0, 5) is None
    assert outcome(table, 1, 3, 5) == "UNKNOWN_PRODUCER"


def test_a_repeat_gets_its_first_offset_again() -> None:
    table = ProducerTable()
    table.stored(P, 1, 0, 5, 100, NOW)
    table.stored(P, 1, 5, 2, 300, NOW)
    assert outcome(table, 1, 0, 5) == 100
    assert outcome(table, 1, 5, 2) == 300
    assert outcome(table, 1, 1, 3) == 101, "a part of it, cut otherwise by the client"
    assert outcome(table, 1, 7, 1) is None


def test_what_does_not_continue_is_a_gap() -> None:
    table = ProducerTable()
    table.stored(P, 1, 0, 5, 100, NOW)
    with pytest.raises(Precondition) as caught:
        table.check(P, 1, 6, 1, NOW)
    assert caught.value.reason == "SEQUENCE_GAP"
    assert caught.value.metadata == {"next_sequence": "5"}
    assert outcome(table, 1, 4, 2) == "SEQUENCE_GAP", "half of it is stored, half is not"


def test_a_greater_epoch_begins_again_and_fences_the_older() -> None:
    table = ProducerTable()
    table.stored(P, 1, 0, 5, 100, NOW)
    assert outcome(table, 2, 5, 1) == "UNKNOWN_PRODUCER"
    assert outcome(table, 2, 0, 1) is None
    assert outcome(table, 1, 5, 1) is None, "a check changes nothing"
    table.stored(P, 2, 0, 1, 105, NOW)
    with pytest.raises(Precondition) as caught:
        table.check(P, 1, 5, 1, NOW)
    assert caught.value.reason == "PRODUCER_FENCED"
    assert caught.value.metadata == {"producer_epoch": "2"}


def test_runs_whose_offsets_follow_each_other_become_one() -> None:
    table = ProducerTable()
    for number in range(1000):
        table.stored(P, 1, number * 3, 3, 50 + number * 3, NOW)
    ((_, state),) = table.items()
    assert state.runs == [Run(0, 3000, 50)]
    assert outcome(table, 1, 1499, 3) == 50 + 1499


def test_only_the_latest_runs_are_remembered() -> None:
    table = ProducerTable()
    for number in range(RUNS_MAX + 1):
        table.stored(P, 1, number, 1, number * 10, NOW)
    ((_, state),) = table.items()
    assert len(state.runs) == RUNS_MAX
    with pytest.raises(AlreadyExists) as caught:
        table.check(P, 1, 0, 1, NOW)
    assert caught.value.reason == "DUPLICATE_TOO_OLD"
    assert outcome(table, 1, 1, 1) == 10


def test_a_day_of_silence_forgets() -> None:
    table = ProducerTable()
    table.stored(P, 1, 0, 5, 100, NOW)
    assert outcome(table, 1, 5, 1, NOW + SILENCE_US_MAX) is None
    later = NOW + SILENCE_US_MAX + 1
    assert outcome(table, 1, 5, 1, later) == "UNKNOWN_PRODUCER"
    assert outcome(table, 1, 0, 1, later) is None
    table.stored(P, 1, 0, 1, 900, later)
    assert outcome(table, 1, 0, 1, later) == 900
    table.forget_silent(later + SILENCE_US_MAX)
    assert len(table) == 1
    table.forget_silent(later + SILENCE_US_MAX + 1)
    assert len(table) == 0


def test_the_longest_silent_of_too_many_goes() -> None:
    table = ProducerTable()
    for number in range(PRODUCERS_MAX):
        table.stored(number, 1, 0, 1, number, NOW)
    table.stored(0, 1, 1, 1, PRODUCERS_MAX, NOW)
    table.stored(P + PRODUCERS_MAX, 1, 0, 1, PRODUCERS_MAX + 1, NOW)
    assert len(table) == PRODUCERS_MAX
    assert outcome(table, 1, 1, 1, producer=1) == "UNKNOWN_PRODUCER"
    assert outcome(table, 1, 2, 1, producer=0) is None


def test_replay_of_batches_that_a_snapshot_knows_changes_nothing() -> None:
    """A checkpoint's producers may be ahead of its frames; an old epoch's batch must not count for the new one."""
    batches = [(1, 0, 4, 0), (1, 4, 4, 4), (2, 0, 1, 8), (2, 1, 1, 9)]
    table = ProducerTable()
    for epoch, first, count, offset in batches:
        table.stored(P, epoch, first, count, offset, NOW)
    for start in range(len(batches)):
        copy = restored(table)
        for epoch, first, count, offset in batches[start:]:
            copy.stored(P, epoch, first, count, offset, NOW)
        assert contents(copy) == contents(table), start


def restored(table: ProducerTable) -> ProducerTable:
    copy = ProducerTable()
    for producer, state in table.items():
        copy.restore(producer, Producer(state.epoch, state.next_sequence, state.last_time_us, state.runs))
    return copy


def contents(table: ProducerTable) -> list[Any]:
    return [(p, s.epoch, s.next_sequence, s.last_time_us, s.runs) for p, s in table.items()]


class Model:
    """The obvious one: per producer its epoch, when it last spoke, and the offset of every sequence number."""

    def __init__(self) -> None:
        self.producers: dict[int, tuple[int, int, dict[int, int]]] = {}

    def expected(self, producer: int, epoch: int, first: int, count: int, now_us: int) -> Any:
        known = self.producers.get(producer)
        if known is None or known[1] + SILENCE_US_MAX < now_us or epoch > known[0]:
            return None if first == 0 else "UNKNOWN_PRODUCER"
        if epoch < known[0]:
            return "PRODUCER_FENCED"
        offsets = known[2]
        if first == len(offsets):
            return None
        if first + count > len(offsets):
            return "SEQUENCE_GAP"
        return offsets[first]

    def together(self, producer: int, first: int, count: int) -> bool:
        """Whether these lie at offsets that follow each other: only then a repeat has *one* first offset."""
        offsets = self.producers[producer][2]
        return all(offsets[first + n] == offsets[first] + n for n in range(count))

    def stored(self, producer: int, epoch: int, first: int, count: int, offset: int, now_us: int) -> None:
        offsets = self.producers[producer][2] if first else {}
        self.producers[producer] = (epoch, now_us, offsets | {first + n: offset + n for n in range(count)})


steps = st.tuples(
    st.integers(1, 2),  # producer
    st.sampled_from((0, 0, 0, 0, 0, 1, -1)),  # change of the epoch
    st.sampled_from(("next", "next", "next", "repeat", "gap", "any")),
    st.integers(1, 4),  # count
    st.sampled_from((0, 0, 1)),  # somebody else's message in between
    st.sampled_from((0, 1, 1000, SILENCE_US_MAX, SILENCE_US_MAX + 1)),
)


def places(table: ProducerTable, script: list[Any]) -> Iterator[tuple[int, int, int, int, int]]:
    """(producer, epoch, first, count, now) of each step, near what the table knows."""
    now = NOW
    for producer, rise, kind, count, _, span in script:
        now += span
        state = dict(table.items()).get(producer)
        epoch = max((state.epoch if state else 1) + rise, 0)
        expected = state.next_sequence if state and rise == 0 else 0
        first = {"next": expected, "repeat": max(expected - count, 0), "gap": expected + 1, "any": count}[kind]
        yield producer, epoch, first, count, now


@given(st.lists(steps, max_size=60))
@settings(max_examples=300, deadline=None)
def test_the_table_answers_as_a_list_of_all_sequences_would(script: list[Any]) -> None:
    table, model, end = ProducerTable(), Model(), 0
    for step, (producer, epoch, first, count, now) in zip(script, places(table, script), strict=True):
        end += step[4]
        got = outcome(table, epoch, first, count, now, producer)
        expected = model.expected(producer, epoch, first, count, now)
        if isinstance(expected, int) and not model.together(producer, first, count):
            expected = "DUPLICATE_TOO_OLD"
        assert got == expected
        if got is None:
            table.stored(producer, epoch, first, count, end, now)
            model.stored(producer, epoch, first, count, end, now)
            end += count
        assert contents(restored(table)) == contents(table)
