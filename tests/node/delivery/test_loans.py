"""One credit lent to many: never more than there is, in turn, and nobody is kept waiting for ever."""

from hypothesis import given, settings
from hypothesis import strategies as st

from ringpost.node.delivery.credit import CreditWindow
from ringpost.node.delivery.loans import TURN_BYTES, TURN_MESSAGES, Loans


def test_a_turn_is_a_delivery_or_what_is_left() -> None:
    loans: Loans[str] = Loans(CreditWindow(2_400, 1 << 30), 1 << 30)
    for name in "abc":
        loans.want(name)
    assert [(name, messages) for name, messages, _ in iter(lambda: loans.lend(0.0), None)] == [
        ("a", 1_000),
        ("b", 1_000),
        ("c", 400),
    ]


def test_a_turn_is_worth_a_delivery_and_the_others_come_next() -> None:
    loans: Loans[int] = Loans(CreditWindow(TURN_MESSAGES, TURN_BYTES), 1 << 30)
    for name in range(100):
        loans.want(name)
    first = loans.lend(0.0)
    assert first is not None
    assert first[:2] == (0, TURN_MESSAGES)
    assert loans.lend(0.0) is None
    loans.settle(0, 10, 100)
    loans.want(0)
    assert loans.lend(0.0) == (1, TURN_MESSAGES - 10, TURN_BYTES - 100)


def test_one_that_left_is_passed_over_and_comes_again_as_a_newcomer() -> None:
    loans: Loans[str] = Loans(CreditWindow(10, 10), 1 << 30)
    loans.want("a")
    loans.forget("a")
    assert not loans.due
    loans.want("b")
    loans.want("a")
    assert [loan[0] for loan in iter(lambda: loans.lend(0.0), None)] in (["b"], ["a"])


@settings(deadline=None, max_examples=80)
@given(st.data())
def test_the_credit_is_never_passed_and_everybody_gets_a_turn(data: st.DataObject) -> None:
    credit, window = CreditWindow(), data.draw(st.integers(1, 2 << 20))
    loans: Loans[int] = Loans(credit, window)
    names = range(data.draw(st.integers(1, 5)))
    waiting: list[int] = []
    lent: dict[int, tuple[int, int]] = {}
    for _ in range(data.draw(st.integers(0, 60))):
        match data.draw(st.sampled_from(["want", "lend", "settle", "grant", "hold"])):
            case "want":
                name = data.draw(st.sampled_from(names))
                loans.want(name)
                if name not in waiting and name not in lent:
                    waiting.append(name)
            case "grant":
                credit.grant(
                    credit.granted_messages + data.draw(st.integers(0, 3_000)),
                    credit.granted_bytes + data.draw(st.integers(0, 1 << 20)),
                )
            case "hold":
                loans.held_bytes = data.draw(st.integers(0, 3 << 20))
            case "settle" if lent:
                name = data.draw(st.sampled_from(sorted(lent)))
                messages, size = lent.pop(name)
                loans.settle(name, data.draw(st.integers(0, messages)), data.draw(st.integers(0, size)))
            case "lend":
                loan = loans.lend(0.0)
                size = min(credit.bytes, window - loans.held_bytes)
                left = (
                    credit.messages - sum(m for m, _ in lent.values()),
                    size - sum(b for _, b in lent.values()),
                )
                if loan is None:
                    assert not waiting or min(left) <= 0
                else:
                    assert loan[0] == waiting.pop(0), "in turn"
                    assert 0 < loan[1] <= left[0]
                    assert 0 < loan[2] <= left[1]
                    lent[loan[0]] = loan[1:]
        assert (loans.lent_messages, loans.lent_bytes) == tuple(map(sum, zip((0, 0), *lent.values(), strict=True)))


def test_a_client_that_does_not_read_costs_a_window() -> None:
    loans: Loans[int] = Loans(CreditWindow(1 << 40, 1 << 40), TURN_BYTES)
    for name in range(100):
        loans.want(name)
    assert sum(size for _, _, size in iter(lambda: loans.lend(0.0), None)) == TURN_BYTES
    loans.settle(0, 1, TURN_BYTES)
    loans.held_bytes += TURN_BYTES
    assert not loans.due
    loans.held_bytes -= 1
    assert loans.lend(0.0) == (1, TURN_MESSAGES, 1)


def test_a_loan_that_is_not_used_is_overdue() -> None:
    loans: Loans[str] = Loans(CreditWindow(5_000, 1 << 30), 1 << 30)
    for at, name in enumerate("abc"):
        loans.want(name)
        assert loans.lend(float(at)) is not None
    loans.settle("a", 0, 0)
    assert loans.overdue(2.0) == ["b"]
    assert loans.any_lent
