"""Who publishes and who reads, with what they were promised."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from tests.simulation.kernel import Violation

if TYPE_CHECKING:
    from tests.simulation.process import Process
    from tests.simulation.world import World

TIMEOUT_US = 1_000_000


class Publisher:
    """Publishes batches to one shard, each again and again, anywhere, until all of it is acknowledged."""

    def __init__(self, world: World, shard: int, window: int) -> None:
        self.world = world
        self.shard = shard
        self.window = window
        self.producer = world.new_number()
        self._sequence = 0
        self._batch: list[int] = []
        self._attempt = 0
        self._unsure: dict[int, int] = {}
        self._floor = 0
        self._began_us = 0
        self._node = ""
        self._think()

    def _think(self) -> None:
        delay = int(self.world.rng.random() * self.world.plan.think_us)
        self.world.kernel.after(delay, self._begin)

    def _begin(self) -> None:
        world = self.world
        if world.closing:
            return
        size = 1 + int(world.rng.random() * self.window)
        self._batch = list(range(self._sequence + 1, self._sequence + size + 1))
        self._sequence += size
        self._unsure = {}
        self._floor = world.oracle.shards[self.shard].acked
        self._began_us = world.kernel.now
        self._send()

    def _send(self) -> None:
        """The whole rest of the batch, in order, to one node."""
        world, rng = self.world, self.world.rng
        leader = world.etcd.records[self.shard].leader
        if leader is not None and rng.random() < 0.6:
            self._node = leader.node
        elif not self._node or rng.random() < 0.6:
            self._node = rng.choice(world.nodes)
        self._attempt += 1
        world.kernel.after(TIMEOUT_US, self._timed_out, self._attempt)
        at = world.kernel.now
        for sequence in self._batch:
            self._unsure[sequence] = self._unsure.get(sequence, 0) + 1
            at += int(rng.random() * 1_500)
            world.kernel.at(at, self._arrive, self._node, self.producer, sequence, self._attempt)

    def _arrive(self, node: str, producer: int, sequence: int, attempt: int) -> None:
        process = self.world.process(node)
        if process is None:
            self._answered(producer, sequence, attempt, "refused", 0)
            return
        process.run(self._at_node, (process, producer, sequence, attempt))

    def _at_node(self, process: Process, producer: int, sequence: int, attempt: int) -> None:
        hosted = process.hosted.get(self.shard)
        answer = partial(self._answer_soon, producer, sequence, attempt)
        if hosted is None:
            answer("refused", 0)
        else:
            hosted.publish(producer, sequence, answer)

    def _answer_soon(self, producer: int, sequence: int, attempt: int, what: str, position: int) -> None:
        if self.world.rng.random() < 0.98:
            delay = 100 + int(self.world.rng.random() * 1_000)
            self.world.kernel.after(delay, self._answered, producer, sequence, attempt, what, position)

    def _answered(self, producer: int, sequence: int, attempt: int, what: str, position: int) -> None:
        if producer != self.producer or sequence not in self._batch:
            return
        if what == "refused":
            self._unsure[sequence] -= 1
            if attempt == self._attempt:
                self._refused()
            return
        world = self.world
        world.oracle.told(self.shard, self._floor, position)
        world.acknowledged(self.shard, self._began_us)
        self._batch.remove(sequence)
        if not self._batch:
            self._attempt += 1
            self._think()

    def _refused(self) -> None:
        """All others of the attempt are given up, too; a client that was told "surely not" so far may stop."""
        self._attempt += 1
        world = self.world
        if not any(self._unsure.values()) and world.rng.random() < 0.1:
            for sequence in self._batch:
                world.oracle.surely_not(self.shard, self.producer, sequence)
            self._batch = []
            self.producer, self._sequence = world.new_number(), 0
            self._think()
            return
        self._node = ""
        world.kernel.after(20_000 + int(world.rng.random() * 150_000), self._again, self._attempt)

    def _timed_out(self, attempt: int) -> None:
        if attempt == self._attempt:
            self._node = ""
            self._send()

    def _again(self, attempt: int) -> None:
        if attempt == self._attempt:
            self._send()


class Reader:
    """Asks nodes for the end of a shard, and remembers what it saw (V8)."""

    def __init__(self, world: World, shard: int) -> None:
        self.world = world
        self.shard = shard
        self._seen = (0, 0)
        self._look_later()

    def _look_later(self) -> None:
        self.world.kernel.after(int(self.world.rng.random() * 2 * self.world.plan.think_us), self._look)

    def _look(self) -> None:
        world = self.world
        if world.closing:
            return
        self._look_later()
        leader = world.etcd.records[self.shard].leader
        node = leader.node if leader is not None and world.rng.random() < 0.5 else world.rng.choice(world.nodes)
        process = world.process(node)
        if process is not None:
            process.run(self._at_node, (process,))

    def _at_node(self, process: Process) -> None:
        hosted = process.hosted.get(self.shard)
        seen = hosted.visible_end(self._seen[0]) if hosted is not None else None
        if seen is None:
            return
        epoch, end = seen
        if end < self._seen[1]:
            raise Violation(f"V8: a reader saw {self._seen}, and now {seen}")
        if end > self.world.oracle.shards[self.shard].end:
            raise Violation(f"V1: {end} is visible, and not committed")
        self._seen = (max(epoch, self._seen[0]), end)
