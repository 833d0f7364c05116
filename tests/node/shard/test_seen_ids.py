"""The ids of a window: what is known, where, for how long."""

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringpost.node.errors import AlreadyExists
from ringpost.node.shard import seen_ids
from ringpost.node.shard.seen_ids import SeenIds, SeenRun, ids_of
from ringpost.v1.publish_pb2 import Batch, Message

A, B, C, D = b"a", b"b", b"c", b"d"


def outcome(seen: Any, ids: tuple[bytes, ...], since_us: int = 0) -> Any:
    """None, an offset, or what is said of a mixture: the index at fault and how many first ones go together."""
    try:
        return seen.find(ids, since_us)
    except AlreadyExists as error:
        return int(error.metadata["index"]), int(error.metadata["prefix"])


@pytest.fixture
def seen() -> SeenIds:
    """a, b, no id, c at offsets 10 to 13."""
    return SeenIds([SeenRun(100, 10, (A, B)), SeenRun(200, 12, (b"", C))])


def test_a_mixture_is_refused_by_name(seen: SeenIds) -> None:
    with pytest.raises(AlreadyExists, match=r"batch.messages\[1\].message_id") as caught:
        seen.find((D, A, B), 0)
    assert (caught.value.reason, caught.value.metadata) == ("DUPLICATE_IDS", {"index": "1", "prefix": "1"})


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        ((D,), None),
        ((D, b"", b""), None),
        ((A,), 10),
        ((A, B), 10),
        ((C,), 13),
        ((D, A), (1, 1)),
        ((D, b"", B, A), (2, 2)),
        ((A, D), (0, 1)),
        ((A, B, D), (0, 2)),
        ((B, A), (0, 1)),
        ((B, C), (0, 1)),
        ((A, b""), (0, 1)),
        ((A, A), (0, 1)),
        ((D, D), (1, 1)),
        ((D, b"e", D), (2, 2)),
    ],
)
def test_all_new_or_all_known_in_this_order(seen: SeenIds, ids: tuple[bytes, ...], expected: Any) -> None:
    assert outcome(seen, ids) == expected


def test_a_window_ends(seen: SeenIds) -> None:
    assert outcome(seen, (A,), 99) == 10
    assert outcome(seen, (A,), 100) is None
    assert outcome(seen, (C,), 199) == 13
    assert outcome(seen, (C,), 200) is None
    seen.note(300, 14, (A,))
    assert outcome(seen, (A,), 250) == 14
    seen.let_go(150, 15)
    assert outcome(seen, (A,), 250) == 14, "the older one went, not the newer"
    assert len(seen) == 2


def test_only_what_is_committed_is_let_go_or_shown(seen: SeenIds) -> None:
    seen.note(300, 14, (D,))
    assert [run.first for run in seen.runs(14)] == [10, 12]
    seen.let_go(1_000, 14)
    assert len(seen) == 1
    assert outcome(seen, (D,)) == 14


def test_the_latest_count_when_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seen_ids, "IDS_MAX", 3)
    seen = SeenIds([SeenRun(n, n, (b"%d" % n,)) for n in range(1, 6)])
    seen.let_go(0, 6)
    assert [outcome(seen, (b"%d" % n,)) for n in range(1, 6)] == [None, None, 3, 4, 5]
    seen.note(6, 6, (A, B, C, D))
    seen.let_go(0, 10)
    assert outcome(seen, (A, B, C, D)) == 6, "the last batch counts however large it is"
    assert len(seen) == 4


def test_lost_messages_are_not_known(seen: SeenIds) -> None:
    seen.lose(11, 12)
    assert [outcome(seen, (one,)) for one in (A, B, C)] == [10, None, 13]
    assert [run.ids for run in seen.runs(100)] == [(A, b""), (b"", C)]


def test_long_ids_are_told_apart_and_take_little() -> None:
    texts = ["é" * 32, "x" * 65, "x" * 66, ""]
    found = ids_of(Batch(messages=[Message(message_id=text) for text in texts]).SerializeToString())
    assert found[0] == texts[0].encode()
    assert found[3] == b""
    assert len(set(found)) == 4
    assert [len(one) for one in found[1:3]] == [33, 33]
    with pytest.raises(UnicodeDecodeError):
        found[1].decode()


def test_many_windows_take_no_more_than_one() -> None:
    seen = SeenIds()
    for n in range(10_000):
        seen.note(n, n, (b"%d" % n,))
        seen.let_go(n - 10, n + 1)
    assert len(seen) == 10
    assert len(seen._runs) < 4 * seen_ids._COMPACT_FROM


@dataclass
class Model:
    """All that was ever noted, in a list."""

    runs: list[SeenRun] = field(default_factory=list)

    def find(self, ids: tuple[bytes, ...], since_us: int) -> Any:
        places = [self._place(one, since_us) for one in ids]
        wholes = [n for n in range(1, len(ids) + 1) if self._alike(ids[:n], places[:n])]
        whole = max(wholes)
        if whole == len(ids):
            return places[0]
        return (0 if places[0] is not None else whole), whole

    @staticmethod
    def _alike(ids: tuple[bytes, ...], places: list[int | None]) -> bool:
        named = [one for one in ids if one]
        if places[0] is None:
            return not any(place is not None for place in places) and len(named) == len(set(named))
        return places == list(range(places[0], places[0] + len(ids)))

    def _place(self, one: bytes, since_us: int) -> int | None:
        found = [
            run.first + n
            for run in self.runs
            if run.time_us > since_us
            for n, known in enumerate(run.ids)
            if known == one
        ]
        return found[-1] if one and found else None

    def let_go(self, until_us: int, end: int) -> None:
        while (committed := [run for run in self.runs if run.first < end]) and (
            committed[0].time_us <= until_us
            or (len(committed) > 1 and sum(len(run.ids) for run in committed) > seen_ids.IDS_MAX)
        ):
            self.runs.remove(committed[0])


_ids = st.lists(st.sampled_from([b"", A, B, C, D, b"e", b"f"]), min_size=1, max_size=4).map(tuple)
_steps = st.lists(
    st.tuples(st.sampled_from(["publish", "publish", "commit", "restart", "look"]), _ids, st.integers(0, 4)),
    max_size=60,
)


@given(_steps, st.integers(1, 8))
def test_it_knows_what_a_list_would_know(steps: list[tuple[str, tuple[bytes, ...], int]], window: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seen_ids, "IDS_MAX", 8)
        seen, model, now, end, committed = SeenIds(), Model(), 100, 0, 0
        for kind, ids, number in steps:
            now += number
            if kind == "commit":
                committed = min(end, committed + 2 * number)
                seen.let_go(now - window, committed)
                model.let_go(now - window, committed)
            elif kind == "restart":  # what is not committed is lost
                seen = SeenIds(list(seen.runs(committed)))
                model.runs = [run for run in model.runs if run.first < committed]
                end = committed
            answer = outcome(seen, ids, now - window)
            assert answer == model.find(ids, now - window)
            if kind == "publish" and answer is None:
                seen.note(now, end, ids)
                if any(ids):
                    model.runs.append(SeenRun(now, end, ids))
                end += len(ids)
