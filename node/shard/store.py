"""All shards of a node: finds channels by name, makes them by first use, lists them."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ringpost.cluster.keys import shard_of
from ringpost.cluster.names import channel_problem, group_problem, is_inbox
from ringpost.cluster.view import View
from ringpost.node.errors import AlreadyExists, Exhausted, InvalidRequest, NotFound, RingpostError
from ringpost.node.journal.disk import DiskState
from ringpost.node.journal.segment import segment_of
from ringpost.node.shard.channel import Channel, ChannelLimits
from ringpost.node.shard.group import Group
from ringpost.node.shard.log import Log
from ringpost.node.shard.shard import Done, Shard

if TYPE_CHECKING:
    from ringpost.node.shard.name_watch import NameWatch

DISK_RETRY_MS = 5_000


@dataclass(frozen=True, slots=True)
class StoreLimits:
    """What one node allows. Bytes and counts, all above 0."""

    max_channels: int = 1_000_000
    max_groups: int = 100_000
    max_scheduled_batches: int = 5_000_000
    max_message_bytes: int = 1 << 20
    max_batch_bytes: int = 4 << 20
    max_batch_messages: int = 65_535
    auto_create_channels: bool = True
    new_channel: ChannelLimits = field(default_factory=ChannelLimits)


class Store:
    """The shards of one node and an index of their channels by name. Only the loop's thread uses it."""

    def __init__(self, log: Log, limits: StoreLimits, *, shard_count: int, node: str, clustered: bool = False) -> None:
        self.log = log
        self.clustered = clustered
        self.limits = limits
        log.schedules.entries_max = limits.max_scheduled_batches
        self.shards = [Shard(number, log, node=node, clustered=clustered) for number in range(shard_count)]
        self.disk_state = DiskState.OK
        # The last segment that there is surely disk space for. Publishes leave it to acks, trims and rewriting.
        self.segment_max = 1 << 32
        self.restoring: dict[int, int] = {}  # shard → address of the record with which a copy of it began to come
        self.lossy: set[Channel] = set()  # channels that damage took messages of
        self.retaining: set[Channel] = set()  # channels that let messages go by themselves
        self.windowed: set[Channel] = set()  # channels that deduplicate by message ids
        self.name_watches: set[NameWatch] = set()  # who wants to hear of channels that are made and deleted
        self._led = [0] * shard_count  # by shard: the epoch in which the newest view says that this node leads
        self._names: dict[str, Channel] = {}
        self._sorted: list[str] = []
        self._unsorted: list[str] = []

    def __len__(self) -> int:
        """Number of channels."""
        return len(self._names)

    def get(self, name: str) -> Channel | None:
        """The channel if there is one; nothing is checked."""
        return self._names.get(name)

    def all_channels(self) -> Iterator[Channel]:
        """Also those that this node only keeps a copy of."""
        for shard in self.shards:
            yield from shard.channels.values()

    def __iter__(self) -> Iterator[Channel]:
        return iter(self._names.values())

    def lead(self, view: View, node: str) -> None:
        """Takes up the leaderships that a view gives this node, and no longer leads what it does not.

        Where shards are replicated the replicas decide that among themselves.
        """
        if self.clustered:
            return
        for record in view.shards:
            shard = self.shards[record.shard]
            ours = record.leader is not None and record.leader.node == node
            if record.leader is not None and ours and record.epoch > shard.epoch:
                shard.lead(record.epoch, record.leader.session)
            self._led[record.shard] = record.epoch if ours else 0

    def leads(self, shard: int) -> bool:
        """Whether this node serves the shard of that number now."""
        found = self.shards[shard]
        return found.serving if self.clustered else 0 < self._led[shard] == found.epoch

    def still_leads(self, shard: int, epoch: int) -> bool:
        """Whether this node leads it in that epoch; it may have paused."""
        found = self.shards[shard]
        if not self.clustered:
            return self.leads(shard) and found.epoch == epoch
        return found.replicated is not None and found.replicated.leading and found.epoch == epoch

    # -- channels ---------------------------------------------------------------------------------------------------

    def find(self, name: str, field: str = "channel") -> Channel:
        """The channel. Raises NotFound; InvalidRequest for what cannot be a name; DataLoss in a damaged shard."""
        channel = self._names.get(name)
        if channel is None:
            self._check_name(name, field)
            self._shard_of(name).check_writable()
            raise NotFound(
                f"{field}: there is no channel {name!r}", reason="CHANNEL_NOT_FOUND", metadata={"channel": name}
            )
        if channel.shard.quarantined:
            channel.shard.check_writable()
        return channel

    def find_or_add(self, name: str, field: str = "channel") -> Channel:
        """The channel, made now if the node makes channels by first use."""
        channel = self._names.get(name)
        if channel is None:
            if not self.makes_by_use(name):
                return self.find(name, field)
            return self.add(name, self.limits.new_channel, _ignore, field)
        if channel.shard.quarantined:
            channel.shard.check_writable()
        return channel

    def check_addable(self, name: str, field: str = "channel") -> None:
        """Raises what `find_or_add` would of a channel that there is not."""
        self._check_name(name, field)
        shard = self._shard_of(name)
        shard.check_writable()
        shard.check_serving()
        if not self.makes_by_use(name):
            self.find(name, field)

    def makes_by_use(self, name: str) -> bool:
        """Whether a channel of that name is made by its first use: no answer brings an inbox back that is gone."""
        return self.limits.auto_create_channels and not is_inbox(name)

    def add(self, name: str, limits: ChannelLimits, done: Done, field: str = "name") -> Channel:
        """Makes a channel, usable at once; `done` when it is committed."""
        self._check_name(name, field)
        if name in self._names:
            raise AlreadyExists(f"{field}: there is a channel {name!r} already", reason="CHANNEL_EXISTS")
        self.check_disk()
        if len(self._names) >= self.limits.max_channels:
            raise Exhausted(
                f"{field}: this node has its {self.limits.max_channels} channels (max_channels)", reason="CHANNEL_LIMIT"
            )
        channel = self._shard_of(name).add_channel(name, limits, done)
        self.include(channel)
        return channel

    def set(self, channel: Channel, limits: ChannelLimits, done: Done) -> None:
        """Changes a channel's configuration; `done` when it is committed."""

        def committed(error: RingpostError | None) -> None:
            self.note_limits(channel)
            done(error)

        channel.shard.set_channel(channel, limits, committed)

    def delete(self, channel: Channel, done: Done) -> None:
        """Removes a channel; its name is free at once."""
        groups = tuple((channel.groups or {}).values())
        for group in groups:
            group.flush()  # no frame of the channel may follow the one that deletes it
        channel.shard.delete_channel(channel, done)
        for group in groups:
            channel.shard.close_box(channel, group.name)
            group.remove("CHANNEL_DELETED", f"channel {channel.name!r} was deleted")
        self.exclude(channel)

    def include(self, channel: Channel) -> None:
        """Makes a channel known by its name; a box for dead letters has none that anybody asks for."""
        if channel.lossy:
            self.lossy.add(channel)
        if channel.box_of:
            return
        self._names[channel.name] = channel
        self._unsorted.append(channel.name)
        if channel.packed is None:
            self.note_limits(channel)
        for watch in tuple(self.name_watches):
            watch.changed(channel, removed=False)

    def include_shard(self, shard: Shard) -> None:
        """Makes all channels of a shard known."""
        for channel in shard.channels.values():
            if not channel.removed and not channel.box_of and self._names.get(channel.name) is not channel:
                self.include(channel)

    def exclude_shard(self, shard: Shard) -> None:
        """The opposite."""
        gone = [channel for channel in shard.channels.values() if self._names.get(channel.name) is channel]
        for channel in gone:
            del self._names[channel.name]
            self.retaining.discard(channel)
            self.windowed.discard(channel)
        if gone:  # many shards may follow, so nothing is sorted now
            self._sorted.clear()
            self._unsorted = list(self._names)

    def note_limits(self, channel: Channel) -> None:
        """To be called when a channel's configuration has changed: keeps `retaining` and `windowed` right."""
        limits = channel.limits
        there = not channel.removed and not channel.box_of
        for members, belongs in ((self.retaining, not limits.retains_all), (self.windowed, limits.dedup_window_ms > 0)):
            if belongs and there:
                members.add(channel)
            else:
                members.discard(channel)

    def exclude(self, channel: Channel) -> None:
        """The opposite."""
        self.retaining.discard(channel)
        self.windowed.discard(channel)
        self.lossy.discard(channel)
        if self._names.get(channel.name) is channel:
            del self._names[channel.name]
            self._tidy()
            at = bisect_left(self._sorted, channel.name)
            del self._sorted[at]
            for watch in tuple(self.name_watches):
                watch.changed(channel, removed=True)

    def boxes(self) -> Iterator[Channel]:
        """Those for dead letters, in shards that this node serves."""
        for shard in self.shards:
            if shard.serving:
                yield from shard.boxes.values()

    @property
    def lost_messages(self) -> int:
        """Offsets among the kept whose messages damage took."""
        self.lossy = {channel for channel in self.lossy if not channel.removed}  # boxes go with their groups
        return sum(last - first + 1 for channel in self.lossy for first, last in channel.lost_ranges())

    @property
    def message_ids(self) -> int:
        """Ids that are held to deduplicate by, of the channels served here."""
        return sum(len(channel.seen or ()) for channel in self.windowed)

    def check_disk(self) -> None:
        """Raises Exhausted when the disk is too full for more messages."""
        if self.disk_state >= DiskState.REFUSE or segment_of(self.log.journal.end) >= self.segment_max:
            raise Exhausted(
                "the node's disk is nearly full; acks, trims and deletes still work, publishes do not",
                reason="DISK_FULL",
                retry_after_ms=DISK_RETRY_MS,
            )

    def check_schedules(self) -> None:
        """Raises Exhausted when the node holds all the delayed batches that it may."""
        self.log.schedules.check_room()

    def check_groups(self) -> None:
        """Raises Exhausted when the node has all the groups that it may have."""
        if self.group_count >= self.limits.max_groups:
            raise Exhausted(
                f"group: this node has its {self.limits.max_groups} groups (max_groups)", reason="GROUP_LIMIT"
            )

    def page(self, prefix: str, after: str, size: int) -> list[Channel]:
        """Up to `size` channels whose names have the prefix and come after `after`, in the order of names."""
        self._tidy()
        start = bisect_right(self._sorted, after) if after >= prefix and after else bisect_left(self._sorted, prefix)
        found = []
        for name in self._sorted[start : start + size]:
            if not name.startswith(prefix):
                break
            found.append(self._names[name])
        return found

    def _tidy(self) -> None:
        # Sorting a sorted list with a tail of new names costs little more than comparing neighbours.
        if self._unsorted:
            self._sorted += self._unsorted
            self._sorted.sort()
            self._unsorted.clear()

    def _shard_of(self, name: str) -> Shard:
        return self.shards[shard_of(name, len(self.shards))]

    @staticmethod
    def _check_name(name: str, field: str) -> None:
        problem = channel_problem(name)
        if problem is not None:
            raise InvalidRequest.of(field, problem)

    # -- groups -----------------------------------------------------------------------------------------------------

    def find_group(self, channel: Channel, name: str) -> Group:
        """A group. Raises NotFound; InvalidRequest for what cannot be a name."""
        group = (channel.groups or {}).get(name)
        if group is None:
            check_group_name(name)
            raise NotFound(
                f"there is no group {name!r} on channel {channel.name!r}",
                reason="GROUP_NOT_FOUND",
                metadata={"channel": channel.name, "group": name},
            )
        return group

    @property
    def group_count(self) -> int:
        """Number of groups."""
        return sum(shard.group_count for shard in self.shards if shard.serving)

    def groups(self) -> Iterable[Group]:
        """All groups."""
        for shard in self.shards:
            for channel in shard.grouped.values():
                if channel.groups and self._names.get(channel.name) is channel:
                    yield from channel.groups.values()


def check_group_name(name: str) -> None:
    """Raises InvalidRequest for what cannot be a group's name."""
    problem = group_problem(name)
    if problem is not None:
        raise InvalidRequest.of("group", problem)


def _ignore(error: object) -> None:
    """The publish that made the channel tells its own story."""
