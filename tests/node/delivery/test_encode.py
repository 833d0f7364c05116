"""Deliveries written by hand are what protobuf would write."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ringpost.internal.v1.envelope_pb2 import Deliver, DeliveredBatch, SubscribeResponse
from ringpost.node.delivery.encode import deliver, is_deliver, piece, readdressed, split_deliver, varint
from ringpost.v1 import subscribe_pb2 as public

u64 = st.one_of(st.integers(0, 200), st.integers(0, 2**64 - 1))
u32 = st.one_of(st.integers(0, 200), st.integers(0, 2**32 - 1))

facts = st.fixed_dictionaries(
    {
        "first_offset": u64,
        "count": st.integers(1, 2**32 - 1),
        "time_us": st.integers(-(2**63), 2**63 - 1),
        "crc": u32,
        "attempt": u32,
        "lease_ms": u64,
    }
)
bodies = st.one_of(st.binary(min_size=1, max_size=300), st.integers(16_000, 17_000).map(bytes))


@given(st.integers(1, 2**32 - 1), st.lists(st.tuples(bodies, facts), min_size=1, max_size=4))
@settings(deadline=None)
def test_the_bytes_are_those_of_protobuf(number: int, parts: list[tuple[bytes, dict[str, int]]]) -> None:
    expected = Deliver(subscription_id=number)
    for body, fact in parts:
        expected.batches.append(
            DeliveredBatch(
                first_offset=fact["first_offset"],
                count=fact["count"],
                append_time_us=fact["time_us"],
                crc32c=fact["crc"],
                batch=body,
                attempt=fact["attempt"],
                lease_ms=fact["lease_ms"],
            )
        )
    message = deliver(number, [piece(body, **fact) for body, fact in parts])
    parsed = SubscribeResponse.FromString(message)
    assert parsed.deliver == expected
    assert len(message) == len(SubscribeResponse(deliver=expected).SerializeToString())


def test_fields_stand_in_the_order_of_their_numbers_up_to_the_batch() -> None:
    """So without a group, where nothing follows the batch, even the bytes are the same."""
    message = deliver(7, [piece(b"\x0a\x00", first_offset=300, count=1, time_us=5, crc=9)])
    batch = DeliveredBatch(first_offset=300, count=1, append_time_us=5, crc32c=9, batch=b"\x0a\x00")
    assert message == SubscribeResponse(deliver=Deliver(subscription_id=7, batches=[batch])).SerializeToString()


def test_a_client_reads_typed_messages() -> None:
    body = public.DeliveredBatch(batch={"messages": [{"data": b"x"}, {}]}).batch.SerializeToString()
    message = deliver(1, [piece(body, first_offset=2, count=2, time_us=3, crc=4)])
    (batch,) = public.SubscribeResponse.FromString(message).deliver.batches
    assert [m.data for m in batch.batch.messages] == [b"x", b""]


@given(u32, u32, st.lists(st.binary(max_size=200)))
def test_a_delivery_is_readdressed_without_opening_it(number: int, other: int, bodies: list[bytes]) -> None:
    pieces = [piece(body, first_offset=5, count=1, time_us=3, crc=4) for body in bodies]
    message = deliver(number, pieces)
    assert is_deliver(message)
    found, batches = split_deliver(message)
    assert found == number
    assert readdressed(other, batches) == deliver(other, pieces)


@pytest.mark.parametrize("message", [b"", b"\x12", b"\x0a\x02\x08\x01", b"\x12\x02\x12\x00", b"\x12" + b"\xff" * 20])
def test_what_is_no_delivery_of_ours_is_not_split(message: bytes) -> None:
    with pytest.raises(ValueError, match="not"):
        split_deliver(message)


@given(u64)
def test_a_varint_is_read_back(number: int) -> None:
    encoded = varint(number)
    assert sum((byte & 0x7F) << 7 * at for at, byte in enumerate(encoded)) == number
    assert [byte >> 7 for byte in encoded] == [1] * (len(encoded) - 1) + [0]
