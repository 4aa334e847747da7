"""Many streams at once on one router: `python -m bench.router_streams --streams 10000 --json`.

Workers of bench.router_workers give each row a token every few seconds, so that streams last; all clients are sockets
of this process, with one answer each. What is shown: that every stream is held and goes on, what one costs in the
router's memory and processor time, and that nothing of them is left when the clients have gone. Any stream that fails
ends the run. The last line of --json is one object.
"""

import argparse
import asyncio
import json
import resource
import sys
import time
from array import array
from dataclasses import dataclass, field
from typing import Any

import httpx

from bench.report import percentile
from bench.router_process import MODEL, RouterProcess, serve_router

STEP_S = 5.0
NUM_PROMPT = 64
NUM_NEW = 4096
RAMP = 200
"""Streams that are opened side by side."""
WAIT_S = 300.0


@dataclass(slots=True)
class Streams:
    """All open connections, and what came on them."""

    writers: list[asyncio.StreamWriter] = field(default_factory=list)
    readers: list["asyncio.Task[None]"] = field(default_factory=list)
    events: "array[int]" = field(default_factory=lambda: array("i"))
    first_ms: list[float] = field(default_factory=list)

    async def open(self, host: str, port: int, gate: asyncio.Semaphore) -> None:
        """One more stream; returns with its first event."""
        number = len(self.events)
        asked = {"model": MODEL, "prompt": [5 + number % 1000] * NUM_PROMPT, "max_tokens": NUM_NEW, "timeout_s": 3600}
        body = json.dumps(asked | {"stream": True, "ignore_eos": True}).encode()
        self.events.append(0)
        async with gate:
            began_s = time.perf_counter()
            reader, writer = await asyncio.open_connection(host, port, limit=4096)
            head = f"POST /v1/completions HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
            writer.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
            status = await reader.readline()
            if status.split()[1] != b"200":
                raise RuntimeError(f"a stream was refused: {status!r} {(await reader.read(1000))!r}")
            await self._event(reader, number)
            self.first_ms.append((time.perf_counter() - began_s) * 1e3)
        self.writers.append(writer)
        self.readers.append(asyncio.create_task(self._read(reader, number)))

    async def _event(self, reader: asyncio.StreamReader, number: int) -> None:
        while not (line := await reader.readline()).startswith(b"data: "):
            if not line:
                raise RuntimeError("a stream broke off")
        if b'"error"' in line or b"[DONE]" in line:
            raise RuntimeError(f"a stream ended: {line!r}")
        self.events[number] += 1

    async def _read(self, reader: asyncio.StreamReader, number: int) -> None:
        while True:
            await self._event(reader, number)

    def check(self) -> None:
        """Raise what ended a reader."""
        for reader in self.readers:
            if reader.done():
                reader.result()

    async def close(self) -> None:
        """Hang up on all of them."""
        for reader in self.readers:
            reader.cancel()
        await asyncio.gather(*self.readers, return_exceptions=True)
        for writer in self.writers:
            writer.transport.abort()


async def hold(router: RouterProcess, num_streams: int, num_rounds: int) -> dict[str, Any]:
    """Open the streams, let each get `num_rounds` more events, close them, wait until the router has none."""
    host, _, port = router.url.removeprefix("http://").rpartition(":")
    streams, gate = Streams(), asyncio.Semaphore(RAMP)
    async with httpx.AsyncClient(base_url=router.url, timeout=WAIT_S) as client:
        await _until(client, lambda status: bool(status["ready"]))
        await streams.open(host, int(port), gate)  # whatever is made once is made now
        before_bytes, began_s = router.process.memory_info().rss, time.perf_counter()
        opened = [asyncio.create_task(streams.open(host, int(port), gate)) for _ in range(num_streams - 1)]
        await asyncio.gather(*opened)
        opened_s = time.perf_counter() - began_s
        running = (await client.get("/status")).json()["running_requests"]
        if running != num_streams:
            raise RuntimeError(f"the router has {running} requests under way, not {num_streams}")
        marks, cpu_s, began_s = array("i", streams.events), router.cpu_s(), time.perf_counter()
        while min(now - mark for now, mark in zip(streams.events, marks, strict=True)) < num_rounds:
            await asyncio.sleep(0.5)
            streams.check()
        held_s, cpu_s = time.perf_counter() - began_s, router.cpu_s() - cpu_s
        num_events = sum(streams.events) - sum(marks)
        after_bytes = router.process.memory_info().rss
        began_s = time.perf_counter()
        await streams.close()
        await _until(client, lambda status: status["running_requests"] == 0)
    return {
        "streams": num_streams,
        "opened_s": round(opened_s, 2),
        "first_token_ms_p50": round(percentile(streams.first_ms, 50), 1),
        "first_token_ms_p99": round(percentile(streams.first_ms, 99), 1),
        "held_s": round(held_s, 1),
        "events_while_held": num_events,
        "router_cpu_us_per_event": round(cpu_s / num_events * 1e6, 1),
        "router_cpu_share": round(cpu_s / held_s, 3),
        "bytes_per_stream": round((after_bytes - before_bytes) / num_streams),
        "router_rss_bytes": after_bytes,
        "cleared_s": round(time.perf_counter() - began_s, 2),
        "failed": 0,
    }


async def _until(client: httpx.AsyncClient, is_so: Any) -> None:
    async with asyncio.timeout(WAIT_S):
        while not is_so((await client.get("/status")).json()):
            await asyncio.sleep(0.2)


def main(argv: list[str] | None = None) -> int:
    """Returns 0 when every stream was held."""
    flags = argparse.ArgumentParser(prog="python -m bench.router_streams", description=__doc__)
    flags.add_argument("--streams", type=int, default=10_000)
    flags.add_argument("--rounds", type=int, default=3, help="events that each stream gets while all are held")
    flags.add_argument("--step-s", type=float, default=STEP_S, help="seconds between two tokens of a stream")
    flags.add_argument("--json", action="store_true", help="print only one JSON object")
    args = flags.parse_args(argv)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < args.streams + 100:
        flags.error(f"this machine lets a process open {hard} files, too few for {args.streams} streams")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    both = ("prefill", "decode")
    more = ("--max-running", str(args.streams + 10))
    with serve_router((both, both), "least_loaded", ("--step-s", str(args.step_s)), more) as router:
        result = asyncio.run(hold(router, args.streams, args.rounds))
    if args.json:
        print(json.dumps(result))
    else:
        print("\n".join(f"{name}: {value}" for name, value in result.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
