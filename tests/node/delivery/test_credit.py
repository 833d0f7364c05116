"""What may be sent: running totals that the client replaces."""

from hypothesis import given
from hypothesis import strategies as st

from ringpost.node.delivery.credit import CreditWindow


def test_both_totals_must_be_above_what_was_sent() -> None:
    window = CreditWindow()
    assert not window.open
    window.grant(1, 0)
    assert not window.open
    window.grant(0, 1)
    assert not window.open
    window.grant(2, 10)
    assert window.open
    window.sent(1, 9)
    assert (window.messages, window.bytes, window.open) == (1, 1, True)
    window.sent(1, 50)
    assert (window.messages, window.bytes, window.open) == (0, -49, False)


def test_a_grant_can_be_repeated_and_lowered_below_what_was_sent() -> None:
    window = CreditWindow(10, 100)
    window.sent(5, 50)
    window.grant(10, 100)
    assert (window.messages, window.bytes) == (5, 50)
    window.grant(3, 100)
    assert not window.open
    window.grant(5, 100)
    assert not window.open
    window.grant(6, 100)
    assert window.open


@given(st.lists(st.one_of(st.tuples(st.integers(0, 50), st.integers(0, 500)), st.integers(1, 40)), max_size=50))
def test_messages_are_never_passed_and_bytes_by_less_than_one_message(script: list[tuple[int, int] | int]) -> None:
    """A sender that sends one message of any size while the window is open."""
    window, sent, size = CreditWindow(), 0, 0
    granted = (0, 0)
    for step in script:
        if isinstance(step, tuple):
            granted = step
            window.grant(*step)
        elif window.open:
            assert sent < granted[0]
            assert size < granted[1]
            window.sent(1, step)
            sent, size = sent + 1, size + step
    assert window.open == (sent < granted[0] and size < granted[1])
