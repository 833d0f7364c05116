"""Lease tokens: what names one delivery of a group, wherever it comes back.

    version u8 (1) | shard u32 | channel u64 | group u64 | member u64 | era u64 | first u64 | messages u32 | attempt u32
    | CRC-32C of all before it u32                                                               57 bytes, little endian

`channel` is the channel's number in its shard, `group` a hash of the group's name and making, so what was deleted and
made again is another one. `member` is a number that no other subscription has on any node, so it also says of which
leadership. `era`: see `Group.era`.

The checksum finds damage, and is no seal: a forged token says at most what whoever may consume the channel can do
anyway, since the group compares it with its own leases.
"""

import struct
from hashlib import blake2b
from typing import NamedTuple

from crc32c import crc32c

VERSION = 1
_BODY = struct.Struct("<BIQQQQQII")
_CRC = struct.Struct("<I")
SIZE = _BODY.size + _CRC.size
_OFFSETS = 1 << 64


class LeaseToken(NamedTuple):
    """See the module."""

    shard: int
    channel: int
    group: int
    member: int
    era: int
    first: int
    messages: int
    attempt: int

    @property
    def last(self) -> int:
        """The last offset of the delivery."""
        return self.first + self.messages - 1

    def encode(self) -> bytes:
        """As the client gets it."""
        body = _BODY.pack(VERSION, *self)
        return body + _CRC.pack(crc32c(body))


def decode_lease_token(token: bytes) -> LeaseToken:
    """The inverse. ValueError, which says what is wrong, for what is none."""
    if not token:
        raise ValueError("is empty")
    if token[0] != VERSION:
        raise ValueError(
            f"is no lease token of this version of Ringpost (its version is {token[0]}, {VERSION} is known)"
        )
    if len(token) != SIZE:
        raise ValueError(f"has {len(token)} bytes, a lease token has {SIZE}")
    if _CRC.unpack_from(token, _BODY.size)[0] != crc32c(token[: _BODY.size]):
        raise ValueError("is damaged: its checksum does not fit")
    found = LeaseToken(*_BODY.unpack_from(token)[1:])
    if not (found.messages and found.attempt and found.last < _OFFSETS):
        raise ValueError("names no delivery")
    return found


def group_identity(name: str, created_time_us: int) -> int:
    """64 bits that tell a group of a channel from the others, and from one of the same name that was deleted."""
    digest = blake2b(f"{name}\n{created_time_us}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")
