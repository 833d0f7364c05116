"""When a batch is to be given out: what the time fields of a publish say."""

from ringpost.internal.v1.envelope_pb2 import PublishRequest
from ringpost.node.errors import InvalidRequest
from ringpost.node.shard.scheduling import DELAY_MS_MAX


def due_us(request: PublishRequest, now_us: int) -> int:
    """When the batch of a request is due by the owner's clock; 0: now. Raises InvalidRequest."""
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
    due = at_us or (now_us + delay_ms * 1000 if delay_ms else 0)
    if due > now_us and request.HasField("expected_offset"):
        field = "deliver_time_us" if at_us else "delay_ms"
        raise InvalidRequest.of("expected_offset", f"excludes {field}: a delayed batch gets its offset when it is due")
    return due if due > now_us else 0


def check_ttl(ttl_ms: int) -> int:
    """Raises InvalidRequest for what is beyond its bound."""
    if ttl_ms > DELAY_MS_MAX:
        raise InvalidRequest.of("ttl_ms", f"is {ttl_ms}, allowed are 1 to {DELAY_MS_MAX} (366 days), or 0 for ever")
    return ttl_ms
