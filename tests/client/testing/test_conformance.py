"""The conformance script passes a client that is right, and finds each of the faults that a client may have."""

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ringpost.client.testing.broker import BrokerProcess
from ringpost.client.testing.conformance.run import CHECKS, results
from ringpost.client.testing.conformance.targets import Given

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "client" / "WRITING_A_CLIENT.md").read_text()
CLIENT = [sys.executable, str(Path(__file__).with_name("faulty_client.py"))]
# Each fault, and the checks that must see it.
FAULTS = {
    "disorder": ["publish.content"],
    "one by one": ["publish.batches"],
    "no checksum": ["publish.checksum", "subscribe.checksum"],
    "no producer": ["publish.numbers", "publish.lost-answer"],
    "new producer": ["publish.lost-answer"],
    "no window": ["publish.window"],
    "impatient": ["publish.not-now"],
    "hot loop": ["publish.backoff"],
    "gives up": ["publish.busy", "publish.drain", "subscribe.resume", "subscribe.drain", "group.moved", "group.resume"],
    "greedy": ["subscribe.credit", "group.credit"],
    "from the start": ["subscribe.resume"],
    "deaf": ["subscribe.silence"],
    "small": ["subscribe.large"],
    "no gaps": ["subscribe.gap"],
    "no ack": ["group.ack", "group.durable"],
    "no nack": ["group.nack"],
    "forgetful": ["group.lost-answer"],
    "stubborn": ["error."],
    "says nothing": ["error."],
    "no token": ["security.tls-and-token"],
}
# They cannot be seen on one node, or by a client that prints what it gets.
UNSEEN = {"failover.publish", "failover.subscribe", "failover.group"}
OTHERWISE = {"publish.acknowledged", "subscribe.content", "subscribe.from"}


@pytest.fixture(scope="module")
def node() -> Iterator[Given]:
    settings = {"RINGPOST_AUTO_CREATE_CHANNELS": "false", "RINGPOST_MAX_MESSAGE_BYTES": "4MiB"}
    with BrokerProcess(environ=settings) as broker:
        yield Given([broker.address])


async def test_a_client_that_is_right_passes(node: Given) -> None:
    found = [result async for result in results(CLIENT, node)]
    assert [str(result) for result in found if result.outcome == "FAIL"] == []
    assert {result.check.name for result in found if result.outcome == "left out"} == UNSEEN
    assert [result.check.name for result in found] == [one.name for one in CHECKS]


async def test_every_fault_is_found(node: Given) -> None:
    some = asyncio.Semaphore(3)

    async def outcomes(fault: str) -> dict[str, str]:
        command = ["env", f"RINGPOST_TEST_FAULT={fault}", *CLIENT]
        async with some:
            return {one.check.name: one.outcome async for one in results(command, node, FAULTS[fault], seconds=5.0)}

    found = dict(zip(FAULTS, await asyncio.gather(*map(outcomes, FAULTS)), strict=True))
    missed = {f"{fault}: {name}" for fault, judged in found.items() for name, is_ in judged.items() if is_ != "FAIL"}
    assert missed == set()
    assert all(found.values())


def test_each_check_has_a_fault_that_it_finds() -> None:
    seen = tuple(name for names in FAULTS.values() for name in names)
    assert {one.name for one in CHECKS if not one.name.startswith(seen)} == UNSEEN | OTHERWISE


async def test_lines_that_are_not_in_the_contract_are_a_fault(node: Given) -> None:
    found = [result async for result in results(["echo"], node, ["subscribe.from"])]
    assert [result.outcome for result in found] == ["FAIL"]
    assert "not in the contract" in found[0].seen


def test_the_page_for_authors_names_reasons_that_there_are() -> None:
    named = set(re.findall(r"`([A-Z]+(?:_[A-Z]+)*)`", PAGE))
    sources = [*(ROOT / "node").rglob("*.py"), *(ROOT / "proto" / "ringpost" / "v1").glob("*.proto")]
    said = set(re.findall(r"\b[A-Z]+(?:_[A-Z]+)*\b", "\n".join(path.read_text() for path in sources)))
    assert named
    assert named - said == set()


def test_the_page_for_authors_lists_every_check() -> None:
    checklist = PAGE.split("\n## Checklist\n")[1].split("\n## ")[0]
    listed = [word for word in checklist.split("`") if word.split(".")[0] in {one.name.split(".")[0] for one in CHECKS}]
    assert listed == [one.name for one in CHECKS]


@pytest.mark.parametrize(
    ("fault", "code", "last"),
    [("", 0, "2 ok"), ("small", 1, "1 ok, 1 FAIL"), ("unreachable", 2, "")],
    ids=["right", "faulty", "unreachable"],
)
async def test_the_command_says_what_it_found_and_so_does_its_exit_code(
    node: Given, fault: str, code: int, last: str
) -> None:
    nodes = "127.0.0.1:1" if fault == "unreachable" else node.addresses[0]
    only = ("--only", "subscribe.large", "--only", "subscribe.from")
    done = await asyncio.to_thread(
        subprocess.run,
        [
            sys.executable,
            "-m",
            "ringpost.client.testing.conformance",
            "--nodes",
            nodes,
            *only,
            "--seconds",
            "4",
            "--",
            *CLIENT,
        ],
        env={**os.environ, "RINGPOST_TEST_FAULT": fault},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert done.stdout.splitlines()[-1:] == [last] * bool(last)
    assert (done.stderr == "") == bool(last)
