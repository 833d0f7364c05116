"""A channel's shard: known values, and an even spread."""

from collections import Counter

import pytest

from ringpost.cluster.keys import shard_of


@pytest.mark.parametrize(
    ("name", "shard_count", "shard"),
    [
        ("a", 256, 0xCA978112CA1BBDCA % 256),
        ("a", 1000, 0xCA978112CA1BBDCA % 1000),
        ("abc", 256, 0xBA7816BF8F01CFEA % 256),
        ("abc", 4096, 0xBA7816BF8F01CFEA % 4096),
        ("hello", 7, 0x2CF24DBA5FB0A30E % 7),
        ("", 256, 0xE3B0C44298FC1C14 % 256),
    ],
)
def test_known_vectors(name: str, shard_count: int, shard: int) -> None:
    """Published digests of SHA-256: a client in any language can check itself against these."""
    assert shard_of(name, shard_count) == shard


def test_one_shard_takes_everything() -> None:
    assert {shard_of(f"c{i}", 1) for i in range(100)} == {0}


def test_100_000_names_spread_evenly() -> None:
    sizes = Counter(shard_of(f"orders.customer-{i}", 256) for i in range(100_000))
    assert len(sizes) == 256
    # 390.6 on average with a standard deviation of 19.7; five of them.
    assert 290 < min(sizes.values()) <= max(sizes.values()) < 490


def test_the_cache_is_bounded() -> None:
    for i in range(20_000):
        shard_of(f"cached-{i}", 256)
    info = shard_of.cache_info()
    assert info.maxsize is not None
    assert info.currsize <= info.maxsize
