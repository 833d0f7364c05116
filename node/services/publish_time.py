"""When a batch is to be given out: what the time fields of a publish say."""

from ringpost.internal.v1.envelope_pb2 import PublishRequest
from ringpost.node.errors import InvalidRequest
from ringpost.node.shard.scheduling import DELAY_MS_MAX


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


def check_ttl(ttl_ms: int) -> None:
    """Raises InvalidRequest for what is beyond its bound."""
    if ttl_ms > DELAY_MS_MAX:
        raise InvalidRequest.of("ttl_ms", f"is {ttl_ms}, allowed are 1 to {DELAY_MS_MAX} (366 days), or 0 for ever")
