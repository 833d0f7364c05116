"""Which channels are unpacked: those that were used lately, and those that somebody stays interested in. Pure.

A million channels of which few are used would fill gigabytes as objects. So a channel that is not needed is packed
(`node.shard.channel_state`) once so many others have been unpacked after it, and unpacked when it is used again.
"""

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ringpost.node.shard.channel import Channel

WARM_MAX = 8_192
_STEPS_MAX = 256  # 2 to 3 ms


class Warm:
    """The unpacked channels of a node that may be packed one day, the longest unpacked first."""

    def __init__(self, kept: int = WARM_MAX) -> None:
        """`kept`: so many stay unpacked."""
        self.kept = kept
        self._queue: deque[Channel] = deque()

    def __len__(self) -> int:
        return len(self._queue)

    def add(self, channel: "Channel") -> None:
        """It was unpacked, or nobody needs it at hand any more."""
        self._queue.append(channel)

    def cool(self, steps_max: int = _STEPS_MAX) -> bool:
        """Packs the oldest of those above `kept`; True when more are left than `steps_max` allowed.

        Only to be called where nobody up the stack works on a channel.
        """
        queue = self._queue
        for _ in range(min(steps_max, len(queue) - self.kept)):
            channel = queue.popleft()
            if channel.cool():
                queue.append(channel)
        return len(queue) > self.kept
