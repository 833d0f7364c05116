"""Settling without a stream, through any node: by offsets, or by the lease tokens of deliveries."""

from collections.abc import Iterable, Sequence
from typing import Final

from ringpost.client.caller import Caller
from ringpost.client.checks import MAX_UINT64, check_name, refused, text_bytes, whole
from ringpost.client.message import MAX_REASON_BYTES, extend_millis, nack_millis
from ringpost.v1 import common_pb2, group_pb2, group_pb2_grpc, subscribe_pb2

MAX_TOKENS: Final = 1_000
Settled = Sequence[subscribe_pb2.SettledRange]


class Settling:
    """The part of `Groups` that settles. What became of each range of messages is in the answer: its outcome is DONE,
    EXPIRED (the delivery is over, or somebody else has the message now), ALREADY, or UNKNOWN.
    """

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    async def settle(
        self,
        channel: str,
        name: str,
        *ranges: tuple[int, int],
        reject: str | None = None,
        tokens: Iterable[bytes] = (),
        consumer: str = "",
    ) -> Settled:
        """Acks or rejects (first, last) ranges whoever holds them; with `tokens` what these deliveries had.

        `tokens` are `message.lease_token`s; ranges then name a part of them. At most 1,000 of each. For work that was
        finished when its stream ended, so that its message's own `ack` came too late. Sending it again changes nothing.
        `consumer`: whose ranges, in mode "broadcast".
        Raises `NotFound`, and `InvalidRequest` for a token of something else.
        """
        request = _request(channel, name, ranges, tokens)
        request.consumer = consumer
        if reject is None:
            request.ack.SetInParent()
        else:
            request.reject.reason = _reason(reject)
        return await self._settle(request)

    async def nack(
        self,
        channel: str,
        name: str,
        *ranges: tuple[int, int],
        tokens: Iterable[bytes],
        delay: float = 0.0,
        reason: str = "",
        fallback: float = 0.0,
    ) -> Settled:
        """Gives deliveries back, as `message.nack`; all that the tokens have, or `ranges` of it.

        Where it is sent again because its answer was lost, the answer may be EXPIRED though it was done.
        """
        request = _request(channel, name, ranges, tokens)
        request.nack.delay_ms = nack_millis("delay", delay)
        request.nack.fallback_delay_ms = nack_millis("fallback", fallback)
        request.nack.reason = _reason(reason)
        return await self._settle(request)

    async def extend(
        self, channel: str, name: str, *ranges: tuple[int, int], tokens: Iterable[bytes], seconds: float = 0.0
    ) -> Settled:
        """Keeps leases, as `message.extend`; all that the tokens have, or `ranges` of it."""
        request = _request(channel, name, ranges, tokens)
        request.extend.deadline_ms = extend_millis(seconds)
        return await self._settle(request)

    async def _settle(self, request: group_pb2.SettleMessagesRequest) -> Settled:
        answer = await self._caller.repeat(lambda c: group_pb2_grpc.GroupServiceStub(c).Settle, request)
        return answer.results


def _request(
    channel: str, name: str, ranges: Iterable[tuple[int, int]], tokens: Iterable[bytes]
) -> group_pb2.SettleMessagesRequest:
    check_name("channel", channel)
    check_name("name", name)
    asked = list(tokens)
    if len(asked) > MAX_TOKENS:
        raise refused("tokens", f"at most {MAX_TOKENS:,}, not {len(asked):,}")
    if not all(asked):
        raise refused("tokens", "one is empty: open the subscription with lease_tokens=True")
    return group_pb2.SettleMessagesRequest(
        channel=channel, group=name, ranges=[_range_of(*one) for one in ranges], lease_tokens=asked
    )


def _range_of(first: int, last: int) -> common_pb2.OffsetRange:
    whole("last", last, 0, MAX_UINT64)
    return common_pb2.OffsetRange(first=whole("first", first, 0, last), last=last)


def _reason(reason: str) -> str:
    if len(text_bytes("reason", reason)) > MAX_REASON_BYTES:
        raise refused("reason", f"at most {MAX_REASON_BYTES:,} bytes")
    return reason
