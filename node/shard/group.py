"""A durable group in its shard: the pure core, its frames, its members, its wake-ups."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from random import random
from typing import Any, Protocol

from ringpost.internal.v1.record_pb2 import GroupRecord
from ringpost.node import log
from ringpost.node.errors import Exhausted, NotFound, RingpostError, Unavailable
from ringpost.node.groups.changes import Ack, Action, Lease, Outcome, Reject, SettleChange, join
from ringpost.node.groups.core import NO_POLICY, GroupCore
from ringpost.node.groups.keyed import KeyedCore
from ringpost.node.groups.policy import RetryPolicy
from ringpost.node.groups.ranges import RangeSet
from ringpost.node.groups.voids import Voids
from ringpost.node.journal.frame import FrameType
from ringpost.node.shard.burial import Burial
from ringpost.node.shard.channel import Channel, Watcher
from ringpost.node.shard.keys import KeyScan, Spawn
from ringpost.node.shard.modes import occupied
from ringpost.node.shard.reading import Reading
from ringpost.node.shard.retry_settings import policy_of, retry_message
from ringpost.node.shard.settle_codec import encode_settle
from ringpost.node.shard.shard import Done, Shard, apply_delete
from ringpost.v1.common_pb2 import GroupMode
from ringpost.v1.group_pb2 import GroupConfig

ACK_DEADLINE_MS = 30_000
ACK_DEADLINE_MS_MIN, ACK_DEADLINE_MS_MAX = 1_000, 43_200_000
MAX_IN_FLIGHT = 100_000
MAX_IN_FLIGHT_MAX = 1_000_000
DEAD_LETTER_AGE_MS = 14 * 86_400_000
DEAD_LETTER_BYTES = 1 << 30

Results = list[tuple[int, int, Outcome]]
SettleReply = Callable[[Results | RingpostError], None]


@dataclass(frozen=True, slots=True)
class GroupSettings:
    """A group's configuration."""

    ack_deadline_ms: int = ACK_DEADLINE_MS
    max_in_flight: int = MAX_IN_FLIGHT
    policy: RetryPolicy = NO_POLICY
    dead_letter_age_ms: int = DEAD_LETTER_AGE_MS
    dead_letter_bytes: int = DEAD_LETTER_BYTES
    mode: GroupMode.ValueType = GroupMode.GROUP_MODE_SHARED

    @classmethod
    def of(cls, config: GroupConfig) -> "GroupSettings":
        """From the API's form; absent fields get their defaults."""
        return cls(
            config.ack_deadline_ms if config.HasField("ack_deadline_ms") else ACK_DEADLINE_MS,
            config.max_in_flight if config.HasField("max_in_flight") else MAX_IN_FLIGHT,
            policy_of(config),
            config.dead_letter_age_ms if config.HasField("dead_letter_age_ms") else DEAD_LETTER_AGE_MS,
            config.dead_letter_bytes if config.HasField("dead_letter_bytes") else DEAD_LETTER_BYTES,
            config.mode or GroupMode.GROUP_MODE_SHARED,
        )

    def message(self) -> GroupConfig:
        """As the API shows it, every field present."""
        return GroupConfig(
            mode=self.mode,
            ack_deadline_ms=self.ack_deadline_ms,
            max_in_flight=self.max_in_flight,
            retry=retry_message(self.policy),
            max_attempts=self.policy.max_attempts,
            dead_letters=self.policy.dead_letters,
            dead_letter_age_ms=self.dead_letter_age_ms,
            dead_letter_bytes=self.dead_letter_bytes,
        )


class GroupMember(Watcher, Protocol):
    """A subscription that takes part in the group."""

    consumer: str

    @property
    def has_credit(self) -> bool:
        """Whether it may be sent a message."""

    def moved(self, message: str) -> None:
        """The group begins elsewhere; the member leaves and may come back."""

    def failed(self, error: RingpostError) -> None:
        """Nothing can be delivered, because messages cannot be read."""


