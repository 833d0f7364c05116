"""The network between nodes: ordered streams that hold back what they carry, break, and are noticed to be late."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Protocol

from tests.simulation.kernel import Kernel

if TYPE_CHECKING:
    from tests.simulation.process import Process


class Lane:
    """One direction of a stream."""

    __slots__ = ("dead", "held", "latest_us")

    def __init__(self) -> None:
        self.latest_us = 0
        self.held: list[tuple[str, bytes]] = []
        self.dead = False  # something was lost, so nothing that follows may come


class Stream:
    """One that a follower opened to a leader, each in one life of its process. Each end closes for itself."""

    __slots__ = ("broken", "down", "follower", "follower_open", "leader", "leader_open", "session", "up")

    def __init__(self, follower: Process, leader: Process, session: int) -> None:
        self.follower = follower
        self.leader = leader
        self.session = session
        self.up, self.down = Lane(), Lane()
        self.follower_open, self.leader_open = True, False
        self.broken = False


class Host(Protocol):
    """What the network needs of the world."""

    kernel: Kernel
    rng: random.Random

    def process(self, node: str) -> Process | None:
        """The node's process, when it runs."""


class Network:
    """All streams. `blocked` are pairs (from, to) between which nothing goes."""

    def __init__(self, host: Host) -> None:
        self.blocked: set[tuple[str, str]] = set()
        self.slow_us = 0
        self.duplicates = 0.0
        self._host = host
        self._streams: list[Stream] = []

    def delay(self) -> int:
        rng = self._host.rng
        usual = 100 + int(rng.random() * 900)
        if rng.random() < 0.02:
            usual += int(rng.random() * 30_000)
        return usual + int(rng.random() * self.slow_us) if self.slow_us else usual

    def reaches(self, one: str, other: str) -> bool:
        """Whether a question there and its answer come through."""
        return (one, other) not in self.blocked and (other, one) not in self.blocked

    def connect(self, follower: Process, node: str, session: int, known: int) -> None:
        """Tells the follower by `connected`, `refused`, or, late, `unreachable`. `known`: the session it looks for."""
        if self.reaches(follower.node, node):
            self._host.kernel.after(self.delay(), self._connect, follower, node, session, known)
        else:
            follower.post(1_500_000, follower.unreachable, node)

    def _connect(self, follower: Process, node: str, session: int, known: int) -> None:
        leader = self._host.process(node)
        if leader is None:
            follower.post(self.delay(), follower.refused, node, known)
            return
        stream = Stream(follower, leader, session)
        self._streams = [s for s in self._streams if s.follower_open or s.leader_open]
        self._streams.append(stream)
        stream.leader_open = True
        leader.run(leader.accepted, (stream,))
        follower.post(self.delay(), follower.connected, stream)

    # -- messages ---------------------------------------------------------------------------------------------------

    def send(self, stream: Stream, upward: bool, kind: str, data: bytes) -> None:
        """Towards the leader (`upward`) or the follower."""
        lane = stream.up if upward else stream.down
        ends = (stream.follower.node, stream.leader.node)
        if lane.held or (ends if upward else ends[::-1]) in self.blocked:
            lane.held.append((kind, data))
            return
        lane.latest_us = max(lane.latest_us, self._host.kernel.now + self.delay())
        self._host.kernel.at(lane.latest_us, self._arrive, stream, upward, kind, data)

    def _arrive(self, stream: Stream, upward: bool, kind: str, data: bytes) -> None:
        lane = stream.up if upward else stream.down
        if lane.dead:
            return
        rng = self._host.rng
        if stream.broken and rng.random() < 0.3:
            lane.dead = True
            return
        to, call = (stream.leader, stream.leader.on_up) if upward else (stream.follower, stream.follower.on_down)
        to.run(call, (stream, kind, data))
        if self.duplicates and rng.random() < self.duplicates:
            late = 1_000_000 if rng.random() < 0.3 else 1
            to.post(self.delay() + int(rng.random() * late), call, stream, kind, data)

    # -- faults -----------------------------------------------------------------------------------------------------

    def block(self, one: str, other: str) -> None:
        """Nothing goes from one to the other until `unblock`; both find the streams between them broken, some time."""
        self.blocked.add((one, other))
        for stream in self._between(one, other):
            self._notice(stream, 1_000_000, 10_000_000, only_if_blocked=True)

    def unblock(self, one: str, other: str) -> None:
        """What was held back comes, where nobody has given up."""
        if (one, other) not in self.blocked:
            return
        self.blocked.discard((one, other))
        for stream in self._between(one, other):
            upward = stream.follower.node == one
            lane = stream.up if upward else stream.down
            held, lane.held = lane.held, []
            if not (stream.follower_open if upward else stream.leader_open):
                lane.dead = self._host.rng.random() < 0.5
            for kind, data in held:
                self.send(stream, upward, kind, data)

    def break_between(self, one: str, other: str, notice_us: int) -> None:
        """The connections are reset; something on them is lost. Each end notices for itself."""
        for stream in self._between(one, other):
            stream.broken = True
            self._notice(stream, 0, notice_us, only_if_blocked=False)

    def died(self, process: Process) -> None:
        """Whoever is connected notices, soon where the network works."""
        for stream in self._streams:
            if process not in (stream.follower, stream.leader):
                continue
            stream.broken = True
            if stream.follower is process:
                stream.follower_open = False
            else:
                stream.leader_open = False
            cut = not self.reaches(stream.follower.node, stream.leader.node)
            self._notice(stream, 500_000 if cut else 500, 10_000_000 if cut else 200_000, only_if_blocked=False)

    def close(self, stream: Stream, process: Process) -> None:
        """One end closes it; the other hears of that where the network works."""
        stream.broken = True
        process.stream_ended(stream)
        self._notice(stream, 200, 20_000, only_if_blocked=False)

    def silent(self, process: Process) -> None:
        """The process does not answer pings: the others give up."""
        for stream in self._streams:
            if process in (stream.follower, stream.leader):
                stream.broken = True
                self._notice(stream, 0, 1_000_000, only_if_blocked=False)

    def _notice(self, stream: Stream, least_us: int, most_us: int, *, only_if_blocked: bool) -> None:
        rng = self._host.rng
        for process in (stream.follower, stream.leader):
            delay = least_us + int(rng.random() * (most_us - least_us))
            self._host.kernel.after(delay, self._ended, stream, process, only_if_blocked)

    def _ended(self, stream: Stream, process: Process, only_if_blocked: bool) -> None:
        healthy = not stream.broken and self.reaches(stream.follower.node, stream.leader.node)
        if only_if_blocked and healthy:
            return
        stream.broken = True
        process.run(process.stream_ended, (stream,))

    def _between(self, one: str, other: str) -> list[Stream]:
        both = {one, other}
        return [s for s in self._streams if {s.follower.node, s.leader.node} == both]
