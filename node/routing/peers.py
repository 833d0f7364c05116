"""Connections to the other nodes' peer ports: a gRPC channel a node, and the shell of a long stream on it."""

import asyncio
from collections.abc import Callable
from typing import Any

import grpc

from ringpost.node import log
from ringpost.node.tls import Dialer

BACKOFF_S_MIN, BACKOFF_S_MAX = 0.05, 1.0
_GRACE_S = 30.0


def peer_options(send_bytes_max: int) -> list[tuple[str, int]]:
    """gRPC's settings of a channel to a peer: a connection of its own, no hidden retries, dead peers are noticed."""
    return [
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.enable_retries", 0),
        ("grpc.max_send_message_length", send_bytes_max),
        ("grpc.max_receive_message_length", -1),
        ("grpc.initial_reconnect_backoff_ms", round(BACKOFF_S_MIN * 1000)),
        ("grpc.min_reconnect_backoff_ms", round(BACKOFF_S_MAX * 1000)),
        ("grpc.max_reconnect_backoff_ms", round(BACKOFF_S_MAX * 1000)),
        ("grpc.keepalive_time_ms", 5_000),
        ("grpc.keepalive_timeout_ms", 3_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
    ]


class Peers:
    """The channels, made at first use. A node that comes back at another address gets another one."""

    def __init__(self, *, send_bytes_max: int, dialer: Dialer | None = None) -> None:
        self._options = peer_options(send_bytes_max)
        self._dialer = dialer or Dialer()
        self._channels: dict[str, tuple[tuple[str, int], grpc.aio.Channel]] = {}
        self._closing: set[asyncio.Task[None]] = set()

    def channel(self, node: str, address: str) -> grpc.aio.Channel:
        """The channel to a node. What was begun on one with an older certificate may go on for a while."""
        known, way = self._channels.get(node), (address, self._dialer.version)
        if known is not None and known[0] == way:
            return known[1]
        if known is not None:
            task = asyncio.get_running_loop().create_task(known[1].close(_GRACE_S if known[0][0] == address else None))
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
        made = self._dialer.dial(node, address, self._options)
        self._channels[node] = way, made
        return made

    async def close(self) -> None:
        """Ends every connection. Idempotent."""
        channels, self._channels = self._channels, {}
        for _, channel in channels.values():
            await channel.close()
        await asyncio.gather(*self._closing, return_exceptions=True)


class PeerStream:
    """One bidirectional call over raw bytes, with a task that reads and one that writes.

    Neither is cancelled before the call is over: that would leak inside gRPC.

    `take` gives the next message to write, None when there is none now (then `wake` tells of one). `received` gets each
    message; `ended` is called once, after which nothing else is.
    """

    def __init__(
        self,
        channel: grpc.aio.Channel,
        method: str,
        *,
        take: Callable[[], bytes | None],
        received: Callable[[bytes], None],
        ended: Callable[[str], None],
    ) -> None:
        self._call: Any = channel.stream_stream(method)()
        self._method = method
        self._take = take
        self._received = received
        self._ended = ended
        self._over = False
        self._something = asyncio.Event()
        loop = asyncio.get_running_loop()
        self._reader, self._writer = loop.create_task(self._read()), loop.create_task(self._write())

    def wake(self) -> None:
        """There is something to write."""
        self._something.set()

    def cancel(self) -> None:
        """Ends the call; `ended` follows soon."""
        self._over = True
        self._call.cancel()
        self._something.set()

    async def finished(self) -> None:
        """Returns when both tasks have ended."""
        await asyncio.gather(self._reader, self._writer, return_exceptions=True)

    async def _write(self) -> None:
        try:
            while not self._over:
                message = self._take()
                if message is None:
                    self._something.clear()
                    await self._something.wait()
                    continue
                await self._call.write(message)
        except (grpc.RpcError, grpc.aio.BaseError, asyncio.InvalidStateError, asyncio.CancelledError):
            self._call.cancel()  # the reader tells
        except Exception as error:
            log.error("peer.incident", exception=error, method=self._method)
            self._call.cancel()

    async def _read(self) -> None:
        why = "the peer ended the stream"
        try:
            while (message := await self._call.read()) is not grpc.aio.EOF:
                self._received(message)
            why = f"{(await self._call.code()).name}: {await self._call.details()}"
        except grpc.aio.AioRpcError as error:
            why = f"{error.code().name}: {error.details()}"
        except asyncio.CancelledError:
            why = "cancelled"
        except Exception as error:
            log.error("peer.incident", exception=error, method=self._method)
            self._call.cancel()
        self._over = True
        self._writer.cancel()  # a write waits for ever when its call ends before it has begun
        self._ended(why)
