"""A real broker as a child process, for tests; usable without pytest."""

import atexit
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

_MODULE = "ringpost.node"
_LOG_TAIL = 4_000


class BrokerFailed(RuntimeError):  # noqa: N818
    """The node did not start to serve, or did not stop; the end of its log is in the text."""


class BrokerProcess:
    """One node on free ports of 127.0.0.1. `start` it, or use it as a context manager.

    `data_dir` None: a temporary one, removed by `stop`. `environ` is added to the node's environment, `arguments` to
    its command line. Ports chosen at the first start are kept for the next ones, so clients find it again.
    """

    def __init__(
        self,
        data_dir: str | Path | None = None,
        *,
        node: str = "test-1",
        arguments: tuple[str, ...] = (),
        environ: Mapping[str, str] | None = None,
        timeout: float = 30.0,
    ) -> None:
        self._temporary = data_dir is None
        self.data_dir = Path(tempfile.mkdtemp(prefix="ringpost-")) if data_dir is None else Path(data_dir)
        self.node = node
        # host:port for clients and for HTTP; known once it has served.
        self.address = ""
        self.http = ""
        self.timeout = timeout
        self._arguments = arguments
        self._environ = dict(environ or {})
        self._process: subprocess.Popen[bytes] | None = None
        self._drain: threading.Thread | None = None

    @property
    def pid(self) -> int | None:
        """The process's id while it runs."""
        return self._process.pid if self.running and self._process is not None else None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> str:
        """What the node wrote to stderr, over all its starts."""
        path = self._log_path
        return path.read_text(errors="replace") if path.exists() else ""

    @property
    def _log_path(self) -> Path:
        # Beside the data, not in it: the directory's content is the node's own.
        return self.data_dir.with_name(self.data_dir.name + ".log")

    def start(self) -> Self:
        """Starts the node and returns when it serves. Raises `BrokerFailed`."""
        if self.running:
            raise BrokerFailed("the broker runs already")
        self.data_dir.mkdir(parents=True, exist_ok=True)
        command = [
            *(sys.executable, "-m", _MODULE, "--data-dir", str(self.data_dir), "--node", self.node),
            *("--listen", self.address or "127.0.0.1:0", "--http-listen", self.http or "127.0.0.1:0"),
            *self._arguments,
        ]
        with self._log_path.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, **self._environ},
            )
        atexit.register(self.kill)
        try:
            serving = self._wait_until_serving()
            self.address, self.http = serving["listen"], serving.get("http", "")
            self._check_health()
        except BaseException:
            self.kill()
            raise
        return self

    def _wait_until_serving(self) -> dict[str, Any]:
        """The node's "serving" line."""
        process = self._process
        assert process is not None
        assert process.stdout is not None
        timer = threading.Timer(self.timeout, process.kill)
        timer.start()
        try:
            for line in process.stdout:
                event = _json_object(line)
                if event.get("event") == "serving":
                    # Whatever it prints later must not fill the pipe.
                    self._drain = threading.Thread(target=deque, args=(process.stdout, 0), daemon=True)
                    self._drain.start()
                    return event
        finally:
            timer.cancel()
        code = process.wait()
        tail = self.log[-_LOG_TAIL:]
        raise BrokerFailed(f"the node ended (exit code {code}) within {self.timeout} s without serving:\n{tail}")

    def _check_health(self) -> None:
        """Asks grpc.health.v1 once more: the line says that it serves, this proves that it answers."""
        import grpc
        from grpc_health.v1 import health_pb2, health_pb2_grpc

        with grpc.insecure_channel(self.address, options=[("grpc.use_local_subchannel_pool", 1)]) as channel:
            check = health_pb2_grpc.HealthStub(channel).Check
            answer = check(health_pb2.HealthCheckRequest(), timeout=self.timeout, wait_for_ready=True)
        if answer.status != health_pb2.HealthCheckResponse.SERVING:
            raise BrokerFailed(f"the node at {self.address} does not serve: health status {answer.status}")

    def kill(self) -> None:
        """SIGKILL: a crash. The data stay. Fine when it is not running."""
        process = self._process
        if process is not None:
            process.kill()
            self._reap(process)

    def terminate(self) -> None:
        """SIGTERM, and waits for the clean end; the data stay. Raises `BrokerFailed` unless it ends with code 0."""
        process = self._process
        if process is None or process.poll() is not None:
            return
        process.send_signal(signal.SIGTERM)
        try:
            code = process.wait(self.timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise BrokerFailed(f"the node did not stop within {self.timeout} s:\n{self.log[-_LOG_TAIL:]}") from None
        self._reap(process)
        if code != 0:
            raise BrokerFailed(f"the node stopped with exit code {code}:\n{self.log[-_LOG_TAIL:]}")

    def restart(self) -> Self:
        """Stops it cleanly if it runs, starts it again on the same data and ports."""
        self.terminate()
        return self.start()

    def stop(self) -> None:
        """Stops it cleanly if it runs, and removes temporary data."""
        try:
            self.terminate()
        finally:
            self.kill()
            if self._temporary:
                shutil.rmtree(self.data_dir, ignore_errors=True)
                self._log_path.unlink(missing_ok=True)

    def _reap(self, process: "subprocess.Popen[bytes]") -> None:
        process.wait()
        if self._drain is not None:
            self._drain.join()
            self._drain = None
        if process.stdout is not None:
            process.stdout.close()
        self._process = None
        atexit.unregister(self.kill)

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.stop()
            raise

    def __exit__(self, *_: object) -> None:
        self.stop()


def _json_object(line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
