"""A shard's channels and groups on one replica: the node's own code, above the simulated log.

What is replicated, fsynced, lost and cut off is the business of `SimLog`. This follows it frame by frame with what the
node has for that: `ReplicatedLog` (what is appended waits, what is committed is applied), `Shard`, `Group`, snapshots.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from crc32c import crc32c

from ringpost.internal.v1.record_pb2 import DeadLetterFrame, ShardSnapshot
from ringpost.node.journal.cache import CachedFrame, TailCache
from ringpost.node.journal.reclaim import SegmentLedger
from ringpost.node.shard.boxes import box_of
from ringpost.node.shard.channel import Channel
from ringpost.node.shard.channel_state import NO_LIMITS
from ringpost.node.shard.cluster_replay import adopt, clear_shard, load_shard
from ringpost.node.shard.dead_letters import Gravedigger
from ringpost.node.shard.deadlines import Deadlines
from ringpost.node.shard.group import Group
from ringpost.node.shard.group_frames import add_group
from ringpost.node.shard.leadership import pause_serving, start_serving, stop_leading
from ringpost.node.shard.log import Log
from ringpost.node.shard.reading import Reading
from ringpost.node.shard.replicated import ReplicatedLog
from ringpost.node.shard.settlements import Settlements
from ringpost.node.shard.shard import Publish, ignore
from ringpost.node.shard.snapshot import encode_shard
from ringpost.node.shard.store import Store, StoreLimits
from ringpost.v1.common_pb2 import Durability
from ringpost.v1.publish_pb2 import Batch, Message
from tests.simulation.contents import GROUPS
from tests.simulation.disk import Frame
from tests.simulation.group_plan import GroupsPlan
from tests.simulation.kernel import Violation

if TYPE_CHECKING:
    from tests.simulation.group_oracle import Holder
    from tests.simulation.replica import Hosted
    from tests.simulation.seats import Seat
    from tests.simulation.world import World

CHANNEL = "orders"


@contextmanager
def node_code(world: World) -> Iterator[None]:
    """Chance is the world's; what the node would log as a fault of its own is one here."""

    def incident(event: str, *, exception: BaseException | None = None, **facts: object) -> None:
        raise Violation(f"V7: {event}: {exception!r} {facts}") from exception

    with (
        patch("ringpost.node.shard.group.random", world.group_rng.random),
        patch("ringpost.node.log.error", incident),
        patch("ringpost.node.log.warning"),
    ):
        yield


