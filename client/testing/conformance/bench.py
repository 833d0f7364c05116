"""Where checks work: the cluster, the program, and what both are asked."""

import asyncio
import contextlib
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, TypeAlias, TypeVar

from ringpost.client.api import Client, connect
from ringpost.client.batch import OutMessage
from ringpost.client.errors import NotFound
from ringpost.client.testing.conformance.gate import Gate, Tap
from ringpost.client.testing.conformance.program import Program
from ringpost.client.testing.conformance.targets import OwnCluster, Target
from ringpost.v1 import publish_pb2

# Programs that may run at a time.
_AT_A_TIME = 3
_PAGE = 1_000
R = TypeVar("R")
Environ: TypeAlias = Mapping[str, str]


def connect_to(target: Target) -> Client:
    """The script's own client of the cluster."""
    token = os.environ.get("RINGPOST_TOKEN")
    return connect(target.addresses, credentials=target.credentials, token=token)


def _out(message: publish_pb2.Message) -> OutMessage:
    return OutMessage(message.data, message.key, dict(message.headers), message.message_id, message.producer_time_us)


class Bench:
    """One program and one cluster. Channels made here are removed by `clean`. `seconds`: most that a run may take."""

    def __init__(self, command: Sequence[str], target: Target, mq: Client, seconds: float) -> None:
        self.target = target
        self.mq = mq
        self.seconds = seconds
        self._command = list(command)
        self._mark = f"conformance.{random.randrange(1 << 32):08x}"
        self._channels: list[str] = []
        self._free = asyncio.Semaphore(_AT_A_TIME)
        self._once: dict[object, asyncio.Future[Any]] = {}

    # -- the cluster --------------------------------------------------------------------------------------------------

    def unused_name(self, name: str) -> str:
        """A channel that there is not."""
        return f"{self._mark}.{name}"

    async def channel(self, name: str, messages: Sequence[publish_pb2.Message] = (), group: str = "") -> str:
        """Makes a channel that holds these messages, in batches of 30, and perhaps a group."""
        channel = self.unused_name(name)
        await self.mq.channels.add(channel)
        self._channels.append(channel)
        await self.publish(channel, messages)
        if group:
            await self.mq.groups.add(channel, group)
        return channel

    async def channel_led_by(self, address: str, name: str, group: str) -> str:
        """As `channel`, of a shard that the node with this address leads. Only on a cluster of our own."""
        assert isinstance(self.target, OwnCluster)
        led = await self.target.name_led_by(address, self.unused_name(name))
        return await self.channel(led.removeprefix(f"{self._mark}."), group=group)

    async def publish(self, channel: str, messages: Sequence[publish_pb2.Message]) -> None:
        for first in range(0, len(messages), 30):
            await self.mq.publish_many(channel, map(_out, messages[first : first + 30]))

    async def content(self, channel: str) -> list[publish_pb2.Message]:
        """Everything that the channel holds."""
        found: list[publish_pb2.Message] = []
        end = (await self.mq.channels.get(channel)).end_offset
        while len(found) < end:
            found += [stored.message for stored in await self.mq.messages.get(channel, len(found), _PAGE)]
        return found

    async def clean(self) -> None:
        """Removes what was made here."""
        for channel in self._channels:
            with contextlib.suppress(NotFound):
                await self.mq.channels.delete(channel)

    # -- the program --------------------------------------------------------------------------------------------------

    def gate(self, tap: Tap, tls: tuple[bytes, bytes] | None = None) -> Gate:
        return Gate(self.target.addresses, tap, tls=tls, upstream=self.target.credentials)

    def publishing(
        self, addresses: Sequence[str], channel: str, environ: Environ | None = None, **options: Any
    ) -> "AbstractAsyncContextManager[Program]":
        """The program as publisher "p" of 200 messages in batches of 20; `options` as in the contract, with _ for -."""
        return self._program(
            "publish", addresses, channel, environ, {"producer": "p", "count": 200, "batch": 20} | options
        )

    def subscribing(
        self, addresses: Sequence[str], channel: str, environ: Environ | None = None, **options: Any
    ) -> "AbstractAsyncContextManager[Program]":
        """The program as a subscriber to 300 messages from the first on, 50 at a time."""
        return self._program(
            "subscribe", addresses, channel, environ, {"start": 0, "count": 300, "credit": 50} | options
        )

    def working(
        self, addresses: Sequence[str], channel: str, environ: Environ | None = None, **options: Any
    ) -> "AbstractAsyncContextManager[Program]":
        """The program as a member of the group "workers" until 100 messages are settled, 20 at a time."""
        return self._program(
            "work", addresses, channel, environ, {"group": "workers", "count": 100, "credit": 20} | options
        )

    @asynccontextmanager
    async def _program(
        self,
        mode: str,
        addresses: Sequence[str],
        channel: str,
        environ: Environ | None,
        options: Mapping[str, object],
    ) -> AsyncIterator[Program]:
        command = [*self._command, mode, "--address", ",".join(addresses), "--channel", channel]
        for name, value in options.items():
            # `from` is a word of Python's own.
            command += [f"--{'from' if name == 'start' else name.replace('_', '-')}", str(value)]
        settings = {"RINGPOST_CA": None, "RINGPOST_TOKEN": os.environ.get("RINGPOST_TOKEN"), **(environ or {})}
        async with self._free, Program(command, settings, self.seconds) as program:
            yield program

    async def once(self, run: Callable[["Bench"], Awaitable[R]]) -> R:
        """The outcome of a run that several checks look at."""
        if run not in self._once:
            self._once[run] = asyncio.ensure_future(run(self))
        outcome: R = await asyncio.shield(self._once[run])
        return outcome
