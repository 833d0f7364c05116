"""When a batch is to be given out: what the time fields of a publish say."""

from ringpost.internal.v1.envelope_pb2 import PublishRequest
from ringpost.node.delivery.encode import varint
from ringpost.node.errors import InvalidRequest
from ringpost.node.shard.scheduling import DELAY_MS_MAX

_TTL_MS, _NOT_AFTER_DEADLINE = b"\x60", b"\x68"  # what begins these fields, encoded


def until_deadline(message: bytes, request: PublishRequest, left_s: float | None) -> bytes:
    """An encoded request that is not to outlive its call, and the same one decoded, get what the call has left as ttl.

    `left_s` None: the call has no deadline. Raises InvalidRequest.
    """
    if left_s is None:
        raise InvalidRequest.of(
            "not_after_deadline", "is set, and the call has no deadline; give it one, or set ttl_ms instead"
        )
    if request.delay_ms or request.deliver_time_us:
        raise InvalidRequest.of("not_after_deadline", "excludes a delay; set ttl_ms, which counts from when it is due")
    left_ms = min(max(int(left_s * 1000), 1), DELAY_MS_MAX)
    request.ttl_ms = min(request.ttl_ms or left_ms, left_ms)
    request.not_after_deadline = False
    # The last of several values counts.
    return b"".join((message, _TTL_MS, varint(request.ttl_ms), _NOT_AFTER_DEADLINE, b"\x00"))


def check_delivery(request: PublishRequest, now_us: int) -> bool:
    """Whether the batch of a request is due later, by the owner's clock. Raises InvalidRequest."""
    at_us, delay_ms = request.deliver_time_us, request.delay_ms
    if at_us and delay_ms:
        raise InvalidRequest.of("delay_ms", "and deliver_time_us exclude each other; set one of them")
    if at_us < 0:
        raise InvalidRequest.of("deliver_time_us", f"is {at_us}, allowed are microseconds since 1970, or 0 for now")
    if delay_ms > DELAY_MS_MAX:
        raise InvalidRequest.of("delay_ms", f"is {delay_ms}, allowed are 1 to {DELAY_MS_MAX} (366 days), or 0 for now")
    latest = now_us + DELAY_MS_MAX * 1000
    if at_us > latest:
        raise InvalidRequest.of("deliver_time_us", f"is {at_us}, allowed is at most {latest} (366 days from now)")
    later = delay_ms > 0 or at_us > now_us
    if later and request.HasField("expected_offset"):
        field = "deliver_time_us" if at_us else "delay_ms"
        raise InvalidRequest.of("expected_offset", f"excludes {field}: a delayed batch gets its offset when it is due")
    return later


def check_ttl(ttl_ms: int, *, not_after_deadline: bool) -> None:
    """Raises InvalidRequest for what is beyond its bound, and for a deadline that no call has."""
    if not_after_deadline:
        raise InvalidRequest.of(
            "not_after_deadline", "is set on a stream, whose batches have no deadline of their own; set ttl_ms"
        )
    if ttl_ms > DELAY_MS_MAX:
        raise InvalidRequest.of("ttl_ms", f"is {ttl_ms}, allowed are 1 to {DELAY_MS_MAX} (366 days), or 0 for ever")
