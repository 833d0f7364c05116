"""Batches: what a node accepts, and that a part of one is again one."""

import sys

import pytest
from crc32c import crc32c
from google.protobuf.message import DecodeError
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ringpost.node.errors import InvalidRequest
from ringpost.node.shard.batch import CheckedBatch, Cutter, boundaries, check
from ringpost.v1.publish_pb2 import Batch, Message

LIMITS = {"message_bytes_max": 1 << 20, "messages_max": 65_535}

messages = st.builds(
    Message,
    key=st.binary(max_size=10),
    data=st.one_of(st.binary(max_size=40), st.integers(100, 400).map(bytes)),
    headers=st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3),
    producer_time_us=st.integers(-(2**63), 2**63 - 1),
    message_id=st.text(max_size=8),
)
batches = st.lists(messages, min_size=1, max_size=8)


def encoded(parts: list[Message]) -> bytes:
    return Batch(messages=parts).SerializeToString()


def varint(number: int, padding: int = 0) -> bytes:
    """Base 128; `padding` adds that many bytes more than needed."""
    out = bytearray()
    while number >= 0x80 or padding:
        padding -= number < 0x80
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes((*out, number))


def entry(message: bytes, padding: int = 0) -> bytes:
    return b"\x0a" + varint(len(message), padding) + message


def refused(batch: bytes, count: int = 0, crc: int | None = None, **limits: int) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        check(batch, count, crc, **(LIMITS | limits))
    assert caught.value.violations
    return caught.value


# -- check ------------------------------------------------------------------------------------------------------------


@given(batches)
@settings(deadline=None)
def test_what_the_encoder_writes_is_accepted_and_counted(parts: list[Message]) -> None:
    batch = encoded(parts)
    expected = CheckedBatch(len(parts), crc32c(batch))
    assert check(batch, 0, None, **LIMITS) == expected
    assert check(batch, len(parts), crc32c(batch), **LIMITS) == expected


def test_a_wrong_checksum_or_count_is_named() -> None:
    batch = encoded([Message(data=b"x")])
    assert refused(batch, crc=crc32c(batch) ^ 1).violations[0].field == "crc32c"
    assert refused(batch, count=2).violations[0].field == "count"


def test_a_batch_has_one_message_at_least_and_not_too_many() -> None:
    assert "has 0 messages" in refused(b"").message
    three = encoded([Message()] * 3)
    assert check(three, 0, None, message_bytes_max=1, messages_max=3).count == 3
    assert "messages, allowed are 1 to 2" in refused(three, messages_max=2).message


def test_far_too_many_tiny_messages_are_refused_before_they_are_parsed() -> None:
    refusal = refused(b"\x0a\x00" * 500_000, messages_max=65_535)
    assert "has more than 65535 messages" in refusal.message


def test_payloads_full_of_tags_are_no_messages() -> None:
    batch = encoded([Message(data=b"\n" * 200_000)])
    assert check(batch, 1, None, message_bytes_max=1 << 20, messages_max=65_535).count == 1


