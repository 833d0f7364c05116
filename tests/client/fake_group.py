"""A group of the fake broker: who holds which message, what is settled."""

from collections import Counter
from dataclasses import dataclass, field

from ringpost.v1 import subscribe_pb2


@dataclass
class FakeGroup:
    """Leases end only by `expire` and `release`; a nack's delay is taken as 0."""

    settled_below: int
    ack_deadline_ms: int = 30_000
    settled: set[int] = field(default_factory=set)
    leases: dict[int, object] = field(default_factory=dict)
    attempts: Counter[int] = field(default_factory=Counter)
    rejected: int = 0
    paused: bool = False

    def lease(self, holder: object, end_offset: int, room: int) -> tuple[int, int, int]:
        """Leases the next run of messages with one attempt to the holder: first offset, count, attempt."""
        free = (o for o in range(self.settled_below, end_offset) if o not in self.settled and o not in self.leases)
        run: list[int] = []
        for offset in free:
            if run and (offset != run[-1] + 1 or self.attempts[offset] != self.attempts[run[0]] or len(run) == room):
                break
            run.append(offset)
        if not run:
            return 0, 0, 0
        attempt = self.attempts[run[0]] + 1
        for offset in run:
            self.leases[offset] = holder
            self.attempts[offset] = attempt
        return run[0], len(run), attempt

    def settle(self, holder: object, offset: int, action: str) -> "subscribe_pb2.Outcome":
        if offset in self.settled or offset < self.settled_below:
            return subscribe_pb2.OUTCOME_ALREADY
        if self.leases.get(offset) is not holder:
            return subscribe_pb2.OUTCOME_EXPIRED if self.attempts[offset] else subscribe_pb2.OUTCOME_UNKNOWN
        if action == "extend":
            return subscribe_pb2.OUTCOME_DONE
        del self.leases[offset]
        if action != "nack":
            self.settled.add(offset)
            self.rejected += action == "reject"
        while self.settled_below in self.settled:
            self.settled.discard(self.settled_below)
            self.settled_below += 1
        return subscribe_pb2.OUTCOME_DONE

    def settle_any(self, offset: int, end_offset: int, action: str) -> "subscribe_pb2.Outcome":
        """Whoever holds it."""
        if offset >= end_offset:
            return subscribe_pb2.OUTCOME_UNKNOWN
        self.leases[offset] = None
        return self.settle(None, offset, action)

    def expire(self) -> None:
        self.leases.clear()

    def release(self, holder: object) -> None:
        """The holder is gone: its leases end without counting an attempt."""
        for offset in [offset for offset, by in self.leases.items() if by is holder]:
            del self.leases[offset]
            self.attempts[offset] -= 1
