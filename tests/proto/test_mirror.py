"""The node's mirrors of the public data-plane messages: the same bytes mean the same, but for `Batch` as bytes."""

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from ringpost.internal.v1 import envelope_pb2
from ringpost.v1 import common_pb2, publish_pb2, subscribe_pb2

PUBLIC = {**publish_pb2.DESCRIPTOR.message_types_by_name, **subscribe_pb2.DESCRIPTOR.message_types_by_name}
MIRRORS = envelope_pb2.DESCRIPTOR.message_types_by_name
# Mirrors that leave out what carries no batch.
PARTIAL = {"SubscribeResponse"}


def signature(field: FieldDescriptor) -> tuple[object, ...]:
    """All that decides how the field is encoded, and the oneof that it is in."""
    kind: object = field.type
    if field.message_type is not None:
        kind = "bytes" if field.message_type.full_name == "ringpost.v1.Batch" else field.message_type.name
    elif field.enum_type is not None:
        kind = field.enum_type.full_name
    elif field.type == FieldDescriptor.TYPE_BYTES:
        kind = "bytes"
    oneof = field.containing_oneof.name if field.containing_oneof else None
    return field.number, field.name, field.is_repeated, field.has_presence and kind != "bytes", kind, oneof


def fields(message: Descriptor) -> set[tuple[object, ...]]:
    return {signature(f) for f in message.fields}


@pytest.mark.parametrize("name", sorted(MIRRORS))
def test_a_mirror_has_the_fields_of_the_public_message(name: str) -> None:
    mirror, public = fields(MIRRORS[name]), fields(PUBLIC[name])
    assert mirror <= public if name in PARTIAL else mirror == public


def test_a_partial_mirror_leaves_out_no_batch() -> None:
    left_out = {
        f.message_type.name
        for name in PARTIAL
        for f in PUBLIC[name].fields
        if f.number not in MIRRORS[name].fields_by_number and f.message_type
    }
    carriers = {
        name for name, public in PUBLIC.items() if any(f[4] == "bytes" and f[1] == "batch" for f in fields(public))
    }
    assert left_out.isdisjoint(carriers | {"Deliver", "Batch"})


BATCH = publish_pb2.Batch(
    messages=[
        publish_pb2.Message(
            key=b"k\x00\xff", data=b"x" * 300, headers={"traceparent": "00-1"}, producer_time_us=-5, message_id="é"
        ),
        publish_pb2.Message(),
    ]
)
PUBLISH = publish_pb2.PublishRequest(
    channel="orders.eu",
    batch=BATCH,
    count=2,
    crc32c=0,
    durability=common_pb2.DURABILITY_LEADER,
    producer_id=2**64 - 1,
    producer_epoch=2**32 - 1,
    first_sequence=2**63,
    expected_offset=2**64 - 1,
    deliver_time_us=2**62,
    delay_ms=2**40,
    ttl_ms=2**40,
    traceparent=f"00-{1:032x}-{2:016x}-01",
)
DELIVERED = subscribe_pb2.DeliveredBatch(
    first_offset=2**40,
    count=2,
    append_time_us=-1,
    crc32c=2**32 - 1,
    batch=BATCH,
    attempt=3,
    lease_ms=30_000,
    last_reason="timeout",
    lease_token=b"\x01token",
    channel="orders.eu",
)
DELIVER = subscribe_pb2.Deliver(subscription_id=7, batches=[DELIVERED, DELIVERED])
EXAMPLES = [
    PUBLISH,
    publish_pb2.PublishStreamRequest(correlation=2**64 - 1, publish=PUBLISH),
    DELIVERED,
    DELIVER,
    subscribe_pb2.SubscribeResponse(deliver=DELIVER),
]


@pytest.mark.parametrize("public", EXAMPLES, ids=lambda m: m.DESCRIPTOR.name)
def test_bytes_pass_through_the_mirror_unchanged(public: Message) -> None:
    encoded = public.SerializeToString(deterministic=True)
    mirror = getattr(envelope_pb2, public.DESCRIPTOR.name).FromString(encoded)
    assert mirror.SerializeToString(deterministic=True) == encoded
    assert type(public).FromString(mirror.SerializeToString()) == public


def test_every_mirror_has_an_example_with_all_fields_set() -> None:
    assert {m.DESCRIPTOR.name for m in EXAMPLES} == set(MIRRORS)
    for example in EXAMPLES:
        if example.DESCRIPTOR.name not in PARTIAL:
            assert len(example.ListFields()) == len(example.DESCRIPTOR.fields)


def test_the_mirror_holds_the_batch_as_the_producer_encoded_it() -> None:
    """Unknown fields and odd orders inside the batch stay: the broker passes on what it was given."""
    odd = BATCH.SerializeToString() + b"\xfa\x07\x03odd"
    request = envelope_pb2.PublishRequest(channel="c", batch=odd)
    assert envelope_pb2.PublishRequest.FromString(request.SerializeToString()).batch == odd
    assert publish_pb2.PublishRequest.FromString(request.SerializeToString()).batch.SerializeToString() == odd


def test_a_run_of_whole_entries_is_again_a_batch() -> None:
    first, second = (publish_pb2.Batch(messages=[m]).SerializeToString() for m in BATCH.messages)
    assert publish_pb2.Batch.FromString(first + second) == BATCH
    assert list(publish_pb2.Batch.FromString(second).messages) == [BATCH.messages[1]]
