"""What waits for frames to become durable, in journal order. Pure.

One queue for the node: frames of all shards are made durable by the same fsync, so one pass over the front serves all.
"""

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from ringpost.node import log
from ringpost.node.errors import RingpostError

if TYPE_CHECKING:
    from ringpost.node.shard.shard import Shard

# Called with None when the frame committed, with an error when its outcome is open; then with the item's arguments.
Action = Callable[..., None]


class Waiting(NamedTuple):
    """One frame (or a repeat that waits for an earlier one) and what to do when it commits."""

    address: int
    shard: "Shard | None"
    position: int
    crc: int
    action: Action
    args: tuple[Any, ...]


class Commits:
    """The queue. Invariant: addresses never fall from front to back."""

    def __init__(self) -> None:
        self._waiting: deque[Waiting] = deque()
        self._failed: RingpostError | None = None

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, waiting: Waiting) -> None:
        """Queues at the back; after `fail` the action is called with the error at once."""
        if self._failed is not None:
            waiting.action(self._failed, *waiting.args)
            return
        self._waiting.append(waiting)

    def after_all(self, action: Action, *args: Any) -> None:
        """Calls the action when everything that waits now has committed; at once when nothing does."""
        if self._failed is not None:
            action(self._failed, *args)
        elif self._waiting:
            self._waiting.append(Waiting(self._waiting[-1].address, None, 0, 0, action, args))
        else:
            action(None, *args)

    def durable(self, address: int) -> None:
        """Everything below the address is on disk: commits it, in order."""
        queue = self._waiting
        while queue and queue[0].address < address:
            _, shard, position, crc, action, args = queue.popleft()
            if shard is not None:
                shard.committed = position
                shard.committed_crc = crc
            try:
                action(None, *args)
            except Exception as error:  # a fault of ours must not hold up what others wait for
                log.error("commit.incident", exception=error, position=position)

    def fail(self, error: RingpostError) -> None:
        """The journal takes nothing more: the outcome of everything that waits is open."""
        self._failed = error
        queue, self._waiting = self._waiting, deque()
        for waiting in queue:
            waiting.action(error, *waiting.args)
