"""The Python client of Ringpost: `connect`, publish, subscribe.

async with connect("localhost:7400") as mq:
    await mq.publish("channel1", "hello world")
    async for message in mq.subscription("channel1", group="billing"):
        await message.ack()
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ringpost.client.api import Client, connect
    from ringpost.client.batch import OutMessage
    from ringpost.client.connection import token_file
    from ringpost.client.errors import (
        AlreadyExists,
        BufferFull,
        Closed,
        DataCorrupted,
        DataLoss,
        Denied,
        Exhausted,
        InvalidRequest,
        LeaseLost,
        NotFound,
        OffsetMismatch,
        OutOfRange,
        Precondition,
        Reject,
        RequestFailed,
        Retry,
        RingpostError,
        Timeout,
        Unavailable,
        Violation,
    )
    from ringpost.client.message import Message, MessageBatch
    from ringpost.client.options import Options
    from ringpost.client.pool import HandlerPool
    from ringpost.client.receipts import BatchReceipt, PendingPublish, Receipt
    from ringpost.client.replies import ResponderPool
    from ringpost.client.settle import Settlement
    from ringpost.client.subscription import Subscription

# Modules are imported when a name is first used: the pytest plugin lives below this package and must not import gRPC.
_HOME = {
    "AlreadyExists": "errors",
    "BatchReceipt": "receipts",
    "BufferFull": "errors",
    "Client": "api",
    "Closed": "errors",
    "DataCorrupted": "errors",
    "DataLoss": "errors",
    "Denied": "errors",
    "Exhausted": "errors",
    "HandlerPool": "pool",
    "InvalidRequest": "errors",
    "LeaseLost": "errors",
    "Message": "message",
    "MessageBatch": "message",
    "NotFound": "errors",
    "OffsetMismatch": "errors",
    "Options": "options",
    "OutMessage": "batch",
    "OutOfRange": "errors",
    "PendingPublish": "receipts",
    "Precondition": "errors",
    "Receipt": "receipts",
    "Reject": "errors",
    "Retry": "errors",
    "RequestFailed": "errors",
    "ResponderPool": "replies",
    "RingpostError": "errors",
    "Settlement": "settle",
    "Subscription": "subscription",
    "Timeout": "errors",
    "Unavailable": "errors",
    "Violation": "errors",
    "connect": "api",
    "token_file": "connection",
}

__all__ = [
    "AlreadyExists",
    "BatchReceipt",
    "BufferFull",
    "Client",
    "Closed",
    "DataCorrupted",
    "DataLoss",
    "Denied",
    "Exhausted",
    "HandlerPool",
    "InvalidRequest",
    "LeaseLost",
    "Message",
    "MessageBatch",
    "NotFound",
    "OffsetMismatch",
    "Options",
    "OutMessage",
    "OutOfRange",
    "PendingPublish",
    "Precondition",
    "Receipt",
    "Reject",
    "Retry",
    "RequestFailed",
    "ResponderPool",
    "RingpostError",
    "Settlement",
    "Subscription",
    "Timeout",
    "Unavailable",
    "Violation",
    "connect",
    "token_file",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