class Group:
    """One group of one channel.

    `unstored` are settlements that wait for the next SETTLE frame, each with the answer it owes. `held` are those that
    came while a seek was on its way (`seeks` counts those): they speak of deliveries before it and are looked at after
    it. `dying` are messages that wait for their dead letters, `burying` whether somebody is about to write those; after
    one that failed no lease that has ended is taken back before `expire_from_us`, or each would begin another.
    `paused`: it hands out nothing. `oldest` belongs to `node.shard.lag`.
    """

    __slots__ = (
        "burying",
        "channel",
        "core",
        "created_time_us",
        "dying",
        "expire_from_us",
        "held",
        "letters_gone",
        "made_at",
        "members",
        "name",
        "next_settings",
        "oldest",
        "paused",
        "removed",
        "scan",
        "seeks",
        "settings",
        "unstored",
        "voids",
        "wake_at_us",
    )

    def __init__(
        self,
        channel: Channel,
        name: str,
        settings: GroupSettings,
        core: GroupCore,
        created_time_us: int,
        made_at: int = 0,
    ) -> None:
        """`made_at` is the position of the frame that makes it; 0: long committed."""
        self.channel = channel
        self.made_at = made_at
        self.name = name
        self.settings = settings
        self.next_settings = settings  # as of the last change that was appended
        self.core = core
        self.paused = False
        self.oldest: tuple[int, int] | None = None
        self.created_time_us = created_time_us
        self.members: dict[int, GroupMember] = {}
        self.unstored: list[tuple[SettleChange, Results, SettleReply | None]] = []
        self.held: list[tuple[int, Action, list[tuple[int, int]], bool, SettleReply]] = []
        self.seeks = 0
        self.letters_gone = RangeSet()  # numbers of dead letters that have left the box
        self.voids = Voids()
        self.dying: deque[Burial] = deque()
        self.burying = False
        self.expire_from_us = 0
        self.removed = False
        self.scan: KeyScan | None = None
        self.wake_at_us = 0

    # -- members ----------------------------------------------------------------------------------------------------

    def read_by(self, reading: Reading, spawn: Spawn) -> None:
        """How it gets to know its messages' keys, before members join; `spawn` runs a coroutine."""
        if self.scan is None and isinstance(self.core, KeyedCore):
            self.scan = KeyScan(self, self.core, reading, spawn)

    def join(self, member: int, watcher: GroupMember) -> None:
        """A subscription begins; `member` is a number unique on this node. Raises Exhausted when there is no place."""
        if self.members and self.settings.mode == GroupMode.GROUP_MODE_EXCLUSIVE:
            raise occupied(self.name, next(iter(self.members.values())).consumer)
        self.members[member] = watcher
        self.core.attach(member)

    def is_active(self, member: int) -> bool:
        """Whether a member may be given messages."""
        return self.settings.mode != GroupMode.GROUP_MODE_FAILOVER or member == next(iter(self.members), None)

    def leave(self, member: int) -> None:
        """It ends: its leases are free at once, and nothing counts as an attempt."""
        if member not in self.members:
            return
        succeeded = self.settings.mode == GroupMode.GROUP_MODE_FAILOVER and self.is_active(member)
        del self.members[member]
        if self.core.detach(member) or succeeded:
            self.kick()

    def take(self, member: int, messages_max: int, now_us: int) -> list[Lease]:
        """Leases messages to a member: at most its fair share of what waits."""
        if self.paused or self.seeks or not self.is_active(member):
            return []
        if self.scan is not None:
            self.scan.ahead(messages_max)
        end = self.channel.end_offset
        alone = self.settings.mode == GroupMode.GROUP_MODE_FAILOVER
        share = messages_max if alone else self.core.share(member, end, now_us)
        if share <= 0:
            return []
        leases = self.core.take(member, min(messages_max, share), end, now_us)
        if leases:
            self.arm(now_us)
        return leases

    def kick(self) -> None:
        """There may be something for the members, of keys first for those that had them last."""
        order = self.members if self.scan is None else sorted(self.members, key=self.core.preferred, reverse=True)
        for member in order:
            self.members[member].advanced()

    # -- settling ---------------------------------------------------------------------------------------------------

    def settle(
        self,
        member: int,
        action: Action,
        ranges: list[tuple[int, int]],
        cumulative: bool,
        reply: SettleReply,
        unsent: Sequence[tuple[int, int]] = (),
    ) -> None:
        """Settles; `unsent` are leases that never reached the member, which a cumulative settlement leaves out.

        `reply` is called once, at once or when the change is stored. The group must not be removed.
        """
        if self.seeks:
            self.held.append((member, action, ranges, cumulative, reply))
            return
        if member not in self.members:
            reply([(first, last, Outcome.UNKNOWN) for first, last in ranges])  # it left while this was held
            return
        now = self.channel.shard.log.clock()
        verdict = self.core.settle(member, action, ranges, cumulative, now, unsent, random())
        if verdict.change is None:
            self.arm(now)
            reply(verdict.results)
        else:
            self._store(verdict.change, verdict.results, reply)

    def settle_any(self, action: Ack | Reject, ranges: list[tuple[int, int]], reply: SettleReply) -> None:
        """Settles whoever holds the messages; `reply` as for `settle`.

        Raises NotFound when the group was deleted meanwhile; Unavailable and Exhausted, then nothing is changed.
        """
        _check_there(self)
        if self.seeks:
            raise group_moving(self)
        if self.core.scattered:
            raise Exhausted(
                f"ranges: the settled messages of group {self.name!r} lie in too many pieces; settle from its low end",
                reason="GROUP_SCATTERED",
            )
        verdict = self.core.settle_any(action, ranges, self.channel.end_offset, self.channel.shard.log.clock())
        if verdict.change is None:
            reply(verdict.results)
        else:
            self._store(verdict.change, verdict.results, reply)

    def pass_over(self, first: int, last: int) -> None:
        """Settles messages that are lost, whoever has them."""
        log.warning("group.lost", channel=self.channel.name, group=self.name, first_offset=first, last_offset=last)
        self._store(SettleChange(acked=[(first, last)]), [], None)

    def _store(self, change: SettleChange, results: Results, reply: SettleReply | None) -> None:
        if change.dying:
            reply = self.channel.shard.log.burials.add(self, change, results, reply)
            if not (change := replace(change, dying=[])):
                return
        self.unstored.append((change, results, reply))
        if len(self.unstored) == 1:
            self.channel.shard.log.settlements.changed(self)

    def flush(self) -> None:
        """Writes what waits: one SETTLE frame, more only for different reject reasons."""
        waiting, self.unstored = self.unstored, []
        if not waiting or self.removed:
            return
        shard = self.channel.shard
        try:
            now = shard.ready()
        except RingpostError as error:
            self._settled(error, [change for change, _, _ in waiting], waiting)
            return
        changes = join(change for change, _, _ in waiting)
        for change in changes[:-1]:
            self._append(shard, now, change, [change], [])
        self._append(shard, now, changes[-1], [changes[-1]], waiting)

    def _append(
        self,
        shard: Shard,
        now: int,
        change: SettleChange,
        changes: list[SettleChange],
        waiting: list[tuple[SettleChange, Results, SettleReply | None]],
    ) -> None:
        body = encode_settle(self.name, change)
        number = self.channel.number
        try:
            shard.log.append(
                shard, FrameType.SETTLE, body, self._settled, changes, waiting, time_us=now, channel=number
            )
        except RingpostError as error:
            self._settled(error, changes, waiting)

    def _settled(
        self,
        error: RingpostError | None,
        changes: list[SettleChange],
        waiting: list[tuple[SettleChange, Results, SettleReply | None]],
    ) -> None:
        for change in changes:
            if error is None:
                self.core.apply(change)
            else:
                self.core.abort(change)
        for _, results, reply in waiting:
            if reply is not None:
                reply(results if error is None else error)
        if error is None:
            self.settled()

    def settled(self) -> None:
        """Something has been settled, has failed, or is pending again: members may take more."""
        self.arm(self.channel.shard.log.clock())
        self.kick()

    # -- time -------------------------------------------------------------------------------------------------------

    def resume(self) -> None:
        """No seek is on its way any more."""
        held, self.held = self.held, []
        for member, action, ranges, cumulative, reply in held:
            self.settle(member, action, ranges, cumulative, reply)
        self.arm(self.channel.shard.log.clock())
        self.kick()

    def arm(self, now_us: int) -> None:
        """Asks to be woken when the next lease or retry is due."""
        due = self.core.next_event_us(now_us, self.expire_from_us)
        if due is not None and not self.removed:
            self.channel.shard.log.deadlines.set(self, due)

    def wake(self, now_us: int) -> None:
        """Leases have ended or retries are due."""
        if self.removed or self.seeks:
            return
        while now_us >= self.expire_from_us and (change := self.core.expire(now_us, random())) is not None:
            self._store(change, [], None)
        self.kick()
        self.arm(now_us)

    def retire(self, error: RingpostError) -> None:
        """This node leads the shard no more: another object, perhaps on another node, is the group from now on."""
        self.removed = True
        self.channel.shard.log.burials.fail(self, error)
        waiting, self.unstored = self.unstored, []
        held, self.held = self.held, []
        for _, _, reply in waiting:
            if reply is not None:
                reply(error)
        for *_, held_reply in held:
            held_reply(error)

    def remove(self, reason: str, message: str) -> None:
        """The group is gone: members are told, nothing more is stored."""
        self.removed = True
        self.channel.shard.log.burials.forget(self)
        waiting, self.unstored = self.unstored, []
        held, self.held = self.held, []
        for _, results, reply in waiting:
            if reply is not None:
                reply([(first, last, Outcome.UNKNOWN) for first, last, _ in results])
        for _, _, ranges, _, reply in held:
            reply([(first, last, Outcome.UNKNOWN) for first, last in ranges])
        for member in tuple(self.members.values()):
            member.removed(reason, message)


