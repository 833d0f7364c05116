"""The client: `connect`, and everything that can be asked of it."""

import asyncio
import logging
import os
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Self, TypeVar

import grpc

from ringpost.client.admin import Channels, Cluster, Groups, Messages, Node, Start
from ringpost.client.batch import OutMessage, Publishable, as_bytes, encode_data, encode_message
from ringpost.client.caller import Caller
from ringpost.client.checks import MAX_UINT64, check_name, refused, time_us_of, whole
from ringpost.client.connection import Connections, Token, parse_targets
from ringpost.client.consumer import Consumer
from ringpost.client.dead_letters import DeadLetters
from ringpost.client.errors import Closed, RingpostError
from ringpost.client.message import MAX_NACK_DELAY_MS, Message
from ringpost.client.options import Options
from ringpost.client.pool import Handler, HandlerPool
from ringpost.client.publisher import Publisher
from ringpost.client.reading import GROUP_PREFETCH, PREFETCH, PREFETCH_BYTES, Asked
from ringpost.client.receipts import BatchReceipt, PendingPublish, Receipt, durability_value
from ringpost.client.replies import ResponderPool
from ringpost.client.requests import TIMEOUT_S_MAX, Requests
from ringpost.client.router import Router
from ringpost.client.subscription import Subscription
from ringpost.client.timing import AT_ONCE, Span, Timing, timing_of
from ringpost.client.tracing import current_context, with_context
from ringpost.v1 import cluster_pb2

_log = logging.getLogger(__name__)
DEFAULT_TARGET = "localhost:7400"
# What is left for publishing when handlers have used up the time to close.
_LAST_FLUSH_S = 0.5
_MAX_CONCURRENCY = 100_000
_S = TypeVar("_S", bound=Subscription | HandlerPool)
_P = TypeVar("_P", bound=HandlerPool)


def connect(
    target: str | Sequence[str] | None = None,
    *,
    credentials: grpc.ChannelCredentials | None = None,
    token: Token | None = None,
    options: Options | None = None,
) -> "Client":
    """A client, to be entered (`async with connect() as mq`) or awaited (`mq = await connect()`, then `mq.close()`).

    `target`: host:port, several separated by commas, or a list; default: RINGPOST_ADDR, then localhost:7400. One of
    a cluster is enough: the others are learned from it (`options.routing`), unless it does not answer at first.
    `credentials`: for TLS, of `grpc.ssl_channel_credentials`. `token`: sent as `authorization: Bearer …`;
    a function is asked for it each time, such as `token_file(path)`, so that a token can be renewed. Without
    credentials it goes out in plain text, which is warned of once unless the node is on this machine.
    Entering raises `Unavailable` when no node answers within `options.connect_timeout`, `Denied` when it refuses.
    """
    default = os.environ.get("RINGPOST_ADDR") or DEFAULT_TARGET
    return Client(parse_targets(target, default), credentials, token, options or Options())


