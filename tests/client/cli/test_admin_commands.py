"""Channels, groups, node and check from the command line, against a real node."""

import re
import socket
from pathlib import Path

from .conftest import Cli, run_cli


def test_a_channel_is_made_changed_shown_purged_and_removed(cli: Cli) -> None:
    made = cli("channel", "add", "adm.a", "--keep-age", "7d", "--keep-bytes", "1MiB", "-o", "json").json
    assert made["config"]["retention_age_ms"] == 604_800_000
    assert made["config"]["retention_bytes"] == 1 << 20
    changed = cli("channel", "set", "adm.a", "--keep-messages", "10", "--keep-age", "0", "-o", "json").json
    assert changed["config"] | {"max_message_bytes": 0} == {
        "retention_age_ms": 0,
        "retention_bytes": 1 << 20,
        "retention_messages": 10,
        "max_message_bytes": 0,
        "dedup_window_ms": 0,
    }
    cli("pub", "adm.a", "n{n}", "--count", "5")
    refused = cli("channel", "purge", "adm.a", "--before", "3")
    assert refused.code == 2
    assert "Remove 3 messages of adm.a? There is no terminal to ask on; add --yes" in refused.err
    beyond = cli("channel", "purge", "adm.a", "--before", "5000")
    assert (beyond.code, beyond.err) == (1, "Error: --before: 5000 is beyond the end offset 5 of adm.a.\n")
    assert cli("channel", "purge", "adm.a", "--before", "3", "--yes", "-o", "json").json["first_offset"] == 3
    shown = cli("channel", "info", "adm.a").out
    assert "3 to 4" in shown
    assert cli("channel", "rm", "adm.a", "--yes").code == 0
    gone = cli("channel", "info", "adm.a")
    assert (gone.code, gone.out) == (1, "")
    assert "adm.a" in gone.err


def test_channels_are_listed_by_prefix_as_a_table_and_as_json(cli: Cli) -> None:
    for name in ("adm.list.b", "adm.list.a", "adm.other"):
        assert cli("channel", "add", name).code == 0
    listed = cli("channel", "ls", "adm.list.", "-o", "json").json
    assert [channel["name"] for channel in listed] == ["adm.list.a", "adm.list.b"]
    table = cli("channel", "ls", "adm.list.").out.splitlines()
    assert table[0].split()[:2] == ["channel", "messages"]
    assert [line.split()[0] for line in table[1:]] == ["adm.list.a", "adm.list.b"]


def test_a_group_is_made_moved_and_removed(cli: Cli) -> None:
    cli("pub", "adm.g", "n{n}", "--count", "10")
    made = cli("group", "add", "adm.g", "g", "--from", "4", "--ack-deadline", "5s", "-o", "json").json
    assert (made["pending"], made["config"]["ack_deadline_ms"]) == (6, 5000)
    assert made["config"]["mode"] == "shared"
    assert cli("group", "seek", "adm.g", "g", "8", "--yes", "-o", "json").json["pending"] == 2
    policy = ("--backoff", "exponential", "--retry-delay", "2s", "--max-retry-delay", "1m", "--jitter", "10")
    changed = cli("group", "set", "adm.g", "g", *policy, "--max-attempts", "5", "-o", "json").json["config"]
    assert changed == made["config"] | {
        "max_attempts": 5,
        "retry": {"backoff": "exponential", "delay_ms": 2_000, "max_delay_ms": 60_000, "jitter_percent": 10},
    }
    assert "exponential, 2.0 s up to 1 min, jitter 10 %" in cli("group", "info", "adm.g", "g").out
    assert cli("group", "set", "adm.g", "g", "--backoff", "none", "-o", "json").json["config"]["max_attempts"] == 5
    assert [group["name"] for group in cli("group", "ls", "adm.g", "-o", "json").json] == ["g"]
    assert cli("group", "pause", "adm.g", "g", "-o", "json").json["paused"] is True
    assert [group["paused"] for group in cli("group", "ls", "adm.g", "-o", "json").json] == [True]
    assert re.search(r"^paused +yes$", cli("group", "info", "adm.g", "g").out, re.MULTILINE)
    behind = cli("group", "resume", "adm.g", "g", "-o", "json").json
    assert (behind["paused"], behind["lag_bytes"] > 0, behind["lag_ms"] >= 0) == (False, True, True)
    assert re.search(r"^lag +about ", cli("group", "info", "adm.g", "g").out, re.MULTILINE)
    assert cli("group", "add", "adm.g", "h", "--mode", "key_ordered").code == 0
    assert [line.split()[:3] for line in cli("group", "ls", "adm.g").out.splitlines()[1:]] == [
        ["adm.g", "g", "shared"],
        ["adm.g", "h", "key_ordered"],
    ]
    other = cli("sub", "adm.g", "--group", "h", "--mode", "failover", "--count", "1")
    assert (other.code, "has mode GROUP_MODE_KEY_ORDERED" in other.err) == (1, True)
    assert cli("group", "rm", "adm.g", "g", "--yes").code == 0
    assert cli("group", "info", "adm.g", "g").code == 1
    twice = cli("group", "rm", "adm.g", "g", "--yes")
    assert twice.code == 1
    assert "Traceback" not in twice.err


