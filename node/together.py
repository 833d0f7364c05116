"""`python -m ringpost.node.together`: several nodes of one cluster in one process, for trying out without etcd.

They are members as any others, with their own ports, journals and replicas; only what etcd would keep is kept in this
process, and in a file beside their data. One JSON line a node on standard output says where it serves.
"""

import argparse
import asyncio
import json
import os
import signal
import sys
from pathlib import Path

import uvloop

from ringpost.cluster.memory_kv import MemoryKv, MemoryStore
from ringpost.node import log
from ringpost.node.__main__ import SWITCH_INTERVAL_S, serving_line
from ringpost.node.binding import StartError
from ringpost.node.config import Config, ConfigError
from ringpost.node.server import Server
from ringpost.node.storage import UNREADABLE

NODES_MAX = 9
_PORTS_PER_NODE = 10


def main() -> int:
    """Exit 0: stopped as asked. 1: a disk failed while running. 2: they could not start."""
    parser = argparse.ArgumentParser(prog="python -m ringpost.node.together", description=__doc__)
    parser.add_argument("--nodes", type=int, required=True, help=f"how many, 1 to {NODES_MAX}")
    parser.add_argument("--data-dir", type=Path, required=True, help="a folder; each node has one below it")
    parser.add_argument("--listen-base-port", type=int, required=True, help="first node's port; 0: free ones")
    parser.add_argument("--replication-factor", type=int, default=3)
    parser.add_argument("--zones", default="", help="zones of the nodes, with commas between them")
    options = parser.parse_args()
    if not 1 <= options.nodes <= NODES_MAX:
        parser.error(f"--nodes: is {options.nodes}, allowed are 1 to {NODES_MAX}")
    try:
        configs = [config_of(options, number) for number in range(1, options.nodes + 1)]
    except ConfigError as error:
        parser.error(str(error))
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    log.configure("info", "json")
    options.data_dir.mkdir(parents=True, exist_ok=True)
    return uvloop.run(run(configs, options.data_dir))


def config_of(options: argparse.Namespace, number: int) -> Config:
    """Settings of the node of that number, from 1. Raises ConfigError."""
    zones = [zone for zone in options.zones.split(",") if zone]
    base = options.listen_base_port + _PORTS_PER_NODE * (number - 1) if options.listen_base_port else 0
    client, peer, http = (base + i if base else 0 for i in range(3))
    factor = min(options.replication_factor, options.nodes)
    return Config(
        node=f"n{number}",
        data_dir=options.data_dir / f"node-{number}",
        listen=f"127.0.0.1:{client}",
        peer_listen=f"127.0.0.1:{peer}",
        http_listen=f"127.0.0.1:{http}",
        zone=zones[(number - 1) % len(zones)] if zones else "",
        replication_factor=factor,
        min_isr=min(2, factor),
    )


async def run(configs: list[Config], folder: Path) -> int:
    """Starts all, serves, stops all."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    store = MemoryStore(loop, folder / "coordination.json", in_thread=True)
    servers = [Server(config, kv=MemoryKv(store)) for config in configs]
    try:
        await asyncio.gather(*(server.start() for server in servers))
    except (StartError, OSError, *UNREADABLE) as error:
        print(f"ringpost: {error}", file=sys.stderr)
        return 2
    for server in servers:
        print(json.dumps(serving_line(server)), flush=True)
    ends = [asyncio.ensure_future(event.wait()) for event in (stopped, *(server.stopped for server in servers))]
    await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
    for end in ends:
        end.cancel()
    await asyncio.gather(*(server.stop() for server in servers))
    return 1 if any(server.failed for server in servers) else 0


if __name__ == "__main__":
    # As in `ringpost.node.__main__`.
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
