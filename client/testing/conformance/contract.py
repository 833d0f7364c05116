"""What a program under test is to publish, and how the lines that it prints are read."""

import json
import random
from dataclasses import dataclass, field
from typing import Any

from google.protobuf import json_format

from ringpost.v1 import publish_pb2


class Broken(Exception):  # noqa: N818
    """The program did not do what a client has to; the text says what was seen."""


def require(holds: bool, seen: str) -> None:
    """Raises `Broken` unless it holds."""
    if not holds:
        raise Broken(seen)


def same(what: str, got: publish_pb2.Message, expected: publish_pb2.Message) -> None:
    """Raises `Broken` unless they are. Messages may be large: they are only shown when they differ."""
    if got != expected:
        raise Broken(f"{what} {str(got)[:300]!r}, not {str(expected)[:300]!r}")


def message(producer: str, number: int) -> publish_pb2.Message:
    """Message `number` of a producer: bytes that are no text, a header with quotes and an umlaut."""
    return publish_pb2.Message(
        key=f"{producer}-{number % 7}".encode(),
        data=f"{producer} {number}".encode() + bytes((0, 255, number % 256)),
        headers={"number": str(number), "note": 'he said "grüezi"'},
        message_id=f"{producer}/{number}",
    )


def odd_messages(count: int, seed: int) -> list[publish_pb2.Message]:
    """Messages as other programs may have published them: empty ones, without a key, with any bytes and headers."""
    rng = random.Random(seed)
    made = [publish_pb2.Message(), publish_pb2.Message(data=b"only data")]
    while len(made) < count:
        headers = {f"header-{n}": rng.choice(["", "plain", "grüezi 🎉", 'a "b" \\ c', "line\nbreak"]) for n in range(3)}
        one = publish_pb2.Message(key=rng.randbytes(rng.randrange(9)), data=rng.randbytes(rng.randrange(300)))
        one.headers.update(headers)
        one.message_id = str(len(made))
        one.producer_time_us = rng.randrange(1 << 50)
        made.append(one)
    return made[:count]


@dataclass(frozen=True)
class Got:
    """A message that the program printed."""

    offset: int
    attempt: int
    message: publish_pb2.Message


@dataclass
class Printed:
    """What a program has printed so far."""

    # Offsets that a publisher was told, in the order of its lines, and how many of them were marked as duplicates.
    stored: list[int] = field(default_factory=list)
    duplicates: int = 0
    got: list[Got] = field(default_factory=list)
    # Offsets whose ack was confirmed, and those that came once more after that.
    acked: list[int] = field(default_factory=list)
    after_ack: list[int] = field(default_factory=list)
    _acked: set[int] = field(default_factory=set)

    def take(self, line: str) -> None:
        """One more line. Raises `Broken` when it is none of the contract's."""
        try:
            self._take(json.loads(line))
        except (ValueError, KeyError, TypeError, AttributeError, json_format.Error) as error:
            raise Broken(f"printed what is not in the contract ({error!r}): {line[:300]}") from None

    def _take(self, found: dict[str, Any]) -> None:
        if "first_offset" in found:
            self.stored += range(found["first_offset"], found["first_offset"] + found["count"])
            self.duplicates += found["count"] if found["duplicate"] else 0
        elif "acked" in found:
            first, last = found["acked"]
            self.acked += range(first, last + 1)
            self._acked.update(range(first, last + 1))
        else:
            content = json_format.ParseDict(found["message"], publish_pb2.Message())
            self.got.append(Got(found["offset"], found["attempt"], content))
            if found["offset"] in self._acked:
                self.after_ack.append(found["offset"])


def spans(offsets: list[int]) -> str:
    """Offsets for a person: "0..99, 105"."""
    runs: list[list[int]] = []
    for offset in offsets:
        if runs and offset == runs[-1][1] + 1:
            runs[-1][1] = offset
        else:
            runs.append([offset, offset])
    told = [str(first) if first == last else f"{first}..{last}" for first, last in runs]
    return ", ".join(told[:12]) + (", …" if len(told) > 12 else "") or "none"
