"""Delivered messages. A batch is kept as the bytes that came and opened when it is looked at."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

from google.protobuf.message import DecodeError

from ringpost.client.checks import refused, text_bytes
from ringpost.client.errors import DataCorrupted, Precondition
from ringpost.client.settle import ACK, ACK_UP_TO, Action, Leases, Settlement
from ringpost.v1 import publish_pb2

MAX_NACK_DELAY_MS = 604_800_000
MIN_EXTEND_MS = 1_000
MAX_EXTEND_MS = 43_200_000
MAX_REASON_BYTES = 1_024


def nack_millis(name: str, seconds: float) -> int:
    """A nack's delay. Raises `InvalidRequest`."""
    if not 0 <= seconds * 1000 <= MAX_NACK_DELAY_MS:
        raise refused(name, f"0 to {MAX_NACK_DELAY_MS // 1000:,} seconds, not {seconds}")
    return round(seconds * 1000)


def extend_millis(seconds: float) -> int:
    """An extension's length. Raises `InvalidRequest`."""
    if seconds and not MIN_EXTEND_MS <= seconds * 1000 <= MAX_EXTEND_MS:
        raise refused("seconds", f"0, or 1 to {MAX_EXTEND_MS // 1000:,}, not {seconds}")
    return round(seconds * 1000)


class _Settles(ABC):
    """ack, nack, extend and reject of whatever `_settle` covers.

    Each returns at once with a `Settlement` to await, or to leave: settlements are gathered and sent together, and
    closing the subscription waits for all of them. They raise `Precondition` on a subscription without a group.
    """

    __slots__ = ()

    @abstractmethod
    def _settle(self, action: Action, *, final: bool) -> Settlement:
        """Begins the settlement; `final`: not an extension."""

    def ack(self, *, cumulative: bool = False) -> Settlement:
        """Done; never delivered to this group again. Awaiting it waits until that is durable.

        `cumulative`: also everything below that this subscription was given and has not settled; `settled` does not
        show it there.
        """
        return self._settle(ACK_UP_TO if cumulative else ACK, final=True)

    def nack(self, delay: float = 0.0, reason: str = "", *, fallback: float = 0.0) -> Settlement:
        """Not done; delivered again with attempt + 1 after `delay` seconds (at most seven days).

        0: after what the group's retry policy says; where it has none, after `fallback`. `reason`: at most 1,024 bytes,
        for whoever gets the message next.
        """
        millis, least = nack_millis("delay", delay), nack_millis("fallback", fallback)
        _check_reason(reason)
        return self._settle(Action("nack", millis, reason, fallback=least), final=True)

    def extend(self, seconds: float = 0.0) -> Settlement:
        """Still working: the lease ends `seconds` from now (1 to 43,200); 0: the group's ack deadline from now."""
        return self._settle(Action("extend", extend_millis(seconds)), final=False)

    def reject(self, reason: str = "") -> Settlement:
        """Will never be done: settled like an ack and counted as rejected. `reason`: at most 1,024 bytes."""
        _check_reason(reason)
        return self._settle(Action("reject", 0, reason), final=True)


