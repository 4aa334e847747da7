"""Values that every part of Baton speaks in. Standard library only; frozen unless marked mutable.

Rows of a step are parallel lists, not objects: creating a frozen slotted dataclass costs about 1.5 us on the
machines that CI runs on, and a step has up to hundreds of rows.
"""

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from engine.core.protocol import PROTOCOL

TokenBuffer = array  # array("i"): int32 token ids, one contiguous buffer


def token_buffer(tokens: Sequence[int] = ()) -> "array[int]":
    """The project's one representation of token ids: a contiguous int32 buffer."""
    return array("i", tokens)


class FinishReason(StrEnum):
    """Why a request ended. STOP and LENGTH are the only successful ones."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    DEADLINE = "deadline"
    ERROR = "error"
    REFUSED = "refused"
    """Nobody can go on with the request as it is: its grammar cannot be followed within the limits. Not the worker's
    fault, so it is not tried elsewhere."""


class GrammarKind(StrEnum):
    """In what language a grammar is written."""

    JSON_SCHEMA = "json_schema"
    LENIENT_JSON_SCHEMA = "lenient_json_schema"
    """Keywords that cannot be enforced are passed over instead of refused."""
    REGEX = "regex"
    """Of the whole answer."""
    LARK = "lark"
    """llguidance's dialect of Lark."""


@dataclass(frozen=True, slots=True)
class Grammar:
    """What the whole answer must look like; its end is the model's end of sequence."""

    kind: GrammarKind
    source: str


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn. `seed` is always set (the router draws one when the client gave none).

    The token at position `p` of a sequence depends on the logits, these fields and (seed, p) alone, so the same
    request gives the same tokens whatever runs beside it and wherever it resumes.
    """

    max_tokens: int = 16
    """New tokens after `Request.num_prompt`, tokens emitted by an earlier attempt included."""
    min_tokens: int = 0
    """`stop_token_ids` cannot be drawn before this many new tokens."""
    temperature: float = 1.0
    """0 is greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """0 is off."""
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    """Divides positive and multiplies negative logits of every token of prompt and output."""
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int = 0
    """Unsigned 64 bits."""
    stop_token_ids: tuple[int, ...] = ()
    """The model's end-of-sequence ids (unless ignore_eos) and the client's own. The stop token is emitted."""
    num_logprobs: int | None = None
    """None: none. 0: of the drawn token. k: of the drawn token and the k likeliest."""
    num_prompt_logprobs: int | None = None
    """Like num_logprobs, for the prompt's tokens. Such a request does not use cached pages for its prompt."""
    grammar: Grammar | None = None
    """Tokens after `Request.num_prompt` must follow it. The end of the grammar comes before min_tokens."""


@dataclass(frozen=True, slots=True)
class Request:
    """One attempt at one sequence, as a worker sees it.

    `id` is new for every attempt (the router draws it), so a late message of an earlier attempt can never be
    taken for this one. The prefill and the decode leg of one attempt share it.

    tokens    [ prompt .......... | emitted by earlier attempts ]
              0                   num_prompt                    len(tokens)
    """

    id: int
    tokens: "array[int]"
    num_prompt: int
    sampling: Sampling
    arrival_s: float
    """On the worker's own clock."""
    deadline_s: float
    """On the worker's own clock; past it the request ends with FinishReason.DEADLINE."""
    priority: int = 0
    """Smaller runs first."""
    cache_salt: bytes = b""
    """Derived by the router from the tenant; prefixes are shared inside one salt only."""
    request_id: str = ""
    """The client's id, for logs and traces only."""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Log probability of one token and, when asked for, of the likeliest ones (descending)."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(slots=True)
class NewRow:
    """Mutable only in that nobody pays for freezing it. What an executor must know of a request it first sees."""

    id: int
    tokens: "array[int]"
    num_prompt: int
    sampling: Sampling


@dataclass(slots=True)
class StepPlan:
    """One step: extend each row `i` of `ids` by `num_new[i]` tokens from position `starts[i]`.

    Rows are parallel lists. A row whose token at `starts[i]` was drawn by a step that is still running takes it
    from the device (`feedback[i]`); then `num_new[i] == 1`.
    """

    step_id: int
    ids: list[int] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    num_new: list[int] = field(default_factory=list)
    samples: list[bool] = field(default_factory=list)
    """True where the row's last position draws a token."""
    feedback: list[bool] = field(default_factory=list)
    added: list[NewRow] = field(default_factory=list)
    """Rows that the executor has not seen (or has forgotten by `removed`), applied before the step."""
    removed: list[int] = field(default_factory=list)
    """Ids that the executor can forget, applied before `added`."""
    new_pages: list[tuple[int, list[int]]] = field(default_factory=list)
    """(id, pages to append to that row's page table), applied after `added`."""

    @property
    def num_tokens(self) -> int:
        """Tokens that this step computes."""
        return sum(self.num_new)


