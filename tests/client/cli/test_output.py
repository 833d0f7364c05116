import json
import sys

import click
import pytest

from ringpost.client.cli.output import Output, confirm


def test_a_listing_is_aligned_numbers_to_the_right(capsys: pytest.CaptureFixture[str]) -> None:
    Output().listing(("channel", "messages"), [("a", 5), ("orders.eu", 12345)], [])
    assert capsys.readouterr().out == "channel    messages\na                 5\norders.eu    12,345\n"


def test_on_a_narrow_terminal_a_row_stays_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "12")
    Output().listing(("channel", "messages"), [("orders.eu", 12345), ("a", 5)], [])
    lines = click.unstyle(capsys.readouterr().out).splitlines()
    assert lines == ["channel    …", "orders.eu  …", "a          …"]


def test_an_empty_listing_is_its_head_or_an_empty_array(capsys: pytest.CaptureFixture[str]) -> None:
    Output().listing(("channel",), [], [])
    Output("json").listing(("channel",), [], [])
    assert capsys.readouterr().out == "channel\n[]\n"


def test_details_indent_further_lines(capsys: pytest.CaptureFixture[str]) -> None:
    Output().details([("group", "g"), ("members", "a\nb"), ("auto", True), ("none", "")], {})
    assert capsys.readouterr().out == "group    g\nmembers  a\n         b\nauto     yes\nnone     \n"


def test_json_is_the_data_and_keeps_letters(capsys: pytest.CaptureFixture[str]) -> None:
    Output("json").details([], {"name": "größe", "n": 1})
    out = capsys.readouterr().out
    assert json.loads(out) == {"name": "größe", "n": 1}
    assert "größe" in out
    Output("json").line("text", {"n": 1})
    assert capsys.readouterr().out == '{"n": 1}\n'


def test_without_a_terminal_nothing_is_destroyed_unless_yes_was_said() -> None:
    with pytest.raises(click.UsageError, match="--yes"):
        confirm("Remove all?", yes=False)
    confirm("Remove all?", yes=True)