class MessageBatch(_Settles):
    """Consecutive messages of one channel, delivered together; its settlements cover all of them as one range."""

    __slots__ = (
        "_messages",
        "_raw",
        "append_time_us",
        "attempt",
        "channel",
        "count",
        "first_offset",
        "last_reason",
        "lease_token",
        "leases",
        "settled",
        "settled_in",
        "size",
    )

    def __init__(
        self,
        channel: str,
        raw: bytes,
        *,
        first_offset: int,
        count: int,
        append_time_us: int,
        attempt: int,
        leases: Leases | None,
        last_reason: str = "",
        named: bool = False,
        lease_token: bytes = b"",
    ) -> None:
        """`named`: a settlement must say the channel, as the subscription has several."""
        self.channel = channel
        self.first_offset = first_offset
        self.count = count
        # The owner's clock at the append, microseconds since the epoch.
        self.append_time_us = append_time_us
        # Groups: which delivery this is, from 1. 0 without a group.
        self.attempt = attempt
        # Groups, from attempt 2 on: why the delivery before failed. Empty when nobody said.
        self.last_reason = last_reason
        # Groups, where the subscription asked for it: names this delivery, to settle it on any node; else empty.
        self.lease_token = lease_token
        # Encoded bytes.
        self.size = len(raw)
        # None without a group.
        self.leases = leases
        self.settled = False
        self.settled_in = channel if named else ""
        self._raw = raw
        self._messages: list[Message] | None = None

    def __len__(self) -> int:
        return self.count

    @property
    def last_offset(self) -> int:
        return self.first_offset + self.count - 1

    @property
    def messages(self) -> "list[Message]":
        """The messages, in order. Raises `DataCorrupted`."""
        if self._messages is None:
            self._messages = [Message(self, proto, n) for n, proto in enumerate(self._open(), self.first_offset)]
        return self._messages

    def payloads(self) -> list[bytes]:
        """Only the data of each message, for speed. Raises `DataCorrupted`."""
        return [proto.data for proto in self._open()]

    def _open(self) -> Sequence[publish_pb2.Message]:
        try:
            protos = publish_pb2.Batch.FromString(self._raw).messages
        except DecodeError:
            raise DataCorrupted(f"the batch at offset {self.first_offset} of {self.channel} does not parse") from None
        if len(protos) != self.count:
            text = f"the batch at offset {self.first_offset} of {self.channel} holds {len(protos)} messages"
            raise DataCorrupted(f"{text}, not {self.count} as announced")
        return protos

    def _settle(self, action: Action, *, final: bool) -> Settlement:
        self.settled |= final
        if self.settled_in:
            action = action._replace(channel=self.settled_in)
        return _leases_of(self).settle(action, self.first_offset, self.last_offset)


class Message(_Settles):
    """One message. Settle it only in a group, once; `settled` says whether this program did."""

    __slots__ = ("_proto", "_settled", "batch", "offset")

    def __init__(self, batch: MessageBatch, proto: publish_pb2.Message, offset: int) -> None:
        self.batch = batch
        self._proto = proto
        self._settled = False
        self.offset = offset

    @property
    def channel(self) -> str:
        return self.batch.channel

    @property
    def data(self) -> bytes:
        return self._proto.data

    @property
    def key(self) -> bytes:
        """Empty when there is none."""
        return self._proto.key

    @property
    def headers(self) -> Mapping[str, str]:
        return self._proto.headers

    @property
    def message_id(self) -> str:
        """The producer's own name for it; empty when there is none."""
        return self._proto.message_id

    @property
    def producer_time_us(self) -> int:
        """When the producer made it, microseconds since the epoch; 0: unknown."""
        return self._proto.producer_time_us

    @property
    def append_time_us(self) -> int:
        """The owner's clock at the append, microseconds since the epoch."""
        return self.batch.append_time_us

    @property
    def attempt(self) -> int:
        """Groups: which delivery this is, from 1. 0 without a group."""
        return self.batch.attempt

    @property
    def last_reason(self) -> str:
        """Groups, from attempt 2 on: why the delivery before failed. Empty when nobody said."""
        return self.batch.last_reason

    @property
    def lease_token(self) -> bytes:
        """Names the delivery of this message's batch, where the subscription asked for tokens; else empty.

        `client.groups.settle`, `nack` and `extend` take it, with this message's offset, on any node and connection.
        """
        return self.batch.lease_token

    @property
    def settled(self) -> bool:
        """Whether it was acked, nacked or rejected here, by itself or with its batch."""
        return self._settled or self.batch.settled

    def text(self) -> str:
        """The data as UTF-8 text."""
        return self._proto.data.decode()

    def __repr__(self) -> str:
        return f"Message(channel={self.channel!r}, offset={self.offset}, key={self.key!r}, data={self.data[:40]!r})"

    def _settle(self, action: Action, *, final: bool) -> Settlement:
        self._settled |= final
        if self.batch.settled_in:
            action = action._replace(channel=self.batch.settled_in)
        return _leases_of(self.batch).settle(action, self.offset, self.offset)


def _check_reason(reason: str) -> None:
    if len(text_bytes("reason", reason)) > MAX_REASON_BYTES:
        raise refused("reason", f"at most {MAX_REASON_BYTES:,} bytes")


def _leases_of(batch: MessageBatch) -> Leases:
    if batch.leases is None:
        raise Precondition("a subscription without a group settles nothing", reason="NO_GROUP")
    return batch.leases
