"""A cluster small enough to be thought through: nodes, directories, logs as numbers, leaders that do as they should.

A log is how many entries it has; followers copy. What was committed is remembered, so an election that loses some of
it is found. Everything is a call, nothing runs by itself, and time is a number.
"""

import itertools
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from ringpost.cluster.controller.core import Core, Plan
from ringpost.cluster.controller.decisions import Change, End, Reach, Settings
from ringpost.cluster.view import Desired, Leader, NodeRef, Replica, Role, ShardRecord, View


@dataclass
class Member:
    """A node as it really is."""

    name: str
    directory: str
    zone: str = ""
    session: int = 0
    desired: Desired = Desired.ACTIVE
    lost: frozenset[int] = frozenset()
    refuses: bool = False
    unreachable: frozenset[str] = frozenset()

    @property
    def ref(self) -> NodeRef:
        ref = NodeRef(
            self.name, f"{self.name}:1", self.zone, f"{self.name}:2", self.session, self.desired, self.directory
        )
        return replace(ref, lost_shards=self.lost, unreachable=self.unreachable) if self.session else ref


@dataclass
class Log:
    """One copy's log."""

    epoch: int = 0
    end: int = 0


@dataclass
class World:
    """`r` decides whatever happens by chance."""

    shard_count: int = 8
    replication_factor: int = 3
    min_isr: int = 2
    settings: Settings = field(default_factory=Settings)
    r: random.Random = field(default_factory=lambda: random.Random(0))
    now: float = 1000.0

    def __post_init__(self) -> None:
        self.revision = 10
        self.members: dict[str, Member] = {}
        self.broken: set[frozenset[str]] = set()  # links that carry nothing
        self.records: dict[int, ShardRecord] = {}
        self.logs: dict[str, Log] = {}
        self.committed = [0] * self.shard_count
        self.copies_made = 0
        self.ids_seen: set[str] = set()
        self._ids = itertools.count(1)
        self._directories = itertools.count(1)
        self.core = self.new_core()

    def new_core(self) -> Core:
        """A controller that knows nothing yet."""
        return Core(self.settings, lambda: f"{next(self._ids):032x}")

    # Membership

    def join(self, *names: str, zone: str = "") -> None:
        for name in names:
            self.members[name] = Member(name, f"{next(self._directories):032x}", zone)
            self.start(name)

    def start(self, name: str) -> None:
        self.revision += 1
        member = self.members[name]
        member.session, member.refuses, member.unreachable = self.revision, False, frozenset()

    def kill(self, *names: str) -> None:
        for name in names:
            self.revision += 1
            self.members[name].session = 0
            self.members[name].refuses = False

    def refuse(self, name: str) -> None:
        """Its process has died, its lease has not ended yet."""
        self.members[name].refuses = True

    def cut(self, name: str, *others: str, told: bool = True) -> None:
        """Nothing goes between the node and the others any more; it says so at once, unless that is to come."""
        self.broken.update(frozenset((name, other)) for other in others)
        if told:
            self.tell(name, *others)

    def tell(self, name: str, *others: str) -> None:
        """The node says that it cannot reach these, and only these."""
        self.revision += 1
        self.members[name].unreachable = frozenset(others)

    def join_links(self) -> None:
        """All links work, and nobody says otherwise."""
        self.broken.clear()
        for name in self.members:
            self.tell(name)

    def linked(self, one: str, other: str) -> bool:
        return frozenset((one, other)) not in self.broken

    def want(self, name: str, desired: Desired) -> None:
        self.revision += 1
        self.members[name].desired = desired

    def replace_disk(self, name: str) -> None:
        """The node is away and comes back with an empty directory."""
        self.kill(name)
        member = self.members[name]
        for replica in self.copies(member.directory):
            self.logs.pop(replica.replica_id, None)
        member.directory, member.lost = f"{next(self._directories):032x}", frozenset()
        self.start(name)

    def damage(self, name: str, shard: int) -> None:
        """The node says that a copy is not good any more."""
        self.revision += 1
        member = self.members[name]
        replica = self.records[shard].replica_on(name)
        assert replica is not None
        self.logs.pop(replica.replica_id, None)
        member.lost |= {shard}

    def remove(self, name: str) -> None:
        self.revision += 1
        assert not any(record.replica_on(name) for record in self.records.values())
        del self.members[name]

    def up(self, name: str) -> bool:
        member = self.members.get(name)
        return member is not None and member.session > 0 and not member.refuses

    def copies(self, directory: str) -> list[Replica]:
        return [r for record in self.records.values() for r in record.replicas if r.directory == directory]

    # What the controller sees and does

    @property
    def view(self) -> View:
        shards = tuple(self.records[shard] for shard in sorted(self.records))
        nodes = {name: member.ref for name, member in sorted(self.members.items())}
        for record in shards:
            if record.leader is not None:
                nodes.setdefault(record.leader.node, NodeRef(record.leader.node, ""))
        settings = (self.replication_factor, self.min_isr)
        return View(self.revision, "c1", self.shard_count, nodes, shards, "", 0, *settings)

    @property
    def reach(self) -> dict[str, Reach]:
        return {name: "refused" if member.refuses else "up" for name, member in self.members.items() if member.session}

    def look(self) -> None:
        self.core.observe(self.view, self.reach, self.now)

    def plan(self) -> Plan:
        """What the controller would do now, elections apart."""
        self.look()
        return self.core.plan()

    def elect(self, deaf: Iterable[str] = ()) -> list[Change]:
        """Holds the election, and writes its outcome. The `deaf` do not answer."""
        self.look()
        ballot = self.core.call_election()
        answers = {}
        for node, fences in ballot.asks.items():
            if node not in deaf and self.up(node) and self.members[node].session == ballot.sessions[node]:
                ends = [self._fence(node, fence.shard, fence.replica_id, fence.epoch) for fence in fences]
                answers[node] = [end for end in ends if end is not None]
        changes = self.core.count_votes(ballot, answers)
        again = self.core.count_votes(ballot, answers)
        assert changes == again, "the same question, another answer"
        self.write(changes)
        return changes

    def step(self) -> list[Change]:
        """One round of the controller: what it decides is written."""
        changes = self.elect()
        self.look()
        plan = self.core.plan()
        assert self.core.plan() == plan, "the same question, another answer"
        self.write(plan.changes)
        return [*changes, *plan.changes]

    def write(self, changes: Iterable[Change]) -> None:
        for change in changes:
            before = self.records.get(change.record.shard)
            held = before.revision if before else 0
            if held != change.record.revision or not self._sessions_hold(change.sessions):
                continue
            self._put(change.record)
            for tomb in change.tombs:
                assert before is not None
                assert before.replica(tomb.replica_id) is not None
                self.logs.pop(tomb.replica_id, None)

    def _sessions_hold(self, sessions: Mapping[str, int]) -> bool:
        return all(name in self.members and self.members[name].session == own for name, own in sessions.items())

    def _put(self, record: ShardRecord) -> None:
        self.revision += 1
        before = self.records.get(record.shard)
        old = {replica.replica_id for replica in before.replicas} if before else set()
        for replica in record.replicas:
            if replica.replica_id not in old:
                assert replica.replica_id not in self.ids_seen, "a replica id was used before"
                self.ids_seen.add(replica.replica_id)
                self.copies_made += replica.role is Role.LEARNER
        self.records[record.shard] = replace(record, revision=self.revision)

    def _fence(self, node: str, shard: int, replica_id: str, epoch: int) -> End | None:
        if replica_id not in self.logs and epoch == 1:
            self.logs[replica_id] = Log()
            self.members[node].lost -= {shard}
            self.revision += 1
        log = self.logs.get(replica_id)
        return None if log is None else End(shard, replica_id, log.epoch, log.end)

    # What nodes do

    def work(self, lazy: float = 0.0) -> None:
        """Every node makes the copies it is told to; every leader does what it can, each thing left out at times."""
        for shard in list(self.records):
            self._make_copies(self.records[shard])
            if self._leads(self.records[shard]):
                for act in (self._append, self._replicate, self._shrink, self._grow, self._transfer):
                    if self.r.random() >= lazy:
                        act(self.records[shard])
                        if not self._leads(self.records[shard]):
                            break

    def _leads(self, record: ShardRecord) -> bool:
        leader = record.leader
        if leader is None or not self.up(leader.node) or leader.replica_id not in self.logs:
            return False
        return self.members[leader.node].session == leader.session

    def _make_copies(self, record: ShardRecord) -> None:
        for replica in record.replicas:
            member = self.members.get(replica.node)
            mine = member is not None and self.up(replica.node) and member.directory == replica.directory
            if member is None or not mine or replica.replica_id in record.in_sync:
                continue
            if replica.replica_id not in self.logs and replica.role is Role.LEARNER:
                self.logs[replica.replica_id] = Log()
                member.lost -= {record.shard}
                self.revision += 1

    def _intact(self, record: ShardRecord, replica: Replica) -> bool:
        """Whether the leader has to do with a copy."""
        assert record.leader is not None
        near = self.linked(record.leader.node, replica.node)
        return near and self.up(replica.node) and replica.replica_id in self.logs

    def _append(self, record: ShardRecord) -> None:
        assert record.leader is not None
        log = self.logs.get(record.leader.replica_id)
        if log is not None:
            assert log.end >= self.committed[record.shard], "the leader lacks what was committed"
            log.epoch, log.end = record.epoch, log.end + 1

    def _replicate(self, record: ShardRecord) -> None:
        assert record.leader is not None
        log = self.logs.get(record.leader.replica_id)
        if log is None:
            return
        for replica in record.replicas:
            if self._intact(record, replica) and self.r.random() < 0.9:
                self.logs[replica.replica_id] = replace(log)
        ends = [self.logs[i].end if i in self.logs else 0 for i in record.in_sync]
        epochs = {self.logs[i].epoch if i in self.logs else 0 for i in record.in_sync}
        if epochs == {record.epoch}:
            self.committed[record.shard] = max(self.committed[record.shard], min(ends))

    def _shrink(self, record: ShardRecord) -> None:
        leader = record.leader
        assert leader is not None
        out = [
            i
            for i in record.in_sync
            if i != leader.replica_id and not any(self._intact(record, r) for r in record.replicas if r.replica_id == i)
        ]
        out = out[: len(record.in_sync) - record.min_isr]
        if out:
            self._put(replace(record, in_sync=tuple(i for i in record.in_sync if i not in out)))

    def _grow(self, record: ShardRecord) -> None:
        assert record.leader is not None
        log = self.logs.get(record.leader.replica_id)
        for replica in record.replicas:
            new = replica.replica_id not in record.in_sync and self._intact(record, replica)
            if log is not None and new and self.logs[replica.replica_id] == log and log.epoch == record.epoch:
                # A leader may leave it to the controller to say what the copy is now.
                role = Role.MEMBER if record.shard % 2 and replica.role is Role.LEARNER else replica.role
                copies = tuple(replace(r, role=role) if r == replica else r for r in record.replicas)
                self._put(replace(record, in_sync=(*record.in_sync, replica.replica_id), replicas=copies))
                return

    def _transfer(self, record: ShardRecord) -> None:
        assert record.leader is not None
        target = record.replica(record.transfer_to) if record.transfer_to else None
        if target is None:
            return
        able = target.replica_id in record.in_sync and self._intact(record, target)
        if able and self.logs[target.replica_id] == self.logs.get(record.leader.replica_id):
            leader = Leader(target.node, target.replica_id, self.members[target.node].session)
            self._put(replace(record, epoch=record.epoch + 1, leader=leader, transfer_to=""))
        elif self.r.random() < 0.3:
            self._put(replace(record, transfer_to=""))

    # Running

    def run(self, rounds: int = 400, seconds: float = 0.25, until: Callable[[], bool] | None = None) -> None:
        """Rounds of everybody at work."""
        for _ in range(rounds):
            self.step()
            self.work()
            self.now += seconds
            if until is not None and until():
                return

    def settle(self, seconds: float = 60.0) -> int:
        """Lets everybody work until nothing has been decided for a while. Returns how many decisions that took."""
        decisions, quiet = 0, 0
        for _ in range(8000):
            changes = self.step()
            decisions += len(changes)
            revision = self.revision
            self.work()
            quiet = 0 if changes or revision != self.revision else quiet + 1
            if quiet * 2.0 > seconds:
                return decisions
            self.now += 0.25 if not quiet else 2.0
        raise AssertionError("the controller finds no end")

    def nodes_of(self, shard: int) -> set[str]:
        return {replica.node for replica in self.records[shard].replicas}

    def leaders(self) -> list[str]:
        return [record.leader.node if record.leader else "" for _, record in sorted(self.records.items())]


def started(*names: str, **options: object) -> World:
    """A cluster that has found its rest."""
    world = World(**options)  # type: ignore[arg-type]
    world.join(*names)
    world.settle()
    return world
