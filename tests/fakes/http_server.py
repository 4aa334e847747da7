"""A real HTTP server on a free port of the test's own event loop."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from fastapi import FastAPI

from router.http.prompt_server import PromptServer
from router.http.protocol import BoundedProtocol

SEND_BUFFER_BYTES = 64 << 10
"""What the kernel takes for a client that does not read: little, so that tests of those need little, too."""
TURNS = 10
"""Of the event loop, before the stop."""


@asynccontextmanager
async def serving(app: FastAPI) -> AsyncIterator[str]:
    """Serve `app` and give its base URL; stops at the end, dropping what is still open."""
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
    config = uvicorn.Config(app, http=BoundedProtocol, log_level="warning", lifespan="off", timeout_graceful_shutdown=1)
    server = PromptServer(config)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"  # the listener queues connections from the start
    finally:
        for _ in range(TURNS):  # a client that has closed is seen to
            await asyncio.sleep(0)
        server.stop()
        await task
