"""The least of HTTP/2 that a subscriber needs, so that many fit into one process and cost it next to nothing.

One connection with one Subscribe stream. It answers settings and pings, and counts messages without looking at them.
"""

import asyncio
import struct
from collections.abc import Callable
from typing import cast

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY = 0, 1, 3, 4, 6, 7
ACK, END_HEADERS = 1, 4
STREAM = 1
_HEAD = struct.Struct(">BHBBI")  # length (24 bits), type, flags, stream


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return _HEAD.pack(len(payload) >> 16, len(payload) & 0xFFFF, kind, flags, stream) + payload


def headers(path: str) -> bytes:
    """Of a gRPC call; literals that are not indexed, as HPACK writes them without Huffman codes."""
    pairs = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "scale"}
    pairs |= {"te": "trailers", "content-type": "application/grpc"}
    fields = ((name.encode(), value.encode()) for name, value in pairs.items())
    return b"".join(b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value for name, value in fields)


def message(body: bytes) -> bytes:
    """A gRPC message, not compressed."""
    return struct.pack(">BI", 0, len(body)) + body


class Stream(asyncio.Protocol):
    """Begins the call as soon as it is connected. `told` is called at its first message and at its end.

    `messages` counts those that began; `over` is True once the stream or the connection has ended.
    """

    def __init__(self, path: str, request: bytes, told: Callable[["Stream"], None]) -> None:
        """`request` is the call's first message, encoded."""
        self.messages = 0
        self.over = False
        self.transport: asyncio.Transport | None = None
        self._begin = PREFACE + frame(SETTINGS, 0, 0) + frame(HEADERS, END_HEADERS, STREAM, headers(path))
        self._begin += frame(DATA, 0, STREAM, message(request))
        self._told = told
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is not one by its class
        self.transport.write(self._begin)

    def data_received(self, data: bytes) -> None:
        data, at = self._rest + data, 0
        while at + _HEAD.size <= len(data):
            high, low, kind, flags, _ = _HEAD.unpack_from(data, at)
            end = at + _HEAD.size + (high << 16 | low)
            if end > len(data):
                break
            self._take(kind, flags, data[at + _HEAD.size : end])
            at = end
        self._rest = data[at:]

    def _take(self, kind: int, flags: int, payload: bytes) -> None:
        assert self.transport is not None
        if kind in (SETTINGS, PING) and not flags & ACK:
            self.transport.write(frame(kind, ACK, 0, payload if kind == PING else b""))
        elif kind == DATA and payload:
            self.messages += 1
            if self.messages == 1:
                self._told(self)
        elif kind in (RST_STREAM, GOAWAY):
            self._end()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end()

    def _end(self) -> None:
        if not self.over:
            self.over = True
            self._told(self)
