"""What becomes of figures: medians, shares, tables, targets and curves."""

import json
from dataclasses import asdict, replace
from typing import Any

import pytest

from tests.benchmarks.job import Found, Job, Row, rows_of
from tests.benchmarks.report.charts import charts
from tests.benchmarks.report.page import page
from tests.benchmarks.report.stats import digits, frames_per_s, paired, spread
from tests.benchmarks.report.tables import by_tier, described, find, waits
from tests.benchmarks.report.targets import LEAST, MOST, Target, targets

CEILING = {"upload_small_per_s": 20_000.0, "upload_large_per_s": 2_000.0, "ping_pong_p50_us": 250.0}


def row(system: str, tier: str, *rates: float, column: str = "python", **given: Any) -> Row:
    """A row of B1 whose repetitions ran for one second at these rates, at 1 µs of broker CPU a message."""
    job = replace(Job(system=system, load="publish", batch=1_000, window=16), **given)
    runs = [
        Found(messages=int(r), seconds=1, broker_cpu_s=r / 1e6, client_cpu_s=0, wait_ms=[1, 2, 3, 4]) for r in rates
    ]
    return Row("B1", tier, system, column, job.parameters(), runs)


def test_the_median_stands_before_its_range() -> None:
    assert spread([3_000.4, 1_000, 2_000]) == "2,000 (1,000 to 3,000)"
    assert spread([0.51234]) == "0.51"
    assert spread([]) == "–"
    assert [digits(value) for value in (0, 0.0123, 12.34, 1234.5)] == ["0", "0.012", "12.3", "1,234"]


def test_ratios_are_of_the_same_repetition() -> None:
    assert paired([10, 20], [1, 4]) == [10, 5]
    assert paired([10], []) == []


def test_the_ceiling_lies_between_the_two_sizes_that_were_measured() -> None:
    assert frames_per_s(CEILING, 100) == pytest.approx(20_000)
    assert frames_per_s(CEILING, 128 * 1024) == pytest.approx(2_000)
    assert frames_per_s(CEILING, 256 * 1024) == pytest.approx(1_000)
    assert 2_000 < frames_per_s(CEILING, 64 * 1024) < 20_000


def test_a_table_for_each_durability_and_our_t2_beside_the_peers_t1() -> None:
    rows = [row("ringpost", "T2", 1e6), row("nats JetStream", "T1", 2e4, batch=1)]
    lines = list(by_tier("B1", rows, [CEILING]))
    assert [line for line in lines if line.startswith("###")] == [
        "### B1, T1: written to the operating system",
        "### B1, T2: fsynced on one node",
    ]
    assert sum("ringpost, at T2" in line for line in lines) == 1
    assert any("1,000,000" in line and "49%" in line for line in lines)
    assert list(by_tier("B4", rows, [CEILING])) == []


def test_a_load_in_words() -> None:
    said = described(row("x", "T0", load="fanout", subscribers=100).parameters)
    assert said == "fanout, 128 B, 1000 × 16, to 100"
    assert waits(row("x", "T0", 1, 1)) == "1.00 / 2.00"


def test_rows_survive_json() -> None:
    rows = [row("ringpost", "T2", 5, 6)]
    again = rows_of(json.loads(json.dumps([r.as_json() for r in rows])))
    assert again == rows
    assert find(again, "B1", "ringpost", "python", "T2", batch=1_000) == rows[0]
    assert find(again, "B1", "ringpost", "lean") is None


def test_a_missing_message_is_a_fault() -> None:
    short = row("ringpost", "T2", 5)
    assert short.faults == []
    short.runs[0].missing = 2
    assert len(short.faults) == 1


def test_a_target_says_by_how_much_it_is_missed() -> None:
    assert Target("", LEAST, 15, "×", 30).verdict == "met (2 × better)"
    assert Target("", LEAST, 15, "×", 10).verdict == "**missed** (1.50 × off)"
    assert Target("", MOST, 0.5, "µs", 1).verdict == "**missed** (2.00 × off)"
    assert Target("", MOST, 0.5, "µs", None).verdict == "not measured"


def test_targets_are_read_from_the_rows() -> None:
    rows = [row("ringpost", "T2", 1e6), row("nats JetStream", "T1", 2e4, batch=1, window=1_000)]
    found = {t.what: t.figure for t in targets(rows, [CEILING], {"targets": {"S2 3 nodes": 2.8}})}
    assert found["T2 publish 128 B × 1,000 over nats-py JetStream async (T1)"] == 50
    assert found["S2: 3 small nodes over 1"] == 2.8
    assert found["T2 publish over aio-pika with quorum queues"] is None


def test_of_rows_at_one_point_the_one_with_more_unanswered_is_drawn() -> None:
    rows = [row("ringpost", "T2", 1e6), row("ringpost", "T2", 1e5, batch=100), row("ringpost", "T2", 1, window=1)]
    drawn = {chart.name: chart.curves for chart in charts(rows, {})}
    assert drawn["b1-rate-python"] == {"ringpost T2": [(100, 1e5, 1e5, 1e5), (1_000, 1e6, 1e6, 1e6)]}
    assert drawn["b1-rate-lean"] == drawn["b3-cost"] == {}


def test_the_page_names_what_was_left_out_and_what_is_missing() -> None:
    result = {
        "command": "make bench", "date": "today", "seconds": 60, "machine": "2 cores", "versions": {"nats": "2"},
        "plan": {"repeat": 3, "seconds": 1, "warm_up": 0.2}, "ceilings": [CEILING], "plots": ["b1-rate.svg"],
        "rows": [asdict(row("ringpost", "T2", 1e6))], "figures": {}, "skipped": {"S2": "no control groups here"},
        "faults": ["B1: 3 messages are missing"],
    }  # fmt: skip
    text = page(result, {"B1": "publish", "S2": "small nodes"})
    assert "Not in this run: no control groups here" in text
    assert "- B1: 3 messages are missing" in text
    assert "![b1-rate.svg](b1-rate.svg)" in text
