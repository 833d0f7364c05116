"""Many callers, one read at a time. None gets what was read before it asked."""

import asyncio
from collections.abc import Awaitable, Callable


class SharedRead:
    """Runs `read` for all who call while an earlier run is under way together, once that has ended.

    So a call is linearizable when `read` is: it never shares a run that began before it.
    """

    def __init__(self, read: Callable[[], Awaitable[None]]) -> None:
        self._read = read
        self._running: asyncio.Task[None] | None = None
        self._next: asyncio.Task[None] | None = None

    async def __call__(self) -> None:
        """Raises what `read` raises."""
        if self._next is None:
            self._next = asyncio.create_task(self._run_after(self._running))
            # Whoever asked may be gone when it fails.
            self._next.add_done_callback(lambda task: task.cancelled() or task.exception())
        await asyncio.shield(self._next)

    async def settle(self) -> None:
        """Waits until nothing is under way."""
        while tasks := {task for task in (self._running, self._next) if task is not None and not task.done()}:
            await asyncio.wait(tasks)

    async def _run_after(self, before: asyncio.Task[None] | None) -> None:
        if before is not None and not before.done():
            await asyncio.wait({before})
        self._running, self._next = self._next, None
        await self._read()
