"""Who settled a message lately."""

from ringpost.node.groups.recent import KEPT, RANGES_MAX, Recent, Settler

ANN, BOB = Settler(1, "ann", False), Settler(2, "bob", True)


def test_the_latest_who_settled_it_is_found() -> None:
    recent = Recent()
    assert recent.find(0) is None
    recent.add(ANN, [(0, 4), (9, 9)])
    recent.add(BOB, [(4, 5)])
    assert [recent.find(offset) for offset in (0, 4, 5, 6, 9)] == [ANN, BOB, BOB, None, ANN]


def test_only_the_latest_are_remembered_and_none_of_very_many_pieces() -> None:
    recent = Recent()
    for number in range(KEPT + 1):
        recent.add(ANN, [(number, number)])
    recent.add(BOB, [(1_000 + 2 * n, 1_000 + 2 * n) for n in range(RANGES_MAX + 1)])
    recent.add(BOB, [])
    assert recent.find(0) is None
    assert recent.find(1) == ANN
    assert recent.find(1_000) is None
    recent.forget()
    assert recent.find(1) is None
