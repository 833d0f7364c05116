"""Where a subscription to a pattern is in each of its channels, so that another stream goes on there. Pure."""

from typing import Final

from ringpost.v1 import common_pb2, subscribe_pb2

# The end of a Gap that says that a channel is no more.
GONE: Final = 2**64 - 1


def is_pattern(channel: str) -> bool:
    """Whether this is meant as a pattern: no channel's name has such characters; the broker checks the rest."""
    return "*" in channel or ">" in channel


class Places:
    """Invariant: once `opened`, every channel that the node reads for this subscription has its place here.

    So what an opening after that does not name is a channel that was made since, and begins at its beginning. Before,
    nothing was delivered, and another stream begins as the first.
    """

    def __init__(self) -> None:
        self.opened = False
        self._next: dict[str, int] = {}

    def begin(self, channel: str, offset: int) -> None:
        """Event: reading of a channel begins, or begins anew."""
        self._next[channel] = offset

    def passed(self, channel: str, last: int) -> None:
        """Event: everything up to `last` has come, or will not come; GONE: the channel is no more."""
        if last == GONE:
            self._next.pop(channel, None)
        else:
            self._next[channel] = last + 1

    def lost(self) -> None:
        """Event: a stream has ended."""
        if not self.opened:
            self._next.clear()

    def fill(
        self, command: subscribe_pb2.OpenSubscription, pattern: str, start: common_pb2.Start | None, group: str
    ) -> None:
        """What another stream asks for. In a group the broker knows the places."""
        command.pattern = pattern
        if not self.opened:
            if start is not None:
                command.start.CopyFrom(start)
        elif not group:
            command.start.earliest = True
            for channel, offset in self._next.items():
                command.resume.add(channel=channel, offset=offset)
