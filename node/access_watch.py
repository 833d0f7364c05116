"""Looks at the access file again and again, and at what every stream may still do."""

import asyncio
from collections.abc import Callable, Sequence

from ringpost.node import log
from ringpost.node.access.access import Access
from ringpost.node.health import Health

INTERVAL_S = 0.5


async def watch_access(
    access: Access, health: Health, checks: Sequence[Callable[[], None]], interval_s: float = INTERVAL_S
) -> None:
    """Never ends by itself: without it a permission that was taken away would go on for good, and nobody would know.

    A task of its own: a file system that hangs must not hold up heartbeats. Each of `checks` has its turn whatever
    becomes of the others. What goes wrong is logged once, and is the part `access` of the node's health until it is
    over; meanwhile the rules before go on.
    """
    logged: set[str] = set()
    while True:
        await asyncio.sleep(interval_s)
        problems = []
        try:
            await access.renew()
        except Exception as error:
            problems.append(_logged(logged, "the access file cannot be taken up", error))
        else:
            # Whoever asks for health is told no more; the log has it.
            problems += ["the access file cannot be taken up; see the node's log"] if access.problem else []
        for check in checks:
            try:
                check()
            except Exception as error:
                problems.append(_logged(logged, "streams cannot be checked", error))
        if not problems:
            logged.clear()
        health.set_part("access", not problems, "; ".join(problems))


def _logged(logged: set[str], what: str, error: Exception) -> str:
    problem = f"{what}: {type(error).__name__}"
    if problem not in logged:
        logged.add(problem)
        log.error("access.watch_failed", problem=problem, exception=error)
    return f"{problem}; see the node's log"
