import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringpost.client.cli.units import (
    Place,
    counted,
    parse_bytes,
    parse_duration,
    parse_place,
    show_bytes,
    show_seconds,
    show_time,
)

NOW = 1_800_000_000_000_000


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("0", 0), ("4096", 4096), ("64KiB", 65536), ("1.5 MB", 1_500_000), ("2g", 2 << 30), ("1TiB", 1 << 40), ("7b", 7)],
)
def test_sizes_are_read_with_their_units(text: str, wanted: int) -> None:
    assert parse_bytes(text) == wanted


@pytest.mark.parametrize("text", ["", "big", "-1", "1 XB", "1..5MB", "KiB", "1e3"])
def test_a_size_that_is_none_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="64KiB"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("10", 10), ("0.5", 0.5), ("10s", 10), ("250ms", 0.25), ("1h30m", 5400), ("7d", 604800), ("50us", 5e-5)],
)
def test_durations_are_read_with_their_units(text: str, wanted: float) -> None:
    assert parse_duration(text) == pytest.approx(wanted)


@pytest.mark.parametrize("text", ["", "soon", "10x", "1h30", "-5s", "s", "1h x"])
def test_a_duration_that_is_none_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="250ms"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("earliest", Place("earliest")),
        ("LATEST", Place("latest")),
        ("42", Place("offset", 42)),
        ("10m", Place("time", NOW - 600_000_000)),
        ("2026-01-31T12:00:00Z", Place("time", 1769860800_000_000)),
        ("2026-01-31T12:00:00.25+01:00", Place("time", 1769857200_250_000)),
    ],
)
def test_a_place_is_a_word_an_offset_a_time_or_so_long_ago(text: str, wanted: Place) -> None:
    assert parse_place(text, NOW) == wanted


@pytest.mark.parametrize("text", ["", "yesterday", "-1", "12:00", "10m ago"])
def test_a_place_that_is_none_is_refused_with_examples(text: str) -> None:
    with pytest.raises(ValueError, match="earliest, latest"):
        parse_place(text, NOW)


@given(st.integers(0, 1 << 60))
def test_every_number_of_bytes_reads_as_itself(count: int) -> None:
    assert parse_bytes(f"{count}B") == pytest.approx(count, rel=1e-15)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (25e-6, "25 µs"),
        (0.0032, "3.2 ms"),
        (1.5, "1.5 s"),
        (125, "2 min 5 s"),
        (3 * 3600 + 130, "3 h 2 min"),
        (604800, "7 d"),
    ],
)
def test_seconds_are_shown_in_two_units_at_most(seconds: float, text: str) -> None:
    assert show_seconds(seconds) == text


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 << 40, "5.0 TiB")])
def test_bytes_are_shown_in_binary_units(count: int, text: str) -> None:
    assert show_bytes(count) == text


def test_an_unknown_time_is_a_dash() -> None:
    assert show_time(0) == "-"
    assert parse_place(show_time(NOW), 0) == Place("time", NOW)


def test_one_is_not_many() -> None:
    assert [counted(n, "message") for n in (0, 1, 1200)] == ["0 messages", "1 message", "1,200 messages"]
