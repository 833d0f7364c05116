"""A node as a child process and the generated stubs to talk to it.

Nothing of the SDK is used here, so that these are tests of the protocol: what a client in another language meets.
"""

import asyncio
import inspect
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, Self
from urllib.request import urlopen

import grpc
import psutil
from google.rpc import error_details_pb2, status_pb2
from prometheus_client.parser import text_string_to_metric_families

from ringpost.v1.channel_pb2 import ChannelInfo, ListChannelsRequest
from ringpost.v1.channel_pb2_grpc import ChannelServiceStub
from ringpost.v1.cluster_pb2 import GetNodeRequest, NodeInfo
from ringpost.v1.cluster_pb2_grpc import ClusterServiceStub
from ringpost.v1.dead_letter_pb2_grpc import DeadLetterServiceStub
from ringpost.v1.group_pb2 import GroupInfo, ListGroupsRequest
from ringpost.v1.group_pb2_grpc import GroupServiceStub
from ringpost.v1.message_pb2 import GetMessagesRequest, StoredMessage
from ringpost.v1.message_pb2_grpc import MessageServiceStub
from ringpost.v1.publish_pb2 import Batch, Message, PublishRequest, PublishStreamRequest
from ringpost.v1.publish_pb2_grpc import PublisherServiceStub
from ringpost.v1.subscribe_pb2 import Credit, OpenSubscription, SubscribeRequest
from ringpost.v1.subscribe_pb2_grpc import SubscriberServiceStub

START_SECONDS_MAX = 60.0
CALL_SECONDS_MAX = 60.0
MIB = 1 << 20


class Node:
    """One node on free ports of 127.0.0.1. `flags` are added to its command line.

    `before` is a command that starts another, such as one that enters a network namespace.
    """

    def __init__(self, data_dir: Path, *flags: str, before: tuple[str, ...] = ()) -> None:
        self.data_dir = data_dir
        self.address = self.http = ""
        self._flags = flags
        self._before = before
        self._process: subprocess.Popen[bytes] | None = None
        self._stderr = data_dir.with_name(data_dir.name + ".stderr")

    def start(self) -> Self:
        """Returns when it serves; raises AssertionError with its log when it ends instead. Blocks."""
        self.spawn()
        return self.wait_until_serving()

    def spawn(self) -> None:
        """Starts the process and does not wait for more."""
        assert self._process is None, "it runs"
        addresses = ("--listen", "127.0.0.1:0", "--http-listen", "127.0.0.1:0", "--node", "n1")
        program = (*self._before, sys.executable, "-m", "ringpost.node")
        command = [*program, "--data-dir", str(self.data_dir), *addresses, *self._flags]
        with self._stderr.open("ab") as stderr:
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=stderr)

    def wait_until_serving(self) -> Self:
        """The second half of `start`. Blocks."""
        assert self._process is not None
        assert self._process.stdout is not None
        guard = threading.Timer(START_SECONDS_MAX, self._process.kill)
        guard.start()
        line = self._process.stdout.readline()
        guard.cancel()
        if not line:
            self.kill()
            raise AssertionError(f"the node did not start:\n{self.stderr}")
        serving = json.loads(line)
        self.address, self.http = serving["listen"], serving["http"]
        return self

    @property
    def process(self) -> psutil.Process:
        """For its memory, descriptors, threads and CPU."""
        assert self._process is not None
        return psutil.Process(self._process.pid)

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def stderr(self) -> str:
        """What it has logged, over all its starts."""
        return self._stderr.read_text()

    def faults(self) -> list[str]:
        """Log lines that tell of a fault of ours: errors, tracebacks, anything that is not a structured line."""
        return [line for line in self.stderr.splitlines() if not _is_harmless(line)]

    def kill(self) -> None:
        """SIGKILL; fine when it does not run."""
        if self._process is not None:
            self._process.kill()
            self.wait()

    def signal(self, number: int = signal.SIGTERM) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def wait(self) -> int:
        """Its exit code. Blocks."""
        assert self._process is not None
        code = self._process.wait(START_SECONDS_MAX)
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._process = None
        return code

    def stop(self) -> int:
        """SIGTERM; its exit code. Blocks."""
        self.signal()
        return self.wait()

    def metrics(self) -> dict[str, float]:
        """All samples by name; one label's value stands in braces, as in `ringpost_streams{publish}`. Blocks."""
        with urlopen(f"http://{self.http}/metrics", timeout=30) as response:
            text = response.read().decode()
        samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
        return {s.name + "".join(f"{{{value}}}" for value in s.labels.values()): s.value for s in samples}

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.kill()


def _is_harmless(line: str) -> bool:
    try:
        event = json.loads(line)
    except ValueError:
        return False
    return event["level"] in ("debug", "info", "warning") and "traceback" not in event


