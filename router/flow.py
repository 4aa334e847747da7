"""One call from arrival to its one outcome: its state, its tokens so far, and the attempt that owns both legs."""

from dataclasses import dataclass, field, replace

from engine.core.errors import IllegalEvent
from engine.core.messages import Adopted, Started
from engine.core.types import FinishReason, Request, Sampling, TokenLogprob
from router.api import GenerateCall, Timing
from router.attempt import Attempt
from router.call_state import CallState, Trigger, next_state
from router.outgoing import Outgoing
from router.prompt import PromptPages


@dataclass(slots=True)
class Trouble:
    """What went wrong with one call so far."""

    avoid: set[str] = field(default_factory=set)
    """Workers that answered with an error."""
    avoid_pairs: set[tuple[str, str]] = field(default_factory=set)
    """(prefill, decode) whose handoff failed."""
    num_errors: int = 0
    failures_in_row: int = 0
    """Attempts that ended without a single token, or could not be sent, one after the other."""
    unroutable_since_s: float | None = None


@dataclass(slots=True)
class _Milestones:
    """When the first token's parts were done; later attempts do not change them."""

    queue_s: float = 0.0
    admit_s: float = 0.0
    prefill_s: float = 0.0
    ttft_s: float | None = None
    transfer_s: float = 0.0
    prefill_worker: str = ""
    first_step_s: float | None = None