# -- frames -----------------------------------------------------------------------------------------------------------


def new_core(settings: GroupSettings, settled_below: int, **state: Any) -> GroupCore:
    """The core of a group that begins at an offset; `state`: what else is known of it, as in `GroupState`."""
    kind = KeyedCore if settings.mode == GroupMode.GROUP_MODE_KEY_ORDERED else GroupCore
    return kind(
        settled_below=settled_below,
        ack_deadline_us=settings.ack_deadline_ms * 1000,
        max_in_flight=settings.max_in_flight,
        policy=settings.policy,
        **state,
    )


def add_group(channel: Channel, name: str, settings: GroupSettings, start: int, done: Done) -> Group:
    """Makes a group that begins at `start`, usable at once; `done` when it is committed.

    Raises NotFound when the channel was deleted meanwhile.
    """
    shard = channel.shard
    now = shard.ready_for(channel)
    start = max(start, channel.first_offset)
    body = GroupRecord(name=name, config=settings.message(), create_at=start).SerializeToString()
    shard.log.append(shard, FrameType.GROUP, body, done, time_us=now, channel=channel.number)
    group = Group(channel, name, settings, new_core(settings, start), now, shard.position)
    channel.add_group(group)
    return group


def seek_group(group: Group, offset: int, done: Done) -> None:
    """Moves a group when committed. Raises NotFound when it was deleted meanwhile."""
    group.flush()
    shard = group.channel.shard
    now = ready_for(group)
    body = GroupRecord(name=group.name, seek_to=offset).SerializeToString()
    number = group.channel.number
    box = shard.boxes.get((number, group.name))
    shard.log.append(shard, FrameType.GROUP, body, _sought, group, box, offset, done, time_us=now, channel=number)
    shard.log.burials.fail(group, group_moving(group))
    group.seeks += 1


