"""The table of requests that a node must refuse: every call and every stream command, each with what it must answer.

Known to the node, see `prepare`: channel "orders" with offsets 3..9 and a group "billing"; producer 77 in epoch 3 has
stored sequences 0 and 1 there. The node is started with LIMITS.
"""

from typing import Any, NamedTuple

import grpc
from google.protobuf.message import Message as AnyMessage

from ringpost.v1.channel_pb2 import (
    AddChannelRequest,
    ChannelConfig,
    DeleteChannelRequest,
    GetChannelRequest,
    ListChannelsRequest,
    PurgeChannelRequest,
    SetChannelRequest,
)
from ringpost.v1.cluster_pb2 import (
    AcceptLossRequest,
    Desired,
    GetNodeRequest,
    GetRoutesRequest,
    RemoveNodeRequest,
    SetNodeRequest,
)
from ringpost.v1.common_pb2 import OffsetRange, Start
from ringpost.v1.dead_letter_pb2 import (
    DeadLetterSelection,
    DropDeadLettersRequest,
    GetDeadLetterRequest,
    ListDeadLettersRequest,
    RedriveDeadLettersRequest,
)
from ringpost.v1.group_pb2 import (
    AddGroupRequest,
    DeleteConsumerRequest,
    DeleteGroupRequest,
    GetGroupRequest,
    GroupConfig,
    ListGroupsRequest,
    PauseGroupRequest,
    ResumeGroupRequest,
    RetryPolicy,
    SeekGroupRequest,
    SetGroupRequest,
    SettleMessagesRequest,
)
from ringpost.v1.message_pb2 import ExplainMessageRequest, GetMessagesRequest
from ringpost.v1.publish_pb2 import Batch, Message, PublishRequest
from ringpost.v1.subscribe_pb2 import Ack, Extend, Nack, Reject, Settle

MAX_MESSAGE = 65_536
MAX_BATCH = 262_144
LIMITS = (
    *("--max-message-bytes", str(MAX_MESSAGE), "--max-batch-bytes", str(MAX_BATCH)),
    *("--max-channels", "2", "--segment-bytes", "4MiB"),
)
HUGE = (1 << 64) - 1

INVALID = grpc.StatusCode.INVALID_ARGUMENT
NOT_FOUND = grpc.StatusCode.NOT_FOUND
EXISTS = grpc.StatusCode.ALREADY_EXISTS
RANGE = grpc.StatusCode.OUT_OF_RANGE
PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION
EXHAUSTED = grpc.StatusCode.RESOURCE_EXHAUSTED


class Refusal(NamedTuple):
    """A request and its answer: `field` is the one at fault (INVALID) and begins the message; `says` is in it."""

    title: str
    method: str
    request: AnyMessage | bytes
    code: grpc.StatusCode
    reason: str
    field: str = ""
    says: str = ""
    strict: bool = False  # on a node that makes no channels by first use


def _invalid(method: str, title: str, request: AnyMessage | bytes, field: str, says: str) -> Refusal:
    return Refusal(title, method, request, INVALID, "INVALID_ARGUMENT", field, says)


def _good_batch() -> Batch:
    return Batch(messages=[Message(data=b"x")])


