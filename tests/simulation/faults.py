"""Everything that befalls a world, by name. Each may happen at any time, whatever happened before."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.simulation.plan import SECOND

if TYPE_CHECKING:
    from tests.simulation.process import Process
    from tests.simulation.world import World


class Faults:
    """The faults of `plan.MAKERS`."""

    def __init__(self, world: World) -> None:
        self._world = world

    def _later(self, delay_us: int, call: object, *args: object) -> None:
        self._world.kernel.after(delay_us, call, *args)

    # -- processes --------------------------------------------------------------------------------------------------

    def kill(self, node: str, keep: str, span_us: int) -> None:
        self._world.kill(node, keep)
        self._later(span_us, self._world.start, node)

    def power(self, nodes: tuple[str, ...], span_us: int) -> None:
        for node in nodes:
            self._world.kill(node, "some")
            self._later(int(span_us * (0.5 + self._world.rng.random())), self._world.start, node)

    def freeze(self, node: str, span_us: int) -> None:
        process = self._world.process(node)
        if process is None or process.frozen:
            return
        process.frozen = True
        self._later(span_us, process.thaw)
        if span_us > 4 * SECOND:
            self._later(4 * SECOND, self._silent, process)

    def _silent(self, process: Process) -> None:
        if process.alive and process.frozen:
            self._world.net.silent(process)

    def fuse(self, node: str, point: str, count: int, span_us: int) -> None:
        process = self._world.process(node)
        if process is not None:
            process.fuse = (point, count)
            self._later(span_us + SECOND, self._world.start, node)

    def lease_lost(self, node: str) -> None:
        self._world.etcd.revoke(node)

    # -- disks ------------------------------------------------------------------------------------------------------

    def wipe(self, node: str, span_us: int) -> None:
        if self._world.may_lose(node):
            self._world.wipe(node)
            self._later(span_us, self._world.start, node)

    def slow_disk(self, node: str, most_us: int, span_us: int) -> None:
        self._world.slow_disk[node] = most_us
        self._later(span_us, self._world.slow_disk.pop, node, None)

    def damage(self, node: str, span_us: int) -> None:
        disk = self._world.disks[node]
        disk.damages = True
        self._later(span_us, setattr, disk, "damages", False)

    def trim(self, node: str, share: float) -> None:
        for log in self._world.disks[node].logs.values():
            log.trim(int(log.committed * share))

    # -- the network ------------------------------------------------------------------------------------------------

    def cut(self, one: str, other: str, both: bool, span_us: int) -> None:
        self._block([(one, other), (other, one)] if both else [(one, other)], span_us)

    def isolate(self, node: str, how: str, span_us: int) -> None:
        others = [other for other in self._world.nodes if other != node]
        pairs = [(other, node) for other in others] if how != "out" else []
        pairs += [(node, other) for other in others] if how != "in" else []
        self._block(pairs, span_us)

    def split(self, group: tuple[str, ...], span_us: int) -> None:
        rest = [node for node in self._world.nodes if node not in group]
        self._block([pair for one in group for other in rest for pair in ((one, other), (other, one))], span_us)

    def _block(self, pairs: list[tuple[str, str]], span_us: int) -> None:
        for pair in pairs:
            self._world.net.block(*pair)
            self._later(span_us, self._world.net.unblock, *pair)

    def reset(self, one: str, other: str, notice_us: int) -> None:
        self._world.net.break_between(one, other, notice_us)

    def slow_net(self, most_us: int, duplicates: float, span_us: int) -> None:
        net = self._world.net
        net.slow_us, net.duplicates = most_us, duplicates
        self._later(span_us, setattr, net, "slow_us", 0)
        self._later(span_us, setattr, net, "duplicates", 0.0)

    # -- the store --------------------------------------------------------------------------------------------------

    def etcd_cut(self, node: str, span_us: int) -> None:
        self._world.etcd.cut.add(node)
        self._later(span_us, self._world.etcd.cut.discard, node)

    def etcd_down(self, span_us: int) -> None:
        self._world.etcd.down = True
        self._later(span_us, self._etcd_up)

    def _etcd_up(self) -> None:
        self._world.etcd.down = False
        self._world.etcd.prolong()

    def etcd_flaky(self, late: float, lost: float, span_us: int) -> None:
        etcd = self._world.etcd
        etcd.late, etcd.lost = late, lost
        self._later(span_us, setattr, etcd, "late", 0.0)
        self._later(span_us, setattr, etcd, "lost", 0.0)

    def etcd_stall(self, node: str, span_us: int) -> None:
        """What the node sends arrives later, long after it has given up."""
        self._world.etcd.stalled[node] = self._world.kernel.now + span_us

    def slow_watch(self, node: str, most_us: int, span_us: int) -> None:
        self._world.etcd.slow_watch[node] = most_us
        self._later(span_us, self._world.etcd.slow_watch.pop, node, None)

    # -- the controller ---------------------------------------------------------------------------------------------

    def suspect(self, shard: int) -> None:
        self._world.suspected.add(shard)

    def hand_over(self, shard: int, node: str) -> None:
        self._world.hand_over[shard] = node

    def move(self, shard: int, choice: int) -> None:
        """One copy shall be elsewhere."""
        world = self._world
        if shard >= world.plan.shards:
            return
        wanted = world.wanted[shard]
        free = [node for node in world.nodes if node not in wanted]
        if free:
            at = choice % len(wanted)
            world.wanted[shard] = (*wanted[:at], free[choice % len(free)], *wanted[at + 1 :])

    # -- the end ----------------------------------------------------------------------------------------------------

    def heal(self) -> None:
        """Ends everything."""
        world = self._world
        for node in world.nodes:
            process = world.process(node)
            if process is None:
                world.start(node)
            else:
                process.fuse = None
                if process.frozen:
                    process.thaw()
            world.disks[node].damages = False
        for pair in list(world.net.blocked):
            world.net.unblock(*pair)
        world.net.slow_us, world.net.duplicates = 0, 0.0
        world.slow_disk.clear()
        etcd = world.etcd
        etcd.cut.clear()
        etcd.slow_watch.clear()
        etcd.stalled.clear()
        etcd.late = etcd.lost = 0.0
        if etcd.down:
            self._etcd_up()
