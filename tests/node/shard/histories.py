"""Random histories of a store: what clients, retention, time and the disk may do to it."""

from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from hypothesis import strategies as st

from ringpost.internal.v1.record_pb2 import LetterChange
from ringpost.node.errors import OutOfRange
from ringpost.node.groups.changes import Ack, Action, Nack, Reject
from ringpost.node.groups.policy import Backoff, RetryPolicy
from ringpost.node.shard.channel import Channel, ChannelLimits
from ringpost.node.shard.dead_letters import change
from ringpost.node.shard.group import Group
from ringpost.node.shard.group_frames import add_group, delete_group, seek_group
from ringpost.node.shard.group_settings import GroupSettings
from ringpost.v1.common_pb2 import Durability, GroupMode
from tests.node.shard.fakes import Outcomes, Rig, publish_of

KEY_ORDERED = GroupMode.GROUP_MODE_KEY_ORDERED
CHANNELS = ("a", "d")  # in different shards of two
GROUPS = ("g", "h")
ACTIONS: dict[str, Callable[[int], Action]] = {
    "ack": lambda number: Ack(),
    "nack": lambda number: Nack(number * 500_000),
    "reject": lambda number: Reject(f"reason {number % 2}"),
}
SETTINGS = {
    "g": GroupSettings(ack_deadline_ms=2_000, max_in_flight=20),
    "h": GroupSettings(
        2_000, 20, RetryPolicy(Backoff.CONSTANT, 300_000, max_attempts=2, dead_letters=True), mode=KEY_ORDERED
    ),
}

Operation = tuple[Any, ...]

_channel = st.sampled_from(CHANNELS)
_group = st.sampled_from(GROUPS)
_small = st.integers(0, 9)

operations = st.one_of(
    st.tuples(st.just("publish"), _channel, st.integers(1, 4)),
    st.tuples(st.just("delay"), _channel, st.integers(1, 3), st.sampled_from((1, 500_000, 2_000_000)), st.booleans()),
    st.tuples(st.just("produce"), _channel, st.integers(1, 3), st.integers(1, 2), st.integers(0, 4)),
    st.tuples(st.just("repeat"), _channel, st.integers(1, 2)),
    st.tuples(st.just("add_group"), _channel, _group, _small),
    st.tuples(st.just("seek"), _channel, _group, _small),
    st.tuples(st.just("delete_group"), _channel, _group),
    st.tuples(st.just("take"), _channel, _group, st.integers(1, 6)),
    st.tuples(st.just("settle"), _channel, _group, st.sampled_from(sorted(ACTIONS)), _small, _small),
    st.tuples(st.just("letters"), _channel, st.sampled_from(("redriven", "dropped")), _small),
    st.tuples(st.just("trim"), _channel, _small),
    st.tuples(st.just("configure"), _channel, st.integers(1, 1000)),
    st.tuples(st.just("delete"), _channel),
    st.tuples(st.just("wait"), st.sampled_from((1, 1_000, 700_000, 3_000_000))),
    st.tuples(st.just("commit"), st.sampled_from((None, 1, 2, 3))),
)


class Member:
    """A group's member that only listens."""

    consumer = "m"
    has_credit = True

    def advanced(self) -> None:
        """Takes are explicit here."""

    def removed(self, reason: str, message: str) -> None:
        """Its group is gone."""


def _unread(work: Coroutine[Any, Any, None]) -> None:
    """What is not in memory is not waited for."""
    work.close()


