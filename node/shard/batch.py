"""Encoded batches: checking them once at the publish, cutting them at delivery. Pure.

A batch is an encoded `ringpost.v1.Batch`, a sequence of `messages` entries (tag 0x0A, length, message). A run of whole
entries is a batch again; that is why a part can be delivered without decoding or encoding anything.
"""

from array import array
from collections.abc import Iterable
from typing import NamedTuple

from crc32c import crc32c
from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet

from ringpost.node.errors import InvalidRequest
from ringpost.v1.publish_pb2 import Batch, Message

MESSAGES_TAG = 0x0A
DENSE_BYTES_MIN = 512 << 10  # a batch up to here is parsed in 20 ms and 23 MB, whatever is in it


class CheckedBatch(NamedTuple):
    """What the owner knows of a batch after looking into it once."""

    count: int  # type: ignore[assignment]  # tuple has a method of this name
    crc: int


def check(batch: bytes, count: int, crc: int | None, *, message_bytes_max: int, messages_max: int) -> CheckedBatch:
    """Validates a publish's batch. `count` 0 and `crc` None: not given, so counted and computed here.

    Raises InvalidRequest that names the field.
    """
    actual_crc = crc32c(batch)
    if crc is not None and crc != actual_crc:
        raise InvalidRequest.of(
            "crc32c", f"is {crc:#010x}, but the batch has {actual_crc:#010x} (CRC-32C of the encoded batch field)"
        )
    _check_dense(batch, messages_max)
    try:
        parsed = Batch.FromString(batch)
    except DecodeError:
        raise InvalidRequest.of(
            "batch", "is not an encoded ringpost.v1.Batch (garbage, cut off, or text that is not UTF-8)"
        ) from None
    actual = len(parsed.messages)
    if not 1 <= actual <= messages_max:
        raise InvalidRequest.of("batch.messages", f"has {actual} messages, allowed are 1 to {messages_max}")
    if count not in (0, actual):
        raise InvalidRequest.of("count", f"is {count}, but the batch has {actual} messages")
    if len(UnknownFieldSet(parsed)):
        raise InvalidRequest.of("batch", "has fields that this version does not know")
    if len(batch) > message_bytes_max:
        check_message_sizes(batch, message_bytes_max)
    return CheckedBatch(actual, actual_crc)


def _check_dense(batch: bytes, messages_max: int) -> None:
    """Refuses far too many tiny messages before they are parsed: a parsed message takes 90 bytes, an encoded one 2."""
    if len(batch) <= max(2 * messages_max, DENSE_BYTES_MIN):
        return
    entries = at = 0
    try:
        while at < len(batch) and entries <= messages_max:
            at = _next_entry(batch, at)
            entries += 1
    except (ValueError, IndexError):
        return  # the parser will say what is wrong
    if entries > messages_max:
        raise InvalidRequest.of(
            "batch.messages", f"has more than {messages_max} messages, allowed are 1 to {messages_max}"
        )


def _next_entry(batch: bytes, at: int) -> int:
    """Where the entry that begins at a byte ends."""
    if batch[at] != MESSAGES_TAG:
        raise ValueError(f"byte {at} begins no messages entry")
    length = shift = 0
    while (byte := batch[at + 1]) > 0x7F:
        length |= (byte & 0x7F) << shift
        shift += 7
        at += 1
    return at + 2 + (length | byte << shift)


def check_message_sizes(batch: bytes, message_bytes_max: int) -> None:
    """Raises InvalidRequest for the first message that is too long. The batch must be valid."""
    bounds, _ = cuttable(batch)
    for i in range(len(bounds) - 1):
        size = bounds[i + 1] - bounds[i]
        if size > message_bytes_max and (exact := size - _entry_head(size)) > message_bytes_max:
            raise InvalidRequest.of(
                f"batch.messages[{i}]", f"is {exact} bytes long, allowed are {message_bytes_max} (max_message_bytes)"
            )


def _entry_head(entry_size: int) -> int:
    """Bytes of tag and length before a message in a canonical entry of this size."""
    head = 2
    while entry_size - head >= 1 << (7 * (head - 1)):
        head += 1
    return head


def entries(batch: bytes, count: int) -> int:
    """How many messages the batch has: `count`, or if that is 0 as many as can be told of one not yet checked."""
    if count:
        return count
    try:
        return max(1, len(boundaries(batch)) - 1)
    except (ValueError, IndexError, OverflowError):
        return 1


def message_keys(batch: bytes) -> list[int]:
    """A number for the key of each message of a valid batch: a hash that this process alone gives, 0 without a key."""
    return keys_of(Batch.FromString(batch).messages)


def keys_of(messages: Iterable[Message]) -> list[int]:
    """The same for messages."""
    return [(hash(key) or 1) if (key := message.key) else 0 for message in messages]


def boundaries(batch: bytes) -> "array[int]":
    """Where each entry begins, and the end: count + 1 numbers. Raises ValueError unless it is made of plain entries."""
    bounds = array("I", (0,))
    add = bounds.append
    at, end = 0, len(batch)
    while at < end:
        if batch[at] != MESSAGES_TAG:
            raise ValueError(f"byte {at} begins no messages entry")
        at += 1
        length = batch[at]
        if length > 0x7F:
            length &= 0x7F
            shift = 7
            at += 1
            while (byte := batch[at]) > 0x7F:
                length |= (byte & 0x7F) << shift
                shift += 7
                at += 1
            length |= byte << shift
        at += 1 + length
        add(at)
    if at != end:
        raise ValueError(f"the last entry ends at {at}, the batch at {end}")
    return bounds


class Cuttable(NamedTuple):
    """Boundaries, and the bytes they are of: the batch itself, or the same messages encoded in the usual way."""

    bounds: "array[int]"
    batch: bytes


def cuttable(batch: bytes) -> Cuttable:
    """A valid batch ready for cutting. Some encoder may write what boundaries cannot follow, such as long varints."""
    try:
        return Cuttable(boundaries(batch), batch)
    except (ValueError, IndexError):
        usual = Batch.FromString(batch).SerializeToString()
        return Cuttable(boundaries(usual), usual)


class Cutter:
    """Cuts parts out of batches; remembers the boundaries of the latest few batches, by their address."""

    def __init__(self, remembered_max: int = 64) -> None:
        self._remembered_max = remembered_max
        # With the bytes only where they are not the batch itself: batches are large, and their cache is bounded.
        self._known: dict[int, tuple[array[int], bytes | None]] = {}

    def of(self, address: int, batch: bytes) -> Cuttable:
        """The batch at an address, ready for cutting."""
        known = self._known.get(address)
        if known is None:
            bounds, encoded = cuttable(batch)
            known = bounds, (None if encoded is batch else encoded)
            if len(self._known) >= self._remembered_max:
                del self._known[next(iter(self._known))]
            self._known[address] = known
        bounds, usual = known
        return Cuttable(bounds, batch if usual is None else usual)

    def cut(self, address: int, batch: bytes, first: int, last: int) -> bytes:
        """Messages number first..last (both included, from 0) of the batch, as a batch."""
        bounds, encoded = self.of(address, batch)
        return encoded[bounds[first] : bounds[last + 1]]
