"""Credit of one subscription: running totals, raised when half of the window was consumed. Pure."""

from ringpost.v1 import subscribe_pb2


class Credit:
    """`window_*` bound what is delivered and not yet consumed; `buffered_*` is left over from an earlier stream."""

    def __init__(self, window_messages: int, window_bytes: int, buffered_messages: int = 0, buffered_bytes: int = 0):
        self._step_messages = max(1, window_messages // 2)
        self._step_bytes = max(1, window_bytes // 2)
        self._total_messages = window_messages - buffered_messages
        self._total_bytes = window_bytes - buffered_bytes
        self._granted_messages = 0
        self._granted_bytes = 0

    def consumed(self, messages: int, size: int) -> None:
        """So much is done with."""
        self._total_messages += messages
        self._total_bytes += size

    @property
    def due(self) -> bool:
        """Whether a grant is worth sending."""
        return (
            self._total_messages - self._granted_messages >= self._step_messages
            or self._total_bytes - self._granted_bytes >= self._step_bytes
        )

    def grant(self) -> subscribe_pb2.Credit:
        """The totals to send now."""
        self._granted_messages = max(0, self._total_messages)
        self._granted_bytes = max(0, self._total_bytes)
        return subscribe_pb2.Credit(messages=self._granted_messages, bytes=self._granted_bytes)
