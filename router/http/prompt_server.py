"""uvicorn's server, told when to end: its own looks ten times a second whether it should, and waits once more then."""

import asyncio
import socket
from contextlib import suppress

import uvicorn

TICK_S = 1.0
"""How often the date of answers is set."""
_TICKS = 10
"""Of uvicorn in that time: it sets the date with each tenth."""


class PromptServer(uvicorn.Server):
    """Ends as soon as `stop` is called; with nothing open it waits for nothing. Without lifespan only."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._told = asyncio.Event()

    def stop(self) -> None:
        """No new connections; open ones end as uvicorn has it. Of the server's own loop."""
        self.should_exit = True
        self._told.set()

    async def main_loop(self) -> None:
        """Until told; signals that uvicorn catches itself are seen with the next tick."""
        count = 0
        while not await self.on_tick(count):
            count += _TICKS
            with suppress(TimeoutError):
                await asyncio.wait_for(self._told.wait(), TICK_S)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """What is open has uvicorn's time to end."""
        if self.server_state.connections or self.server_state.tasks:
            await super().shutdown(sockets)
            return
        for server in self.servers:
            server.close()
        for sock in sockets or []:
            sock.close()
