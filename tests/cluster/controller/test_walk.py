"""Random walks: whatever happens to nodes, nothing that was committed is lost, and in the end all is in its place."""

import random

import pytest

from ringpost.cluster.controller.decisions import Settings
from ringpost.cluster.view import Desired, Role
from tests.cluster.controller.world import World

SETTINGS = Settings(replace_after_s=30.0, transfer_s=3.0)


class Walk:
    """Faults by chance, but never so many that the last copy of a shard is lost: then nobody could help."""

    def __init__(self, seed: int) -> None:
        self.r = random.Random(seed)
        factor = self.r.choice([1, 2, 3, 3, 3])
        self.world = World(
            shard_count=6,
            replication_factor=factor,
            min_isr=self.r.randint(1, min(2, factor)),
            settings=SETTINGS,
            r=self.r,
        )
        self.zones = self.r.choice([1, 3])
        self.count = 0
        for _ in range(factor + self.r.randrange(3)):
            self.join()

    def join(self) -> None:
        self.count += 1
        zone = f"z{self.count % self.zones}" if self.zones > 1 else ""
        self.world.join(f"n{self.count}", zone=zone)

    def anything(self) -> None:
        world, r = self.world, self.r
        name = r.choice(sorted(world.members))
        member = world.members[name]
        chance = r.random()
        if r.random() < 0.3:
            self.links(name)
        elif chance < 0.25:
            world.start(name)
        elif chance < 0.45:
            world.kill(name)
        elif chance < 0.55 and member.session:
            world.refuse(name)
        elif chance < 0.65 and self.can_lose(name):
            world.replace_disk(name)
        elif chance < 0.72 and member.session and world.records:
            shard = r.randrange(world.shard_count)
            replica = world.records[shard].replica_on(name)
            if replica is not None and replica.directory == member.directory and self.can_lose(name, shard):
                world.damage(name, shard)
        elif chance < 0.9:
            world.want(name, r.choice(list(Desired)))
        elif chance < 0.95 and len(world.members) < 8:
            self.join()
        elif not member.session and len(world.members) > world.replication_factor and self.is_empty(name):
            world.remove(name)

    def links(self, name: str) -> None:
        """Links break and heal; what is said of them is late, one-sided, or of links that work."""
        world, r = self.world, self.r
        others = [other for other in sorted(world.members) if other != name and r.random() < 0.6]
        if r.random() < 0.4:
            world.join_links()
        elif r.random() < 0.5:
            world.cut(name, *others, told=r.random() < 0.7)
        else:
            world.tell(name, *others)

    def is_empty(self, name: str) -> bool:
        return not any(record.replica_on(name) for record in self.world.records.values())

    def can_lose(self, name: str, only: int | None = None) -> bool:
        """Whether every shard has another copy that counts and that is still there."""
        for shard, record in self.world.records.items():
            if only in (None, shard) and record.epoch:
                others = [r for r in record.replicas if r.node != name and r.replica_id in record.in_sync]
                if not any(r.replica_id in self.world.logs for r in others):
                    return False
        return True

    def controller(self) -> None:
        """A round, perhaps of another controller, perhaps with leaders at work between decision and writing."""
        world = self.world
        if self.r.random() < 0.03:
            world.core = world.new_core()
        world.elect(deaf=[name for name in world.members if self.r.random() < 0.1])
        changes = world.plan().changes
        if self.r.random() < 0.3:
            world.work(lazy=0.5)
        if self.r.random() < 0.9:
            world.write(changes)

    def check(self) -> None:
        """What holds at every moment. The bounds of in-sync sets are the record's own assertions."""
        world = self.world
        for shard, record in world.records.items():
            if record.epoch:
                intact = [world.logs[i] for i in record.in_sync if i in world.logs]
                assert intact, "the last copy that counts is lost"
                assert all(log.end >= world.committed[shard] for log in intact), "a copy that counts lacks something"
            assert record.unclean_count == 0

    def heal(self) -> None:
        self.world.join_links()
        for name, member in self.world.members.items():
            if not member.session or member.refuses:
                self.world.start(name)
            self.world.want(name, Desired.ACTIVE)
        while len(self.world.members) < self.world.replication_factor + 1:
            self.join()
        spare = sorted(self.world.members)[self.world.replication_factor :]
        for name in spare:
            if self.r.random() < 0.3:
                self.world.want(name, Desired.DRAIN)


def check_all_in_place(world: World) -> None:
    placed = world.core._placement()
    drained = {name for name, member in world.members.items() if member.desired is Desired.DRAIN}
    for shard, record in world.records.items():
        assert world.nodes_of(shard) == set(placed[shard])
        assert drained.isdisjoint(world.nodes_of(shard))
        assert record.leader is not None
        assert record.leader.node == placed[shard][0]
        assert world.view.leader_alive(record)
        assert len(record.in_sync) == len(record.replicas) == world.replication_factor
        assert {replica.role for replica in record.replicas} == {Role.MEMBER}
        assert record.min_isr == world.min_isr
        assert record.transfer_to == ""


@pytest.mark.parametrize("first_seed", range(0, 60, 20))
def test_walks(first_seed: int) -> None:
    for seed in range(first_seed, first_seed + 20):
        walk = Walk(seed)
        try:
            for _ in range(150):
                if walk.r.random() < 0.35:
                    walk.anything()
                walk.controller()
                walk.world.work(lazy=0.3)
                walk.check()
                walk.world.now += walk.r.choice([0.1, 0.5, 2.0, 10.0])
            walk.heal()
            walk.world.settle()
            walk.check()
            check_all_in_place(walk.world)
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise
