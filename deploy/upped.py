"""A `baton up` of one's own, as a child process, and clients that keep it busy."""

import asyncio
import json
import re
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import grpc
import yaml

from deploy.door import find
from deploy.raylets import Raylets
from deploy.spawned import BATON, READY, Site
from engine.core.errors import Unavailable
from engine.wire import inference_pb2 as pb
from engine.wire.inference_pb2_grpc import InferenceStub

END_S = 30.0


@dataclass(frozen=True)
class Fleet(Site):
    """A running `baton up`."""

    words: Sequence[str]
    """Its command line."""
    log: Path
    """What all of them say."""
    environment: Mapping[str, str]
    processes: "list[subprocess.Popen[str]]"
    """One controller after the other."""

    @property
    def process(self) -> "subprocess.Popen[str]":
        """The controller."""
        return self.processes[-1]

    def up_again(self, *flags: str) -> None:
        """The same command, after the end of the controller. Returns when it says that the fleet is ready."""
        process = _popen([*self.words, *flags], self.log, self.environment)
        self.processes.append(process)
        _until_ready(process, self.log)

    def baton(self, *words: str) -> "subprocess.CompletedProcess[str]":
        """One command of the command line, on this fleet."""
        return subprocess.run(
            [BATON, *words],
            env={**self.environment, "BATON_URL": self.url},
            capture_output=True,
            text=True,
            check=False,
        )

    async def command(self, *words: str) -> str:
        """The same beside running clients; its output. Unavailable with what it said when it fails."""
        done = await asyncio.to_thread(self.baton, *words)
        if done.returncode:
            raise Unavailable(f"baton {' '.join(words)} -> {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout

    def body(self) -> dict[str, Any]:
        """As `baton fleet --json`."""
        door = find(int(self.url.rpartition(":")[2]))
        request = urllib.request.Request(f"{door.control}/fleet", headers={"authorization": f"Bearer {door.key}"})
        with urllib.request.urlopen(request, timeout=10) as response:
            body: dict[str, Any] = json.load(response)
        return body


@contextmanager
def up(cluster: Raylets, config: Mapping[str, Any]) -> Iterator[Fleet]:
    """`baton up` on that cluster. The block starts when it is ready and ends with its processes."""
    with tempfile.TemporaryDirectory(prefix="baton-up-") as folder:
        path, log = Path(folder) / "config.yaml", Path(folder) / "log"
        path.write_text(yaml.safe_dump(dict(config)))
        words = [BATON, "up", str(path), "--address", cluster.address]
        processes = [_popen(words, log, cluster.environment)]
        try:
            match = _until_ready(processes[0], log)
            yield Fleet(match["http"], match["grpc"], words, log, cluster.environment, processes)
        finally:
            _end(processes[-1])


def _popen(words: Sequence[str], log: Path, environment: Mapping[str, str]) -> "subprocess.Popen[str]":
    with log.open("a") as stderr:
        return subprocess.Popen(
            words, stdout=subprocess.PIPE, stderr=stderr, text=True, env=environment, start_new_session=True
        )


def _until_ready(process: "subprocess.Popen[str]", log: Path) -> "re.Match[str]":
    assert process.stdout is not None
    while (match := READY.search(line := process.stdout.readline())) is None:
        if not line:
            raise Unavailable(f"baton up ended with {process.wait()}:\n{log.read_text()}")
    return match


def _end(process: "subprocess.Popen[str]") -> None:
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


@dataclass(slots=True)
class Stream:
    """One answer while it comes."""

    started_s: float
    tokens: list[int] = field(default_factory=list)
    parts_s: list[float] = field(default_factory=list)
    """When parts with tokens came."""
    ended_s: float = 0.0
    prefill_worker: str = ""
    decode_worker: str = ""
    error: str = ""
    """Of gRPC; empty for an answer that is whole."""

    @property
    def ttft_s(self) -> float:
        """Of one that got a token."""
        return self.parts_s[0] - self.started_s

    @property
    def second_s(self) -> float:
        """When its second part came: the first one that the decode worker drew."""
        return self.parts_s[min(1, len(self.parts_s) - 1)]

    def silence_after(self, moment_s: float) -> float:
        """The longest wait for a part, from that moment on; parts that were on their way come at once."""
        moments = [moment_s, *(part_s for part_s in self.parts_s if part_s > moment_s), self.ended_s]
        return max(later - earlier for earlier, later in pairwise(moments))


@dataclass(slots=True)
class Clients:
    """So many clients, each of which asks again as soon as it has its answer. An async context manager."""

    target: str
    prompts: Sequence[Sequence[int]]
    max_tokens: int
    num_clients: int
    timeout_s: float = 60.0
    streams: list[Stream] = field(default_factory=list)
    """All, ended or not, by start."""
    _stopping: bool = False
    _tasks: list["asyncio.Task[None]"] = field(default_factory=list)
    _num: int = 0

    async def __aenter__(self) -> "Clients":
        self._tasks = [asyncio.create_task(self._client()) for _ in range(self.num_clients)]
        return self

    async def __aexit__(self, *_: object) -> None:
        """Let what runs come to its end."""
        self._stopping = True
        await asyncio.gather(*self._tasks)

    @property
    def failed(self) -> list[str]:
        """Errors."""
        return [stream.error for stream in self.streams if stream.error]

    async def until(self, num_more: int) -> None:
        """Until so many more answers have ended than now."""
        wanted = sum(stream.ended_s > 0 for stream in self.streams) + num_more
        while sum(stream.ended_s > 0 for stream in self.streams) < wanted:
            await asyncio.sleep(0.02)

    async def _client(self) -> None:
        async with grpc.aio.insecure_channel(self.target) as channel:
            stub = InferenceStub(channel)
            while not self._stopping:
                prompt = self.prompts[self._num % len(self.prompts)]
                self._num += 1
                stream = Stream(time.monotonic())
                self.streams.append(stream)
                await ask(stub, prompt, self.max_tokens, stream, self.timeout_s)


async def ask(stub: Any, prompt: Sequence[int], max_tokens: int, stream: Stream, timeout_s: float = 60.0) -> None:
    """One greedy answer of `max_tokens`, or `stream.error`."""
    sampling = pb.SamplingParams(max_tokens=max_tokens, ignore_eos=True, temperature=0.0)
    request = pb.GenerateRequest(tokens=pb.TokenIds(ids=prompt), sampling=sampling)
    try:
        async for message in stub.Generate(request, timeout=timeout_s):
            if message.tokens:
                stream.parts_s.append(time.monotonic())
            stream.tokens.extend(message.tokens)
            if message.finish:
                stream.prefill_worker, stream.decode_worker = (
                    message.timing.prefill_worker,
                    message.timing.decode_worker,
                )
    except grpc.aio.AioRpcError as error:
        stream.error = f"{error.code().name}: {error.details()}"
    stream.ended_s = time.monotonic()
