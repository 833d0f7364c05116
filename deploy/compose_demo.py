"""`make compose-demo`: the cluster of compose.yaml, while containers are killed, paused, cut off and made anew.

Numbered messages are published and read all the while; at the end `ringpost verify` says whether one was lost, doubled
or out of order. Needs a Docker engine and compose, 1.29 or v2; nothing but Python beside them. Everything is removed.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PROJECT = "ringpost-demo"
NODES = ("node1", "node2", "node3")
ADDRESSES = ",".join(f"{node}:7400" for node in NODES)
ETCD_IMAGES = ("rancher/mirrored-coreos-etcd:v3.5.12", "ringpost-etcd:latest")
SECONDS = 110
HEAL_SECONDS = 60.0
# How long each fault lasts: longer than the lease, but for the node that is killed.
KILLED_S, FROZEN_S, CUT_S, ETCD_AWAY_S = 3, 8, 8, 10
# The ports are bound where no node of this machine listens.
BIND = "127.0.0.77"


class DemoError(Exception):
    """It cannot be played, or a promise was broken; the message says why."""


def run(*command: str, check: bool = True) -> str:
    """Output of a command. Raises `DemoError` when it fails."""
    done = subprocess.run(command, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if check and done.returncode:
        raise DemoError(f"`{' '.join(command)}` failed: {(done.stderr or done.stdout).strip()}")
    return done.stdout.strip()


def succeeds(*command: str) -> bool:
    return subprocess.run(command, check=False, capture_output=True, stdin=subprocess.DEVNULL).returncode == 0


def missing() -> str:
    """What this machine lacks; empty when it lacks nothing."""
    if shutil.which("docker") is None or not succeeds("docker", "version"):
        return "this needs a Docker engine that answers; on Debian: apt-get install docker.io"
    if compose() is None:
        return "this needs docker-compose 1.29 or compose v2; on Debian: apt-get install docker-compose"
    return ""


def compose() -> list[str] | None:
    """The command of compose, v2 before 1.29."""
    if succeeds("docker", "compose", "version"):
        return ["docker", "compose"]
    return ["docker-compose"] if shutil.which("docker-compose") else None


def etcd_image() -> str:
    """The first that is there or can be pulled. Raises `DemoError`."""
    for image in (os.environ.get("ETCD_IMAGE"), *ETCD_IMAGES):
        if image and (succeeds("docker", "image", "inspect", image) or succeeds("docker", "pull", "-q", image)):
            return image
    raise DemoError("There is no image of etcd, and none can be pulled: `deploy/image/build.sh etcd` makes one.")


class Cluster:
    """The project of compose; `down` removes it with its messages."""

    def __init__(self) -> None:
        os.environ.update(ETCD_IMAGE=etcd_image(), BIND=BIND, METRICS_BIND=BIND)
        image = os.environ.get("RINGPOST_IMAGE", "ringpost:latest")
        if not succeeds("docker", "image", "inspect", image):
            raise DemoError(f"There is no image {image}: `make image` makes it.")
        self._compose = [*(compose() or []), "-p", PROJECT, "-f", str(HERE / "compose.yaml")]

    def compose(self, *arguments: str, check: bool = True) -> str:
        return run(*self._compose, *arguments, check=check)

    def up(self) -> None:
        self.down()  # what an earlier run has left
        self.compose("up", "-d", "etcd", *NODES)

    def down(self) -> None:
        self.compose("down", "-v", "--remove-orphans", check=False)

    def container(self, service: str) -> str:
        return run(*self._compose, "ps", "-q", service)

    def verify(self) -> "subprocess.Popen[str]":
        """Begins to publish and read, for `SECONDS`."""
        load = ("verify", "--seconds", str(SECONDS), "--rate", "200", "--groups", "2", "-o", "json")
        command = [*self._compose, "run", "--rm", "-T", "cli", *load]
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def await_whole(self) -> float:
        """Until every node is healthy and says that every copy is in sync; how long that took."""
        begin = time.monotonic()
        while time.monotonic() - begin < HEAL_SECONDS:
            if all(self._is_whole(node) for node in NODES):
                return time.monotonic() - begin
            time.sleep(0.5)
        raise DemoError(
            f"The cluster did not get whole within {HEAL_SECONDS:.0f} s.\n{self.compose('logs', '--tail', '5')}"
        )

    def _is_whole(self, node: str) -> bool:
        ask = ("ringpost", "cluster", "status", "--addr", "127.0.0.1:7400", "-o", "json")
        try:
            status = json.loads(run("docker", "exec", self.container(node), *ask))
        except (DemoError, ValueError):
            return False
        return status["shard_count"] > 0 and not status["offline_shards"] and not status["under_replicated_shards"]

    # -- what is done to it -----------------------------------------------------------------------------------------

    def kill(self) -> None:
        """node1's container is killed and started again."""
        one = self.container("node1")
        run("docker", "kill", one)
        time.sleep(KILLED_S)
        run("docker", "start", one)

    def pause(self) -> None:
        """node2's container is frozen."""
        one = self.container("node2")
        run("docker", "pause", one)
        time.sleep(FROZEN_S)
        run("docker", "unpause", one)

    def disconnect(self) -> None:
        """node3's container is cut off from the network."""
        one, network = self.container("node3"), f"{PROJECT}_default"
        run("docker", "network", "disconnect", network, one)
        time.sleep(CUT_S)
        run("docker", "network", "connect", "--alias", "node3", network, one)

    def stop_etcd(self) -> None:
        """etcd's container is stopped."""
        one = self.container("etcd")
        run("docker", "kill", one)
        time.sleep(ETCD_AWAY_S)
        run("docker", "start", one)

    def recreate(self) -> None:
        """All nodes are made anew, one after the other."""
        for node in NODES:
            self.compose("stop", node)
            self.compose("rm", "-f", node)
            self.compose("up", "-d", "--no-deps", node)
            self.await_whole()


