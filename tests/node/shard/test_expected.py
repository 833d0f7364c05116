"""Publishing at an expected offset: the batch gets exactly that place, or nothing is appended."""

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringpost.node.errors import Precondition
from tests.node.shard.fakes import Rig, replayed


def test_a_batch_is_appended_only_at_the_offset_that_it_expects() -> None:
    rig = Rig()
    channel = rig.channel()
    assert rig.publish(channel, "x", "y", expected_offset=0)[0].first_offset == 0
    frames = len(rig.journal.frames)
    for wrong in (0, 1, 3, 2**64 - 1):
        with pytest.raises(Precondition) as caught:
            rig.publish(channel, "z", expected_offset=wrong)
        assert (caught.value.reason, caught.value.metadata) == ("OFFSET_MISMATCH", {"next_offset": "2"})
    assert (len(rig.journal.frames), channel.next_offset) == (frames, 2)
    assert rig.publish(channel, "z", expected_offset=2)[0].first_offset == 2


def test_what_is_appended_counts_before_it_is_committed() -> None:
    rig = Rig()
    channel = rig.channel()
    rig.publish(channel, "x", commit=False)
    with pytest.raises(Precondition):
        rig.publish(channel, "y", expected_offset=0)
    assert rig.publish(channel, "y", expected_offset=1)[0].first_offset == 1


def test_what_is_stored_already_is_answered_as_ever() -> None:
    rig = Rig()
    channel = rig.channel()
    how = {"producer": 7, "producer_epoch": 1, "expected_offset": 0}
    first = rig.publish(channel, "x", commit=False, **how)
    again = rig.publish(channel, "x", **how)
    assert [(a.first_offset, a.duplicate) for a in first + again] == [(0, False), (0, True)]
    rig.publish(channel, "somebody else's")
    assert rig.publish(channel, "x", **how)[0].duplicate
    with pytest.raises(Precondition) as caught:
        rig.publish(channel, "y", **{**how, "first_sequence": 1})
    assert caught.value.reason == "OFFSET_MISMATCH"
    assert not rig.publish(channel, "y", **{**how, "first_sequence": 1, "expected_offset": 2})[0].duplicate


def test_what_was_purged_still_counts() -> None:
    rig = Rig()
    channel = rig.channel()
    rig.publish(channel, "x", "y")
    channel.shard.trim(channel, 2, lambda error: None)
    rig.commit()
    with pytest.raises(Precondition):
        rig.publish(channel, "z", expected_offset=0)
    assert rig.publish(channel, "z", expected_offset=2)[0].first_offset == 2


@dataclass
class Model:
    """A list. A publisher's last batch is remembered by its sequence."""

    log: list[str] = field(default_factory=list)
    stored: dict[tuple[int, int], int] = field(default_factory=dict)
    next: dict[int, int] = field(default_factory=dict)

    def publish(self, producer: int, repeat: bool, expected: int | None, text: str) -> Any:
        number = self.next.get(producer, 0)
        if producer and repeat and number:
            return self.stored[producer, number - 1], True
        if expected is not None and expected != len(self.log):
            return len(self.log)
        self.log.append(text)
        if producer:
            self.stored[producer, number] = len(self.log) - 1
            self.next[producer] = number + 1
        return len(self.log) - 1, False


_steps = st.lists(
    st.tuples(st.integers(0, 2), st.booleans(), st.one_of(st.none(), st.integers(-1, 1)), st.booleans(), st.booleans()),
    max_size=40,
)


@given(_steps)
def test_publishers_with_expectations_do_what_a_list_would(
    steps: list[tuple[int, bool, int | None, bool, bool]],
) -> None:
    rig, model = Rig(), Model()
    channel = rig.channel()
    for number, (producer, repeat, off, commit, restart) in enumerate(steps):
        expected = None if off is None else max(0, len(model.log) + off)
        text = f"m{number}"
        known = model.next.get(producer, 0)
        sequence = max(0, known - 1) if repeat else known
        how = {"producer": producer, "producer_epoch": 1, "first_sequence": sequence} if producer else {}
        answer = model.publish(producer, repeat, expected, text)
        if isinstance(answer, int):
            with pytest.raises(Precondition) as caught:
                rig.publish(channel, text, commit=False, expected_offset=expected, **how)
            assert caught.value.metadata == {"next_offset": str(answer)}
        else:
            answers = rig.publish(channel, text, commit=False, expected_offset=expected, **how)
            rig.commit()
            assert [(a.first_offset, a.duplicate) for a in answers] == [answer]
        if commit:
            rig.commit()
        if restart:
            rig.commit()
            frames = rig.journal.frames
            rig, damaged = replayed(frames)
            rig.journal.frames, rig.journal.end = list(frames), frames[-1].address + 1_000
            rig.journal.durable = rig.journal.end
            rig.lead(rig.shard.epoch + 1)
            assert damaged == []
            channel = rig.store.find("a")
    assert channel.next_offset == len(model.log)
