"""In a cluster: refusing a batch for what the log holds.

A leader that was replaced and does not know it yet would tell of a `next_offset` that is behind what its clients have
seen; one that tells of what is not committed tells of what may yet be lost. So the answer waits until everything that
was appended is committed and the followers have given their word, and turns into NOT_LEADER where they do not: then the
batch goes on to whoever leads.
"""

import asyncio
from functools import partial
from typing import Final

from ringpost.node.delivery.certainty import SURE_S, becomes_sure
from ringpost.node.errors import RingpostError
from ringpost.node.routing.router import Router
from ringpost.node.shard.shard import PublishReply, Shard

ABOUT_THE_LOG: Final = frozenset({"OFFSET_MISMATCH", "DUPLICATE_IDS"})


class SureRefusals:
    """One a node. `reply` of each is called once, perhaps before `tell` returns."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._waiting: set[asyncio.Task[None]] = set()

    def tell(self, shard: Shard, error: RingpostError, reply: PublishReply) -> None:
        """Answers a batch that was not appended with `error`, or with NOT_LEADER."""
        if shard.replicated is None:
            self._committed(None, shard, error, reply)
        else:
            shard.replicated.after_tail(self._committed, shard, error, reply)

    def _committed(self, lost: RingpostError | None, shard: Shard, error: RingpostError, reply: PublishReply) -> None:
        if lost is not None:
            reply(self._router.refusal(shard.number))
        elif self._router.sure(shard.number):
            reply(error)
        else:
            task = asyncio.get_running_loop().create_task(self._wait(shard, error, reply))
            self._waiting.add(task)
            task.add_done_callback(self._waiting.discard)

    async def _wait(self, shard: Shard, error: RingpostError, reply: PublishReply) -> None:
        number, router = shard.number, self._router
        end = asyncio.get_running_loop().time() + SURE_S
        sure = await becomes_sure(partial(router.sure, number), end, still=partial(router.here, number))
        reply(error if sure else router.refusal(number))
