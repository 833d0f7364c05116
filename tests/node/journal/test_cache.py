"""The tail cache: newest frames in, oldest frames out, never above its bytes."""

from hypothesis import given
from hypothesis import strategies as st

from ringpost.node.journal.cache import ENTRY_OVERHEAD_BYTES, CachedFrame, TailCache


def frame(base_offset: int, body: bytes = b"batch") -> CachedFrame:
    return CachedFrame(base_offset, 1, 1_700_000_000_000_000, 0xDEAD, body, 7, 3)


def room_for(*lengths: int) -> int:
    return sum(lengths) + len(lengths) * ENTRY_OVERHEAD_BYTES


def test_a_frame_is_read_back_and_counted() -> None:
    cache = TailCache(room_for(100))
    cache.put(4096, 100, frame(1))
    assert cache.get(4096) == frame(1)
    assert cache.get(8192) is None
    assert (cache.hits, cache.misses, cache.bytes) == (1, 1, room_for(100))


def test_the_oldest_frames_make_room() -> None:
    cache = TailCache(room_for(100, 100, 100))
    for address in (1, 2, 3):
        cache.put(address, 100, frame(address))
    cache.get(1)  # being read does not make it younger
    cache.put(4, 150, frame(4))
    assert [cache.get(address) is not None for address in (1, 2, 3, 4)] == [False, False, True, True]
    assert cache.bytes == room_for(100, 150)


def test_a_frame_larger_than_the_cache_leaves_the_others_alone() -> None:
    cache = TailCache(room_for(100))
    cache.put(1, 100, frame(1))
    cache.put(2, 101, frame(2))
    assert cache.get(1) is not None
    assert cache.get(2) is None


def test_a_frame_put_twice_is_charged_once() -> None:
    cache = TailCache(room_for(100, 100))
    cache.put(1, 100, frame(1))
    cache.put(1, 100, frame(1))
    assert (len(cache), cache.bytes) == (1, room_for(100))


def test_no_room_caches_nothing() -> None:
    cache = TailCache(0)
    cache.put(1, 0, frame(1))
    assert (len(cache), cache.bytes) == (0, 0)


@given(st.integers(0, 5000), st.lists(st.tuples(st.integers(0, 30), st.integers(0, 2000)), max_size=60))
def test_it_holds_the_longest_run_of_newest_frames_that_fits(max_bytes: int, puts: list[tuple[int, int]]) -> None:
    cache = TailCache(max_bytes)
    model: dict[int, int] = {}  # address -> length, oldest first
    for address, length in puts:
        cache.put(address, length, frame(address))
        if room_for(length) <= max_bytes:
            model.setdefault(address, length)
        while room_for(*model.values()) > max_bytes:
            del model[next(iter(model))]
        assert cache.bytes == room_for(*model.values()) <= max_bytes
        assert len(cache) == len(model)
    assert {address for address, _ in puts if cache.get(address)} == set(model)
