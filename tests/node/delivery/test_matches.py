"""What is known of a pattern's channels, against a model: the channels that the shards' newest leaders have."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ringpost.node.delivery.matches import Matches

SHARDS = 3
SHARD = st.integers(0, SHARDS - 1)
NAME = st.sampled_from(["a", "b", "c"])


class Leader:
    """What one leadership of a shard says; its words arrive in their order, perhaps much later."""

    def __init__(self, shard: int, epoch: int, names: set[str]) -> None:
        self.epoch = epoch
        self.names = names
        self.words: list[tuple[str, bool] | set[str]] = [set(names)]
        self.shard = shard


class Told(RuleBasedStateMachine):
    """Leaders come and go, one after another in each shard; old ones may still talk."""

    def __init__(self) -> None:
        super().__init__()
        self.matches = Matches()
        self.newest = [Leader(shard, 1, set()) for shard in range(SHARDS)]
        self.leaders = list(self.newest)
        self.reader: set[tuple[int, str]] = set()

    @rule(shard=SHARD, name=NAME)
    def changes(self, shard: int, name: str) -> None:
        leader = self.newest[shard]
        removed = name in leader.names
        (leader.names.remove if removed else leader.names.add)(name)
        leader.words.append((name, removed))

    @rule(shard=SHARD, lost=st.sets(NAME), found=st.sets(NAME))
    def another_leads(self, shard: int, lost: set[str], found: set[str]) -> None:
        before = self.newest[shard]
        leader = Leader(shard, before.epoch + 1, (before.names - lost) | found)
        self.newest[shard] = leader
        self.leaders.append(leader)

    @rule(shard=SHARD)
    def its_stream_breaks_and_all_is_told_again(self, shard: int) -> None:
        leader = self.newest[shard]
        leader.words = [set(leader.names)]

    @rule(data=st.data())
    def one_is_heard(self, data: st.DataObject) -> None:
        talking = [leader for leader in self.leaders if leader.words]
        if talking:
            self._hear(data.draw(st.sampled_from(talking)))

    def _hear(self, leader: Leader) -> None:
        word = leader.words.pop(0)
        if isinstance(word, set):
            joined, left = self.matches.listed(leader.shard, leader.epoch, sorted(word))
        else:
            joined, left = self.matches.changed(leader.shard, leader.epoch, word[0], removed=word[1])
        places = {(leader.shard, name) for name in joined}
        assert not places & self.reader, "nobody joins twice"
        gone = {(leader.shard, name) for name in left}
        assert gone <= self.reader, "who leaves was there"
        self.reader = (self.reader | places) - gone

    @invariant()
    def the_reader_has_what_is_known(self) -> None:
        assert sorted(self.matches) == sorted(name for _, name in self.reader)
        assert all(place in self.matches for place in self.reader)

    def teardown(self) -> None:
        while talking := [leader for leader in self.leaders if leader.words]:
            self._hear(talking[-1])
        assert self.matches.complete(SHARDS)
        assert self.matches.missing(SHARDS) == []
        assert self.reader == {(leader.shard, name) for leader in self.newest for name in leader.names}


TestTold = Told.TestCase
TestTold.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_a_change_of_a_shard_that_was_not_listed_in_that_leadership_counts_for_nothing() -> None:
    matches = Matches()
    assert matches.changed(0, 1, "a", removed=False) == ([], [])
    assert matches.listed(0, 2, ["a"]) == (["a"], [])
    assert matches.changed(0, 1, "a", removed=True) == ([], [])
    assert matches.listed(0, 1, []) == ([], [])
    assert list(matches) == ["a"]
    assert matches.missing(3) == [1, 2]
    assert not matches.complete(3)
