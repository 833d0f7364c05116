"""Structured logs: one line an event on standard error, JSON or text. Never a payload.

    log.info("channel.created", channel="orders.eu", shard=7)

An event has a name in dots and facts. Bytes among the facts are shown as their length only, long text is cut, and of
one event no more than a burst is written in a period; the next line then says how many were left out.
"""

import json
import logging
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import IO, Any

LOGGER = logging.getLogger("ringpost")
TEXT_CHARACTERS_MAX = 512
BURST = 20
PERIOD_S = 10.0
# More event names than the node has: only log lines of libraries can come near it.
EVENTS_MAX = 1_000
# What must not be left out: only who may do it can cause it.
UNLIMITED = frozenset({"audit.act"})

_FACTS = "ringpost_facts"
_SUPPRESSED = "ringpost_suppressed"


def debug(event: str, /, **facts: object) -> None:
    """Logs an event that matters while looking for a fault."""
    _emit(logging.DEBUG, event, facts)


def info(event: str, /, **facts: object) -> None:
    """Logs an event of normal life."""
    _emit(logging.INFO, event, facts)


def warning(event: str, /, **facts: object) -> None:
    """Logs an event that somebody should look at some day."""
    _emit(logging.WARNING, event, facts)


def error(event: str, /, *, exception: BaseException | None = None, **facts: object) -> None:
    """Logs a fault, with the traceback of `exception`."""
    _emit(logging.ERROR, event, facts, exception)


def audit(event: str, denied: bool = False, /, **facts: object) -> None:
    """Logs who did what, or was denied it: whatever the least level is."""
    level = logging.WARNING if denied else logging.INFO
    LOGGER.handle(LOGGER.makeRecord(LOGGER.name, level, "", 0, event, (), None, extra={_FACTS: facts}))


def enabled(level: str) -> bool:
    """Whether events of that level are written."""
    return LOGGER.isEnabledFor(logging.getLevelNamesMapping()[level.upper()])


def configure(
    level: str,
    form: str,
    stream: IO[str] | None = None,
    clock: Callable[[], float] = time.monotonic,
    *,
    worker: str = "",
) -> None:
    """Sends all logs of the process to `stream` (standard error when None). `form` is json or text.

    `worker`: the node's id, where several write to one stream; each line then has it.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter(worker) if form == "json" else TextFormatter(worker))
    handler.addFilter(BurstFilter(RateLimit(BURST, PERIOD_S), clock))
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    LOGGER.setLevel(level.upper())


def _emit(level: int, event: str, facts: dict[str, object], exception: BaseException | None = None) -> None:
    if LOGGER.isEnabledFor(level):
        LOGGER.log(level, event, exc_info=exception, extra={_FACTS: facts})


class RateLimit:
    """Lets `burst` events of one name through in `period_s`. Pure; bounded in names."""

    def __init__(self, burst: int, period_s: float) -> None:
        self._burst = burst
        self._period_s = period_s
        # Name to [start of the period, let through, left out].
        self._seen: dict[str, list[float]] = {}

    def admit(self, name: str, now_s: float) -> int:
        """-1: leave it out. Otherwise how many of this name were left out in the period before."""
        entry = self._seen.get(name)
        if entry is None or now_s - entry[0] >= self._period_s:
            if entry is None and len(self._seen) >= EVENTS_MAX:
                self._seen.clear()
            self._seen[name] = [now_s, 1, 0]
            return 0 if entry is None else int(entry[2])
        if entry[1] < self._burst:
            entry[1] += 1
            return 0
        entry[2] += 1
        return -1


class BurstFilter(logging.Filter):
    """Applies a `RateLimit` to a handler. Two threads at once may miscount by one, which is no harm."""

    def __init__(self, limit: RateLimit, clock: Callable[[], float]) -> None:
        super().__init__()
        self._limit = limit
        self._clock = clock

    def filter(self, record: logging.LogRecord) -> bool:
        if record.msg in UNLIMITED:
            return True
        left_out = self._limit.admit(str(record.msg), self._clock())
        if left_out > 0:
            setattr(record, _SUPPRESSED, left_out)
        return left_out >= 0


class _Formatter(logging.Formatter):
    def __init__(self, worker: str = "") -> None:
        super().__init__()
        self.always = {"worker": worker} if worker else {}


class JsonFormatter(_Formatter):
    """{"time": …, "level": …, "event": …, facts…}. A fact never replaces one of these three."""

    def format(self, record: logging.LogRecord) -> str:
        fields, facts, trace = _parts(self, record)
        if trace:
            facts["traceback"] = trace
        return json.dumps({**facts, **fields} if facts.keys() & fields.keys() else {**fields, **facts}, default=str)


class TextFormatter(_Formatter):
    """`2026-01-31T12:00:00.000000Z INFO channel.created channel=orders.eu`, then a traceback on lines of its own."""

    def format(self, record: logging.LogRecord) -> str:
        fields, facts, trace = _parts(self, record)
        line = " ".join(
            [fields["time"], fields["level"].upper(), fields["event"]] + [f"{k}={_quoted(v)}" for k, v in facts.items()]
        )
        return f"{line}\n{trace}" if trace else line


def _parts(formatter: _Formatter, record: logging.LogRecord) -> tuple[dict[str, str], dict[str, Any], str]:
    """The fixed fields, the facts and the traceback ("" without one) of one line."""
    facts: dict[str, Any] | None = getattr(record, _FACTS, None)
    time_ = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    if facts is None:
        # A library's line: its text is a fact, its logger the source.
        event, facts = "log", {"logger": record.name, "message": record.getMessage()}
    else:
        event = str(record.msg)
    shown = {**formatter.always, **{name: _plain(value) for name, value in facts.items()}}
    if left_out := getattr(record, _SUPPRESSED, 0):
        shown["suppressed"] = left_out
    trace = formatter.formatException(record.exc_info) if record.exc_info and record.exc_info[1] else ""
    return {"time": time_, "level": record.levelname.lower(), "event": event}, shown, trace


def _plain(value: object) -> object:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, bytes | bytearray | memoryview):
        return f"<{len(value)} bytes>"
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in list(value)[:32]]
    text = str(value)
    return text if len(text) <= TEXT_CHARACTERS_MAX else f"{text[:TEXT_CHARACTERS_MAX]}… ({len(text)} characters)"


def _quoted(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if text and text.isprintable() and not set(text) & set(' "=') else json.dumps(text)
