"""The health check of containers, against an HTTP server that answers as a node does."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from ringpost.node.probe import main, probe


class Answers(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        well = self.path == "/health/ready"
        self.send_response(200 if well else 503)
        self.end_headers()
        self.wfile.write(b"well" if well else b"the disk is full")

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def port() -> Iterator[int]:
    with HTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def test_it_says_what_the_node_says(port: int) -> None:
    environment = {"RINGPOST_HTTP_LISTEN": f"0.0.0.0:{port}"}
    assert probe("ready", environment) == (True, "well")
    assert probe("storage", environment) == (False, "the disk is full")


def test_nobody_there_is_not_well() -> None:
    well, text = probe("ready", {"RINGPOST_HTTP_LISTEN": "127.0.0.1:9"})
    assert not well
    assert text.startswith("no answer from 127.0.0.1:9")


def test_exit_codes(port: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RINGPOST_HTTP_LISTEN", f"127.0.0.1:{port}")
    assert [main(arguments) for arguments in ([], ["ready"], ["storage"], ["what"], ["ready", "live"])] == [
        0,
        0,
        1,
        2,
        2,
    ]
    assert "one of live, ready, startup, storage" in capsys.readouterr().err
