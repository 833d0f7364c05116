"""The public schema with every `Batch` as opaque bytes, and what goes over the two data streams.

A batch is encoded once and its CRC-32C covers exactly those bytes, so neither side of the client may decode and encode
it again. A second descriptor pool holds `publish.proto` and `subscribe.proto` with the type of each `batch` field
changed from message to bytes, which is the same on the wire.
"""

from typing import Any, Final, cast

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from ringpost.client.timing import AT_ONCE, Timing
from ringpost.v1 import common_pb2, publish_pb2, subscribe_pb2

PUBLISH_PATH: Final = "/ringpost.v1.PublisherService/PublishStream"
SUBSCRIBE_PATH: Final = "/ringpost.v1.SubscriberService/Subscribe"

_Field = descriptor_pb2.FieldDescriptorProto


def _with_bytes_for_batches(serialized: bytes) -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto.FromString(serialized)
    for message in file.message_type:
        for field in message.field:
            if field.type_name == ".ringpost.v1.Batch":
                field.type = _Field.TYPE_BYTES
                field.ClearField("type_name")
    return file


def _raw_class(name: str) -> Any:
    return message_factory.GetMessageClass(_pool.FindMessageTypeByName(f"ringpost.v1.{name}"))


_pool = descriptor_pool.DescriptorPool()
for _module in (common_pb2, publish_pb2, subscribe_pb2):
    _pool.Add(_with_bytes_for_batches(_module.DESCRIPTOR.serialized_pb))
_RawPublishRequest = _raw_class("PublishStreamRequest")
_RawSubscribeResponse = _raw_class("SubscribeResponse")


def encode_publish(
    *,
    correlation: int,
    channel: str,
    batch: bytes,
    count: int,
    crc32c: int,
    durability: int,
    producer_id: int,
    producer_epoch: int,
    first_sequence: int,
    traceparent: str = "",
    expected_offset: int | None = None,
    timing: Timing = AT_ONCE,
) -> bytes:
    """An encoded `PublishStreamRequest` around an encoded batch."""
    request: dict[str, object] = {
        "channel": channel,
        "batch": batch,
        "count": count,
        "crc32c": crc32c,
        "durability": durability,
        "producer_id": producer_id,
        "producer_epoch": producer_epoch,
        "first_sequence": first_sequence,
    }
    if traceparent:
        request["traceparent"] = traceparent
    if expected_offset is not None:
        request["expected_offset"] = expected_offset
    if timing is not AT_ONCE:
        request |= {name: value for name, value in timing._asdict().items() if value}
    return cast(bytes, _RawPublishRequest(correlation=correlation, publish=request).SerializeToString())


def parse_publish(data: bytes) -> publish_pb2.PublishStreamRequest:
    """A `PublishStreamRequest` whose batch is bytes, for who looks on. Raises `google.protobuf.message.DecodeError`."""
    return cast(publish_pb2.PublishStreamRequest, _RawPublishRequest.FromString(data))


def parse_event(data: bytes) -> subscribe_pb2.SubscribeResponse:
    """A `SubscribeResponse` whose delivered batches are bytes: read them with `batch_bytes` only.

    Raises `google.protobuf.message.DecodeError`.
    """
    return cast(subscribe_pb2.SubscribeResponse, _RawSubscribeResponse.FromString(data))


def batch_bytes(delivered: subscribe_pb2.DeliveredBatch) -> bytes:
    """The encoded batch of a delivery that `parse_event` made."""
    return cast(bytes, delivered.batch)