@dataclass(slots=True)
class StepOutput:
    """What the executor brings back for one plan, rows in the plan's order. Mutable for speed only."""

    step_id: int
    tokens: list[int]
    """The drawn token of each row, -1 where `samples` was False."""
    logprobs: list[TokenLogprob | None] | None = None
    prompt_logprobs: dict[int, list[TokenLogprob]] | None = None
    """By id: one entry for each prompt position of this step that predicts the next prompt token."""
    step_s: float = 0.0
    """Seconds the device was busy with this step."""
    refused: dict[int, str] | None = None
    """By id: why no token can be drawn for that row, ever."""


NUM_SPARE_PAGES = 4
"""Slabs of every pool beyond the `num_pages` that the allocator deals out: the golden page, then scratch pages."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Where one rank's slabs lie."""

    address: int
    """Of slab 0."""
    device: int
    """CUDA ordinal; -1 is host memory."""


@dataclass(frozen=True, slots=True)
class KVLayout:
    """How KV bytes lie in one page. Two workers whose `name` differ in anything but rank layout refuse each other.

    A page is one contiguous slab: [num_layers, 2 (K, V), page_size, num_kv_heads, head_dim] of `dtype`.
    """

    model_hash: str
    """Over config and weights identity; the same checkpoint gives the same hash on every worker."""
    num_layers: int
    num_kv_heads: int
    """Of the whole model, all ranks together."""
    head_dim: int
    page_size: int
    """Tokens in a page."""
    dtype: str
    """torch's name without the prefix: float32, bfloat16, float16, float8_e4m3fn."""
    tp_size: int = 1
    order: str = "LKPHD"
    """Layer, K/V, position in page, head, dim: the memory order inside a page."""
    version: int = 1

    DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "float8_e4m3fn": 1}  # noqa: RUF012

    @property
    def page_bytes(self) -> int:
        """Bytes of one page on one rank."""
        heads = self.num_kv_heads // self.tp_size
        return self.num_layers * 2 * self.page_size * heads * self.head_dim * self.DTYPE_BYTES[self.dtype]


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """What a worker says of itself when a router or a peer asks. Identity is (id, incarnation), never the address."""

    id: str
    incarnation: int
    """Unsigned 64 bits, new at each start of the process."""
    roles: tuple[str, ...]
    """Of "prefill" and "decode"; every worker can run a whole request."""
    address: str
    """host:port of the worker's gRPC server."""
    model: str
    layout: KVLayout
    num_pages: int
    max_model_len: int
    transports: tuple[tuple[str, bytes], ...] = ()
    """(name, descriptor): what a peer needs to read this worker's pages, one entry a transport."""
    topology: tuple[tuple[str, str], ...] = ()
    """Labels such as ("node", "10.0.0.1"); "metrics" is host:port of Prometheus' /metrics."""
    version: str = ""
    """Of Baton, as installed there."""
    protocol: int = PROTOCOL
    """See engine.core.protocol."""


@dataclass(frozen=True, slots=True)
class PageCount:
    """One line of a worker's page ledger. The lines of all states add up to num_pages."""

    state: str
    """free; cached: in the radix tree and nobody reads it; shared: in the tree under some lease; leased, reserved,
    filling, quarantined: private to one lease in that state."""
    pages: int
    oldest_s: float = 0.0
    """Age of the oldest lease behind them in its state, right to one load report; 0 where nobody holds them."""


@dataclass(frozen=True, slots=True)
class WorkerLoad:
    """A worker's own word on how busy it is."""

    seq: int
    reported_s: float
    """On the worker's own clock."""
    queued_requests: int
    queued_tokens: int
    """Prompt tokens that wait or are part done."""
    running_rows: int
    free_pages: int
    """Free and evictable pages."""
    num_pages: int
    step_s: float
    """Moving average of recent steps."""
    prefill_tokens_per_s: float
    """Measured while prefilling; 0 before the first one."""
    pages_by_state: tuple[PageCount, ...] = ()
    num_preempted: int = 0
    """Requests that lost their pages to others and were computed again, since the start."""
    draining: bool = False
    """It wants to leave: no new work, and what decodes there should move."""
    num_page_faults: int = 0
    """Times that pages were missing from the count, or still leased with no request there, since the start."""
    queued_pairs: int = 0
    """Of the queued tokens each with all tokens before it: what their attention costs."""
    view_digest: int | None = None
    """The keys of all pages in the prefix cache (engine/core/digest.py), XORed, after every event that was sent before
    this: a reader that has another digest has missed something. None: not said.
    """