class History:
    """Does operations to a rig. Those that the state does not allow must be refused with a definite error."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.answers: list[Any] = []
        self.done = Outcomes()
        self.sequences: dict[tuple[int, int], tuple[int, int]] = {}
        self.last: dict[int, tuple[int, dict[str, int]]] = {}

    def do(self, operation: Operation) -> None:
        kind, *arguments = operation
        getattr(self, kind)(*arguments)

    def end(self) -> None:
        """Everything that waits is stored."""
        self.rig.time.turn()
        self.rig.time.pass_us(10_000)
        self.rig.commit()

    def publish(self, name: str, count: int) -> None:
        channel = self.rig.store.find_or_add(name)
        texts = ("m" * (n + 1) for n in range(count))
        publish = publish_of(*texts, key=b"k" * (count % 3), durability=Durability.DURABILITY_LEADER)
        channel.shard.publish(channel, publish, self.answers.append)

    def delay(self, name: str, count: int, delay_us: int, numbered: bool) -> None:
        """A batch that is due later; perhaps the next one of a producer."""
        channel = self.rig.store.find_or_add(name)
        due = {"due_us": self.rig.time.now_us + delay_us}
        if not numbered:
            channel.shard.publish(channel, publish_of(*["d"] * count, **due), self.answers.append)
            return
        key = (id(channel), 3)
        epoch, first = self.sequences.get(key, (1, 0))
        how = {"producer": 3, "producer_epoch": epoch, "first_sequence": first}
        assert channel.shard.publish(channel, publish_of(*["d"] * count, **how, **due), self.answers.append)
        self.sequences[key] = (epoch, first + count)
        self.last[id(channel)] = (count, how)

    def produce(self, name: str, count: int, producer: int, rise: int) -> None:
        """The producer's next batch on the channel; rarely a new epoch of it."""
        channel = self.rig.store.find_or_add(name)
        key = (id(channel), producer)
        epoch, first = self.sequences.get(key, (1, 0))
        if rise == 4:
            epoch, first = epoch + 1, 0
        how = {"producer": producer, "producer_epoch": epoch, "first_sequence": first}
        assert channel.shard.publish(channel, publish_of(*["p"] * count, **how), self.answers.append)
        self.sequences[key] = (epoch, first + count)
        self.last[id(channel)] = (count, how)

    def repeat(self, name: str, _: int) -> None:
        channel = self.rig.store.get(name)
        if channel is not None and id(channel) in self.last:
            count, how = self.last[id(channel)]
            assert not channel.shard.publish(channel, publish_of(*["p"] * count, **how), self.answers.append)

    def add_group(self, name: str, group: str, start: int) -> None:
        channel = self.rig.store.get(name)
        if channel is not None and group not in (channel.groups or {}):
            made = add_group(channel, group, SETTINGS[group], min(start, channel.end_offset), self.done)
            made.read_by(self.rig.reading, _unread)
            made.join(1, Member())

    def seek(self, name: str, group: str, offset: int) -> None:
        if found := self._group(name, group):
            seek_group(found, max(min(offset, found.channel.end_offset), found.channel.first_offset), self.done)

    def delete_group(self, name: str, group: str) -> None:
        if found := self._group(name, group):
            delete_group(found, self.done)

    def take(self, name: str, group: str, count: int) -> None:
        if found := self._group(name, group):
            found.take(1, count, self.rig.time.now_us)

    def settle(self, name: str, group: str, action: str, number: int, first: int) -> None:
        if found := self._group(name, group):
            found.settle(1, ACTIONS[action](number), [(first, first + number % 3)], number == 9, self.answers.append)

    def letters(self, name: str, what: str, number: int) -> None:
        """Two dead letters leave, if they are there."""
        if found := self._group(name, "h"):
            pairs = [number, number % 4, number + 1, number % 3] if what == "redriven" else [number, number + 1]
            change(found, LetterChange(**{what: pairs}), self.answers.append)

    def trim(self, name: str, offset: int) -> None:
        channel = self.rig.store.get(name)
        if channel is None:
            return
        if offset > channel.end_offset:
            with pytest.raises(OutOfRange):
                channel.shard.trim(channel, offset, self.done)
        else:
            channel.shard.trim(channel, offset, self.done)

    def configure(self, name: str, messages: int) -> None:
        channel = self.rig.store.get(name)
        if channel is not None:
            channel.shard.set_channel(channel, ChannelLimits(retention_messages=messages), self.done)

    def delete(self, name: str) -> None:
        channel = self.rig.store.get(name)
        if channel is not None:
            self.rig.store.delete(channel, self.done)

    def wait(self, span_us: int) -> None:
        self.rig.time.pass_us(span_us)

    def commit(self, frames: int | None) -> None:
        self.rig.commit(frames)

    def _group(self, name: str, group: str) -> Group | None:
        channel: Channel | None = self.rig.store.get(name)
        return None if channel is None else (channel.groups or {}).get(group)
