"""`python -m ringpost.node`: runs one node until SIGTERM or SIGINT; exit 0 after a clean stop.

When it serves, one JSON line on standard output says where; everything else goes to standard error.
"""

import asyncio
import contextlib
import json
import os
import resource
import signal
import sys

import uvloop

from ringpost.node import log
from ringpost.node.binding import StartError
from ringpost.node.config import Config, ConfigError, load_config
from ringpost.node.reload import reload, worker_of
from ringpost.node.server import Server
from ringpost.node.storage import UNREADABLE
from ringpost.node.supervisor import supervise

# The journal's writer and gRPC's poller wait for the interpreter while the loop works: the default of 5 ms is long
# beside an fsync.
SWITCH_INTERVAL_S = 0.0005


def main() -> int:
    """Exit 0: stopped as asked. 1: the disk failed while running. 2: it could not start."""
    try:
        config = load_config(sys.argv[1:], os.environ)
    except ConfigError as error:
        print(f"ringpost: {error}", file=sys.stderr)
        return 2
    if config.workers > 1:
        return supervise(config, sys.argv[1:])
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    allow_descriptors()
    log.configure(config.log_level, config.log_format, worker=worker_of(config))
    return uvloop.run(run(config))


def allow_descriptors() -> None:
    """As many open files and connections as the system lets this process ask for."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(ValueError, OSError):  # macOS takes less than it names
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def run(config: Config) -> int:
    """Starts, serves, stops."""
    server = Server(config)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, server.stopped.set)

    def again() -> None:
        reload(server, lambda: load_config(sys.argv[1:], os.environ))

    try:
        await server.start()
    except (StartError, OSError, *UNREADABLE) as error:
        print(f"ringpost: {error}", file=sys.stderr)
        return 2
    loop.add_signal_handler(signal.SIGHUP, again)
    print(json.dumps(serving_line(server)), flush=True)
    await server.stopped.wait()
    await server.stop()
    return 1 if server.failed else 0


def serving_line(server: Server) -> dict[str, object]:
    """What is said on standard output when a node serves."""
    config = server.config

    def bound(address: str, port: int) -> str:
        return f"{address.rpartition(':')[0]}:{port}" if port else ""

    return {
        "event": "serving",
        "node": config.node,
        "listen": bound(config.listen, server.port),
        **({"shared": bound(config.shared_listen, server.shared_port)} if config.shared_listen else {}),
        "peer": bound(config.peer_listen, server.peer_port),
        "http": bound(config.http_listen, server.http_port),
        "pid": os.getpid(),
    }


if __name__ == "__main__":
    # Without the interpreter's clean-up: gRPC's threads and an event loop that is gone do not mix.
    sys.stdout.flush()
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
