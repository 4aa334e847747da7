"""What one step of the engine core has to say. Values for the roles; rows are parallel lists as in a plan."""

from dataclasses import dataclass, field

from engine.core.messages import Finished, Started
from engine.core.types import TokenLogprob


@dataclass(slots=True)
class FinalPages:
    """Pages of a held request whose KV will not change while it lives, so a ticket may name them."""

    id: int
    start: int
    """First token, at a page boundary."""
    end: int
    """One past the last token; at a page boundary unless `last`."""
    pages: list[int]
    """One for each page that [start, end) touches."""
    generations: list[int]
    last: bool
    """The whole prompt is there and the leg is over: its pages stay under a lease until `EngineCore.release`."""


@dataclass(slots=True)
class Reserved:
    """Destination pages of an incoming handoff.

    tokens  [ here already, shared ... | to be pulled ............. ]
            0                          num_local                    num_tokens
    Page `i` of `pages` takes tokens [i * page_size, (i + 1) * page_size); those below num_local are not written.
    """

    id: int
    num_local: int
    """At a page boundary."""
    num_tokens: int
    pages: list[int]


@dataclass(slots=True)
class StepResult:
    """All that changed since the last result. Mutable for speed; the receiver owns it."""

    step_id: int = -1
    """The committed step, -1 when none was."""
    ids: list[int] = field(default_factory=list)
    """Row i is the new token `tokens[i]` of request `ids[i]`."""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob | None] | None = None
    prompt_logprobs: list[tuple[int, list[TokenLogprob]]] = field(default_factory=list)
    started: list[Started] = field(default_factory=list)
    finished: list[Finished] = field(default_factory=list)
    """Each request ends exactly once: here, or with its last FinalPages when it is held."""
    final_pages: list[FinalPages] = field(default_factory=list)
    reserved: list[Reserved] = field(default_factory=list)
    expired: list[int] = field(default_factory=list)
    """Held requests whose lease ran out before anybody released it."""
    retracted: list[int] = field(default_factory=list)
    """Requests that lost pages which had been announced, to more urgent ones. They are over: to compute them again here
    while whoever reads the pages waits for more would let two workers wait for each other's pages."""

    step_s: float = 0.0
    """That the device was busy with it."""

    def __bool__(self) -> bool:
        return bool(
            self.ids
            or self.prompt_logprobs
            or self.started
            or self.finished
            or self.final_pages
            or self.reserved
            or self.expired
            or self.retracted
        )
