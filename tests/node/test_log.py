"""What a log line holds, and what never gets into one."""

import io
import json
import logging
from collections.abc import Iterator

import pytest

from ringpost.node import log


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(autouse=True)
def unchanged_logging() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level, ours = root.handlers[:], root.level, log.LOGGER.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    log.LOGGER.setLevel(ours)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def lines(clock: Clock) -> io.StringIO:
    stream = io.StringIO()
    log.configure("info", "json", stream, clock)
    return stream


def parsed(stream: io.StringIO) -> list[dict]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_an_event_is_one_json_line_with_its_facts(lines: io.StringIO) -> None:
    log.info("channel.created", channel="orders.eu", shard=7, created=True)
    (line,) = parsed(lines)
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "info",
        "event": "channel.created",
        "channel": "orders.eu",
        "shard": 7,
        "created": True,
    }


def test_a_fact_never_hides_the_fixed_fields(lines: io.StringIO) -> None:
    log.info("e", level="fake", event="fake", time="fake")
    (line,) = parsed(lines)
    assert (line["level"], line["event"]) == ("info", "e")
    assert line["time"] != "fake"


def test_bytes_are_a_length_and_long_text_is_cut(lines: io.StringIO) -> None:
    log.info("e", data=b"secret", view=memoryview(b"secret"), text="x" * 10_000, many=[b"secret"] * 1000, none=None)
    assert "secret" not in lines.getvalue()
    (line,) = parsed(lines)
    assert (line["data"], line["view"], line["none"]) == ("<6 bytes>", "<6 bytes>", None)
    assert len(line["text"]) < 600
    assert line["text"].endswith("(10000 characters)")
    assert len(line["many"]) == 32


def test_text_lines_are_one_line_each(clock: Clock) -> None:
    stream = io.StringIO()
    log.configure("info", "text", stream, clock)
    log.warning("channel.odd", name="two\nlines", plain="orders.eu", number=3, empty="")
    (line,) = stream.getvalue().splitlines()
    assert line.split(" ", 1)[1] == r'WARNING channel.odd name="two\nlines" plain=orders.eu number=3 empty=""'


def test_workers_that_share_a_stream_sign_their_lines(clock: Clock) -> None:
    stream = io.StringIO()
    log.configure("info", "json", stream, clock, worker="alpha-2")
    log.info("channel.created", channel="orders.eu")
    logging.getLogger("somebody").warning("odd")
    assert [json.loads(line)["worker"] for line in stream.getvalue().splitlines()] == ["alpha-2", "alpha-2"]


@pytest.mark.parametrize("form", ["json", "text"])
def test_an_error_carries_the_traceback(form: str, clock: Clock) -> None:
    stream = io.StringIO()
    log.configure("info", form, stream, clock)
    try:
        raise KeyError("inside")
    except KeyError as error:
        log.error("incident", exception=error, incident="abc")
    assert "Traceback" in stream.getvalue()
    assert "KeyError: 'inside'" in stream.getvalue()


def test_levels_below_are_left_out(lines: io.StringIO) -> None:
    log.debug("quiet")
    logging.getLogger("somebody").info("quiet")
    assert lines.getvalue() == ""


def test_a_librarys_line_is_an_event_too(lines: io.StringIO) -> None:
    logging.getLogger("grpc").warning("odd %s", "thing")
    (line,) = parsed(lines)
    assert (line["event"], line["logger"], line["message"]) == ("log", "grpc", "odd thing")


def test_a_flood_of_one_event_is_cut_and_counted(lines: io.StringIO, clock: Clock) -> None:
    for _ in range(100):
        log.warning("flood")
    log.info("other")
    assert [line["event"] for line in parsed(lines)] == ["flood"] * log.BURST + ["other"]
    clock.now += log.PERIOD_S
    log.warning("flood")
    log.warning("flood")
    assert [line.get("suppressed") for line in parsed(lines)[-2:]] == [100 - log.BURST, None]


@pytest.mark.parametrize("level", ["warning", "error"])
def test_who_did_what_is_written_at_every_level(clock: Clock, level: str) -> None:
    stream = io.StringIO()
    log.configure(level, "json", stream, clock)
    log.audit("audit.act", principal="shop")
    log.audit("audit.denied", True, principal="shop")
    assert [(line["event"], line["level"], line["principal"]) for line in parsed(stream)] == [
        ("audit.act", "info", "shop"),
        ("audit.denied", "warning", "shop"),
    ]


def test_the_limit_is_bounded_in_names() -> None:
    limit = log.RateLimit(burst=1, period_s=10.0)
    admitted = [limit.admit(f"event-{i}", 0.0) for i in range(5 * log.EVENTS_MAX)]
    assert set(admitted) == {0}
    assert len(limit._seen) <= log.EVENTS_MAX


def test_configuring_again_replaces(lines: io.StringIO, clock: Clock) -> None:
    other = io.StringIO()
    log.configure("error", "json", other, clock)
    log.warning("w")
    log.error("e")
    assert lines.getvalue() == ""
    assert [line["event"] for line in parsed(other)] == ["e"]
