"""The client: `connect`, and everything that can be asked of it."""

import asyncio
import logging
import os
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Self, TypeVar

import grpc

from ringpost.client.admin import Channels, Cluster, Groups, Messages, Node, Start, start_of
from ringpost.client.batch import Publishable, as_bytes, encode_data, encode_message
from ringpost.client.caller import Caller
from ringpost.client.checks import check_name, refused, text_bytes, time_us_of, whole
from ringpost.client.connection import Connections, parse_targets
from ringpost.client.consumer import Consumer
from ringpost.client.errors import AlreadyExists, Closed, RingpostError
from ringpost.client.message import MAX_NACK_DELAY_MS
from ringpost.client.options import Options
from ringpost.client.pool import Handler, HandlerPool
from ringpost.client.publisher import Publisher
from ringpost.client.receipts import BatchReceipt, PendingPublish, Receipt, durability_value
from ringpost.client.router import Router
from ringpost.client.session import Request
from ringpost.client.subscription import Subscription
from ringpost.v1 import cluster_pb2

_log = logging.getLogger(__name__)
DEFAULT_TARGET = "localhost:7400"
_PREFETCH = 4_000
_GROUP_PREFETCH = 1_000
# What is left for publishing when handlers have used up the time to close.
_LAST_FLUSH_S = 0.5
_PREFETCH_BYTES = 8 * 1024 * 1024
_MAX_WINDOW = 1 << 40
_MAX_CONCURRENCY = 100_000
_S = TypeVar("_S", Subscription, HandlerPool)


def connect(
    target: str | Sequence[str] | None = None,
    *,
    credentials: grpc.ChannelCredentials | None = None,
    token: str | None = None,
    options: Options | None = None,
) -> "Client":
    """A client, to be entered (`async with connect() as mq`) or awaited (`mq = await connect()`, then `mq.close()`).

    `target`: host:port, several separated by commas, or a list; default: RINGPOST_ADDR, then localhost:7400. One of
    a cluster is enough: the others are learned from it (`options.routing`), unless it does not answer at first.
    `credentials`: for TLS, of `grpc.ssl_channel_credentials`. `token`: sent as `authorization: Bearer …`.
    Entering raises `Unavailable` when no node answers within `options.connect_timeout`, `Denied` when it refuses.
    """
    default = os.environ.get("RINGPOST_ADDR") or DEFAULT_TARGET
    return Client(parse_targets(target, default), credentials, token, options or Options())


