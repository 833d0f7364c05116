"""Tells the cluster which members this node does not reach."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from ringpost.cluster.coordination import Coordination, CoordinationError
from ringpost.node import log

_RETRY_S = 1.0


class LinkReport:
    """Compares what is so with what the view says that this node says; so no report is lost, and none outlives its
    reason, whatever becomes of a session or of an answer.
    """

    def __init__(
        self, coordination: Coordination, node: str, spawn: Callable[[Coroutine[Any, Any, None]], None]
    ) -> None:
        self._coordination = coordination
        self._node = node
        self._spawn = spawn
        self._busy = False
        self._problem = ""

    def look(self, unreachable: frozenset[str]) -> None:
        """What is so now, of members that live. To be called again and again."""
        own = self._coordination.view.nodes.get(self._node)
        if self._busy or own is None or not own.alive or own.unreachable == unreachable:
            return
        self._busy = True
        self._spawn(self._tell(unreachable))

    async def _tell(self, unreachable: frozenset[str]) -> None:
        try:
            await self._coordination.report_unreachable(unreachable)
            self._problem = ""
        except CoordinationError as error:
            if str(error) != self._problem:
                self._problem = str(error)
                log.warning("links.not_reported", error=self._problem)
            await asyncio.sleep(_RETRY_S)
        finally:
            self._busy = False
