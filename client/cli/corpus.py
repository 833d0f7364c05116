"""The demo's input: every source line of the machine's own Python standard library."""

import hashlib
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_NOT_OURS = {"site-packages", "dist-packages", "__pycache__"}


@dataclass(frozen=True)
class Source:
    """One file: its channel, its path below the library's folder, its content."""

    channel: str
    path: str
    content: bytes

    @property
    def digest(self) -> bytes:
        return hashlib.sha256(self.content).digest()

    def lines(self) -> list[bytes]:
        """Every line with its own line end; joined again they are the content."""
        return split_lines(self.content)


def split_lines(content: bytes) -> list[bytes]:
    """Cuts behind every line feed only, so that any bytes, binary ones too, join to the same content."""
    lines = [line + b"\n" for line in content.split(b"\n")]
    lines[-1] = lines[-1][:-1]
    return lines if lines[-1] else lines[:-1]


def channel_of(relative: Path) -> str:
    """ "stdlib.<top-level package or module>"; characters that a channel may not have become "_"."""
    top = relative.parts[0].removesuffix(".py")
    return "stdlib." + "".join(c if c.isascii() and (c.isalnum() or c in "_-") else "_" for c in top)


def library() -> Path:
    """Where this Python keeps its standard library."""
    return Path(sysconfig.get_path("stdlib"))


def read(root: Path, *, with_tests: bool) -> Iterator[Source]:
    """Every readable .py file below `root` in the order of its path; `with_tests` takes the package `test` along."""
    skipped = _NOT_OURS if with_tests else {*_NOT_OURS, "test"}
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        if skipped.isdisjoint(relative.parts[:1]) and _NOT_OURS.isdisjoint(relative.parts) and path.is_file():
            yield Source(channel_of(relative), relative.as_posix(), path.read_bytes())
