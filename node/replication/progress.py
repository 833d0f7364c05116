"""What a leader knows of one follower. Pure."""

from collections import deque


class Progress:
    """One replica, in one epoch of the leader.

    Invariant: acked <= sent; `acked` is fsynced there and never falls within a session of the follower's node.
    `flowing`: the follower's log is known to be a part of ours, so frames behind `sent` may follow.
    `deserted`: a flow ended, and the follower may not know: it must be told to fetch again.
    `asked_us`: time of the last question that was sent, whether it still follows; `word_us`: of the last that it has
    answered. Both by the leader's clock.
    `caught_up_us`: the latest time at which it surely had all that was appended by then.
    """

    __slots__ = (
        "acked",
        "asked_us",
        "caught_up_us",
        "committed_sent",
        "deserted",
        "fetch_id",
        "flowing",
        "in_flight",
        "in_flight_bytes",
        "node",
        "reading",
        "replica_id",
        "sent",
        "session",
        "snapshotting",
        "target",
        "target_us",
        "window_bytes",
        "word_us",
    )

    def __init__(self, node: str, replica_id: str, session: int, now_us: int) -> None:
        self.node = node
        self.replica_id = replica_id
        self.session = session
        self.fetch_id = 0
        self.acked = 0
        self.sent = 0
        self.committed_sent = -1
        self.asked_us = self.word_us = 0
        self.flowing = False
        self.deserted = False
        self.reading = False
        self.snapshotting = False
        self.window_bytes = 0
        self.in_flight: deque[tuple[int, int]] = deque()  # (end, bytes) of what is not acknowledged
        self.in_flight_bytes = 0
        self.caught_up_us = now_us
        self.target = 0
        self.target_us = now_us

    def begin(self, fetch_id: int, end: int, window_bytes: int) -> None:
        """A fetch fits: its end is acknowledged, and the flow begins there."""
        self.answer(fetch_id)
        self.acked = max(self.acked, end)
        self.sent = end
        self.committed_sent = -1  # the first answer tells the follower that its fetch fits
        self.window_bytes = window_bytes
        self.flowing = True

    def answer(self, fetch_id: int) -> None:
        """A fetch is answered, whatever the answer is: nothing else flows."""
        self.stop()
        self.fetch_id = fetch_id
        self.deserted = False

    def stop(self) -> None:
        """Nothing is sent until the next fetch; what is acknowledged stays so."""
        self.deserted = self.deserted or self.flowing
        self.flowing = self.reading = self.snapshotting = False
        self.in_flight.clear()
        self.in_flight_bytes = 0

    @property
    def room(self) -> int:
        """Bytes that may be sent now."""
        return self.window_bytes - self.in_flight_bytes

    def note_sent(self, end: int, size: int) -> None:
        """Frames up to `end` are on their way."""
        self.sent = end
        self.in_flight.append((end, size))
        self.in_flight_bytes += size

    def note_acked(self, end: int, log_end: int, now_us: int) -> None:
        """The follower has fsynced up to `end`."""
        self.acked = max(self.acked, end)
        while self.in_flight and self.in_flight[0][0] <= end:
            self.in_flight_bytes -= self.in_flight.popleft()[1]
        self.look(log_end, now_us)

    def look(self, log_end: int, now_us: int) -> None:
        """Keeps `caught_up_us`: reaching a mark proves to be as far as the log was when the mark was set."""
        if self.acked >= log_end:
            self.caught_up_us = now_us
        elif self.acked >= self.target:
            self.caught_up_us = max(self.caught_up_us, self.target_us)
        else:
            return
        self.target, self.target_us = log_end, now_us
