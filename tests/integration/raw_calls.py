"""Calls as no gRPC library makes them: begun and left open, their request not sent or not whole."""

import socket
import struct
import time

from tests.integration.reset_flood import BEGINNING, HEADERS, SETTINGS, frame, header

DATA, RST_STREAM, PING, GOAWAY, WINDOW_UPDATE = 0, 3, 6, 7, 8
_END_HEADERS = 4
_INITIAL_WINDOW_SIZE = b"\x00\x04"
_WINDOW = 65_535
_FRAME_BYTES_MAX = 16_384


def call_headers(path: str, token: str = "") -> bytes:
    """The headers of a call, `path` as in `/ringpost.v1.PublisherService/Publish`."""
    pairs = {":method": "POST", ":scheme": "http", ":path": path, ":authority": "x"}
    pairs |= {"te": "trailers", "content-type": "application/grpc"}
    if token:
        pairs["authorization"] = f"Bearer {token}"
    return b"".join(header(name, value) for name, value in pairs.items())


def headers_only(path: str, calls: int, token: str = "") -> bytes:
    """What a connection says to begin so many calls and nothing else."""
    head = call_headers(path, token)
    return BEGINNING + b"".join(frame(HEADERS, _END_HEADERS, 2 * number + 1, head) for number in range(calls))


class Unfinished:
    """Calls on one connection, each with a request of which the end does not come; as much as the node takes in."""

    def __init__(self, connection: socket.socket, path: str, calls: int, size: int) -> None:
        self._connection = connection
        self._size = size
        self._left = {2 * number + 1: size - 100 for number in range(calls)}
        self._window = {0: _WINDOW, **dict.fromkeys(self._left, _WINDOW)}
        self._initial = _WINDOW
        self._begun: set[int] = set()
        self._heard = b""
        connection.sendall(headers_only(path, calls))

    def send(self, seconds: float) -> int:
        """Returns how many bytes went out, when the node takes no more of them. Blocks."""
        sent, end = 0, time.monotonic() + seconds
        while time.monotonic() < end and self._left:
            now = sum(self._send_some(stream) for stream in tuple(self._left))
            sent += now
            self._hear(0.001 if now else 0.2)
        return sent

    def _send_some(self, stream: int) -> int:
        count = min(_FRAME_BYTES_MAX, self._left[stream], self._window[0], self._window[stream])
        if count <= 5:
            return 0
        start = b"" if stream in self._begun else b"\0" + struct.pack(">I", self._size)
        self._begun.add(stream)
        self._connection.settimeout(10)
        self._connection.sendall(frame(DATA, 0, stream, start + b"z" * (count - len(start))))
        self._window[0] -= count
        self._window[stream] -= count
        self._left[stream] -= count
        if not self._left[stream]:
            del self._left[stream]
        return count

    def _hear(self, seconds: float) -> None:
        self._connection.settimeout(seconds)
        try:
            self._heard += self._connection.recv(1 << 16)
        except TimeoutError:
            return
        while len(self._heard) >= 9:
            length = int.from_bytes(self._heard[:3], "big")
            if len(self._heard) < 9 + length:
                return
            kind, flags = self._heard[3], self._heard[4]
            stream = int.from_bytes(self._heard[5:9], "big")
            payload, self._heard = self._heard[9 : 9 + length], self._heard[9 + length :]
            self._take(kind, flags, stream, payload)

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        acknowledged = bool(flags & 1)
        if kind == WINDOW_UPDATE:
            self._window[stream] = self._window.get(stream, 0) + int.from_bytes(payload, "big")
        elif kind == SETTINGS and not acknowledged:
            for at in range(0, len(payload), 6):
                if payload[at : at + 2] == _INITIAL_WINDOW_SIZE:
                    initial = int.from_bytes(payload[at + 2 : at + 6], "big")
                    for one in self._window.keys() - {0}:
                        self._window[one] += initial - self._initial
                    self._initial = initial
            self._connection.sendall(frame(SETTINGS, 1, 0))
        elif kind == PING and not acknowledged:
            self._connection.sendall(frame(PING, 1, 0, payload))
        elif kind == RST_STREAM or (kind == HEADERS and flags & 1):
            self._left.pop(stream, None)
        elif kind == GOAWAY:
            self._left.clear()