class Client:
    """One program's connection to Ringpost; made by `connect`. Belongs to the event loop in which it was entered."""

    def __init__(
        self, addresses: list[str], credentials: grpc.ChannelCredentials | None, token: Token | None, options: Options
    ) -> None:
        self.options = options
        self._context = current_context() if options.tracing else None
        self._connections = Connections(addresses, credentials, token)
        self._router = Router(self._connections, direct=options.routing == "direct")
        caller = Caller(self._connections, self._router, options.request_timeout)
        self.channels = Channels(caller)
        self.groups = Groups(caller)
        self.dead_letters = DeadLetters(caller)
        self.messages = Messages(caller)
        self.node = Node(caller)
        self.cluster = Cluster(caller)
        # About the node that answered first.
        self.connected_to: cluster_pb2.NodeInfo | None = None
        self._publisher: Publisher | None = None
        self._subscriptions: list[Subscription | HandlerPool] = []
        self._requests = Requests(self.channels, self.publish, self._inbox_subscription, options.inbox_prefix)
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
            await self._requests.close()
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
        expected_offset: int | None = None,
        delay: Span | None = None,
        deliver_at: datetime | int | None = None,
        ttl: Span | None = None,
    ) -> Receipt:
        """Publishes one message and waits until it is stored as durably as asked ("memory", "leader", "quorum").

        `time` is the producer's own: a datetime with a zone, or microseconds since 1970; none by default.
        Waits before that while too much is unanswered. Messages published together travel together.
        `delay` (seconds or a timedelta, counted from now) or `deliver_at` (a datetime with a zone, or microseconds
        since 1970): it is stored now, and delivered then; the receipt has `scheduled_time_us` and no offset.
        `ttl` (as `delay`): so long after that it is of use, and is not given out any more later.
        `expected_offset`: store it only if it gets exactly this offset; another one raises `OffsetMismatch`, with the
        channel's `next_offset`, and nothing was stored.
        Raises `RingpostError`; unless its `outcome_open` is set, nothing was stored. `InvalidRequest` at once for what
        cannot be sent.
        """
        check_name("channel", channel)
        context = self._context() if self._context is not None else ""
        timing = timing_of(delay, deliver_at, ttl)
        if expected_offset is not None:
            _check_at_once(timing)
            one = OutMessage(data, key, with_context(headers, context), message_id, _time_us(time))
            batch = await self._publish_expected(channel, [one], durability, expected_offset, context, timing)
            return batch.first
        entry = _encode(data, key, with_context(headers, context), message_id, time)
        pending = await self._publishing().add_when_room(channel, entry, durability_value(durability), context, timing)
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
        delay: Span | None = None,
        deliver_at: datetime | int | None = None,
        ttl: Span | None = None,
    ) -> PendingPublish:
        """As `publish`, without waiting: await the result for the receipt, or call `flush` later.

        Raises `BufferFull` when too much is unanswered.
        """
        check_name("channel", channel)
        context = self._context() if self._context is not None else ""
        entry = _encode(data, key, with_context(headers, context), message_id, time)
        timing = timing_of(delay, deliver_at, ttl)
        return self._publishing().add(channel, entry, durability_value(durability), context, timing)

    async def publish_many(
        self,
        channel: str,
        messages: Iterable[Publishable],
        durability: str = "quorum",
        expected_offset: int | None = None,
        delay: Span | None = None,
        deliver_at: datetime | int | None = None,
        ttl: Span | None = None,
    ) -> list[BatchReceipt]:
        """Publishes bytes, strings, (key, data) pairs or `OutMessage`s, in order, the fastest way.

        Returns a receipt for each batch that was made of them. Raises the first error; other batches may be stored.
        `expected_offset`: all of them go in one batch, stored whole or not at all, and only if its first message gets
        exactly this offset; see `publish`. Raises `InvalidRequest` for what is too much for one batch.
        `delay`, `deliver_at`, `ttl`: of all of them, as in `publish`; those of one batch are due together.
        """
        check_name("channel", channel)
        timing = timing_of(delay, deliver_at, ttl)
        if expected_offset is not None:
            _check_at_once(timing)
            return [await self._publish_expected(channel, messages, durability, expected_offset, timing=timing)]
        return await self._publishing().add_many(channel, messages, durability_value(durability), timing)

    async def _publish_expected(
        self,
        channel: str,
        messages: Iterable[Publishable],
        durability: str,
        expected_offset: int,
        context: str = "",
        timing: Timing = AT_ONCE,
    ) -> BatchReceipt:
        whole("expected_offset", expected_offset, 0, MAX_UINT64)
        level = durability_value(durability)
        return await self._publishing().add_expected(channel, messages, level, expected_offset, context, timing)

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
        mode: str | None = None,
        filter: str | None = None,
        start: Start | None = None,
        prefetch: int | None = None,
        prefetch_bytes: int = PREFETCH_BYTES,
        consumer: str = "",
        heartbeat_interval: float = 10.0,
        on_gap: Callable[[int, int], None] | None = None,
        lease_tokens: bool = False,
    ) -> Subscription:
        """A subscription to iterate: `async for message in mq.subscription("orders", group="billing")`.

        `mode`: how the group shares messages, "shared", "key_ordered", "exclusive", "failover" or "broadcast": it is
        made so by first use (default: shared), and one that has another mode raises `Precondition`. In an exclusive
        group that has its consumer already a newcomer raises `Exhausted`. In a broadcast group `consumer` is needed: it
        gets every message, and its place is kept by that name.
        `filter`: only messages that this lets through, such as `headers["region"] == "eu" && key != ""`; a wrong one
        raises `InvalidRequest` with the place of the mistake. A group is made with it by first use, and one that has
        another raises `Precondition`; what is filtered out counts as acked there.
        `start`: "earliest", "latest" (default without a group), an offset, a datetime with a zone; with a group it
        counts only when this makes the group (default: earliest). `prefetch`, `prefetch_bytes`: most messages and
        bytes here and not read yet (4,000, in groups 1,000; 8 MiB). `on_gap(first, last)`: offsets that were removed.
        `heartbeat_interval`: seconds, 1 to 300; after three of silence the client connects again. `lease_tokens`: in a
        group, messages have a `lease_token`, with which `groups.settle`, `nack` and `extend` settle them on any node.

        `channel` may be a pattern: "orders.*" is any one token there, "orders.>" any number of them, at the end. Then
        all channels that match are read, also those that are made later, these from their beginning; each in its order,
        `message.channel` says which. A group is one of that name on each of them. `start` is no offset then, and there
        is no `on_gap`.
        """
        window = prefetch or (GROUP_PREFETCH if group else PREFETCH)
        how = (group, mode, filter, start, window, prefetch_bytes, consumer, heartbeat_interval, on_gap, lease_tokens)
        return self._keep(Subscription(self._consumer(Asked(channel, *how))))

    async def subscribe(
        self,
        channel: str,
        callback: Handler,
        *,
        group: str | None = None,
        mode: str | None = None,
        filter: str | None = None,
        start: Start | None = None,
        max_concurrency: int = 10,
        ordered: bool = False,
        nack_delay: float | None = None,
        prefetch: int | None = None,
        prefetch_bytes: int = PREFETCH_BYTES,
        consumer: str = "",
        heartbeat_interval: float = 10.0,
        on_gap: Callable[[int, int], None] | None = None,
        lease_tokens: bool = False,
    ) -> HandlerPool:
        """Calls `callback(message)` for every message, in a bounded pool; returns when the subscription stands.

        Async callables run on the event loop, plain ones in threads; never more than `max_concurrency` at once;
        `ordered`: one at a time, in order. In a group, returning acks; raising `Retry` or `Reject` says what to do with
        the message, other exceptions nack it with `nack_delay` seconds (default: as the group's retry policy says, one
        second where it has none); unless the callback settled it itself. Leases are kept meanwhile. Other parameters as
        `subscription`, but `prefetch` in groups is twice max_concurrency. Raises the broker's refusal.
        """
        whole("max_concurrency", max_concurrency, 1, _MAX_CONCURRENCY)
        _check_delay(nack_delay)
        window = prefetch or (2 * max_concurrency if group else PREFETCH)
        how = (group, mode, filter, start, window, prefetch_bytes, consumer, heartbeat_interval, on_gap, lease_tokens)
        made = self._consumer(Asked(channel, *how))
        pool = HandlerPool(made, callback, max_concurrency=max_concurrency, ordered=ordered, nack_delay=nack_delay)
        return await self._standing(pool)

    # -- request and reply ----------------------------------------------------------------------------------------

    async def request(
        self,
        channel: str,
        data: bytes | str,
        *,
        timeout: float = 5.0,
        key: bytes | str | None = None,
        headers: Mapping[str, str] | None = None,
        durability: str = "quorum",
    ) -> Message:
        """Publishes a message and waits for the answer of whoever responds on the channel, up to a day.

        The first request makes this client's inbox, a channel below `options.inbox_prefix`, which `close` removes.
        Raises `Timeout` after `timeout` seconds (with `outcome_open`: somebody may have worked on it), `RequestFailed`
        when the responder refused, `RingpostError` when the request could not be stored.
        """
        self._publishing()
        check_name("channel", channel)
        if not 0.001 <= timeout <= TIMEOUT_S_MAX:
            raise refused("timeout", f"0.001 to {TIMEOUT_S_MAX:,.0f} seconds, not {timeout}")
        how: dict[str, Any] = {"timeout": timeout, "key": key, "headers": headers, "durability": durability}
        return await self._requests.request(channel, data, **how)

    async def respond(
        self,
        channel: str,
        handler: Handler,
        *,
        group: str = "responders",
        max_concurrency: int = 10,
        nack_delay: float = 1.0,
        durability: str = "quorum",
        consumer: str = "",
        prefetch: int | None = None,
    ) -> ResponderPool:
        """Answers the channel's requests by what `handler(message)` returns; returns when the subscription stands.

        None, bytes, str, (key, data) or `OutMessage`. All responders of one `group` share the requests. A handler that
        raises `RequestFailed` refuses; after any other exception the request is delivered again, to whomever, while
        somebody waits for it. A request is worked on at least once: a lost responder's goes to another. What is late is
        not worked on, by this machine's clock and the nodes'. `durability` is that of answers; the rest as `subscribe`.
        """
        whole("max_concurrency", max_concurrency, 1, _MAX_CONCURRENCY)
        _check_delay(nack_delay)
        check_name("group", group)
        durability_value(durability)
        window = prefetch or 2 * max_concurrency
        made = self._consumer(Asked(channel, group, prefetch=window, consumer=consumer))
        pool = ResponderPool(
            made,
            handler,
            publish=self._answer,
            max_concurrency=max_concurrency,
            nack_delay=nack_delay,
            durability=durability,
        )
        return await self._standing(pool)

    async def _answer(
        self, channel: str, data: bytes | str, key: bytes | str | None, headers: Mapping[str, str], *, durability: str
    ) -> Receipt:
        """`publish` for handlers, which may still run while the client closes."""
        assert self._publisher is not None, "there is a subscription"
        check_name("channel", channel)
        context = self._context() if self._context is not None else ""
        entry = _encode(data, key, with_context(headers, context), None, None)
        return await (await self._publisher.add_when_room(channel, entry, durability_value(durability), context))

    def _inbox_subscription(self, channel: str) -> Subscription:
        return self.subscription(channel, start="earliest")

    async def _standing(self, pool: _P) -> _P:
        """Keeps a pool once its subscription stands. Raises the broker's refusal."""
        self._keep(pool)
        try:
            await pool.opened()
        except BaseException:
            await pool.close(0.0)
            raise
        return pool

    def _consumer(self, asked: Asked) -> Consumer:
        self._publishing()
        asked.check()
        return asked.consumer_on(self._connections, self._router, self.groups, self.options)

    def _keep(self, subscription: _S) -> _S:
        self._subscriptions = [one for one in self._subscriptions if not one.closed]
        self._subscriptions.append(subscription)
        return subscription


def _check_delay(nack_delay: float | None) -> None:
    if nack_delay is not None and not 0 <= nack_delay * 1000 <= MAX_NACK_DELAY_MS:
        raise refused("nack_delay", f"0 to {MAX_NACK_DELAY_MS // 1000:,} seconds, not {nack_delay}")


def _check_at_once(timing: Timing) -> None:
    if timing.delay_ms or timing.deliver_time_us:
        raise refused(
            "expected_offset", "excludes delay and deliver_at: a delayed message gets its offset when it is due"
        )


def _encode(
    data: bytes | str,
    key: bytes | str | None,
    headers: Mapping[str, str] | None,
    message_id: str | None,
    time: datetime | int | None,
) -> bytes:
    if key is None and headers is None and message_id is None and time is None:
        return encode_data(as_bytes(data))
    return encode_message(as_bytes(data), key, headers, message_id, _time_us(time))


def _time_us(time: datetime | int | None) -> int:
    return time if isinstance(time, int) else 0 if time is None else time_us_of("time", time)