class Timer:
    """What `Machine._later` returns."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._call: Callable[[], None] | None = call

    def cancel(self) -> None:
        self._call = None

    def fire(self) -> None:
        if self._call is not None:
            self._call()


class _Pause:
    """Something that a coroutine waits for: one step of `Machine.spawn`."""

    def __await__(self) -> Any:
        yield


class Machine:
    """The state machine of one replica, for one life of its process. Follows `SimLog`, whose `mirror` it is."""

    def __init__(self, hosted: Hosted, plan: GroupsPlan) -> None:
        self.hosted = hosted
        self.process = hosted.process
        self.world = hosted.process.world
        self.plan = plan
        self.rng = self.world.group_rng
        self.log = hosted.log
        self.seats: list[Seat] = []
        self.held: dict[Group, dict[int, Holder]] = {}  # by offset: what has been handed out
        self.compared: object = None  # the state of the groups that was last found right
        self._naming: tuple[int, int] | None = None
        self._after_append = False
        clock = lambda: self.process.now  # noqa: E731
        self.node_log = Log(
            self.world.contents,
            clock,
            cache=TailCache(plan.cache_bytes),
            ledger=SegmentLedger(),
            deadlines=Deadlines(clock, self._later),
            settlements=Settlements(clock, self._later, partial(self.process.post, 0), linger_us=plan.linger_us),
        )
        self.store = Store(self.node_log, StoreLimits(), shard_count=1, node=self.process.node, clustered=True)
        self.shard = self.store.shards[0]
        self.reading = Reading(self.node_log.cache, self._fetch, self._damaged)
        self.node_log.burials.write = Gravedigger(self.reading, self.spawn, self.store.check_disk).write
        self._restore()
        self.log.mirror, self.log.mirrored = self, True

    @property
    def replicated(self) -> ReplicatedLog:
        assert self.shard.replicated is not None
        return self.shard.replicated

    # -- from what the disk has -------------------------------------------------------------------------------------

    def _restore(self) -> None:
        """After a start: the checkpoint, and what follows it; what is not known to be committed waits."""
        self._load(self.log.checkpoint)
        for frame in self.log.frames:
            if frame.position > self.shard.position:
                self.pushed(frame)
        self.commit(self.log.committed)

    def _load(self, checkpoint: bytes) -> None:
        shard = self.shard
        if checkpoint:
            load_shard(shard, ShardSnapshot.FromString(checkpoint), self.log.replica_id)
        else:
            shard.replicated = ReplicatedLog(shard, self.log.replica_id)
        self.replicated.appended_here = self._appended

    def checkpoint(self) -> bytes:
        """The state at what is committed."""
        return encode_shard(self.shard)

    # -- what befalls the log ---------------------------------------------------------------------------------------

    def pushed(self, frame: Frame) -> None:
        """A frame has come from the leader, or was there at the start."""
        content = self.world.contents.of(self.log.shard, frame.chain)
        header, shard = content.header, self.shard
        if (header.position, header.previous_crc) != (frame.position, shard.last_crc):
            raise Violation(f"V2: frame {frame.position} of {self.log.replica_id} does not continue {shard.position}")
        self.replicated.put(content.address, content.raw, header, content.body)

    def begin_epoch(self, epoch: int, session: int) -> None:
        """This leads from now on."""
        self._naming = (0, session)
        self.replicated.begin_epoch(epoch, session)

    def _appended(self, replicated: ReplicatedLog) -> None:
        """Something of this node's is in the node's log, and now in the simulated one too."""
        shard, log = self.shard, self.log
        frame = replicated.tail[shard.position]
        naming, self._naming = self._naming, None
        producer, sequence = naming or (GROUPS, self.world.new_number())
        position = log.append(shard.epoch, producer, sequence)
        if position != shard.position:
            raise Violation(f"V2: {log.replica_id} appends {shard.position} at {position}")
        self.world.contents.bind(log.shard, log.frames[-1].chain, frame.address)
        if producer and not self._after_append:
            self._after_append = True
            self.process.post(0, self._tell_appended)

    def _tell_appended(self) -> None:
        self._after_append = False
        self.process.trip("append")
        self.hosted.core.appended(self.process.now)

    def commit(self, position: int) -> None:
        """The log is committed up to here."""
        self.replicated.durable = max(self.replicated.durable, self.log.durable)
        if position > self.shard.committed:
            self.replicated.commit(position)
        if self.shard.quarantined:
            raise Violation(f"V7: {self.log.replica_id} at {position}: {self.shard.quarantined}")
        self.world.group_oracle.truths[self.log.shard].compare(self, position)

    def cut(self, end: int) -> None:
        """The log ends here."""
        self.replicated.cut(end)

    def installed(self, checkpoint: bytes) -> None:
        """A snapshot from the leader is what counts now."""
        clear_shard(self.shard)
        fresh = type(self.shard)(self.shard.number, self.node_log, node=self.shard.node, clustered=True)
        load_shard(fresh, ShardSnapshot.FromString(checkpoint), self.log.replica_id)
        adopt(self.shard, fresh)
        self.replicated.appended_here = self._appended
        self.compared = None
        self.world.group_oracle.truths[self.log.shard].compare(self, self.shard.committed)

    # -- leading ----------------------------------------------------------------------------------------------------

    def changed(self) -> None:
        """The core's role may be another one; as the node's replicator does it."""
        core, replicated = self.hosted.core, self.replicated
        if core.leading is not None:
            if core.serving and not replicated.serving:
                start_serving(self.store, self.shard)
            elif not core.serving and replicated.serving:
                pause_serving(self.shard)
        elif replicated.leading:
            stop_leading(self.store, self.shard, "")
            self.replicated.appended_here = self._appended
            self.held.clear()
            seats, self.seats = self.seats, []
            for seat in seats:
                seat.end()
            self.compared = None  # it is another state, if the same
            self.world.group_oracle.truths[self.log.shard].compare(self, self.shard.committed)

    @property
    def serving(self) -> bool:
        return self.hosted.core.serving and self.replicated.serving

    @property
    def channel(self) -> Channel | None:
        return self.store.get(CHANNEL)

    def open(self) -> Channel:
        """The channel with its groups, made by first use. Raises what keeps the shard from appending."""
        channel = self.channel
        if channel is None:
            channel = self.shard.add_channel(CHANNEL, NO_LIMITS, ignore)
            self.store.include(channel)
        for group in self.plan.groups:
            if group.name not in (channel.groups or {}):
                add_group(channel, group.name, group.settings, 0, ignore)
        return channel

    def publish(self, producer: int, sequence: int) -> int:
        """Appends a message; its position."""
        channel = self.open()
        number = (producer * 31 + sequence) % (self.plan.keys + 1)
        message = Message(data=b"%d/%d" % (producer, sequence), key=b"k%d" % number if number else b"")
        body = Batch(messages=[message]).SerializeToString()
        self._naming = (producer, sequence)
        publish = Publish(body, 1, crc32c(body), Durability.DURABILITY_QUORUM)
        self.shard.publish(channel, publish, lambda outcome: None)
        return self.shard.position

    def group(self, name: str) -> Group | None:
        """The group, if there is one here."""
        channel = self.channel
        return None if channel is None else (channel.groups or {}).get(name)

    def letters(self, group: Group) -> list[tuple[int, int]]:
        """Number and offset of what is in the group's box, as a call would read them."""
        box = box_of(group)
        if box is None:
            return []
        found = []
        for at in range(len(box.index)):
            row = box.index.row(at)
            if row.base >= box.end_offset:
                break
            letters = DeadLetterFrame.FromString(self.world.contents.at(row.address).body).letters
            found += [(number, letter.offset) for number, letter in enumerate(letters, row.base)]
        gone = group.letters_gone
        return [pair for pair in found if pair[0] >= box.first_offset and not gone.contains(pair[0])]

    # -- time, and what is read -------------------------------------------------------------------------------------

    def _later(self, delay_s: float, call: Callable[[], None]) -> Timer:
        timer = Timer(call)
        self.process.post(int(delay_s * 1e6), timer.fire)
        return timer

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Runs a coroutine in steps."""
        self.world.coroutines.add(coroutine)
        self.process.post(0, self._step, coroutine)

    def _step(self, coroutine: Coroutine[Any, Any, None]) -> None:
        try:
            coroutine.send(None)
        except StopIteration:
            self.world.coroutines.discard(coroutine)
            return
        self.process.post(int(self.rng.random() * 3_000), self._step, coroutine)

    async def _fetch(self, _: Channel, rows: list[tuple[int, int]]) -> list[CachedFrame]:
        await _Pause()
        return [self.world.contents.at(address).cached() for address, _ in rows]

    def _damaged(self, channel: Channel, what: str) -> None:
        raise Violation(f"a message of {channel.name} cannot be read: {what}")