def play(say: Callable[[str], None]) -> dict[str, Any]:
    """The whole story; what `verify` found. Raises `DemoError`."""
    cluster = Cluster()
    say("starting etcd and three nodes")
    try:
        cluster.up()
        say(f"every copy in sync after {cluster.await_whole():.0f} s")
        verifying = cluster.verify()
        begin = time.monotonic()
        try:
            for fault in (cluster.kill, cluster.pause, cluster.disconnect, cluster.stop_etcd, cluster.recreate):
                say(f"{time.monotonic() - begin:4.0f} s: {fault.__doc__ or ''}")
                fault()
                say(f"        every copy in sync {cluster.await_whole():.0f} s later")
            if verifying.poll() is not None or time.monotonic() - begin > SECONDS:
                raise DemoError(f"The faults took longer than the {SECONDS} s in which messages were published.")
            out, error = verifying.communicate(timeout=SECONDS + 120)
        finally:
            if verifying.poll() is None:
                verifying.kill()
                verifying.wait()
        if verifying.returncode:
            raise DemoError(f"`verify` ended with {verifying.returncode}:\n{out}\n{error}")
        report: dict[str, Any] = json.loads(out)
        return report
    finally:
        say("removing it all")
        cluster.down()


def main() -> int:
    if lacking := missing():
        print(f"compose-demo: {lacking}", file=sys.stderr)
        return 2
    try:
        report = play(lambda line: print(line, flush=True))
    except DemoError as error:
        print(f"compose-demo: {error}", file=sys.stderr)
        return 1
    pause = max(report["channel_pauses"].values())
    print(
        f"{report['acked']:,} messages acknowledged, {report['group_acked']:,} times acked by groups: "
        f"{report['lost']} lost, {report['duplicated']} doubled, {report['reordered']} out of order; "
        f"longest pause of a channel {pause:.1f} s."
    )
    return 0 if report["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