class Flow:
    """Changes by its own methods only, which act on the state table first: an illegal event changes nothing.

    tokens    [ prompt .......... | emitted, by whatever attempt ]
              0                   num_prompt                     len(tokens)
    """

    __slots__ = (
        "arrived_s",
        "attempt",
        "call",
        "deadline_s",
        "key",
        "milestones",
        "model",
        "out",
        "rival",
        "salt",
        "state",
        "tokens",
        "trouble",
    )

    def __init__(self, key: int, call: GenerateCall, salt: bytes, now: float) -> None:
        self.key = key
        self.call = call
        self.salt = salt
        self.arrived_s = now
        self.deadline_s = now + call.timeout_s
        self.tokens = call.tokens[:]
        self.state = CallState.QUEUED
        self.model = ""
        """Hash of the model that drew the first token; the answer stays with it."""
        self.attempt: Attempt | None = None
        self.rival: Attempt | None = None
        """A second attempt beside the first, until one of them draws a token or fails."""
        self.out = Outgoing()
        self.trouble = Trouble()
        self.milestones = _Milestones()

    @property
    def attempts(self) -> tuple[Attempt, ...]:
        """Those under way."""
        return tuple(each for each in (self.attempt, self.rival) if each is not None)

    def attempt_of(self, id: int) -> Attempt | None:
        """The one with that id, if it is under way."""
        if self.attempt is not None and self.attempt.id == id:
            return self.attempt
        return self.rival if self.rival is not None and self.rival.id == id else None

    # ---------------------------------------------------------------------------------------- for the next attempt

    @property
    def num_prompt(self) -> int:
        """Tokens that the client sent."""
        return len(self.call.tokens)

    @property
    def num_emitted(self) -> int:
        """Tokens drawn so far."""
        return len(self.tokens) - len(self.call.tokens)

    @property
    def max_new(self) -> int:
        """Tokens that may still be drawn."""
        return self.call.sampling.max_tokens - self.num_emitted

    def prompt_pages(self, model_hash: str) -> PromptPages:
        """Names of the prefixes of what the next attempt has to compute."""
        tokens = self.tokens[:] if self.num_emitted else self.call.tokens  # which nobody changes
        return PromptPages(tokens, self.salt, model_hash)

    def sampling(self) -> Sampling:
        """As the client asked, without what it has been given already."""
        sampling = self.call.sampling
        if self.out.begun and sampling.num_prompt_logprobs is not None:
            return replace(sampling, num_prompt_logprobs=None)
        return sampling

    def request(self, attempt: int, now: float) -> Request:
        """What the workers of attempt `attempt` get."""
        return Request(
            id=attempt,
            tokens=self.tokens[:],
            num_prompt=self.num_prompt,
            sampling=self.sampling(),
            arrival_s=now,
            deadline_s=self.deadline_s,
            priority=self.call.priority,
            cache_salt=self.salt,
            request_id=self.call.request_id,
        )

    # -------------------------------------------------------------------------------------------------- events

    def sent(self, attempt: Attempt, now: float) -> None:
        """`attempt` is under way."""
        self.state = next_state(self.state, Trigger.SENT)
        self.attempt = attempt
        attempt.sent_s = now

    def keep(self, attempt: Attempt) -> Attempt:
        """Of two attempts, `attempt` is the one that goes on. Returns the other one."""
        assert self.attempt is not None and self.rival is not None, "there are two"
        other = self.attempt if attempt is self.rival else self.rival
        self.attempt, self.rival = attempt, None
        self.out.drop_prompt()
        if attempt.started is not None:
            self.out.set_prompt(min(attempt.started.cached_tokens, self.num_prompt))
        return other

    def on_started(self, attempt: Attempt, worker: str, started: Started) -> None:
        """The prompt's first chunk is being computed. What a decode leg says of its own start is of no interest."""
        if attempt.computes.worker.key == worker:
            attempt.started = started
            self.out.set_prompt(min(started.cached_tokens, self.num_prompt))

    def on_token(self, attempt: Attempt, worker: str, token: int, logprob: TokenLogprob | None, now: float) -> bool:
        """One drawn token. True when it is the attempt's first. Raises IllegalEvent when it comes out of turn."""
        first = self.state is not CallState.DECODING
        if first:
            self._on_first_token(attempt, worker, now)
        elif attempt.decode.worker.key != worker:
            raise IllegalEvent(f"a token from {worker}, which does not decode this call")
        elif attempt.prefill and self.milestones.first_step_s is None:
            since_first_s = now - self.arrived_s - (self.milestones.ttft_s or 0.0)
            self.milestones.first_step_s = max(since_first_s - self.milestones.transfer_s, 0.0)
        self.tokens.append(token)
        self.out.add(token, logprob)
        return first

    def _on_first_token(self, attempt: Attempt, worker: str, now: float) -> None:
        if attempt.computes.worker.key != worker:
            raise IllegalEvent(f"a token from {worker} before its pages were adopted")
        self.state = next_state(self.state, Trigger.FIRST_TOKEN if attempt.prefill else Trigger.WHOLE_TOKEN)
        attempt.first_token_s = now
        self.trouble.failures_in_row = 0
        self.model = attempt.computes.worker.info.layout.model_hash
        marks = self.milestones
        if marks.ttft_s is None:
            # The worker's clock is another one: of its wait no more can be true than what passed here.
            waited_s = attempt.started.queue_s if attempt.started else 0.0
            marks.queue_s = attempt.sent_s - self.arrived_s
            marks.admit_s = min(max(waited_s, 0.0), now - attempt.sent_s)
            marks.prefill_s = now - attempt.sent_s - marks.admit_s
            marks.ttft_s = now - self.arrived_s
            marks.prefill_worker = attempt.computes.worker.info.id

    def on_adopted(self, adopted: Adopted, now: float) -> None:
        """The decode worker owns proven pages."""
        self.state = next_state(self.state, Trigger.ADOPTED)
        self.milestones.transfer_s = adopted.transfer_s

    def leg_failed(self) -> None:
        """The attempt is over; the call is not."""
        self.state = next_state(self.state, Trigger.LEG_FAILED)
        self.attempt = None
        self.trouble.failures_in_row += 1
        if not self.out.begun:
            self.out.drop_prompt()

    def moved(self) -> None:
        """The attempt was ended because its worker drains; the next one takes its pages elsewhere."""
        self.state = next_state(self.state, Trigger.MOVED)
        self.attempt = None

    def end(self, trigger: Trigger) -> None:
        """The one outcome of the call."""
        self.state = next_state(self.state, trigger)
        self.attempt = self.rival = None

    # ------------------------------------------------------------------------------------------------- outcome

    def own_end(self) -> tuple[FinishReason, int | None] | None:
        """(reason, stop token) when the tokens so far are all that was asked for, whatever a worker may say later."""
        if self.num_emitted and self.tokens[-1] in self.call.sampling.stop_token_ids:
            return FinishReason.STOP, self.tokens[-1]
        return (FinishReason.LENGTH, None) if self.max_new <= 0 else None

    def timing(self, decode_worker: str) -> Timing:
        """Where the time to the first token went."""
        marks = self.milestones
        return Timing(
            queue_s=marks.queue_s,
            admit_s=marks.admit_s,
            prefill_s=marks.prefill_s,
            ttft_s=marks.ttft_s or 0.0,
            transfer_s=marks.transfer_s,
            prefill_worker=marks.prefill_worker,
            decode_worker=decode_worker,
            first_step_s=marks.first_step_s or 0.0,
        )
