"""A durable group in its shard: the pure core, its frames, its members, its wake-ups."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from random import random
from typing import Protocol

from ringpost.node import log
from ringpost.node.errors import Exhausted, NotFound, RingpostError, Unavailable
from ringpost.node.filters.filter import checked
from ringpost.node.groups.changes import Ack, Action, Claim, Lease, Outcome, Reject, SettleChange, join
from ringpost.node.groups.core import GroupCore
from ringpost.node.groups.keyed import KeyedCore
from ringpost.node.groups.ranges import RangeSet
from ringpost.node.groups.recent import Recent, Settler
from ringpost.node.groups.voids import Voids
from ringpost.node.journal.frame import FrameType
from ringpost.node.shard.burial import Burial
from ringpost.node.shard.channel import Channel, Watcher
from ringpost.node.shard.filter_scan import FilterScan
from ringpost.node.shard.group_settings import GroupSettings
from ringpost.node.shard.keys import KeyScan, Spawn
from ringpost.node.shard.modes import occupied
from ringpost.node.shard.reading import Reading
from ringpost.node.shard.settle_codec import encode_settle
from ringpost.node.shard.shard import Shard
from ringpost.v1.common_pb2 import GroupMode

EXPIRED = "expired"  # the reason of a dead letter whose time to live was over
Results = list[tuple[int, int, Outcome]]
SettleReply = Callable[[Results | RingpostError], None]


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
    `paused`: it hands out nothing. `oldest` belongs to `node.shard.lag`. `era`: position of the last frame that moved
    it or brought dead letters back; a lease token from before that settles nothing whose lease has ended.
    """

    __slots__ = (
        "burying",
        "channel",
        "core",
        "created_time_us",
        "dying",
        "era",
        "expire_from_us",
        "held",
        "joined",
        "letters_gone",
        "made_at",
        "members",
        "name",
        "next_settings",
        "oldest",
        "paused",
        "recent",
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
        self.era = 0
        self.recent = Recent()
        self.oldest: tuple[int, int] | None = None
        self.created_time_us = created_time_us
        self.members: dict[int, GroupMember] = {}
        self.joined = 0  # members since this node has it
        self.unstored: list[tuple[SettleChange, Results, SettleReply | None]] = []
        self.held: list[tuple[int, Action, list[tuple[int, int]], bool, SettleReply]] = []
        self.seeks = 0
        self.letters_gone = RangeSet()  # numbers of dead letters that have left the box
        self.voids = Voids()
        self.dying: deque[Burial] = deque()
        self.burying = False
        self.expire_from_us = 0
        self.removed = False
        self.scan: KeyScan | FilterScan | None = None
        self.wake_at_us = 0

    # -- members ----------------------------------------------------------------------------------------------------

    def read_by(self, reading: Reading, spawn: Spawn) -> None:
        """How it gets to know its messages, where it must, before members join; `spawn` runs a coroutine."""
        if self.scan is not None:
            return
        if (wanted := checked(self.settings.filter, "config.filter")) is not None:
            self.scan = FilterScan(self, wanted, reading, spawn)
        elif isinstance(self.core, KeyedCore):
            self.scan = KeyScan(self, self.core, reading, spawn)

    def join(self, member: int, watcher: GroupMember) -> None:
        """A subscription begins; `member` is a number unique on this node. Raises Exhausted when there is no place."""
        if self.members and self.settings.mode == GroupMode.GROUP_MODE_EXCLUSIVE:
            raise occupied(self.name, next(iter(self.members.values())).consumer)
        self.members[member] = watcher
        self.joined += 1
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
        end = reach = self.channel.end_offset
        if self.scan is not None:
            self.scan.ahead(messages_max)
            reach = self.scan.reach(end)
        alone = self.settings.mode == GroupMode.GROUP_MODE_FAILOVER
        share = messages_max if alone else self.core.share(member, end, now_us)
        if share <= 0:
            return []
        leases = self.core.take(member, min(messages_max, share), reach, now_us)
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
            self._store(verdict.change, verdict.results, self._noted(action, self.members[member].consumer, reply))

    def _noted(self, action: Action, consumer: str | None, reply: SettleReply) -> SettleReply:
        """A reply that also remembers who has acked or rejected."""
        if not isinstance(action, Ack | Reject):
            return reply
        rejected = isinstance(action, Reject)

        def stored(outcome: Results | RingpostError) -> None:
            if not isinstance(outcome, RingpostError):
                settler = Settler(self.channel.shard.log.clock(), consumer, rejected)
                self.recent.add(settler, [(first, last) for first, last, what in outcome if what == Outcome.DONE])
            reply(outcome)

        return stored

    def settle_any(self, action: Ack | Reject, ranges: list[tuple[int, int]], reply: SettleReply) -> None:
        """Settles whoever holds the messages; `reply` as for `settle`.

        Raises NotFound when the group was deleted meanwhile; Unavailable and Exhausted, then nothing is changed.
        """
        check_there(self)
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
            self._store(verdict.change, verdict.results, self._noted(action, None, reply))

    def settle_claims(self, action: Action, claims: list[Claim], unclaimed: Results, reply: SettleReply) -> None:
        """Settles what lease tokens speak of, from whoever has them; `reply` as for `settle`, `unclaimed` behind it.

        Raises NotFound when the group was deleted meanwhile, Unavailable while it is moved; then nothing is changed.
        """
        check_there(self)
        if self.seeks:
            raise group_moving(self)
        now = self.channel.shard.log.clock()
        verdict = self.core.settle_claims(claims, action, self.channel.end_offset, now, random())
        results = [*verdict.results, *unclaimed]
        if verdict.change is None:
            self.arm(now)
            reply(results)
        else:
            members = [self.members.get(claim.consumer) for claim in claims]
            known = members[0].consumer if len(members) == 1 and members[0] is not None else None
            self._store(verdict.change, results, self._noted(action, known, reply))

    def pass_over(self, first: int, last: int) -> None:
        """Settles messages that are lost, whoever has them."""
        log.warning("group.lost", channel=self.channel.name, group=self.name, first_offset=first, last_offset=last)
        self._store(SettleChange(acked=[(first, last)]), [], None)

    def expire(self, first: int, last: int) -> int:
        """Settles messages whose time to live is over, whoever has them; of how many that was news."""
        if self.seeks or self.removed:
            return 0
        action = Reject(EXPIRED) if self.settings.expired_to_dead_letters else Ack()
        end, now = self.channel.end_offset, self.channel.shard.log.clock()
        verdict = self.core.settle_any(action, [(first, last)], end, now)
        if verdict.change is not None:
            self._store(verdict.change, verdict.results, None)
        return sum(high - low + 1 for low, high, outcome in verdict.results if outcome == Outcome.DONE)

    def filter_out(self, ranges: list[tuple[int, int]]) -> None:
        """Settles messages that the filter does not let through, and that the core keeps back."""
        self._store(SettleChange(filtered=ranges), [], None)

    def look_again(self, offset: int) -> None:
        """Fresh messages from there on must be looked at."""
        if self.scan is not None:
            self.scan.rewind(offset)

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
                if change.filtered:
                    self.look_again(change.filtered[0][0])
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


def group_moving(group: Group) -> Unavailable:
    """What a settlement is told while the group is moved."""
    message = f"group {group.name!r} is being moved, nothing was settled"
    return Unavailable(message, reason="GROUP_MOVED", retry_after_ms=50)


def check_there(group: Group) -> None:
    if group.removed:
        raise NotFound(f"group {group.name!r} was deleted", reason="GROUP_NOT_FOUND")