class Client:
    """One program's connection to Ringpost; made by `connect`. Belongs to the event loop in which it was entered."""

    def __init__(
        self, addresses: list[str], credentials: grpc.ChannelCredentials | None, token: str | None, options: Options
    ) -> None:
        self.options = options
        self._connections = Connections(addresses, credentials, token)
        self._router = Router(self._connections, direct=options.routing == "direct")
        caller = Caller(self._connections, self._router, options.request_timeout)
        self.channels = Channels(caller)
        self.groups = Groups(caller)
        self.messages = Messages(caller)
        self.node = Node(caller)
        self.cluster = Cluster(caller)
        # About the node that answered first.
        self.connected_to: cluster_pb2.NodeInfo | None = None
        self._publisher: Publisher | None = None
        self._subscriptions: list[Subscription | HandlerPool] = []
        self._closed = False
        self._closer: asyncio.Task[RingpostError | None] | None = None
        # Whether `close` has raised what it found.
        self._told = False

    # -- life -----------------------------------------------------------------------------------------------------

    async def _open(self) -> Self:
        if self._closed:
            raise Closed("the client is closed")
        self._connections.check_loop()
        if self._publisher is not None:
            return self
        try:
            deadline = asyncio.get_running_loop().time() + self.options.connect_timeout
            self.connected_to = await self.node.info(self.options.connect_timeout)
            await self._router.start(max(_LAST_FLUSH_S, deadline - asyncio.get_running_loop().time()))
        except BaseException:
            await self._router.close()
            await self._connections.close()
            raise
        node_batch_bytes = self.connected_to.limits.max_batch_bytes
        self._publisher = Publisher(self._connections, self._router, self.options, node_batch_bytes)
        return self

    def __await__(self) -> Generator[Any, None, Self]:
        return self._open().__await__()

    async def __aenter__(self) -> Self:
        return await self._open()

    async def __aexit__(self, kind: object, raised: BaseException | None, _: object) -> None:
        try:
            await self.close()
        except RingpostError as error:
            if raised is None:
                raise
            # The body's exception is what went wrong first.
            _log.error("closing the client: %s", error)

    async def close(self) -> None:
        """Flushes, settles, releases leases, disconnects, all within `close_timeout`.

        Raises as `flush` does, also for messages that it had to give up. Safe to call twice; goes on when cancelled.
        From a handler it does not wait for that one.
        """
        if self._closer is None:
            self._connections.check_loop()
            self._closed = True
            self._closer = asyncio.get_running_loop().create_task(self._close(), name="ringpost-close")
        error = await asyncio.shield(self._closer)
        if error is not None and not self._told:
            self._told = True
            raise error

    async def _close(self) -> RingpostError | None:
        """Returns what `close` raises."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.options.close_timeout
        try:
            ends = (subscription.close(self.options.close_timeout) for subscription in self._subscriptions)
            for problem in await asyncio.gather(*ends, return_exceptions=True):
                if isinstance(problem, BaseException):
                    _log.error("closing a subscription", exc_info=problem)
            if self._publisher is not None:
                await self._publisher.close(max(_LAST_FLUSH_S, deadline - loop.time()))
        except RingpostError as error:
            return error
        finally:
            await self._router.close()
            await self._connections.close()
        return None

    def _publishing(self) -> Publisher:
        self._connections.check_loop()
        if self._closed or self._publisher is None:
            raise Closed("the client is closed" if self._closed else "the client is not connected yet: await it")
        return self._publisher

    # -- publishing -----------------------------------------------------------------------------------------------

    async def publish(
        self,
        channel: str,
        data: bytes | str,
        key: bytes | str | None = None,
        headers: Mapping[str, str] | None = None,
        message_id: str | None = None,
        durability: str = "quorum",
        time: datetime | int | None = None,
    ) -> Receipt:
        """Publishes one message and waits until it is stored as durably as asked ("memory", "leader", "quorum").

        `time` is the producer's own: a datetime with a zone, or microseconds since 1970; none by default.
        Waits before that while too much is unanswered. Messages published together travel together.
        Raises `RingpostError`; unless its `outcome_open` is set, nothing was stored. `InvalidRequest` at once for what
        cannot be sent.
        """
        check_name("channel", channel)
        entry = _encode(data, key, headers, message_id, time)
        pending = await self._publishing().add_when_room(channel, entry, durability_value(durability))
        return await pending

    def publish_nowait(
        self,
        channel: str,
        data: bytes | str,
        key: bytes | str | None = None,
        headers: Mapping[str, str] | None = None,
        message_id: str | None = None,
        durability: str = "quorum",
        time: datetime | int | None = None,
    ) -> PendingPublish:
        """As `publish`, without waiting: await the result for the receipt, or call `flush` later.

        Raises `BufferFull` when too much is unanswered.
        """
        check_name("channel", channel)
        entry = _encode(data, key, headers, message_id, time)
        return self._publishing().add(channel, entry, durability_value(durability))

    async def publish_many(
        self, channel: str, messages: Iterable[Publishable], durability: str = "quorum"
    ) -> list[BatchReceipt]:
        """Publishes bytes, strings, (key, data) pairs or `OutMessage`s, in order, the fastest way.

        Returns a receipt for each batch that was made of them. Raises the first error; other batches may be stored.
        """
        check_name("channel", channel)
        return await self._publishing().add_many(channel, messages, durability_value(durability))

    async def flush(self) -> None:
        """Waits for everything published so far.

        Raises the first error, since the last flush, of a `publish_nowait` that nobody awaited.
        """
        await self._publishing().flush()

    # -- subscribing ----------------------------------------------------------------------------------------------

    def subscription(
        self,
        channel: str,
        *,
        group: str | None = None,
        start: Start | None = None,
        prefetch: int | None = None,
        prefetch_bytes: int = _PREFETCH_BYTES,
        consumer: str = "",
        heartbeat_interval: float = 10.0,
        on_gap: Callable[[int, int], None] | None = None,
    ) -> Subscription:
        """A subscription to iterate: `async for message in mq.subscription("orders", group="billing")`.

        `start`: "earliest", "latest" (default without a group), an offset, a datetime with a zone; with a group it
        counts only when this makes the group (default: earliest). `prefetch`, `prefetch_bytes`: most messages and
        bytes here and not read yet (4,000, in groups 1,000; 8 MiB). `on_gap(first, last)`: offsets that were removed.
        `heartbeat_interval`: seconds, 1 to 300; after three of silence the client connects again.
        """
        window = prefetch or (_GROUP_PREFETCH if group else _PREFETCH)
        made = self._consumer(channel, group, start, window, prefetch_bytes, consumer, heartbeat_interval, on_gap)
        return self._keep(Subscription(made))

    async def subscribe(
        self,
        channel: str,
        callback: Handler,
        *,
        group: str | None = None,
        start: Start | None = None,
        max_concurrency: int = 10,
        ordered: bool = False,
        nack_delay: float = 1.0,
        prefetch: int | None = None,
        prefetch_bytes: int = _PREFETCH_BYTES,
        consumer: str = "",
        heartbeat_interval: float = 10.0,
        on_gap: Callable[[int, int], None] | None = None,
    ) -> HandlerPool:
        """Calls `callback(message)` for every message, in a bounded pool; returns when the subscription stands.

        Async callables run on the event loop, plain ones in threads; never more than `max_concurrency` at once;
        `ordered`: one at a time, in order. In a group, returning acks and raising nacks with `nack_delay` seconds,
        unless the callback settled the message itself; leases are kept meanwhile. Other parameters as `subscription`,
        but `prefetch` in groups is twice max_concurrency. Raises the broker's refusal.
        """
        whole("max_concurrency", max_concurrency, 1, _MAX_CONCURRENCY)
        if not 0 <= nack_delay * 1000 <= MAX_NACK_DELAY_MS:
            raise refused("nack_delay", f"0 to {MAX_NACK_DELAY_MS // 1000:,} seconds, not {nack_delay}")
        window = prefetch or (2 * max_concurrency if group else _PREFETCH)
        made = self._consumer(channel, group, start, window, prefetch_bytes, consumer, heartbeat_interval, on_gap)
        pool = HandlerPool(made, callback, max_concurrency=max_concurrency, ordered=ordered, nack_delay=nack_delay)
        self._keep(pool)
        try:
            await made.wait_opened()
        except BaseException:
            await pool.close(0.0)
            raise
        return pool

    def _consumer(
        self,
        channel: str,
        group: str | None,
        start: Start | None,
        window_messages: int,
        window_bytes: int,
        consumer: str,
        heartbeat_interval: float,
        on_gap: Callable[[int, int], None] | None,
    ) -> Consumer:
        self._publishing()
        check_name("channel", channel)
        if group is not None and group != "":
            check_name("group", group)
        text_bytes("consumer", consumer)
        whole("prefetch", window_messages, 1, _MAX_WINDOW)
        whole("prefetch_bytes", window_bytes, 1, _MAX_WINDOW)
        if not 1 <= heartbeat_interval <= 300:
            raise refused("heartbeat_interval", f"1 to 300 seconds, not {heartbeat_interval}")
        request = Request(
            channel=channel,
            group=group or "",
            consumer=consumer,
            start=None if group else start_of(start),
            window_messages=window_messages,
            window_bytes=window_bytes,
            heartbeat_interval_ms=round(heartbeat_interval * 1000),
            connect_timeout=self.options.connect_timeout,
            close_timeout=self.options.close_timeout,
            max_lease=self.options.max_lease,
        )
        prepare = self._group_maker(channel, group, start)
        return Consumer(self._connections, self._router, request, prepare=prepare, on_gap=on_gap)

    def _group_maker(self, channel: str, group: str | None, start: Start | None) -> Any:
        """The protocol takes a start only from whoever makes the group, so it is made first."""
        if not group or start is None:
            return None
        start_of(start)

        async def make() -> None:
            try:
                await self.groups.add(channel, group, start=start)
            except AlreadyExists:
                return

        return make

    def _keep(self, subscription: _S) -> _S:
        self._subscriptions = [one for one in self._subscriptions if not one.closed]
        self._subscriptions.append(subscription)
        return subscription


def _encode(
    data: bytes | str,
    key: bytes | str | None,
    headers: Mapping[str, str] | None,
    message_id: str | None,
    time: datetime | int | None,
) -> bytes:
    if key is None and headers is None and message_id is None and time is None:
        return encode_data(as_bytes(data))
    time_us = time if isinstance(time, int) else 0 if time is None else time_us_of("time", time)
    return encode_message(as_bytes(data), key, headers, message_id, time_us)
