"""A link that can be cut: a relay of TCP connections that, while it is cut, holds back all that comes."""

import asyncio


class Relay:
    """Listens in front of a node. `cut` stops what goes to the node, what comes from it, or both; nothing is lost."""

    def __init__(self) -> None:
        self.port = 0
        self._target = 0
        self._flows = {True: asyncio.Event(), False: asyncio.Event()}  # to the node, from the node
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.join()

    async def start(self, target: int) -> None:
        """Relays to that port of this machine, from the same port as before."""
        self._target = target
        if self._server is None:
            self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
            self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self, *, to: bool = True, back: bool = True) -> None:
        for direction, wanted in ((True, to), (False, back)):
            if wanted:
                self._flows[direction].clear()

    def join(self) -> None:
        for flow in self._flows.values():
            flow.set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            await self._flows[True].wait()
            inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", self._target)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(reader, inner_writer, self._flows[True]))
                group.create_task(self._pump(inner_reader, writer, self._flows[False]))
        except (OSError, asyncio.CancelledError, BaseExceptionGroup):
            return
        finally:
            writer.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, flow: asyncio.Event) -> None:
        try:
            while data := await reader.read(1 << 16):
                await flow.wait()
                writer.write(data)
                await writer.drain()
        finally:
            writer.close()
