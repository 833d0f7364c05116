"""A world: nodes, disks, a network, a store, clients, and what befalls them. From one seed, the same always."""

from __future__ import annotations

import random
import traceback
from collections.abc import Coroutine
from contextlib import nullcontext
from typing import Any, NamedTuple

from ringpost.cluster.view import Leader, Replica, ShardRecord
from tests.simulation.clients import Publisher, Reader
from tests.simulation.contents import Contents
from tests.simulation.deeds import Deeds
from tests.simulation.disk import Disk, SimLog
from tests.simulation.etcd import Etcd
from tests.simulation.faults import Faults
from tests.simulation.group_oracle import GroupOracle
from tests.simulation.kernel import Kernel, Violation
from tests.simulation.machine import node_code
from tests.simulation.net import Network
from tests.simulation.oracle import Oracle, brief
from tests.simulation.plan import SECOND, Plan
from tests.simulation.process import Process
from tests.simulation.seats import Consumer, Operator

ACCEPT_US = 30 * SECOND  # every shard takes a publish by then
SETTLE_US = 60 * SECOND  # and nothing is pending


class Result(NamedTuple):
    """What a run came to. `failure` is "" when all went well."""

    failure: str
    commits: int
    elections: int
    events: int
    healed_us: int  # from the last fault until everything was well


