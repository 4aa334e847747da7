"""A router core without a shell: events in, and what it said last."""

import random
from array import array
from dataclasses import replace

from engine.core.messages import (
    Command,
    Frame,
    Generate,
    PagesCleared,
    PeerStatus,
    Prefill,
)
from engine.core.types import Sampling
from kv_transfer.transports.base import peer_key
from router.api import Delta, GenerateCall
from router.config import HealthConfig, RouterConfig
from router.core import RouterCore
from router.events import (
    CallArrived,
    Emit,
    Event,
    Fail,
    FrameArrived,
    Send,
    Tick,
    WorkerJoined,
)
from router.policies.registry import make_policy
from tests.fakes.workers import worker_info

PROMPT = list(range(10, 30))


class Bench:
    """A core, its clock, and what it said last."""

    def __init__(self, *workers: str, policy: str = "cost_always_hand_over") -> None:
        config = RouterConfig(health=HealthConfig(peers_keep_s=5.0))
        self.core = RouterCore(config, random.Random(3), lambda model, rng: make_policy(policy, model, rng))
        self.now = 0.0
        self.sent: list[tuple[str, Command]] = []
        self.deltas: list[Delta] = []
        self.failures: list[Exception] = []
        for name in workers:
            self.join(name)
        for name in workers:
            if name[0] == "d":
                peers = [PeerStatus(other, 1, True, "x", 1e9) for other in workers if other[0] == "p"]
                self.frame(name, peers=peers)
        self.sent.clear()

    def join(self, name: str, incarnation: int = 1, model: str = "test-model") -> None:
        roles = {"p": ("prefill",), "d": ("decode",)}[name[0]]
        info = worker_info(name, incarnation, roles)
        self.do(WorkerJoined(replace(info, layout=replace(info.layout, model_hash=model))))
        self.frame(name, incarnation, kv_events=[PagesCleared()])

    def do(self, event: Event) -> None:
        effects = self.core.handle(event, self.now)
        self.core.check_integrity()
        for effect in effects:
            match effect:
                case Send(worker, command):
                    self.sent.append((worker.partition("@")[0], command))
                case Emit(_, delta):
                    self.deltas.append(delta)
                case Fail(_, error):
                    self.failures.append(error)

    def frame(self, name: str, incarnation: int = 1, **parts: object) -> None:
        self.do(FrameArrived(peer_key(name, incarnation), Frame(**parts)))  # type: ignore[arg-type]

    def token(self, name: str, id: int, token: int, **parts: object) -> None:
        self.frame(name, ids=[id], tokens=[token], **parts)

    def call(self, key: int = 1, prompt: list[int] | None = None, timeout_s: float = 60.0, **sampling: object) -> int:
        """Returns the attempt's id, 0 when nothing was sent."""
        tokens = array("i", prompt or PROMPT)
        settings = Sampling(**{"max_tokens": 5, "seed": 9, **sampling})  # type: ignore[arg-type]
        self.sent.clear()
        self.do(CallArrived(key, GenerateCall(f"c{key}", tokens, settings, timeout_s)))
        return self.last_id()

    def last_id(self) -> int:
        """Of the last attempt that was sent, 0 when none was."""
        ids = [command.request.id for _, command in self.sent if isinstance(command, (Prefill, Generate))]
        return ids[-1] if ids else 0

    def took(self) -> list[tuple[str, Command]]:
        """What was sent since the last look."""
        sent, self.sent = self.sent, []
        return sent

    def tick(self, seconds: float, awake: tuple[str, ...] = ()) -> None:
        """Time passes in small steps; workers in `awake` keep talking."""
        end = self.now + seconds
        while self.now < end:
            self.now += 0.05
            for name in awake:
                self.frame(name)
            self.do(Tick())

    @property
    def tokens(self) -> list[int]:
        return [token for delta in self.deltas for token in delta.tokens]
