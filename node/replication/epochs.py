"""Where each epoch of a shard's log ends. Pure.

Two logs agree up to a position when the frames there have the same epoch, because one epoch has one leader. So a
follower tells the epoch of its last frame, and the leader knows up to where its own log can be the same.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator

EPOCHS_MAX = 1_024  # older ones are forgotten: who is that far behind gets a snapshot


class EpochCache:
    """Epochs of a log with the position of their first frame. Invariant: both rise strictly."""

    __slots__ = ("_epochs", "_starts")

    def __init__(self, entries: Iterable[tuple[int, int]] = ()) -> None:
        """`entries` are (epoch, first position), rising."""
        self._epochs: list[int] = []
        self._starts: list[int] = []
        for epoch, start in entries:
            self.note(epoch, start)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """(epoch, first position), rising."""
        return zip(self._epochs, self._starts, strict=True)

    @property
    def last(self) -> int:
        """The epoch of the log's last frame; 0 for an empty log."""
        return self._epochs[-1] if self._epochs else 0

    def note(self, epoch: int, position: int) -> None:
        """A frame of `epoch` stands at `position`, behind all others."""
        if epoch == self.last:
            return
        assert epoch > self.last, "epochs rise in a log"
        assert not self._starts or position > self._starts[-1], "positions rise"
        self._epochs.append(epoch)
        self._starts.append(position)
        del self._epochs[:-EPOCHS_MAX], self._starts[:-EPOCHS_MAX]

    def end_of(self, epoch: int, log_end: int) -> tuple[int, int] | None:
        """The greatest known epoch that is not above `epoch`, and the position of its last frame.

        (0, 0) when the log has no such frame, None when that is no longer known. `log_end` is the log's last position.
        """
        at = bisect_right(self._epochs, epoch)
        if at == 0:
            return (0, 0) if not self._starts or self._starts[0] == 1 else None
        end = self._starts[at] - 1 if at < len(self._starts) else log_end
        return self._epochs[at - 1], end

    def truncate(self, end: int) -> None:
        """The log now ends at `end`."""
        keep = bisect_right(self._starts, end)
        del self._epochs[keep:], self._starts[keep:]
