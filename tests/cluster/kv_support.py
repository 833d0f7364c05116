"""Hearing a watch in tests."""

import asyncio
from collections.abc import Callable

from ringpost.cluster.kv import Change, Item, Kv, Picture, Watch


async def until(holds: Callable[[], object], seconds: float = 10.0) -> None:
    """Waits until something holds that other tasks bring about."""
    async with asyncio.timeout(seconds):
        while not holds():
            await asyncio.sleep(0.005)


class Ear:
    """What a watch told, and what the keys are by it."""

    def __init__(self) -> None:
        self.pictures: list[Picture] = []
        self.changes: list[Change] = []
        self.items: dict[str, Item] = {}

    async def listen(self, kv: Kv, prefix: str) -> Watch:
        return await kv.watch(prefix, self.picture, self.change)

    def picture(self, picture: Picture) -> None:
        self.pictures.append(picture)
        self.items = {item.key: item for item in picture.items}

    def change(self, change: Change) -> None:
        assert change.revision > self.revision, "revisions rise"
        self.changes.append(change)
        for key, item in change.items:
            if item is None:
                self.items.pop(key, None)
            else:
                self.items[key] = item

    @property
    def revision(self) -> int:
        return (self.changes or self.pictures)[-1].revision

    @property
    def values(self) -> dict[str, bytes]:
        return {key: item.value for key, item in self.items.items()}

    async def hears(self, values: dict[str, bytes], seconds: float = 10.0) -> None:
        """Waits until these are the keys."""
        await until(lambda: self.values == values, seconds)
