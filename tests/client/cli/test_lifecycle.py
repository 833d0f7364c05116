"""`up` and `down`: one background node, found again, killed and purged."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from ringpost.client.cli import local

from .conftest import Ran, run_cli


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    node = local.remembered(tmp_path)
    if node is not None:
        local.kill(node)


def run(home: Path, *arguments: str) -> Ran:
    node = local.remembered(home)
    return run_cli(*arguments, addr=node.address if node else "", home=home)


def test_up_pub_crash_sub_down_purge(home: Path) -> None:
    up = run(home, "up", "--port", "0")
    assert up.code == 0
    assert "A node serves on 127.0.0.1:" in up.out
    assert "Try next:" in up.err
    again = run(home, "up", "--port", "0", "-o", "json")
    assert again.json["already_running"]
    for option, value in (("--port", "1"), ("--data-dir", str(home / "other"))):
        elsewhere = run(home, "up", option, value)
        assert elsewhere.code == 1
        assert "already serves on 127.0.0.1:" in elsewhere.err
    assert run(home, "up").code == 0
    assert run(home, "pub", "a", "hello").code == 0
    node = local.remembered(home)
    assert node is not None
    assert local.running(node)

    restarted = local.restart(home)
    assert restarted.address == node.address
    assert restarted.pid != node.pid
    assert not local.running(node)
    assert run(home, "sub", "a", "--from", "earliest", "--count", "1", "--text").out == "hello\n"
    killed = run(home, "verify", "--seconds", "3", "--kills", "1", "--producers", "1", "--channels", "1", "-o", "json")
    assert killed.code == 0, killed
    assert killed.json["killed"] == 1

    assert run(home, "down").code == 0
    assert not local.running(local.remembered(home))
    assert "No node" in run(home, "down").err
    refused = run(home, "down", "--purge")
    assert refused.code == 2
    assert (home / "data").exists()
    assert run(home, "down", "--purge", "--yes").code == 0
    assert not (home / "data").exists()
    assert local.remembered(home) is None


def test_damage_is_said_at_the_start_and_can_be_given_up_there(home: Path) -> None:
    assert run(home, "up", "--port", "0").code == 0
    for name in ("hit", "whole"):
        assert run(home, "pub", name, "first of " + name).code == 0
        assert run(home, "pub", name, "second of " + name).code == 0
    node = local.remembered(home)
    assert node is not None
    local.kill(node)
    (journal,) = (home / "data").glob("*.journal")
    content = journal.read_bytes()
    at = content.index(b"first of hit")
    journal.write_bytes(content[:at] + b"F" + content[at + 1 :])

    up = run(home, "up", "--port", "0")
    assert up.code == 0
    assert "Warning: 1 shard of node" in up.err
    assert "ringpost up -- --accept-loss" in up.err
    listed = {channel["name"]: channel["damaged"] for channel in run(home, "channel", "ls", "-o", "json").json}
    assert listed == {"hit": True, "whole": False}
    table = run(home, "channel", "ls")
    assert "damaged: refuses work" in table.out
    assert "may be missing here" in table.err
    refused = run(home, "pub", "hit", "more")
    assert refused.code == 1
    assert "`ringpost up -- --accept-loss`" in refused.err
    assert run(home, "check").code == 1
    other = run(home, "up", "--", "--accept-loss")
    assert other.code == 1
    assert "already serves" in other.err

    assert run(home, "down").code == 0
    up = run(home, "up", "--port", "0", "--", "--accept-loss")
    assert up.code == 0
    assert "1 message lost to damage" in up.err
    read = run(home, "sub", "hit", "--from", "earliest", "--count", "1", "--text")
    assert (read.out, "offsets 0 to 0 are gone" in read.err) == ("second of hit\n", True)
    assert '"offset": 2' in run(home, "pub", "hit", "third", "-o", "json").out
    assert "lost messages" in run(home, "node", "info").out
    assert run(home, "check").code == 0
    assert run(home, "channel", "purge", "hit", "--before", "1", "--yes").code == 0
    assert "lost messages" not in run(home, "node", "info").out
    assert run(home, "down").code == 0
    up = run(home, "up", "--port", "0")
    assert (up.code, "Warning" in up.err) == (0, False)


def test_settings_go_to_the_node_and_a_wrong_one_is_told(home: Path) -> None:
    assert run(home, "up", "--port", "0", "--", "--max-message-bytes", "2KiB").code == 0
    assert run(home, "node", "info", "-o", "json").json["limits"]["max_message_bytes"] == 2048
    assert local.restart(home).settings == ["--max-message-bytes", "2KiB"]
    assert run(home, "node", "info", "-o", "json").json["limits"]["max_message_bytes"] == 2048
    assert run(home, "down").code == 0
    wrong = run(home, "up", "--port", "0", "--", "--no-such-setting")
    assert wrong.code == 1
    assert "no-such-setting" in wrong.err


def test_a_port_in_use_is_said_in_one_sentence_and_leaves_nothing_running(home: Path) -> None:
    import socket

    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        ran = run(home, "up", "--port", str(held.getsockname()[1]))
    assert ran.code == 1
    assert "The node ended at once" in ran.err
    assert local.remembered(home) is None


def test_a_directory_in_use_is_told_before_a_port_in_use(ringpost_broker: Any, tmp_path: Path) -> None:
    places = ("--data-dir", str(ringpost_broker.data_dir), "--http-listen", ringpost_broker.http)
    ran = run_cli("serve", *places, "--listen", ringpost_broker.address, addr="", home=tmp_path)
    assert ran.code == 2
    assert "in use by another process" in ran.err
    elsewhere = ("--data-dir", str(tmp_path / "d"), *places[2:], "--listen", "127.0.0.1:0")
    other = run_cli("serve", *elsewhere, addr="", home=tmp_path)
    assert (other.code, "http_listen: cannot bind" in other.err) == (2, True)


def test_the_home_is_named_by_the_environment() -> None:
    assert local.home({"RINGPOST_HOME": "/x"}) == Path("/x")
    assert local.home({"XDG_STATE_HOME": "/state"}) == Path("/state/ringpost")
    assert local.home({}) == Path.home() / ".local/state/ringpost"


def test_a_pid_that_now_belongs_to_another_process_is_not_our_node() -> None:
    me = psutil.Process()
    node = local.LocalNode(me.pid, me.create_time(), "127.0.0.1:1", "", "data", "log")
    assert local.running(node)
    assert not local.running(replace(node, started=node.started - 100))
    assert not local.running(None)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 1}'])
def test_a_broken_state_file_means_no_node(tmp_path: Path, content: str) -> None:
    (tmp_path / "node.json").write_text(content)
    assert local.remembered(tmp_path) is None


def test_purge_refuses_a_directory_that_is_not_a_node_s(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("years of work")
    with pytest.raises(local.LocalNodeError, match="holds no journal"):
        local.purge(tmp_path, tmp_path / "home")
    assert (tmp_path / "home" / "thesis.txt").exists()


def test_purge_removes_a_node_s_directory_and_its_state(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "0000000000000001.journal").write_bytes(b"")
    (tmp_path / "node.json").write_text(json.dumps({}))
    local.purge(tmp_path, data)
    assert not list(tmp_path.iterdir())