@given(st.binary(max_size=60))
@example(b"\x0a")
@example(b"\x0a\x80")
@example(b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01")
@example(b"\x0a\x02\x12\x05")
@example(b"\x0b\x0c")
@settings(max_examples=300, deadline=None)
def test_garbage_is_refused_and_never_raises_anything_else(garbage: bytes) -> None:
    try:
        checked = check(garbage, 0, None, **LIMITS)
    except InvalidRequest:
        return
    whole = Batch.FromString(garbage)
    assert checked.count == len(whole.messages)
    cutter = Cutter()
    parts = [cutter.cut(1, garbage, number, number) for number in range(checked.count)]
    assert Batch.FromString(b"".join(parts)) == whole


@given(batches, st.data())
@settings(deadline=None)
def test_a_batch_cut_off_anywhere_or_with_a_bit_turned_over_is_whole_or_refused(
    parts: list[Message], data: st.DataObject
) -> None:
    batch = bytearray(encoded(parts))
    if data.draw(st.booleans()):
        batch = batch[: data.draw(st.integers(0, len(batch)))]
    else:
        batch[data.draw(st.integers(0, len(batch) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    test_garbage_is_refused_and_never_raises_anything_else.hypothesis.inner_test(bytes(batch))


def test_text_must_be_utf8() -> None:
    message = Message(message_id="abc").SerializeToString().replace(b"abc", b"\xff\xfe\xfd")
    with pytest.raises(DecodeError):
        Message.FromString(message)
    assert "UTF-8" in refused(entry(message)).message


def test_fields_of_a_later_version_are_refused() -> None:
    assert "does not know" in refused(encoded([Message()]) + b"\x10\x01").message
    assert "does not know" in refused(b"\x10\x01" + encoded([Message()])).message


def test_fields_that_a_message_does_not_know_stay_in_it() -> None:
    """Only the batch is cut; what is inside a message is the clients' affair."""
    batch = entry(Message(data=b"x").SerializeToString() + b"\xa0\x06\x01")
    assert check(batch, 1, None, **LIMITS).count == 1
    assert Batch.FromString(batch).SerializeToString() == batch


@given(st.lists(st.tuples(st.binary(max_size=5), st.binary(max_size=5)), min_size=2, max_size=6))
@settings(deadline=None)
def test_several_headers_in_any_order_are_no_reason_to_refuse(headers: list[tuple[bytes, bytes]]) -> None:
    """A map has no order: encoders may write it in another order, or a key twice."""
    pairs = [(key.hex().encode(), value.hex().encode()) for key, value in headers]
    parts = [b"\x0a" + bytes([len(k)]) + k + b"\x12" + bytes([len(v)]) + v for k, v in pairs]
    message = b"".join(b"\x1a" + bytes([len(part)]) + part for part in parts)
    assert check(entry(message), 1, None, **LIMITS).count == 1


@pytest.mark.parametrize("padding", [1, 2, 4])
def test_a_length_longer_than_needed_can_be_cut_too(padding: int) -> None:
    batch = entry(b"\x12\x01x", padding) + entry(b"\x12\x01y")
    assert check(batch, 2, None, **LIMITS).count == 2
    assert boundaries(batch).tolist() == [0, 5 + padding, 10 + padding]


@pytest.mark.parametrize(
    "odd", [b"\x8a\x00\x03\x12\x01x", b"\x8a\x80\x00\x83\x00\x12\x01x"], ids=["tag", "tag and length"]
)
def test_entries_that_boundaries_cannot_follow_are_cut_too(odd: bytes) -> None:
    """Protobuf reads a longer tag as the same field, so the batch is valid."""
    batch = entry(b"\x12\x01w") + odd + entry(b"\x12\x01y")
    assert check(batch, 3, None, **LIMITS).count == 3
    cut = Cutter().cut(1, batch, 1, 2)
    assert [message.data for message in Batch.FromString(cut).messages] == [b"x", b"y"]
    assert check(batch, 3, None, message_bytes_max=3, messages_max=9).count == 3
    assert refused(batch, message_bytes_max=2).violations[0].field == "batch.messages[0]"


@pytest.mark.parametrize("size", [4, 127, 128, 129, 130, 16_383, 16_384, 16_388, 70_000])
def test_the_limit_of_a_message_is_exact(size: int) -> None:
    inner = size - 2 if size < 130 else size - 3 if size < 16_388 else size - 4
    message = Message(data=bytes(inner))
    size = message.ByteSize()
    small = Message(data=b"s")
    for batch in (encoded([message]), encoded([small, message, small])):
        assert check(batch, 0, None, message_bytes_max=size, messages_max=9)
        error = refused(batch, message_bytes_max=size - 1)
        assert f"is {size} bytes long, allowed are {size - 1}" in error.message
    assert error.violations[0].field == "batch.messages[1]"


# -- cutting ----------------------------------------------------------------------------------------------------------


@given(batches, st.data())
@settings(deadline=None)
def test_every_run_of_messages_is_again_a_batch(parts: list[Message], data: st.DataObject) -> None:
    batch = encoded(parts)
    first = data.draw(st.integers(0, len(parts) - 1))
    last = data.draw(st.integers(first, len(parts) - 1))
    cut = Cutter().cut(1, batch, first, last)
    assert Batch.FromString(cut) == Batch(messages=parts[first : last + 1])


@pytest.mark.parametrize("garbage", [b"\x12\x00", b"\x0a\x05abc", b"\x0a\x00\x0b"])
def test_boundaries_of_what_is_no_batch_raise(garbage: bytes) -> None:
    with pytest.raises((ValueError, IndexError)):
        boundaries(garbage)


def test_a_cutter_knows_a_batch_by_its_address_for_a_while() -> None:
    """An address names the same bytes for ever, so what is remembered may be used instead of looking again."""
    cutter = Cutter(remembered_max=2)
    batch = encoded([Message(data=b"a"), Message(data=b"b")])
    known = cutter.of(1, batch).bounds
    assert cutter.of(1, batch).bounds is known
    cutter.of(2, batch)
    cutter.of(3, batch)
    assert cutter.of(1, batch).bounds is not known


def test_a_cutter_keeps_no_batch_in_memory() -> None:
    cutter = Cutter()
    batch = encoded([Message(data=b"a"), Message(data=b"b")])
    before = sys.getrefcount(batch)
    cutter.cut(1, batch, 0, 0)
    assert sys.getrefcount(batch) == before
