import json

import pytest

from ringpost.client.cli.bench_report import Result, Usage
from ringpost.client.cli.output import Output
from ringpost.client.cli.stats import Samples

USAGE = Usage(
    seconds=2.0, client_cpu=1.0, broker_cpu=0.5, broker_memory=1 << 20, published=1000, delivered=0, strangers=0
)


def test_cpu_and_bytes_are_per_message_and_rates_per_second() -> None:
    data = Result("pub", {"size": 1000}, USAGE, {"ack": Samples([0.001, 0.003]).summary()}).as_json()
    assert data["published_per_s"] == 500
    assert data["mb_per_s"] == 0.5
    assert data["broker_cpu_us_per_message"] == 500
    assert data["client_cpu_us_per_message"] == 1000
    assert data["ack_ms"] == {"p50": 1.0, "p99": 3.0, "p999": 3.0, "max": 3.0}
    assert data["parameters"] == {"size": 1000}


def test_a_fan_out_is_counted_by_its_deliveries(capsys: pytest.CaptureFixture[str]) -> None:
    result = Result("fanout", {"size": 1000}, USAGE._replace(delivered=10_000))
    assert result.as_json()["broker_cpu_us_per_message"] == 50
    result.print(Output())
    assert "50.0 µs a delivery" in capsys.readouterr().out


def test_other_work_on_the_node_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    Result("pub", {"size": 16}, USAGE._replace(strangers=77)).print(Output())
    assert "77 messages of others meanwhile" in capsys.readouterr().out
    Result("pub", {"size": 16}, USAGE).print(Output())
    assert "others" not in capsys.readouterr().out


def test_json_holds_the_same_as_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    result = Result("pub", {"size": 16}, USAGE)
    result.print(Output("json"))
    assert json.loads(capsys.readouterr().out) == result.as_json()
