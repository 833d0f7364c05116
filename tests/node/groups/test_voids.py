"""Letters that speak of what was delivered again since."""

import random

from ringpost.node.groups.voids import SEEKS_KEPT, Voids


def test_a_letter_is_void_when_a_later_seek_brought_its_message_back() -> None:
    voids = Voids()
    voids.sought(5, 100, 0)
    assert voids.void(4, 100)
    assert not voids.void(5, 100), "it died behind the seek"
    assert not voids.void(4, 99), "its message stayed settled"


def test_what_is_remembered_is_what_matters() -> None:
    voids = Voids()
    voids.sought(5, 100, 0)
    voids.sought(7, 300, 0)
    assert voids.seeks == [(5, 100), (7, 300)]
    voids.sought(9, 200, 0)
    assert voids.seeks == [(5, 100), (9, 200)], "the one to 300 adds nothing"
    voids.sought(10, 400, 5)
    assert voids.seeks == [(9, 200), (10, 400)], "letters below 5 are gone"
    voids.sought(10, 0, 10)
    assert voids.seeks == [], "there is no letter left"


def test_it_agrees_with_all_seeks_and_errs_to_one_side_when_they_are_too_many() -> None:
    chance = random.Random(3)
    for seeks in (5, SEEKS_KEPT, 3 * SEEKS_KEPT):
        voids, every = Voids(), []
        for number in range(1, seeks + 1):
            every.append((number, chance.randrange(1_000) + number * 50))
            voids.sought(*every[-1], 0)
            assert len(voids.seeks) <= SEEKS_KEPT
        for _ in range(300):
            letter, offset = chance.randrange(seeks + 1), chance.randrange(20_000)
            true = any(letter < before and offset >= at for before, at in every)
            assert voids.void(letter, offset) == true or (not true and seeks > SEEKS_KEPT)
        assert Voids(voids.seeks).seeks == voids.seeks