def _publish(channel: str = "orders", batch: Batch | None = None, **fields: Any) -> PublishRequest:
    return PublishRequest(channel=channel, batch=_good_batch() if batch is None else batch, **fields)


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def _field(number: int, content: bytes) -> bytes:
    """A length-delimited field: for what the generated classes refuse to write."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _raw_publish(batch: bytes, channel: bytes = b"orders") -> bytes:
    return _field(1, channel) + _field(2, batch)


_BAD_TEXT = b"\xff\xfe not UTF-8"
_HEADER_NOT_UTF8 = _field(1, _field(3, _field(1, b"trace") + _field(2, _BAD_TEXT)))
_MESSAGE_ID_NOT_UTF8 = _field(1, _field(5, _BAD_TEXT))
_MANY = Batch(messages=[Message()] * 65_536)
_FAT = Batch(messages=[Message(), Message(data=bytes(MAX_MESSAGE))])
_FATTER = Batch(messages=[Message(data=bytes(MAX_MESSAGE - 16))] * 4 + [Message(data=bytes(200))])

P = "PublisherService/Publish"

# As unary calls, and as commands of a publish stream.
PUBLISHES = (
    _invalid(P, "no channel", _publish(""), "channel", "1 to 255 bytes"),
    _invalid(P, "an empty token", _publish("orders..eu"), "channel", "separated by"),
    _invalid(P, "a name of the broker", _publish("$sys"), "channel", "belong to the broker"),
    _invalid(P, "a pattern", _publish("orders.*"), "channel", "allowed are"),
    _invalid(P, "a name of 256 bytes", _publish("n" * 256), "channel", "the limit is 255"),
    _invalid(P, "a name in Cyrillic", _publish("заказы"), "channel", "allowed are"),
    _invalid(P, "no batch", PublishRequest(channel="orders"), "batch.messages", "1 to 65535"),
    _invalid(P, "an empty batch", _publish(batch=Batch()), "batch.messages", "1 to 65535"),
    _invalid(P, "too many messages", _publish(batch=_MANY), "batch.messages", "1 to 65535"),
    _invalid(P, "too long a message", _publish(batch=_FAT), "batch.messages[1]", f"allowed are {MAX_MESSAGE}"),
    _invalid(P, "too long a batch", _publish(batch=_FATTER), "batch", f"allowed are {MAX_BATCH}"),
    _invalid(P, "a batch of garbage", _raw_publish(b"\x0a\x7f garbage"), "batch", "ringpost.v1.Batch"),
    _invalid(P, "a batch with a stranger's field", _raw_publish(_field(9, b"?")), "batch.messages", "1 to 65535"),
    _invalid(P, "a batch with one more field", _raw_publish(b"\x0a\x00" + _field(9, b"?")), "batch", "does not know"),
    _invalid(P, "a header that is not UTF-8", _raw_publish(_HEADER_NOT_UTF8), "batch", "UTF-8"),
    _invalid(P, "a message id that is not UTF-8", _raw_publish(_MESSAGE_ID_NOT_UTF8), "batch", "UTF-8"),
    _invalid(P, "a wrong count", _publish(count=2), "count", "has 1 messages"),
    _invalid(P, "a huge count", _publish(count=(1 << 32) - 1), "count", "has 1 messages"),
    _invalid(P, "a wrong checksum", _publish(crc32c=1), "crc32c", "CRC-32C"),
    _invalid(P, "an unknown durability", _publish(durability=99), "durability", "QUORUM (3)"),
    _invalid(P, "a negative durability", _publish(durability=-1), "durability", "QUORUM (3)"),
    Refusal(
        "a stranger that does not begin at 0",
        P,
        _publish(producer_id=78, first_sequence=HUGE),
        PRECONDITION,
        "UNKNOWN_PRODUCER",
        says="begin a new producer_id at 0",
    ),
    Refusal(
        "a stranger on a new channel",
        P,
        _publish("orders.new", producer_id=77, first_sequence=2),
        PRECONDITION,
        "UNKNOWN_PRODUCER",
        says="begin at 0",
    ),
    Refusal("a gap", P, _publish(producer_id=77, producer_epoch=3, first_sequence=HUGE), PRECONDITION, "SEQUENCE_GAP"),
    Refusal(
        "a batch that is stored in part",
        P,
        _publish(batch=Batch(messages=[Message()] * 3), producer_id=77, producer_epoch=3, first_sequence=1),
        PRECONDITION,
        "SEQUENCE_GAP",
        says="does not continue at 2",
    ),
    Refusal("an offset that is taken", P, _publish(expected_offset=3), PRECONDITION, "OFFSET_MISMATCH", says="gets 10"),
    Refusal("an offset to come", P, _publish(expected_offset=HUGE), PRECONDITION, "OFFSET_MISMATCH", says="gets 10"),
    Refusal(
        "an offset of a channel that does not exist",
        P,
        _publish("orders.new", expected_offset=1),
        PRECONDITION,
        "OFFSET_MISMATCH",
        says="gets 0",
    ),
    Refusal(
        "an older epoch",
        P,
        _publish(producer_id=77, producer_epoch=2, first_sequence=2),
        PRECONDITION,
        "PRODUCER_FENCED",
        says="producer_epoch",
    ),
    Refusal("one channel too many", P, _publish("third"), EXHAUSTED, "CHANNEL_LIMIT", says="max_channels"),
    Refusal("an unknown channel", P, _publish("nobody"), NOT_FOUND, "CHANNEL_NOT_FOUND", says="'nobody'", strict=True),
)

C = "ChannelService/"

CHANNELS = (
    _invalid(C + "AddChannel", "no name", AddChannelRequest(), "name", "1 to 255 bytes"),
    _invalid(C + "AddChannel", "a bad name", AddChannelRequest(name="."), "name", "empty token"),
    Refusal("there already", C + "AddChannel", AddChannelRequest(name="orders"), EXISTS, "CHANNEL_EXISTS", says="name"),
    Refusal("one too many", C + "AddChannel", AddChannelRequest(name="x"), EXHAUSTED, "CHANNEL_LIMIT", says="2 channe"),
    _invalid(
        C + "AddChannel",
        "messages above the node's limit",
        AddChannelRequest(name="new", config=ChannelConfig(max_message_bytes=MAX_MESSAGE + 1)),
        "config.max_message_bytes",
        f"1 to {MAX_MESSAGE}",
    ),
    _invalid(
        C + "AddChannel",
        "too short a window",
        AddChannelRequest(name="new", config=ChannelConfig(dedup_window_ms=999)),
        "config.dedup_window_ms",
        "1000 to 86400000, or 0",
    ),
    _invalid(C + "GetChannel", "no name", GetChannelRequest(), "name", "1 to 255 bytes"),
    Refusal("unknown", C + "GetChannel", GetChannelRequest(name="x"), NOT_FOUND, "CHANNEL_NOT_FOUND", says="name"),
    _invalid(C + "ListChannels", "a large page", ListChannelsRequest(page_size=1_001), "page_size", "1 to 1000"),
    _invalid(C + "ListChannels", "a huge page", ListChannelsRequest(page_size=(1 << 32) - 1), "page_size", "1 to 1000"),
    _invalid(C + "ListChannels", "a made-up token", ListChannelsRequest(page_token="?"), "page_token", "gave"),
    _invalid(C + "ListChannels", "a token of bytes", ListChannelsRequest(page_token="__79"), "page_token", "gave"),
    _invalid(C + "SetChannel", "no name", SetChannelRequest(), "name", "1 to 255 bytes"),
    Refusal("unknown", C + "SetChannel", SetChannelRequest(name="x"), NOT_FOUND, "CHANNEL_NOT_FOUND", says="name"),
    _invalid(
        C + "SetChannel",
        "messages above the node's limit",
        SetChannelRequest(name="orders", config=ChannelConfig(max_message_bytes=HUGE, retention_messages=1)),
        "config.max_message_bytes",
        f"1 to {MAX_MESSAGE}",
    ),
    _invalid(
        C + "SetChannel",
        "too long a window",
        SetChannelRequest(name="orders", config=ChannelConfig(dedup_window_ms=HUGE)),
        "config.dedup_window_ms",
        "1000 to 86400000, or 0",
    ),
    _invalid(C + "PurgeChannel", "no name", PurgeChannelRequest(), "name", "1 to 255 bytes"),
    Refusal("unknown", C + "PurgeChannel", PurgeChannelRequest(name="x"), NOT_FOUND, "CHANNEL_NOT_FOUND", says="name"),
    Refusal(
        "beyond the end",
        C + "PurgeChannel",
        PurgeChannelRequest(name="orders", before_offset=11),
        RANGE,
        "OFFSET_OUT_OF_RANGE",
        says="end offset 10",
    ),
    Refusal(
        "far beyond the end",
        C + "PurgeChannel",
        PurgeChannelRequest(name="orders", before_offset=HUGE),
        RANGE,
        "OFFSET_OUT_OF_RANGE",
        says="before_offset",
    ),
    _invalid(C + "DeleteChannel", "no name", DeleteChannelRequest(), "name", "1 to 255 bytes"),
    Refusal("unknown", C + "DeleteChannel", DeleteChannelRequest(name="x"), NOT_FOUND, "CHANNEL_NOT_FOUND"),
)

G = "GroupService/"
_ON = {"channel": "orders"}


def _settle(**fields: Any) -> SettleMessagesRequest:
    known = {**_ON, "group": "billing", "ranges": [OffsetRange(first=3, last=4)]}
    action = {} if "reject" in fields else {"ack": Ack()}
    return SettleMessagesRequest(**{**known, **action, **fields})


def _retry(title: str, field: str, says: str, backoff: int = 1, delay_ms: int = 1, **policy: int) -> Refusal:
    retry = RetryPolicy(backoff=backoff, delay_ms=delay_ms, **policy)  # type: ignore[arg-type]
    request = SetGroupRequest(channel="orders", name="billing", config=GroupConfig(retry=retry))
    return _invalid(G + "SetGroup", title, request, f"config.retry.{field}", says)


def _group_config(title: str, field: str, says: str, **config: int) -> Refusal:
    request = AddGroupRequest(channel="orders", name="new", config=GroupConfig(**config))
    return _invalid(G + "AddGroup", title, request, f"config.{field}", says)


GROUPS = (
    _invalid(G + "AddGroup", "no name", AddGroupRequest(**_ON), "name", "1 to 127 bytes"),
    _invalid(G + "AddGroup", "two tokens", AddGroupRequest(**_ON, name="a.b"), "name", "one token"),
    _invalid(G + "AddGroup", "a long name", AddGroupRequest(**_ON, name="g" * 128), "name", "127"),
    _invalid(G + "AddGroup", "no channel", AddGroupRequest(name="g"), "channel", "1 to 255 bytes"),
    _invalid(G + "AddGroup", "a bad channel", AddGroupRequest(channel="a..b", name="g"), "channel", "empty token"),
    Refusal("there already", G + "AddGroup", AddGroupRequest(**_ON, name="billing"), EXISTS, "GROUP_EXISTS"),
    Refusal(
        "beyond the end",
        G + "AddGroup",
        AddGroupRequest(**_ON, name="new", start=Start(offset=11)),
        RANGE,
        "OFFSET_OUT_OF_RANGE",
        says="start.offset",
    ),
    Refusal(
        "beyond the end of a new channel",
        G + "AddGroup",
        AddGroupRequest(channel="orders.new", name="new", start=Start(offset=1)),
        RANGE,
        "OFFSET_OUT_OF_RANGE",
        says="end offset 0",
    ),
    _invalid(
        G + "AddGroup",
        "a time before 1970",
        AddGroupRequest(**_ON, name="new", start=Start(time_us=-1)),
        "start.time_us",
        "not below 0",
    ),
    _invalid(
        G + "AddGroup",
        "a time before 1970 on a new channel",
        AddGroupRequest(channel="orders.new", name="new", start=Start(time_us=-(1 << 63))),
        "start.time_us",
        "not below 0",
    ),
    _group_config("an unknown mode", "mode", "SHARED", mode=9),
    _group_config("a negative mode", "mode", "SHARED", mode=-1),
    _group_config("a wrong filter", "filter", "line 1, column 5: '=' has no meaning here", filter="key = 'a'"),
    _group_config("a long filter", "filter", "allowed are 1024", filter="true" + " " * 1021),
    _group_config("a short ack deadline", "ack_deadline_ms", "1000 to 43200000", ack_deadline_ms=999),
    _group_config("no ack deadline", "ack_deadline_ms", "1000 to 43200000", ack_deadline_ms=0),
    _group_config("a huge ack deadline", "ack_deadline_ms", "1000 to 43200000", ack_deadline_ms=HUGE),
    _group_config("nothing in flight", "max_in_flight", "1 to 1000000", max_in_flight=0),
    _group_config("too much in flight", "max_in_flight", "1 to 1000000", max_in_flight=1_000_001),
    Refusal(
        "an unknown channel",
        G + "AddGroup",
        AddGroupRequest(channel="nobody", name="g"),
        NOT_FOUND,
        "CHANNEL_NOT_FOUND",
        says="'nobody'",
        strict=True,
    ),
    _invalid(G + "GetGroup", "no channel", GetGroupRequest(name="billing"), "channel", "1 to 255 bytes"),
    _invalid(G + "GetGroup", "no name", GetGroupRequest(**_ON), "name", "1 to 127 bytes"),
    Refusal("unknown", G + "GetGroup", GetGroupRequest(**_ON, name="x"), NOT_FOUND, "GROUP_NOT_FOUND", says="'x'"),
    Refusal(
        "an unknown channel", G + "GetGroup", GetGroupRequest(channel="x", name="g"), NOT_FOUND, "CHANNEL_NOT_FOUND"
    ),
    Refusal("an unknown channel", G + "ListGroups", ListGroupsRequest(channel="x"), NOT_FOUND, "CHANNEL_NOT_FOUND"),
    _invalid(G + "ListGroups", "a large page", ListGroupsRequest(page_size=1_001), "page_size", "1 to 1000"),
    _invalid(G + "ListGroups", "a made-up token", ListGroupsRequest(page_token="=="), "page_token", "gave"),
    _invalid(G + "SeekGroup", "nowhere", SeekGroupRequest(**_ON, name="billing"), "to", "earliest, latest"),
    _invalid(
        G + "SeekGroup",
        "a time before 1970",
        SeekGroupRequest(**_ON, name="billing", to=Start(time_us=-5)),
        "to.time_us",
        "not below 0",
    ),
    Refusal(
        "beyond the end",
        G + "SeekGroup",
        SeekGroupRequest(**_ON, name="billing", to=Start(offset=HUGE)),
        RANGE,
        "OFFSET_OUT_OF_RANGE",
        says="to.offset",
    ),
    Refusal("unknown", G + "SeekGroup", SeekGroupRequest(**_ON, name="x"), NOT_FOUND, "GROUP_NOT_FOUND"),
    _group_config("many attempts", "max_attempts", "1 to 1000000", max_attempts=1_000_001),
    _retry("an unknown backoff", "backoff", "0 to 3", backoff=4),
    _retry("half a policy", "backoff", "not set", backoff=0),
    _retry("no delay", "delay_ms", "1 to 604800000", delay_ms=0),
    _retry("a long delay", "delay_ms", "1 to 604800000", delay_ms=604_800_001),
    _retry("a long bound", "max_delay_ms", "0 to 604800000", max_delay_ms=HUGE),
    _retry("much chance", "jitter_percent", "0 to 100", jitter_percent=101),
    Refusal("unknown", G + "SetGroup", SetGroupRequest(**_ON, name="x"), NOT_FOUND, "GROUP_NOT_FOUND"),
    Refusal("unknown", G + "PauseGroup", PauseGroupRequest(**_ON, name="x"), NOT_FOUND, "GROUP_NOT_FOUND"),
    _invalid(G + "PauseGroup", "no name", PauseGroupRequest(**_ON), "name", "1 to 127 bytes"),
    Refusal("unknown", G + "ResumeGroup", ResumeGroupRequest(**_ON, name="x"), NOT_FOUND, "GROUP_NOT_FOUND"),
    _invalid(G + "ResumeGroup", "no channel", ResumeGroupRequest(name="x"), "channel", "1 to 255 bytes"),
    Refusal("unknown", G + "DeleteGroup", DeleteGroupRequest(**_ON, name="x"), NOT_FOUND, "GROUP_NOT_FOUND"),
    _invalid(G + "Settle", "no ranges", _settle(ranges=[]), "ranges", "1 to 1000"),
    _invalid(G + "Settle", "many ranges", _settle(ranges=[OffsetRange()] * 1_001), "ranges", "1 to 1000"),
    _invalid(G + "Settle", "backwards", _settle(ranges=[OffsetRange(first=5, last=4)]), "ranges[0]", "above"),
    _invalid(G + "Settle", "no action", _settle(ack=None), "action", "ack, nack, extend, reject"),
    _invalid(G + "Settle", "a long reason", _settle(reject=Reject(reason="é" * 513)), "reject.reason", "1024 bytes"),
    _invalid(G + "Settle", "nack of offsets", _settle(nack=Nack()), "lease_tokens", "nack ends or changes a lease"),
    _invalid(G + "Settle", "extend of offsets", _settle(extend=Extend()), "lease_tokens", "is empty; extend"),
    _invalid(G + "Settle", "an unknown token", _settle(lease_tokens=[b"x"]), "lease_tokens[0]", "no lease token"),
    _invalid(G + "Settle", "a week and more", _settle(nack=Nack(delay_ms=HUGE)), "nack.delay_ms", "0 to 604800000"),
    _invalid(G + "Settle", "a moment", _settle(extend=Extend(deadline_ms=1)), "extend.deadline_ms", "1000 to"),
    _invalid(G + "Settle", "no channel", _settle(channel=""), "channel", "1 to 255 bytes"),
    _invalid(G + "Settle", "no group", _settle(group=""), "group", "1 to 127 bytes"),
    Refusal("an unknown channel", G + "Settle", _settle(channel="x"), NOT_FOUND, "CHANNEL_NOT_FOUND", says="'x'"),
    Refusal("an unknown group", G + "Settle", _settle(group="x"), NOT_FOUND, "GROUP_NOT_FOUND", says="'x'"),
    _invalid(G + "DeleteConsumer", "no group", DeleteConsumerRequest(**_ON, consumer="c"), "group", "1 to 127 bytes"),
    Refusal(
        "of a group that shares",
        G + "DeleteConsumer",
        DeleteConsumerRequest(**_ON, group="billing", consumer="c"),
        grpc.StatusCode.FAILED_PRECONDITION,
        "GROUP_MODE",
        says="only a broadcast group's",
    ),
    _invalid(G + "DeleteGroup", "no channel", DeleteGroupRequest(name="x"), "channel", "1 to 255 bytes"),
)

D = "DeadLetterService/"
_BILLING = {"channel": "orders", "group": "billing"}


def _select(title: str, field: str, says: str, **select: Any) -> Refusal:
    request = DropDeadLettersRequest(**_BILLING, select=DeadLetterSelection(**select))
    return _invalid(D + "DropDeadLetters", title, request, f"select.{field}", says)


LETTERS = (
    _select("too many", "max_letters", "1 to 1000", max_letters=1_001),
    _select("backwards", "until_number", "not above", from_number=5, until_number=5),
    _select("no such term", "filters[1]", "character 1", filters=["key=a", "colour=red"]),
    _select("half a term", "filters[0]", "character 7", filters=["reason"]),
    _select("many terms", "filters", "16", filters=["key=a"] * 17),
    _invalid(
        D + "RedriveDeadLetters",
        "many numbers",
        RedriveDeadLettersRequest(**_BILLING, numbers=range(1_001)),
        "numbers",
        "1000",
    ),
    _invalid(
        D + "RedriveDeadLetters",
        "both ways of choosing",
        RedriveDeadLettersRequest(**_BILLING, numbers=[1], select=DeadLetterSelection()),
        "numbers",
        "select must not",
    ),
    _invalid(D + "ListDeadLetters", "no channel", ListDeadLettersRequest(group="g"), "channel", "1 to 255 bytes"),
    _invalid(D + "ListDeadLetters", "no group", ListDeadLettersRequest(channel="orders"), "group", "1 to 127 bytes"),
    Refusal(
        "an unknown channel",
        D + "ListDeadLetters",
        ListDeadLettersRequest(channel="x", group="g"),
        NOT_FOUND,
        "CHANNEL_NOT_FOUND",
    ),
    Refusal(
        "an unknown group",
        D + "ListDeadLetters",
        ListDeadLettersRequest(channel="orders", group="x"),
        NOT_FOUND,
        "GROUP_NOT_FOUND",
    ),
    Refusal(
        "an unknown letter",
        D + "GetDeadLetter",
        GetDeadLetterRequest(**_BILLING, number=7),
        NOT_FOUND,
        "DEAD_LETTER_NOT_FOUND",
        says="7",
    ),
    _invalid(G + "AddGroup", "a box", AddGroupRequest(channel="$dead.g.orders", name="g"), "channel", "broker"),
)

M = "MessageService/GetMessages"
E = "MessageService/ExplainMessage"
R = "ClusterService/GetRoutes"
_ALONE = (grpc.StatusCode.FAILED_PRECONDITION, "SINGLE_NODE")

# ListNodes and GetCluster have no fields that could be wrong.
CLUSTER = (
    _invalid("ClusterService/SetNode", "nothing wanted", SetNodeRequest(node="n1"), "desired", "ACTIVE (1)"),
    Refusal("alone", "ClusterService/SetNode", SetNodeRequest(node="n1", desired=Desired.DESIRED_DRAIN), *_ALONE),
    Refusal("alone", "ClusterService/RemoveNode", RemoveNodeRequest(node="n1"), *_ALONE),
    Refusal("alone", "ClusterService/AcceptLoss", AcceptLossRequest(node="n1"), *_ALONE),
    Refusal("a stranger", "ClusterService/GetNode", GetNodeRequest(node="x"), NOT_FOUND, "NODE_NOT_FOUND"),
)

READS = (
    _invalid(M, "no channel", GetMessagesRequest(), "channel", "1 to 255 bytes"),
    Refusal("an unknown channel", M, GetMessagesRequest(channel="x"), NOT_FOUND, "CHANNEL_NOT_FOUND"),
    Refusal("purged", M, GetMessagesRequest(**_ON, offset=2), RANGE, "OFFSET_OUT_OF_RANGE", says="3 to 9"),
    Refusal("the end", M, GetMessagesRequest(**_ON, offset=10), RANGE, "OFFSET_OUT_OF_RANGE", says="3 to 9"),
    Refusal("far off", M, GetMessagesRequest(**_ON, offset=HUGE), RANGE, "OFFSET_OUT_OF_RANGE", says="offset"),
    _invalid(E, "no channel", ExplainMessageRequest(), "channel", "1 to 255 bytes"),
    _invalid(E, "no name", ExplainMessageRequest(**_ON, group="a.b"), "group", "one token"),
    Refusal("an unknown channel", E, ExplainMessageRequest(channel="x"), NOT_FOUND, "CHANNEL_NOT_FOUND"),
    Refusal("an unknown group", E, ExplainMessageRequest(**_ON, group="x"), NOT_FOUND, "GROUP_NOT_FOUND"),
    _invalid(M, "many", GetMessagesRequest(**_ON, offset=3, max_messages=1_001), "max_messages", "1 to 1000"),
    _invalid(R, "many channels", GetRoutesRequest(channels=["a"] * 1_001), "channels", "up to 1000"),
    _invalid(R, "a bad channel", GetRoutesRequest(channels=["a", ""]), "channels[1]", "1 to 255 bytes"),
)


class OpenRefusal(NamedTuple):
    """A subscription that must be closed at once; the channel is "orders" unless `fields` name one."""

    title: str
    fields: dict[str, Any]
    code: grpc.StatusCode
    reason: str
    field: str = ""
    says: str = ""
    strict: bool = False


def _bad_open(title: str, field: str, says: str, **fields: Any) -> OpenRefusal:
    return OpenRefusal(title, fields, INVALID, "INVALID_ARGUMENT", f"open.{field}", says)


_LATEST = Start(latest=True)
_PAST_1970 = Start(time_us=-1)
_BEYOND = {"start": Start(offset=11)}
_NEW = {"channel": "orders.new", "start": Start(offset=1)}

OPENS = (
    _bad_open("no id", "subscription_id", "above 0", subscription_id=0),
    _bad_open("no channel", "channel", "1 to 255 bytes", channel=""),
    _bad_open("a pattern", "channel", "allowed are", channel="orders.>"),
    _bad_open("a bad group", "group", "one token", group="a.b"),
    _bad_open("a long group", "group", "the limit is 127", group="g" * 128),
    _bad_open("a bad consumer", "consumer", "allowed are", consumer="me and you"),
    _bad_open("a wrong filter", "filter", "line 1, column 1: there is no 'keyy'", filter="keyy == 'a'"),
    _bad_open("a long filter", "filter", "allowed are 1024", filter="true" + " " * 1021),
    _bad_open("a wrong filter of a group", "filter", "must be true or false", filter="key", group="new"),
    _bad_open("hasty heartbeats", "heartbeat_interval_ms", "1000 to 300000", heartbeat_interval_ms=999),
    _bad_open("lazy heartbeats", "heartbeat_interval_ms", "1000 to 300000", heartbeat_interval_ms=300_001),
    _bad_open(
        "a place for a group that knows", "start", "leave start unset", group="billing", start=Start(latest=True)
    ),
    _bad_open("a time before 1970", "start.time_us", "not below 0", start=_PAST_1970),
    _bad_open("the same for a group", "start.time_us", "not below 0", start=_PAST_1970, group="new"),
    _bad_open("the same on a new channel", "start.time_us", "not below 0", start=_PAST_1970, channel="orders.new"),
    OpenRefusal("beyond the end", _BEYOND, RANGE, "OFFSET_OUT_OF_RANGE", says="end offset 10"),
    OpenRefusal(
        "the same for a group", {**_BEYOND, "group": "new"}, RANGE, "OFFSET_OUT_OF_RANGE", says="end offset 10"
    ),
    OpenRefusal("beyond the end of a new channel", _NEW, RANGE, "OFFSET_OUT_OF_RANGE", says="end offset 0"),
    OpenRefusal(
        "the same for a new group", {**_NEW, "group": "new"}, RANGE, "OFFSET_OUT_OF_RANGE", says="end offset 0"
    ),
    OpenRefusal("one channel too many", {"channel": "third"}, EXHAUSTED, "CHANNEL_LIMIT", says="max_channels"),
    OpenRefusal("unknown", {"channel": "nobody"}, NOT_FOUND, "CHANNEL_NOT_FOUND", says="'nobody'", strict=True),
    OpenRefusal("an unknown group", {"group": "nobody"}, NOT_FOUND, "GROUP_NOT_FOUND", says="'nobody'", strict=True),
)


class SettleRefusal(NamedTuple):
    """A settlement that must fail. Subscription 1 is a member of "billing", 2 has no group."""

    title: str
    settle: Settle
    code: grpc.StatusCode
    reason: str
    field: str
    says: str


def _bad_settle(title: str, field: str, says: str, number: int = 1, **fields: Any) -> SettleRefusal:
    fields.setdefault("ranges", [OffsetRange(first=3, last=4)])
    settle = Settle(subscription_id=number, correlation=9, **fields)
    return SettleRefusal(title, settle, INVALID, "INVALID_ARGUMENT", f"settle.{field}", says)


_ACK = {"ack": Ack()}

SETTLES = (
    SettleRefusal(
        "an unknown subscription",
        Settle(subscription_id=5, correlation=9, ranges=[OffsetRange(first=3, last=3)], ack=Ack()),
        NOT_FOUND,
        "SUBSCRIPTION_NOT_FOUND",
        "",
        "no 5 on this stream",
    ),
    _bad_settle("without a group", "subscription_id", "only groups", number=2, **_ACK),
    _bad_settle("no ranges", "ranges", "1 to 1000", ranges=[], **_ACK),
    _bad_settle("many ranges", "ranges", "1 to 1000", ranges=[OffsetRange()] * 1_001, **_ACK),
    _bad_settle("backwards", "ranges[1]", "above", ranges=[OffsetRange(), OffsetRange(first=5, last=4)], **_ACK),
    _bad_settle("no action", "action", "ack, nack, extend, reject"),
    _bad_settle("a week and more", "nack.delay_ms", "0 to 604800000", nack=Nack(delay_ms=604_800_001)),
    _bad_settle("for ever", "nack.delay_ms", "0 to 604800000", nack=Nack(delay_ms=HUGE)),
    _bad_settle("for ever, perhaps", "nack.fallback_delay_ms", "0 to 604800000", nack=Nack(fallback_delay_ms=HUGE)),
    _bad_settle("a long story", "nack.reason", "1024 bytes", nack=Nack(reason="x" * 1_025)),
    _bad_settle("an unknown token", "lease_token", "is no lease token", lease_token=b"token", **_ACK),
    _bad_settle("a moment", "extend.deadline_ms", "1000 to 43200000", extend=Extend(deadline_ms=999)),
    _bad_settle("a day", "extend.deadline_ms", "1000 to 43200000", extend=Extend(deadline_ms=86_400_000)),
    _bad_settle("a long reason", "reject.reason", "1024 bytes", reject=Reject(reason="é" * 513)),
)
