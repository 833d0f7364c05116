"""Which shard a channel lives in. Pure, and the same in every language and for ever."""

from functools import lru_cache
from hashlib import sha256


@lru_cache(maxsize=16_384)
def shard_of(name: str, shard_count: int) -> int:
    """The shard of a channel: the first eight bytes of SHA-256 of its UTF-8 name, big endian, modulo `shard_count`.

    `name` is a valid channel name, `shard_count` at least 1; the answer is 0 to shard_count - 1.
    """
    return int.from_bytes(sha256(name.encode()).digest()[:8], "big") % shard_count