class Client:
    """A connection of its own and the stubs on it."""

    def __init__(self, address: str, *options: tuple[str, Any]) -> None:
        own = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
        sizes = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
        self.wire = grpc.aio.insecure_channel(address, options=[*own, *sizes, *options])
        self.publisher = PublisherServiceStub(self.wire)
        self.subscriber = SubscriberServiceStub(self.wire)
        self.channels = ChannelServiceStub(self.wire)
        self.groups = GroupServiceStub(self.wire)
        self.letters = DeadLetterServiceStub(self.wire)
        self.messages = MessageServiceStub(self.wire)
        self.cluster = ClusterServiceStub(self.wire)

    def raw_unary(self, method: str) -> Any:
        """A unary call that takes and gives bytes; `method` as in `ringpost.v1.PublisherService/Publish`."""
        return self.wire.unary_unary(f"/{method}")

    def raw_stream(self, method: str) -> Any:
        """The same for a bidirectional stream."""
        return self.wire.stream_stream(f"/{method}")

    def publish_stream(self, seconds: float = CALL_SECONDS_MAX) -> Any:
        return self.publisher.PublishStream(timeout=seconds)

    def subscribe(self, seconds: float = CALL_SECONDS_MAX) -> Any:
        return self.subscriber.Subscribe(timeout=seconds)

    async def node(self) -> NodeInfo:
        return (await self.cluster.GetNode(GetNodeRequest(), timeout=CALL_SECONDS_MAX)).node

    async def all_channels(self, page_size: int = 1_000) -> list[ChannelInfo]:
        """Page by page."""
        found: list[ChannelInfo] = []
        token = ""
        while True:
            request = ListChannelsRequest(page_size=page_size, page_token=token)
            page = await self.channels.ListChannels(request, timeout=CALL_SECONDS_MAX)
            found += page.channels
            token = page.next_page_token
            if not token:
                return found

    async def all_groups(self) -> list[GroupInfo]:
        answer = await self.groups.ListGroups(ListGroupsRequest(page_size=1_000), timeout=CALL_SECONDS_MAX)
        return list(answer.groups)

    async def read(self, channel: str, first: int, end: int) -> AsyncIterator[StoredMessage]:
        """The stored messages first..end-1."""
        while first < end:
            request = GetMessagesRequest(channel=channel, offset=first, max_messages=min(1_000, end - first))
            for message in (await self.messages.GetMessages(request, timeout=CALL_SECONDS_MAX)).messages:
                yield message
                first = message.offset + 1

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.wire.close()


class Told(NamedTuple):
    """An error as a client gets it, from a status or a Failure."""

    code: grpc.StatusCode
    reason: str
    message: str
    fields: tuple[str, ...]
    retry_after_ms: int
    metadata: dict[str, str]


_CODES = {code.value[0]: code for code in grpc.StatusCode}


def told_by_status(error: grpc.aio.AioRpcError) -> Told:
    """What the status of a call tells; reason "" when there are no details, as in gRPC's own errors."""
    details = dict(error.trailing_metadata() or ()).get("grpc-status-details-bin", b"")
    status = status_pb2.Status.FromString(details)
    info, retry, bad = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo(), error_details_pb2.BadRequest()
    for detail in status.details:
        assert any(detail.Unpack(part) for part in (info, retry, bad)), detail.type_url
    if details:
        assert (info.domain, status.code) == ("ringpost", error.code().value[0])
    fields = tuple(violation.field for violation in bad.field_violations)
    wait_ms = retry.retry_delay.ToMilliseconds()
    return Told(error.code(), info.reason, error.details() or "", fields, wait_ms, dict(info.metadata))


def told_by_failure(failure: Any) -> Told:
    """What a Failure in a stream tells."""
    fields = tuple(violation.field for violation in failure.violations)
    code = _CODES[failure.code]
    return Told(code, failure.reason, failure.message, fields, failure.retry_after_ms, dict(failure.metadata))


def batch_of(*data: bytes) -> Batch:
    return Batch(messages=[Message(data=one) for one in data])


def publish(channel: str, *data: bytes, correlation: int = 0, **fields: Any) -> PublishStreamRequest:
    """A batch for a publish stream."""
    request = PublishRequest(channel=channel, batch=batch_of(*data), **fields)
    return PublishStreamRequest(correlation=correlation, publish=request)


def open_subscription(channel: str, number: int = 1, *, credit: int = 1_000_000, **fields: Any) -> SubscribeRequest:
    """Opens with `credit` messages, and bytes enough."""
    window = Credit(messages=credit, bytes=1 << 40)
    return SubscribeRequest(open=OpenSubscription(subscription_id=number, channel=channel, credit=window, **fields))


async def next_event(call: Any, kind: str) -> Any:
    """The next event of a kind on a subscribe stream; heartbeats and others before it are passed over."""
    while True:
        response = await call.read()
        assert response is not grpc.aio.EOF, f"the stream ended before {kind}"
        if response.WhichOneof("event") == kind:
            return getattr(response, kind)


async def rest_of(call: Any) -> list[Any]:
    """What is still to come on a stream; raises its status unless it ends with OK."""
    responses = []
    while (response := await call.read()) is not grpc.aio.EOF:
        responses.append(response)
    assert await call.code() == grpc.StatusCode.OK
    return responses


async def until(condition: Callable[[], Any], what: str, seconds: float = 20.0) -> Any:
    """Asks again and again, gives the first true answer. `condition` may be a coroutine function."""
    deadline = time.monotonic() + seconds
    while True:
        answer = condition()
        answer = await answer if inspect.isawaitable(answer) else answer
        if answer:
            return answer
        assert time.monotonic() < deadline, f"waited {seconds:g} s for: {what}"
        await asyncio.sleep(0.02)


async def gathered(work: Iterable[Awaitable[Any]], at_a_time: int) -> None:
    """Awaits all, no more than `at_a_time` of them under way; takes each from the iterable only when it is its turn."""
    source = iter(work)

    async def worker() -> None:
        for one in source:
            await one

    async with asyncio.TaskGroup() as workers:
        for _ in range(at_a_time):
            workers.create_task(worker())


@asynccontextmanager
async def serving(data_dir: Path, *flags: str) -> AsyncIterator[SimpleNamespace]:
    """A node (`.node`) and a client of it (`.client`)."""
    with Node(data_dir, *flags) as node:
        async with Client(node.address) as client:
            yield SimpleNamespace(node=node, client=client)