def apply_seek(group: Group, box: Channel | None, offset: int) -> None:
    """A committed seek; `box` keeps the group's dead letters, if it has any."""
    group.core.seek(max(offset, group.channel.first_offset))
    if box is not None:
        group.voids.sought(box.end_offset, offset, box.first_offset)


def delete_group(group: Group, done: Done) -> None:
    """Removes a group at once; `done` when that is committed. Raises NotFound when it was deleted meanwhile."""
    group.flush()
    shard = group.channel.shard
    now = ready_for(group)
    body = GroupRecord(name=group.name, deleted=True).SerializeToString()
    number = group.channel.number
    box = shard.boxes.get((number, group.name))
    shard.log.append(shard, FrameType.GROUP, body, _deleted, group, box, done, time_us=now, channel=number)
    shard.close_box(group.channel, group.name)
    shard.leaving_groups.add(group)
    group.channel.drop_group(group.name)
    group.remove("GROUP_DELETED", f"group {group.name!r} was deleted")


def _deleted(error: RingpostError | None, group: Group, box: Channel | None, done: Done) -> None:
    group.channel.shard.leaving_groups.discard(group)
    if error is None and box is not None:
        apply_delete(box)
    done(error)


def group_moving(group: Group) -> Unavailable:
    """What a settlement is told while the group is moved."""
    message = f"group {group.name!r} is being moved, nothing was settled"
    return Unavailable(message, reason="GROUP_MOVED", retry_after_ms=50)


def _check_there(group: Group) -> None:
    if group.removed:
        raise NotFound(f"group {group.name!r} was deleted", reason="GROUP_NOT_FOUND")


def ready_for(group: Group) -> int:
    """To be called before a frame about the group is appended. Raises NotFound when it was deleted."""
    _check_there(group)
    return group.channel.shard.ready_for(group.channel)


def _sought(error: RingpostError | None, group: Group, box: Channel | None, offset: int, done: Done) -> None:
    group.seeks -= 1
    if error is None:
        apply_seek(group, box, offset)
        for member in tuple(group.members.values()):
            member.moved(f"group {group.name!r} was moved; open the subscription again")
    if not group.seeks:
        group.resume()
    done(error)
