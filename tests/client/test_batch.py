"""The hand-made encoding against protobuf."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringpost.client.batch import OutMessage, encode_any, encode_batches, encode_data, encode_message, varint
from ringpost.client.errors import InvalidRequest
from ringpost.v1 import publish_pb2

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)


@given(
    data=st.binary(max_size=5_000),
    key=st.binary(max_size=200),
    headers=st.dictionaries(TEXT, TEXT, max_size=5),
    message_id=TEXT,
    time_us=st.integers(-(2**63), 2**63 - 1),
)
def test_an_encoded_message_is_what_protobuf_reads(data, key, headers, message_id, time_us) -> None:
    encoded = encode_message(data, key, headers, message_id, time_us)
    expected = publish_pb2.Message(data=data, key=key, headers=headers, message_id=message_id, producer_time_us=time_us)
    assert publish_pb2.Batch.FromString(encoded) == publish_pb2.Batch(messages=[expected])


@given(st.integers(0, 2**64 - 1))
def test_a_varint_is_protobuf_s(value: int) -> None:
    request = publish_pb2.PublishRequest(first_sequence=value)
    assert request.SerializeToString() == (b"\x40" + varint(value) if value else b"")


@pytest.mark.parametrize("length", [0, 1, 124, 125, 126, 127, 128, 4_094, 4_095, 4_096, 16_381, 16_384, 3_000_000])
def test_data_alone_is_encoded_as_protobuf_does(length: int) -> None:
    data = b"x" * length
    assert encode_data(data) == publish_pb2.Batch(messages=[publish_pb2.Message(data=data)]).SerializeToString()


@given(
    messages=st.lists(st.one_of(st.binary(max_size=300), st.text("ab", max_size=300)), max_size=60),
    max_bytes=st.integers(1, 2_000),
    max_messages=st.integers(1, 20),
)
def test_a_list_is_cut_into_batches_within_both_bounds(messages, max_bytes, max_messages) -> None:
    batches = list(encode_batches(messages, max_bytes, max_messages))
    read = [publish_pb2.Batch.FromString(payload) for payload, _ in batches]

    assert [m.data for one in read for m in one.messages] == [m.encode() if isinstance(m, str) else m for m in messages]
    assert [len(one.messages) for one in read] == [count for _, count in batches]
    assert all(count <= max_messages for _, count in batches)
    assert all(len(payload) <= max_bytes or count == 1 for payload, count in batches)


def test_every_shape_is_taken_and_others_are_refused() -> None:
    for shape in (b"d", "d", ("k", b"d"), (None, "d"), OutMessage("d", key="k", time_us=1)):
        (message,) = publish_pb2.Batch.FromString(encode_any(shape)).messages
        assert message.data == b"d"
    with pytest.raises(InvalidRequest, match="int"):
        encode_any(1)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match="list"):
        encode_any(("k", []))  # type: ignore[arg-type]


def test_limits_are_named_with_their_bound() -> None:
    with pytest.raises(InvalidRequest, match="at most 64") as caught:
        encode_message(b"", headers={str(n): "" for n in range(65)})
    assert (caught.value.violations[0].field, caught.value.metadata) == ("headers", {"limit": "64"})
