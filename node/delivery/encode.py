"""Writing SubscribeResponse{deliver} by hand: the batch's bytes go in as they are, in one join.

The same bytes as `ringpost.internal.v1.SubscribeResponse` would give (a test compares), without the two copies and the
parse of a protobuf object.
"""

from collections.abc import Sequence

from ringpost.internal.v1.envelope_pb2 import DeliveredBatch

_DELIVER = b"\x12"  # SubscribeResponse.deliver, length-delimited
_SUBSCRIPTION_ID = b"\x08"  # Deliver.subscription_id, varint
_BATCHES = b"\x12"  # Deliver.batches, length-delimited
_BATCH = b"\x2a"  # DeliveredBatch.batch, length-delimited

Piece = tuple[bytes, bytes]  # what stands before a batch, the batch


def varint(number: int) -> bytes:
    """A number >= 0 in base 128, least significant first."""
    if number < 0x80:
        return number.to_bytes(1, "little")
    out = bytearray()
    while number >= 0x80:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def piece(
    batch: bytes,
    *,
    first_offset: int,
    count: int,
    time_us: int,
    crc: int,
    attempt: int = 0,
    lease_ms: int = 0,
    last_reason: str = "",
    lease_token: bytes = b"",
) -> Piece:
    """One DeliveredBatch as it stands in a Deliver."""
    facts = DeliveredBatch(
        first_offset=first_offset,
        count=count,
        append_time_us=time_us,
        crc32c=crc,
        attempt=attempt,
        lease_ms=lease_ms,
        last_reason=last_reason,
        lease_token=lease_token,
    ).SerializeToString()
    length = varint(len(batch))
    inner = len(facts) + 1 + len(length) + len(batch)
    return b"".join((_BATCHES, varint(inner), facts, _BATCH, length)), batch


def is_deliver(message: bytes) -> bool:
    """Whether an encoded SubscribeResponse is a delivery."""
    return message[:1] == _DELIVER


def split_deliver(message: bytes) -> tuple[int, memoryview]:
    """Subscription id and encoded batches of what `deliver` has made. Raises ValueError for anything else."""
    _, at = _read_varint(message, 1)
    if message[:1] != _DELIVER or message[at : at + 1] != _SUBSCRIPTION_ID:
        raise ValueError("not a delivery as this program writes it")
    number, at = _read_varint(message, at + 1)
    return number, memoryview(message)[at:]


def readdressed(subscription_id: int, batches: memoryview) -> bytes:
    """The delivery of these encoded batches to another subscription."""
    name = varint(subscription_id)
    size = 1 + len(name) + len(batches)
    return b"".join((_DELIVER, varint(size), _SUBSCRIPTION_ID, name, batches))


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while shift < 70 and at < len(message):
        byte = message[at]
        number |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return number, at
        shift += 7
    raise ValueError("a number does not end")


def deliver(subscription_id: int, pieces: Sequence[Piece]) -> bytes:
    """An encoded SubscribeResponse with these batches."""
    name = varint(subscription_id)
    size = 1 + len(name) + sum(len(head) + len(batch) for head, batch in pieces)
    return b"".join((_DELIVER, varint(size), _SUBSCRIPTION_ID, name, *[part for pair in pieces for part in pair]))
