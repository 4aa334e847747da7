"""A link between two workers that can stand still: connections stay open, and nothing goes through."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

CHUNK_BYTES = 1 << 18


class Link:
    """Forwards TCP from one address to another, some ports of the same numbers.

    async with Link("127.0.0.2", "127.0.0.1", [5001, 5002]) as link:
        link.stall()      # what is under way waits, new connections hear nothing
        link.resume()     # all of it arrives, late
    """

    def __init__(self, listen_host: str, target_host: str, ports: list[int]) -> None:
        self._hosts = listen_host, target_host
        self._ports = ports
        self._flows = asyncio.Event()
        self._flows.set()
        self._felt = asyncio.Event()
        self._servers: list[asyncio.Server] = []
        self._pipes: set[asyncio.Task[None]] = set()
        self.num_bytes = 0
        """That went through so far."""

    async def __aenter__(self) -> "Link":
        for port in self._ports:
            self._servers.append(await asyncio.start_server(self._joiner(port), self._hosts[0], port))
        return self

    async def __aexit__(self, *_error: object) -> None:
        for server in self._servers:
            server.close()
        for pipe in list(self._pipes):
            pipe.cancel()
        await asyncio.gather(*self._pipes, return_exceptions=True)

    def stall(self) -> None:
        """Nothing goes through any more."""
        self._felt.clear()
        self._flows.clear()

    def resume(self) -> None:
        """Everything goes on where it stood still."""
        self._flows.set()

    async def felt(self) -> None:
        """Until something is held back by the stall: before that nobody can know of it."""
        await self._felt.wait()

    def _joiner(self, port: int) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
        async def join(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                far_reader, far_writer = await asyncio.open_connection(self._hosts[1], port)
            except OSError:
                writer.close()
                return
            for pair in ((reader, far_writer), (far_reader, writer)):
                pipe = asyncio.create_task(self._pipe(*pair))
                self._pipes.add(pipe)
                pipe.add_done_callback(self._pipes.discard)

        return join

    async def _pipe(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            try:
                while data := await reader.read(CHUNK_BYTES):
                    if not self._flows.is_set():
                        self._felt.set()
                        await self._flows.wait()
                    self.num_bytes += len(data)
                    writer.write(data)
                    await writer.drain()
            finally:
                writer.close()
