"""Something to wait for that costs little while nobody does: an idle stream has two of them."""

import asyncio

__all__ = ["Bell"]


class Bell:
    """Wakes the one coroutine that waits for it. What asyncio.Event is made of takes 800 bytes, this takes 40.

    It remembers nothing: whoever waits looks first whether there is something to do, and awaits nothing in between.
    """

    __slots__ = ("_waiter",)

    def __init__(self) -> None:
        self._waiter: asyncio.Future[None] | None = None

    def ring(self) -> None:
        """Wakes who waits now, if somebody does."""
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def heard(self) -> "asyncio.Future[None]":
        """To be awaited at once, by one coroutine at a time: done when it rings next."""
        assert self._waiter is None or self._waiter.done(), "one waits already"
        self._waiter = asyncio.get_running_loop().create_future()
        return self._waiter
