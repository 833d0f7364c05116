"""Waiting for the word of the followers: only with it a leader says how far something is."""

import asyncio
from collections.abc import Callable
from typing import Final

SURE_S: Final = 1.0
_FIRST_PAUSE_S, _LAST_PAUSE_S = 0.001, 0.05


async def becomes_sure(sure: Callable[[], bool], end: float, *, still: Callable[[], bool] = lambda: True) -> bool:
    """Asks until the answer is yes, which asking brings about; False past `end` (loop time) or without `still`."""
    pause, loop = _FIRST_PAUSE_S, asyncio.get_running_loop()
    while not sure():
        if not still() or loop.time() > end:
            return False
        await asyncio.sleep(pause)
        pause = min(2 * pause, _LAST_PAUSE_S)
    return still()
