"""`--workers`: several processes of one host behind one address, with a real etcd."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import psutil
import pytest

from ringpost.client import connect
from ringpost.v1.cluster_pb2 import GetRoutesRequest, ListNodesRequest
from tests.etcd_server import EtcdServer
from tests.integration.broker import Client, until

pytestmark = pytest.mark.slow

WORKERS = 3
START_SECONDS_MAX = 60.0


class Host:
    """A supervisor on free ports; `said` is its line."""

    def __init__(self, process: subprocess.Popen[bytes], said: dict[str, Any]) -> None:
        self.process = process
        self.said = said
        self.address: str = said["listen"]

    @property
    def workers(self) -> dict[str, dict[str, Any]]:
        return {worker["node"]: worker for worker in self.said["workers"]}

    def health(self, part: str) -> tuple[int, dict[str, str]]:
        """Status, and what each worker says. Blocks."""
        try:
            with urlopen(f"http://{self.said['http']}/health/{part}", timeout=10) as answer:
                return answer.status, json.load(answer)["workers"]
        except HTTPError as error:
            return error.code, json.load(error)["workers"]


def start(tmp_path: Path, etcd: EtcdServer) -> "subprocess.Popen[bytes]":
    free = ("--listen", "127.0.0.1:0", "--peer-listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0")
    store = ("--coordination", "etcd", "--etcd-endpoints", etcd.endpoints[0], "--lease-ttl-s", "2")
    command = [sys.executable, "-m", "ringpost.node", "--node", "alpha", "--workers", str(WORKERS), *free, *store]
    command += ["--data-dir", str(tmp_path / "data"), "--shard-count", "16", "--segment-bytes", "16MiB"]
    with (tmp_path / "stderr").open("wb") as stderr:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr)


def stop(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(START_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@asynccontextmanager
async def host(tmp_path: Path) -> AsyncIterator[Host]:
    etcd = EtcdServer(tmp_path / "etcd").start()
    process = start(tmp_path, etcd)
    assert process.stdout is not None
    try:
        async with asyncio.timeout(START_SECONDS_MAX):
            line = await asyncio.to_thread(process.stdout.readline)
        assert line, (tmp_path / "stderr").read_text()
        yield Host(process, json.loads(line))
    finally:
        await asyncio.to_thread(stop, process)
        process.stdout.close()
        etcd.close()


async def node_at(address: str) -> str:
    """Who answers a connection of its own."""
    async with Client(address) as client:
        return (await client.node()).node


async def test_any_worker_answers_at_the_one_address_and_names_each_ones_own(tmp_path: Path) -> None:
    async with host(tmp_path) as alpha:
        names = sorted(alpha.workers)
        assert names == ["alpha-1", "alpha-2", "alpha-3"]
        assert {await node_at(alpha.address) for _ in range(60)} == set(names), "each gets some of the connections"
        async with Client(alpha.address) as client:
            routes = await client.cluster.GetRoutes(GetRoutesRequest(), timeout=10)
            assert {one.node: one.address for one in routes.nodes} == {
                name: worker["listen"] for name, worker in alpha.workers.items()
            }
            members = (await client.cluster.ListNodes(ListNodesRequest(), timeout=10)).members
            assert {(member.zone, member.host) for member in members} == {("", "alpha")}
        for name, worker in alpha.workers.items():
            assert await node_at(worker["listen"]) == name
        assert await asyncio.to_thread(alpha.health, "ready") == (200, dict.fromkeys(names, "SERVING"))
        alpha.process.terminate()
        assert await asyncio.to_thread(alpha.process.wait, START_SECONDS_MAX) == 0


async def test_without_their_supervisor_the_workers_stop(tmp_path: Path) -> None:
    async with host(tmp_path) as alpha:
        workers = [psutil.Process(worker["pid"]) for worker in alpha.workers.values()]
        alpha.process.kill()
        await until(lambda: not any(map(_lives, workers)), "all have stopped", seconds=60)


def _lives(process: psutil.Process) -> bool:
    """Whoever inherits it may take its time to collect it."""
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


async def test_a_worker_is_killed_and_nothing_that_was_acknowledged_is_lost(tmp_path: Path) -> None:
    async with host(tmp_path) as alpha, connect(alpha.address) as mq:
        channels = [f"orders.{number}" for number in range(6)]
        stored: dict[str, dict[int, str]] = {channel: {} for channel in channels}
        got: dict[str, dict[int, str]] = {channel: {} for channel in channels}
        stopping = asyncio.Event()

        async def produce(channel: str) -> None:
            number = 0
            while not stopping.is_set():
                text = f"{channel} {number}"
                stored[channel][(await mq.publish(channel, text)).offset] = text
                number += 1

        async def consume(channel: str) -> None:
            async for message in mq.subscription(channel, start="earliest"):
                got[channel][message.offset] = message.data.decode()

        def count() -> int:
            return sum(map(len, stored.values()))

        readers = [asyncio.ensure_future(consume(channel)) for channel in channels]
        producers = [asyncio.ensure_future(produce(channel)) for channel in channels]
        await until(lambda: count() > 200, "messages are stored", seconds=60)
        os.kill(alpha.workers["alpha-2"]["pid"], signal.SIGKILL)
        before = count()
        await until(lambda: all(len(of) > 50 for of in stored.values()) and count() > before + 300, "it goes on", 60)
        everybody = (200, dict.fromkeys(sorted(alpha.workers), "SERVING"))

        async def whole() -> bool:
            return await asyncio.to_thread(alpha.health, "startup") == everybody

        await until(whole, "the worker is there again", seconds=60)
        stopping.set()
        await asyncio.gather(*producers)
        await until(lambda: all(stored[c].items() <= got[c].items() for c in channels), "all is read", seconds=60)
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)
    lines = [json.loads(line) for line in (tmp_path / "stderr").read_text().splitlines() if line.startswith("{")]
    (ended,) = [line for line in lines if line["event"] == "worker.ended"]
    assert (ended["worker"], ended["code"]) == ("alpha-2", -9)