class World:
    """One run."""

    def __init__(self, plan: Plan, *, tracing: bool = False) -> None:
        self.plan = plan
        self.rng = random.Random(plan.seed + 1)
        self.kernel = Kernel()
        self.trace: list[str] | None = [] if tracing else None
        self.nodes = [f"n{number}" for number in range(plan.nodes)]
        self._numbers = 0
        self._processes: dict[str, Process] = {}
        self.disks = {node: Disk(self.new_id("d"), self.rng) for node in self.nodes}
        self.lost: set[str] = set()  # replicas that are no more
        self.logs: dict[str, SimLog] = {}
        self.wanted: dict[int, tuple[str, ...]] = {}
        self.suspected: set[int] = set()
        self.hand_over: dict[int, str] = {}
        self.slow_disk: dict[str, int] = {}
        self.closing = False
        self.healed_us = 0
        self._accepted: set[int] = set()
        self.net = Network(self)
        self.oracle = Oracle(self)
        self.group_rng = random.Random(plan.seed + 2)
        self.contents = Contents()
        self.coroutines: set[Coroutine[Any, Any, None]] = set()
        self.deeds = Deeds(self)
        self.etcd = Etcd(self, [self._first_record(shard) for shard in range(plan.shards)], plan.ttl_us)
        self.faults = Faults(self)
        for disk in self.disks.values():
            self._watch(disk)

    def _first_record(self, shard: int) -> ShardRecord:
        """One that was never led, or whose leader's session has ended."""
        nodes = self.rng.sample(self.nodes, self.plan.copies)
        replicas = [Replica(node, self.new_id("r"), directory=self.disks[node].directory) for node in nodes]
        self.wanted[shard] = tuple(nodes)
        leader = None
        if self.plan.led:
            leader = Leader(nodes[0], replicas[0].replica_id, 1)
            for replica in replicas:
                self.disks[replica.node].create(shard, replica.replica_id)
        ids = tuple(replica.replica_id for replica in replicas)
        return ShardRecord(shard, int(self.plan.led), leader, ids, tuple(replicas), self.plan.min_isr, 1)

    def _watch(self, disk: Disk) -> None:
        self.logs.update(disk.logs)
        disk.on_create = self.logs.__setitem__

    @property
    def group_oracle(self) -> GroupOracle:
        assert self.oracle.groups is not None
        return self.oracle.groups

    def new_number(self) -> int:
        self._numbers += 1
        return self._numbers

    def new_id(self, what: str) -> str:
        return f"{what}{self.new_number()}"

    def note(self, who: str, text: str) -> None:
        """A line of the trace."""
        if self.trace is not None:
            self.trace.append(f"{self.kernel.now / SECOND:10.6f} {who:>5} {text}")

    # -- processes --------------------------------------------------------------------------------------------------

    def process(self, node: str) -> Process | None:
        """The one that runs there."""
        return self._processes.get(node)

    def processes(self) -> list[Process]:
        return list(self._processes.values())

    def start(self, node: str) -> None:
        """Starts a node, if it does not run."""
        if node not in self._processes:
            self.note(node, "starts")
            self._processes[node] = Process(self, node, self.disks[node])

    def kill(self, node: str, keep: str) -> None:
        """Ends a process at once; `keep` is what stays of what it has not fsynced (see `Disk.crash`)."""
        process = self._processes.pop(node, None)
        if process is None:
            return
        self.note(node, "is killed")
        process.alive = False
        self.net.died(process)
        self.disks[node].crash(keep)
        for other in self._processes.values():
            self.kernel.after(5_000 + int(self.rng.random() * 500_000), self._refuse, other, node, process.session)
        for shard in range(self.plan.shards):
            self.oracle.holders(shard)

    def _refuse(self, other: Process, node: str, session: int) -> None:
        """Whoever tries to connect again is refused."""
        if node not in self._processes and self.net.reaches(other.node, node):
            other.run(other.peer_refused, (node, session))

    # -- losses -----------------------------------------------------------------------------------------------------

    def may_lose(self, node: str) -> bool:
        """Whether each set that may count, now or when a proposal comes through, can bear the loss of a directory."""
        directory = self.disks[node].directory
        for record in self.etcd.records:
            here = {r.replica_id for r in record.replicas if r.directory == directory}
            if here and record.epoch == 0:
                return False
            for in_sync in [record.in_sync, *self.etcd.proposed_sets(record)]:
                if here.intersection(in_sync) and len(self.lost.intersection(in_sync)) + 2 > record.min_isr:
                    return False
        return True

    def wipe(self, node: str) -> None:
        """The directory is gone; the node comes back with another one."""
        self.kill(node, "none")
        self.note(node, "loses its directory")
        self.lost.update(self.disks[node].logs)
        for replica_id in self.disks[node].logs:
            self.logs.pop(replica_id, None)
        self.disks[node] = Disk(self.new_id("d"), self.rng)
        self._watch(self.disks[node])

    # -- the run ----------------------------------------------------------------------------------------------------

    def acknowledged(self, shard: int, began_us: int) -> None:
        """A client has its answer; one that began after the last fault shows that the shard is well."""
        if self.healed_us and began_us >= self.healed_us:
            self._accepted.add(shard)

    def _befall(self, kind: str, args: tuple[object, ...]) -> None:
        self.note("fault", f"{kind} {args}")
        getattr(self.faults, kind)(*args)

    def run(self) -> Result:
        """Until all is well again, or something is wrong."""
        failure = ""
        try:
            with node_code(self) if self.plan.groups is not None else nullcontext():
                self._run()
        except Violation as violation:
            failure = str(violation)
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            failure = f"{type(error).__name__} in {where.name}: {error}"
            self.note("world", traceback.format_exc())
        for coroutine in self.coroutines:
            coroutine.close()
        healed = self.kernel.now - self.healed_us if self.healed_us else 0
        elections = sum(record.epoch for record in self.etcd.records)
        return Result(failure, self.oracle.commits, elections, self.kernel.events, healed)

    def _run(self) -> None:
        plan = self.plan
        for node in self.nodes:
            self.kernel.after(int(self.rng.random() * 20_000), self.start, node)
        for shard in range(plan.shards):
            for _ in range(plan.publishers):
                Publisher(self, shard, plan.window)
            Reader(self, shard)
            if plan.groups is not None:
                Operator(self, shard)
                for group in plan.groups.groups:
                    for _ in range(group.consumers):
                        Consumer(self, shard, group)
        for fault in plan.faults:
            self.kernel.at(fault.at_us, self._befall, fault.kind, fault.args)
        self.kernel.run(plan.heal_us)
        self.note("world", "all faults end")
        self.healed_us = self.kernel.now
        self.faults.heal()
        while len(self._accepted) < plan.shards:
            if self.kernel.now > self.healed_us + ACCEPT_US:
                missing = sorted(set(range(plan.shards)) - self._accepted)
                raise Violation(f"V12: shards {missing} take nothing: {[brief(self.etcd.records[m]) for m in missing]}")
            self.kernel.run(self.kernel.now + 200_000)
        self.closing = True
        while what := self.oracle.unsettled():
            if self.kernel.now > self.healed_us + SETTLE_US:
                raise Violation(f"V12: {what}")
            self.kernel.run(self.kernel.now + 200_000)
