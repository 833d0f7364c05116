"""Who is told which channels match, and when."""

import pytest

from ringpost.node.shard.name_watch import Change, Listing, NameWatch, News
from tests.node.shard.fakes import Outcomes, Rig


def leading() -> Rig:
    """A node that leads all shards."""
    rig = Rig()
    rig.store._led = [shard.epoch for shard in rig.store.shards]
    return rig


class Watcher:
    def __init__(self, rig: Rig) -> None:
        self.news: list[News] = []
        self.woken = 0
        self.watch = NameWatch(rig.store, self.news.append, self._wake)

    def _wake(self) -> None:
        self.woken += 1

    def listed(self) -> set[str]:
        """Lists all; the names that came."""
        while self.watch.list_next():
            pass
        return {name for one in self.news if isinstance(one, Listing) for name in one.names}

    @property
    def changes(self) -> list[tuple[str, bool]]:
        return [(one.name, one.removed) for one in self.news if isinstance(one, Change)]


def test_every_shard_is_listed_once_and_then_what_is_made_and_deleted() -> None:
    rig = leading()
    for name in ("orders.a", "orders.b.c", "bills.a"):
        rig.channel(name)
    watcher = Watcher(rig)
    watcher.watch.begin("orders.*")
    assert watcher.woken
    assert watcher.listed() == {"orders.a"}
    assert len(watcher.news) == len(rig.store.shards)
    assert not watcher.watch.list_next()
    rig.channel("orders.d")
    rig.channel("bills.b")
    rig.store.delete(rig.store.find("orders.a"), Outcomes())
    rig.store.delete(rig.store.find("bills.a"), Outcomes())
    assert watcher.changes == [("orders.d", False), ("orders.a", True)]


def test_a_change_before_its_shard_was_listed_is_in_the_listing() -> None:
    rig = leading()
    watcher = Watcher(rig)
    watcher.watch.begin(">")
    rig.channel("a")
    assert watcher.changes == []
    assert watcher.listed() == {"a"}


def test_another_leadership_is_listed_again_and_nothing_else_is() -> None:
    rig = leading()
    rig.channel("a")
    watcher = Watcher(rig)
    watcher.watch.begin(">")
    watcher.listed()
    watcher.news.clear()
    shard = rig.store.find("a").shard
    shard.lead(shard.epoch + 1, 1)
    rig.store._led[shard.number] = shard.epoch
    watcher.watch.look()
    assert watcher.listed() == {"a"}
    assert [one.epoch for one in watcher.news] == [shard.epoch]


def test_a_shard_that_comes_while_others_go_is_listed() -> None:
    rig = leading()
    rig.channel("a")
    shard = rig.store.find("a").shard.number
    led, rig.store._led = (
        rig.store._led,
        [*[0] * shard, rig.store._led[shard], *[0] * (len(rig.store.shards) - shard - 1)],
    )
    watcher = Watcher(rig)
    watcher.watch.begin(">")
    watcher.watch.begin("a")
    assert watcher.watch.list_next()
    rig.store._led = [0 if number == shard else epoch for number, epoch in enumerate(led)]
    watcher.news.clear()
    watcher.listed()
    assert {one.shard for one in watcher.news} == set(range(len(rig.store.shards))) - {shard}


def test_an_ended_pattern_and_a_closed_watcher_hear_nothing() -> None:
    rig = leading()
    first, second = Watcher(rig), Watcher(rig)
    for watcher in (first, second):
        watcher.watch.begin(">")
        watcher.listed()
    first.watch.end(">")
    second.watch.close()
    rig.channel("a")
    assert first.changes == second.changes == []
    assert rig.store.name_watches == {first.watch}


def test_a_look_costs_as_much_as_there_is_to_tell_however_many_patterns_are_watched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rig = Rig(shards=64)
    rig.lead(5)
    led = dict.fromkeys(range(64), True)
    monkeypatch.setattr(rig.store, "leads", led.get)
    watcher = Watcher(rig)
    for number in range(50):
        watcher.watch.begin(f"a.{number}")
    watcher.listed()
    assert len(watcher.news) == 50 * 64
    looked: list[tuple[str, int]] = []
    is_told = NameWatch._is_told

    def counted(watch: NameWatch, pattern: str, shard: int) -> bool:
        looked.append((pattern, shard))
        return is_told(watch, pattern, shard)

    monkeypatch.setattr(NameWatch, "_is_told", counted)
    assert not watcher.watch.list_next()
    assert not looked, "nothing has changed"
    watcher.watch.begin("b.*")
    watcher.listed()
    assert len(watcher.news) == 51 * 64
    assert {pattern for pattern, _ in looked} == {"b.*"}
    looked.clear()
    led[7] = False
    watcher.watch.begin("c.*")
    watcher.listed()
    led[7] = True
    watcher.listed()
    assert [one.shard for one in watcher.news[51 * 64 :]][-1] == 7
    assert len(watcher.news) == 52 * 64
    assert len(looked) < 4 * 64
