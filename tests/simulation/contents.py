"""What stands in the frames of worlds with groups: real headers and bodies, for all logs of a world in one place.

The logs of the simulated disks keep small frames that name what is in them by their chain. Whoever has such a frame can
read it: what is lost, or cut off, is the frame.
"""

from ringpost.node.journal.cache import CachedFrame
from ringpost.node.journal.frame import FRAME_OVERHEAD, Header, decode_header
from tests.simulation.disk import UNNUMBERED

GROUPS = UNNUMBERED[1]
"""The producer of frames about channels and groups; their sequence is a number that was never used."""

_FIRST_ADDRESS = 1 << 32 | 96


class Content:
    """One frame as a journal has it."""

    __slots__ = ("address", "body", "header", "raw")

    def __init__(self, address: int, raw: bytes, body: bytes) -> None:
        self.address = address
        self.raw = raw
        self.body = body
        self.header: Header = decode_header(raw)

    def cached(self) -> CachedFrame:
        """For who reads messages."""
        header = self.header
        return CachedFrame(
            header.base_offset, header.count, header.time_us, header.body_crc, self.body, header.producer, 0
        )


class Contents:
    """A `JournalWriter` for everybody. Addresses rise, so later frames of a shard have higher ones on any node."""

    pending_bytes = 0

    def __init__(self) -> None:
        self.end = _FIRST_ADDRESS
        self._by_address: dict[int, Content] = {}
        self._by_chain: dict[tuple[int, int], Content] = {}

    def append(self, header: bytes, body: bytes) -> int:
        """Of a leader."""
        address = self.end
        self._by_address[address] = Content(address, header, body)
        self.end += FRAME_OVERHEAD + len(body)
        return address

    def bind(self, shard: int, chain: int, address: int) -> None:
        """The frame with this chain is the one at the address."""
        self._by_chain[shard, chain] = self._by_address[address]

    def of(self, shard: int, chain: int) -> Content:
        """What the frame with this chain holds."""
        return self._by_chain[shard, chain]

    def at(self, address: int) -> Content:
        """What a row of an index points to."""
        return self._by_address[address]
