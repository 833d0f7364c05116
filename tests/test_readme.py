"""The README's first five minutes, run as they are printed."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

README = Path(__file__).resolve().parent.parent / "README.md"


def blocks(title: str) -> list[tuple[str, str]]:
    """The language and the text of each block below a title."""
    section = README.read_text().split(f"\n## {title}\n")[1].split("\n## ")[0]
    return [(m[1], m[2]) for m in re.finditer(r"^```(\w*)\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)]


BLOCKS = blocks("The first five minutes")
MODES = blocks("Groups: which mode do I want")
REQUESTS = blocks("Request and reply")
PATTERNS = blocks("Many channels at once: patterns")
TOKENS = blocks("Settling without the stream")
LATER = blocks("Later, and not too late")
FILTERS = blocks("Filters")
PRINTED_ADDRESS = "localhost:7400"
SECONDS = 60


def commands() -> list[str]:
    """The lines for the shell, in their order."""
    return [line for language, text in BLOCKS if not language for line in text.splitlines() if line]


def snippet(section: list[tuple[str, str]]) -> str:
    (text,) = [text for language, text in section if language == "python"]
    assert text.count(PRINTED_ADDRESS) == 1
    return text


def run_snippet(address: str, program: str) -> list[str]:
    program = program.replace(PRINTED_ADDRESS, address)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


class Shell:
    """Runs commands as a person's shell in the activated environment would, on a home of its own."""

    def __init__(self, home: Path) -> None:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.env = {**os.environ, "PATH": path, "RINGPOST_HOME": str(home)}
        self.env.pop("RINGPOST_ADDR", None)

    def run(self, line: str) -> str:
        done = subprocess.run(
            ["bash", "-c", line], env=self.env, capture_output=True, text=True, timeout=SECONDS, check=False
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        return done.stdout

    def begin(self, line: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(["bash", "-c", f"exec {line}"], env=self.env, stdout=subprocess.PIPE, text=True)


def test_the_python_program_ends_however_often_it_is_run(ringpost_broker: Any) -> None:
    for first in (0, 10):
        printed = run_snippet(ringpost_broker.address, snippet(BLOCKS))
        orders = [f"{first + n} b'order {n}'" for n in range(10)]
        assert [line for line in printed if "order" in line] == orders
        assert any(line.endswith(" quorum") for line in printed)


def test_the_price_is_asked_and_answered(ringpost_broker: Any) -> None:
    for _ in range(2):
        assert run_snippet(ringpost_broker.address, snippet(REQUESTS)) == ["XAU: 42"]


def test_a_pattern_has_channels_that_are_made_later(ringpost_broker: Any) -> None:
    for _ in range(2):
        assert run_snippet(ringpost_broker.address, snippet(PATTERNS)) == ["parts.eu bolt", "parts.us nut"]


def test_deliveries_are_settled_without_their_stream(ringpost_broker: Any) -> None:
    for _ in range(2):
        assert run_snippet(ringpost_broker.address, snippet(TOKENS)) == ["0 0 1", "1 1 2", "2 2 1"]


def test_delayed_messages_come_in_their_order(ringpost_broker: Any) -> None:
    later = snippet(LATER)
    assert "delay=0.2)" in later
    assert "seconds=0.1)" in later
    later = later.replace("delay=0.2)", "delay=4)").replace("seconds=0.1)", "seconds=2)")  # for a slow machine
    printed = run_snippet(ringpost_broker.address, later)
    assert printed == ["True -1", "now", "call Bob", "call Ann", "0"]


def test_the_modes_do_what_is_said_of_them(ringpost_broker: Any) -> None:
    key_ordered, failover, broadcast = (text for _, text in MODES)
    assert "nack(delay=1.0)" in key_ordered
    key_ordered = key_ordered.replace("nack(delay=1.0)", "nack(delay=3.0)")  # a slow machine needs longer for Bob's
    for _ in range(2):
        printed = run_snippet(ringpost_broker.address, key_ordered)
        assert printed == ["Bob 0", "Bob 1", "Bob 2", "Ann 0", "Ann 1", "Ann 2"]
    assert run_snippet(ringpost_broker.address, failover) == ["[('worker-1', True)]"]
    for _ in range(2):
        assert run_snippet(ringpost_broker.address, broadcast) == ["[('cache-1', 0), ('cache-2', 0)]"]


def test_filters_let_through_what_is_said_and_a_mistake_is_answered_as_printed(ringpost_broker: Any) -> None:
    assert run_snippet(ringpost_broker.address, snippet(FILTERS)) == [
        *("1 us 1", "3 asia 3", "eu 0", "eu 2"),
        "config.filter: goes wrong at line 1, column 5: '=' has no meaning here; equality is ==",
    ]


def test_the_commands_work_in_their_order(tmp_path: Path) -> None:
    setup, up, sub, pub, verify, down = commands()
    assert setup.startswith("make setup && source .venv/bin/activate")
    shell = Shell(tmp_path)
    # Whoever runs the tests may have a node of their own on the usual port.
    serves = shell.run(up.replace("ringpost up", "ringpost up --port 0"))
    found = re.search(r"127\.0\.0\.1:\d+", serves)
    try:
        assert found
        shell.env["RINGPOST_ADDR"] = found[0]
        with shell.begin(sub) as waiting:
            assert " offset 0 " in shell.run(pub)
            assert waiting.stdout is not None
            assert '"data": "hello"' in waiting.stdout.readline()
            waiting.send_signal(signal.SIGINT)
            assert waiting.wait(SECONDS) == 130
        assert "OK: every promise was kept" in shell.run(verify.replace("--seconds 10", "--seconds 3"))
        assert len(run_snippet(found[0], snippet(BLOCKS))) >= 11
    finally:
        shell.run(down)
