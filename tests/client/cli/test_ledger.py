import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringpost.client.cli.ledger import HEAD_BYTES, Ledger, decode, encode

RUN = 0x1234_5678_9ABC_DEF0


def book(count: int = 5) -> Ledger:
    """A run in which all went well: producer 7 published `count` messages to "a", all were seen and acked."""
    ledger = Ledger()
    for n in range(count):
        assert ledger.try_next("a", 7) == n
        ledger.acked("a", 7, n, offset=n, now=float(n))
        ledger.replayed("a", 7, n, offset=n, now=float(n))
        ledger.group_got("a", 7, n)
        ledger.group_acked("a", 7, n)
    return ledger


def test_a_run_without_fault_is_ok() -> None:
    report = book().report()
    assert report.ok
    assert (report.tried, report.acked, report.replayed, report.group_acked) == (5, 5, 5, 5)


def test_a_run_that_acked_nothing_proves_nothing() -> None:
    assert not Ledger().report().ok


def test_an_acked_message_that_nobody_saw_is_lost_to_both() -> None:
    ledger = book()
    ledger.acked("a", 7, ledger.try_next("a", 7), offset=5, now=9.0)
    assert ledger.missing() == (1, 1)
    report = ledger.report()
    assert (report.lost, report.lost_in_group, report.ok) == (1, 1, False)


def test_an_ack_without_an_answer_leaves_it_to_the_brokers_books_whether_the_message_is_settled() -> None:
    ledger = book()
    number = ledger.try_next("a", 7)
    ledger.acked("a", 7, number, offset=5, now=9.0)
    ledger.replayed("a", 7, number, offset=5, now=9.0)
    assert ledger.missing() == (0, 1)
    ledger.group_got("a", 7, number)
    assert ledger.missing() == (0, 0)
    assert ledger.report(unsettled=0).ok
    assert not ledger.report(unsettled=1).ok


def test_an_unanswered_publish_may_be_there_or_not() -> None:
    ledger = book()
    ledger.try_next("a", 7)
    ledger.replayed("a", 7, ledger.try_next("a", 7), offset=5, now=9.0)
    report = ledger.report()
    assert report.ok
    assert report.unanswered == 2


def test_a_refused_publish_must_not_be_there() -> None:
    ledger = book()
    number = ledger.try_next("a", 7)
    ledger.refused("a", 7, number)
    assert ledger.report().ok
    ledger.replayed("a", 7, number, offset=5, now=9.0)
    assert (ledger.report().phantom, ledger.report().ok) == (1, False)


def test_a_message_that_nobody_published_is_a_phantom() -> None:
    ledger = book()
    ledger.replayed("a", 7, 5, offset=5, now=9.0)
    ledger.replayed("b", 1, 0, offset=0, now=9.0)
    assert ledger.report().phantom == 2


def test_a_message_stored_twice_is_duplicated() -> None:
    ledger = book()
    ledger.replayed("a", 7, 2, offset=5, now=9.0)
    assert (ledger.report().duplicated, ledger.report().ok) == (1, False)


@pytest.mark.parametrize("order", [[(0, 0), (2, 1), (1, 2)], [(0, 5), (1, 3), (2, 6)]])
def test_numbers_or_offsets_that_fall_are_reordered(order: list[tuple[int, int]]) -> None:
    ledger = Ledger()
    for number, offset in order:
        ledger.acked("a", 7, ledger.try_next("a", 7), offset, now=0.0)
        ledger.replayed("a", 7, number, offset, now=0.0)
    assert ledger.report().reordered == 1


def test_a_message_at_another_offset_than_its_acknowledgement_named_is_misplaced() -> None:
    ledger = book()
    number = ledger.try_next("a", 7)
    ledger.acked("a", 7, number, offset=6, now=9.0)
    ledger.replayed("a", 7, number, offset=5, now=9.0)
    ledger.group_got("a", 7, number)
    ledger.group_acked("a", 7, number)
    assert (ledger.report().misplaced, ledger.report().ok) == (1, False)


def test_lanes_of_one_channel_may_mix() -> None:
    ledger = Ledger()
    for offset, (producer, number) in enumerate([(1, 0), (2, 0), (2, 1), (1, 1)]):
        ledger.try_next("a", producer)
        ledger.acked("a", producer, number, offset, now=0.0)
        ledger.replayed("a", producer, number, offset, now=0.0)
        ledger.group_got("a", producer, number)
        ledger.group_acked("a", producer, number)
    assert ledger.report().ok


def test_redelivery_is_allowed_until_the_ack_is_confirmed() -> None:
    ledger = Ledger()
    ledger.acked("a", 7, ledger.try_next("a", 7), offset=0, now=0.0)
    ledger.replayed("a", 7, 0, offset=0, now=0.0)
    ledger.group_got("a", 7, 0)
    ledger.group_got("a", 7, 0)
    ledger.group_acked("a", 7, 0)
    assert ledger.report().ok
    assert ledger.report().redelivered == 1
    ledger.group_got("a", 7, 0)
    assert (ledger.report().redelivered_after_ack, ledger.report().ok) == (1, False)


def test_the_longest_pause_is_between_two_events() -> None:
    ledger = book()
    for now in (4.25, 7.25, 7.5):
        ledger.acked("a", 7, ledger.try_next("a", 7), offset=5, now=now)
    assert ledger.report().longest_publish_pause == 3.0
    assert ledger.report().longest_delivery_pause == 1.0


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1), st.integers(HEAD_BYTES, 500))
def test_a_payload_tells_who_made_it(producer: int, number: int, size: int) -> None:
    payload = encode(RUN, producer, number, size)
    assert len(payload) == size
    assert decode(RUN, payload) == (producer, number)
    assert decode(RUN + 1, payload) is None


def test_a_changed_payload_is_noticed() -> None:
    payload = bytearray(encode(RUN, 1, 2, 64))
    payload[-1] ^= 1
    assert decode(RUN, bytes(payload)) is None
    assert decode(RUN, bytes(payload[:-8])) is None
    assert decode(RUN, b"short") is None
