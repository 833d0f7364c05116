"""The table of metrics, its text form, and the bounded top list."""

import dataclasses
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from ringpost.node.metrics import ROWS, Exposition, Stats, metrics_table

README = Path(__file__).resolve().parent.parent.parent / "deploy" / "README.md"


def scraped(stats: Stats) -> dict[str, float]:
    """Samples by name and labels."""
    text = Exposition().render(stats).decode()
    return {
        sample.name + "".join(f"{{{key}={value}}}" for key, value in sample.labels.items()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_every_number_of_a_snapshot_is_exposed() -> None:
    wanted = {}
    values = {}
    for number, (field, row) in enumerate(ROWS.items(), start=1):
        values[field] = {"some": number} if row.meaning.label else number
        label = f"{{{row.meaning.label}=some}}" if row.meaning.label else ""
        wanted[row.name + label] = float(number)
    samples = scraped(Stats(**values))
    assert {name: samples[name] for name in wanted} == wanted


def test_the_process_is_exposed_too() -> None:
    samples = scraped(Stats())
    assert samples["process_resident_memory_bytes"] > 1 << 20
    assert samples["process_cpu_seconds_total"] > 0
    assert samples["process_open_fds"] > 0


def test_a_label_may_hold_any_channel() -> None:
    name = 'a"b\\c\nd'
    text = Exposition().render(Stats(publish_refusals={name: 3})).decode()
    assert r'ringpost_publish_refusals_total{reason="a\"b\\c\nd"} 3.0' in text


def test_names_and_units_follow_the_rules() -> None:
    for row in ROWS.values():
        assert row.name.endswith("_total") == (row.meaning.kind == "counter")
        assert ("bytes" in row.name) == (row.meaning.unit == "bytes")
        assert ("seconds" in row.name) == (row.meaning.unit == "seconds")
        assert row.meaning.text.endswith(".")
    assert len({row.name for row in ROWS.values()}) == len(dataclasses.fields(Stats))


def test_the_manual_holds_the_table() -> None:
    manual = README.read_text()
    assert manual.split("<!-- metrics -->\n")[1].split("<!-- /metrics -->")[0] == metrics_table()
