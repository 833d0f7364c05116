"""Which segments may go: live bytes per segment, counted as index rows come and go.

Pure: the journal deletes and rewrites, this only says what. A segment is known from `begin` (or its first `add`) to
`forget`, so that one which never held a live frame is found too.
"""

from collections.abc import Mapping

from ringpost.node.journal.segment import segment_of


class SegmentLedger:
    """Invariant: `live(segment)` is the sum of the lengths of the frames in it that an index row points to."""

    __slots__ = ("_live",)

    def __init__(self) -> None:
        self._live: dict[int, int] = {}

    def begin(self, segment: int) -> None:
        """Makes a segment known: call it for each one found at start and each one made."""
        self._live.setdefault(segment, 0)

    def forget(self, segment: int) -> None:
        """A dead segment's file is gone."""
        assert self._live[segment] == 0, "only a dead segment is deleted"
        del self._live[segment]

    def segments(self) -> list[int]:
        """Those with live bytes, in order."""
        return sorted(segment for segment, live in self._live.items() if live)

    def live(self, segment: int) -> int:
        """Live bytes of a segment; 0 when it is unknown."""
        return self._live.get(segment, 0)

    def add(self, address: int, length: int) -> None:
        """A frame of `length` bytes at `address` is live."""
        self.add_bytes(segment_of(address), length)

    def add_bytes(self, segment: int, length: int) -> None:
        """Frames of `length` bytes together, all in one segment, are live."""
        self._live[segment] = self._live.get(segment, 0) + length

    def drop(self, address: int, length: int) -> None:
        """That frame is live no longer: trimmed, deleted or rewritten elsewhere."""
        self.drop_bytes(segment_of(address), length)

    def drop_bytes(self, segment: int, length: int) -> None:
        """Those frames are live no longer."""
        assert self._live[segment] >= length, "a frame is dropped once"
        self._live[segment] -= length

    def move(self, old: int, new: int, length: int) -> None:
        """The frame at address `old` was rewritten at address `new`."""
        self.drop(old, length)
        self.add(new, length)

    def dead(self, floor: int, active_segment: int) -> list[int]:
        """Segments to delete, oldest first: no live byte, wholly below the address `floor`, older than the active one.

        `floor` is the older checkpoint's scan address: recovery may still read everything from there on.
        """
        below = min(segment_of(floor), active_segment)
        return sorted(segment for segment, live in self._live.items() if live == 0 and segment < below)

    def worth_rewriting(self, sizes: Mapping[int, int], active: int, live_fraction: float = 0.5) -> int | None:
        """The oldest closed segment of which less than `live_fraction` is live, or None.

        `sizes` has the bytes each segment takes on disk; segments missing in it are passed over, dead ones too.
        """
        return min(
            (
                segment
                for segment, live in self._live.items()
                if segment < active and 0 < live < sizes.get(segment, 0) * live_fraction
            ),
            default=None,
        )
