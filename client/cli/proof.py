"""The demo's proof: what two kinds of reader saw, held against the files themselves. Pure.

The *replay* must see each channel's offsets 0, 1, 2, … exactly once and in order. A *group* may see an offset more
than once (at-least-once), but each at least once, with the same bytes. From either the files are put together
again by offset and compared by SHA-256.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field


@dataclass
class Replayed:
    """One channel as the replaying subscriber saw it. Invariant: offsets below `next_offset` were all looked at."""

    next_offset: int = 0
    repeated: int = 0
    skipped: int = 0
    _files: dict[bytes, "hashlib._Hash"] = field(default_factory=dict)

    def take(self, offset: int, key: bytes, data: bytes) -> None:
        """The next message. An offset seen before counts as repeated and is not hashed; a hole as skipped."""
        if offset < self.next_offset:
            self.repeated += 1
            return
        self.skipped += offset - self.next_offset
        self.next_offset = offset + 1
        if (file := self._files.get(key)) is None:
            file = self._files[key] = hashlib.sha256()
        file.update(data)

    def digests(self) -> dict[bytes, bytes]:
        """SHA-256 by file, lines joined in the order in which they came."""
        return {key: file.digest() for key, file in self._files.items()}


@dataclass
class Shared:
    """One channel as its group's workers saw it together."""

    redelivered: int = 0
    changed: int = 0
    _messages: dict[int, tuple[bytes, bytes]] = field(default_factory=dict)

    def take(self, offset: int, key: bytes, data: bytes) -> None:
        """A delivery to any worker."""
        message = (key, data)
        first = self._messages.setdefault(offset, message)
        if first is not message:
            self.redelivered += 1
            self.changed += first != message

    def __len__(self) -> int:
        """Different messages seen."""
        return len(self._messages)

    def digests(self) -> dict[bytes, bytes]:
        """SHA-256 by file, lines joined in the order of their offsets."""
        files: dict[bytes, hashlib._Hash] = {}
        for _, (key, data) in sorted(self._messages.items()):
            if (file := files.get(key)) is None:
                file = files[key] = hashlib.sha256()
            file.update(data)
        return {key: file.digest() for key, file in files.items()}


@dataclass(frozen=True)
class Comparison:
    """One reader's files against the originals: paths, sorted."""

    identical: int
    missing: list[str]
    different: list[str]
    unexpected: list[str]

    @property
    def ok(self) -> bool:
        return not (self.missing or self.different or self.unexpected)


def compare(originals: Mapping[str, bytes], channels: Iterable[Mapping[bytes, bytes]]) -> Comparison:
    """`originals`: SHA-256 by path of every file that has lines; `channels`: what was put together of each."""
    found: dict[str, bytes] = {}
    twice: set[str] = set()
    for files in channels:
        for key, digest in files.items():
            path = key.decode(errors="replace")
            if path in found:
                twice.add(path)
            found[path] = digest
    different = {path for path, digest in originals.items() if path in found and found[path] != digest} | twice
    return Comparison(
        identical=sum(1 for path in originals if path in found and path not in different),
        missing=sorted(originals.keys() - found.keys()),
        different=sorted(different),
        unexpected=sorted(found.keys() - originals.keys()),
    )
