"""A stream to a peer that is not there ends when it is cut, however soon."""

import asyncio

import grpc
import pytest

from ringpost.node.routing.peers import PeerStream


@pytest.mark.parametrize("turns", range(6))
async def test_both_tasks_end(turns: int) -> None:
    ended: list[str] = []
    async with grpc.aio.insecure_channel("nobody.invalid:1") as channel:
        stream = PeerStream(channel, "/nobody/hears", take=lambda: b"x", received=lambda _: None, ended=ended.append)
        for _ in range(turns):
            await asyncio.sleep(0)
        stream.cancel()
        await asyncio.wait_for(stream.finished(), 5)
    assert len(ended) == 1
