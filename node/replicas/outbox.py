"""What waits to be said to a peer. Pure; the streams empty it, one message at a time."""

import asyncio
from collections.abc import Callable

from ringpost.internal.v1.peer_pb2 import (
    Data,
    Diverged,
    Fetch,
    FollowerAck,
    Refused,
    ReplicateRequest,
    ReplicateResponse,
    SnapshotPart,
)

MESSAGE_BYTES = 1 << 20


class ToLeader:
    """Fetches and acknowledgements for one node. The latest of a shard replaces those before."""

    def __init__(self) -> None:
        self.waiting = asyncio.Event()
        self._fetches: dict[int, Fetch] = {}
        self._acks: dict[int, FollowerAck] = {}

    def fetch(self, message: Fetch) -> None:
        """Begins a flow; acknowledgements of the flow before it are void."""
        self._acks.pop(message.shard, None)
        self._fetches[message.shard] = message
        self.waiting.set()

    def ack(self, message: FollowerAck) -> None:
        """The newest mark says everything."""
        self._acks[message.shard] = message
        self.waiting.set()

    def clear(self) -> None:
        """The stream is lost; whoever still wants something asks again."""
        self._fetches.clear()
        self._acks.clear()

    def take(self) -> ReplicateRequest:
        """All of it in one message."""
        message = ReplicateRequest(fetches=self._fetches.values(), acks=self._acks.values())
        self.clear()
        self.waiting.clear()
        return message


class ToFollower:
    """Data and other answers for one node. Data is made when it can leave: `next_data(shard)` gives some, or None."""

    def __init__(self, next_data: Callable[[int], Data | None]) -> None:
        self.waiting = asyncio.Event()
        self._next_data = next_data
        self._ready: dict[int, None] = {}
        # The latest of a shard replaces those before: nobody empties it while there is no stream.
        self._diverged: dict[int, Diverged] = {}
        self._refused: dict[int, Refused] = {}
        self._snapshot: list[SnapshotPart] = []

    def ready(self, shard: int) -> None:
        """There is data of the shard."""
        self._ready[shard] = None
        self.waiting.set()

    def diverged(self, message: Diverged) -> None:
        """Cut back, then ask again."""
        self._diverged[message.shard] = message
        self.waiting.set()

    def refuse(self, message: Refused) -> None:
        """Not now."""
        self._refused[message.shard] = message
        self.waiting.set()

    def snapshot(self, part: SnapshotPart) -> None:
        """A part of a snapshot; its sender waits for room by `snapshot_waiting`."""
        self._snapshot.append(part)
        self.waiting.set()

    def clear(self) -> None:
        """The stream is lost; the follower asks again."""
        self._ready.clear()
        self._diverged, self._refused, self._snapshot = {}, {}, []

    @property
    def snapshot_waiting(self) -> bool:
        """Whether parts have not left yet."""
        return bool(self._snapshot)

    def take(self) -> ReplicateResponse | None:
        """About `MESSAGE_BYTES` of it, shards by turns; None when there is nothing."""
        message = ReplicateResponse(
            diverged=self._diverged.values(), refused=self._refused.values(), snapshot=self._snapshot[:1]
        )
        some = bool(self._diverged or self._refused or self._snapshot)
        self._diverged, self._refused = {}, {}
        del self._snapshot[:1]
        size = 0
        while self._ready and size < MESSAGE_BYTES:
            shard = next(iter(self._ready))
            del self._ready[shard]
            data = self._next_data(shard)
            if data is None:
                continue
            message.data.append(data)
            some = True
            size += len(data.frames)
            self._ready[shard] = None  # at the end: perhaps there is more
        if not self._ready and not self._snapshot:
            self.waiting.clear()
        return message if some else None