def test_filters_of_groups_and_subscriptions(cli: Cli) -> None:
    for key in ("a", "b", "a"):
        assert cli("pub", "adm.f", f"for {key}", "--key", key).code == 0
    assert (
        cli("sub", "adm.f", "--from", "earliest", "--filter", 'key == "b"', "--count", "1", "--text").out == "for b\n"
    )
    made = cli("group", "add", "adm.f", "g", "--filter", 'key == "a"', "-o", "json").json
    assert (made["config"]["filter"], made["filtered"]) == ('key == "a"', 0)
    taken = cli("sub", "adm.f", "--group", "g", "--count", "2", "--text")
    assert taken.out == "for a\nfor a\n"
    shown = cli("group", "info", "adm.f", "g").out
    assert re.search(r'^filter +key == "a"$', shown, re.MULTILINE)
    assert re.search(r"^filtered out +1$", shown, re.MULTILINE)
    assert cli("group", "set", "adm.f", "g", "--filter", "", "-o", "json").json["config"]["filter"] == ""
    wrong = cli("group", "set", "adm.f", "g", "--filter", "key = 'a'")
    assert (wrong.code, "line 1, column 5: '=' has no meaning here" in wrong.err) == (2, True)
    other = cli("sub", "adm.f", "--group", "g", "--filter", "true", "--count", "1")
    assert (other.code, "has no filter, wanted is 'true'" in other.err) == (1, True)


def test_the_node_tells_about_itself_and_is_fine(cli: Cli) -> None:
    info = cli("node", "info", "-o", "json").json
    assert info["state"] == "serving"
    assert info["limits"]["max_message_bytes"] > 0
    check = cli("check", "-o", "json")
    assert (check.code, check.json["status"], check.json["reasons"]) == (0, "ok", [])


def test_a_wrong_argument_is_explained_in_the_broker_s_own_words(cli: Cli) -> None:
    for wrong in (
        ["channel", "add", "a..b"],
        ["channel", "info", ""],
        ["pub", "a b", "x"],
        ["sub", "a*"],
        ["sub", "adm.g", "--group", "a.b"],
        ["group", "add", "adm.g", "g g"],
        ["group", "seek", "adm.g", "", "0", "--yes"],
        ["group", "set", "adm.g", "g", "--jitter", "5"],
        ["group", "set", "adm.g", "g", "--backoff", "linear"],
        ["pub", "adm.g", "x", "--header", "n=" + "v" * 20_000],
        ["channel", "set", "adm.g", "--max-message", "1TiB"],
    ):
        cli("channel", "add", "adm.g")
        ran = cli(*wrong)
        assert (ran.code, ran.out) == (2, ""), (wrong, ran)
        assert ran.err.startswith("Error: ")


def test_nobody_there_is_code_3_and_for_check_2(tmp_path: Path) -> None:
    with socket.socket() as held:
        # Bound and not listening: nobody else can take the port meanwhile, and every connection is refused.
        held.bind(("127.0.0.1", 0))
        addr = f"127.0.0.1:{held.getsockname()[1]}"
        ran = run_cli("channel", "ls", addr=addr, home=tmp_path)
        assert (ran.code, ran.out) == (3, "")
        assert "`ringpost up` starts one" in ran.err
        check = run_cli("check", "-o", "json", addr=addr, home=tmp_path)
        assert (check.code, check.json["status"]) == (2, "broken")
