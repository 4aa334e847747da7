"""A recorded trace of a chat service as requests with token ids, and a small made-up one of the same kind.

The format is the one of Mooncake's published traces: one JSON object a line with `timestamp` (ms), `input_length`,
`output_length` (tokens) and `hash_ids`, one id for each prefix block of 512 tokens: equal ids are equal prefixes. The
text is not published, so each id is expanded to tokens that are its own.
"""

import json
import random
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

BLOCK_TOKENS = 512
VOCAB_SIZE = 4096
"""Token ids are drawn below this: the built-in tokenizer knows them, so a router takes them as a prompt."""
_KNOWN_BLOCKS = 1 << 16


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """One line of a trace."""

    arrival_s: float
    """After the first request of the slice."""
    num_tokens: int
    num_new: int
    blocks: tuple[int, ...]
    """Ids of its prefix blocks; the last block may be partial."""

    def tokens(self) -> "array[int]":
        """The prompt: int32 token ids [num_tokens]."""
        tokens = array("i")
        for block in self.blocks:
            tokens.frombytes(_block_bytes(block))
        return tokens[: self.num_tokens]


@lru_cache(_KNOWN_BLOCKS)
def _block_bytes(block: int) -> bytes:
    drawn = array("H", random.Random(block).randbytes(2 * BLOCK_TOKENS))
    return array("i", [value % VOCAB_SIZE for value in drawn]).tobytes()


def load_trace(path: Path, first: int = 0, count: int | None = None) -> list[TraceRequest]:
    """Requests [first, first + count) of the file; all from `first` on when `count` is None.

    Raises ValueError for a line that is not of the format, and for an empty slice.
    """
    requests: list[TraceRequest] = []
    with path.open() as lines:
        for number, line in enumerate(lines):
            if number < first:
                continue
            if count is not None and len(requests) == count:
                break
            requests.append(_request(line, f"{path}:{number + 1}"))
    if not requests:
        raise ValueError(f"{path}: no requests from number {first} on")
    return shifted(requests)


def shifted(requests: Sequence[TraceRequest], speed: float = 1.0) -> list[TraceRequest]:
    """The same requests with the first one at time 0 and time running `speed` times as fast."""
    start_s = requests[0].arrival_s
    return [
        TraceRequest((each.arrival_s - start_s) / speed, each.num_tokens, each.num_new, each.blocks)
        for each in requests
    ]


def at_rate(requests: Sequence[TraceRequest], requests_per_s: float) -> list[TraceRequest]:
    """The same requests, time stretched so that they come at this rate on average. Needs two moments of arrival."""
    span_s = requests[-1].arrival_s - requests[0].arrival_s
    if span_s <= 0:
        raise ValueError("all requests come at one moment: there is no time to stretch")
    return shifted(requests, requests_per_s * span_s / len(requests))


def whole_conversations(requests: Sequence[TraceRequest], one_in: int) -> list[TraceRequest]:
    """The requests of one in so many conversations, every turn of them: a slice that keeps what caches live on.

    A conversation is known by its second block: the first is a system prompt that many share.
    """
    return [each for each in requests if each.blocks[min(1, len(each.blocks) - 1)] % one_in == 0]


def ceiling_hit_rate(requests: Iterable[TraceRequest]) -> float:
    """Share of prompt tokens that one endless cache of whole blocks would hold: no placement can find more."""
    seen: set[int] = set()
    found = total = 0
    for request in requests:
        run = 0
        # The last token is always computed, so a block that ends the prompt cannot be found whole.
        for block in request.blocks[: (request.num_tokens - 1) // BLOCK_TOKENS]:
            if block not in seen:
                break
            run += 1
        seen.update(request.blocks[: request.num_tokens // BLOCK_TOKENS])
        found += run * BLOCK_TOKENS
        total += request.num_tokens
    return found / total


def write_trace(path: Path, num_requests: int, seed: int = 0, requests_per_s: float = 4.0) -> None:
    """A made-up trace in the same format: conversations of several turns behind one of a few system prompts."""
    rng = random.Random(seed)
    blocks = iter(range(1, 1 << 30))
    systems = [[next(blocks)] for _ in range(3)]
    talks: list[list[int]] = []
    now_s = 0.0
    with path.open("w") as file:
        for _ in range(num_requests):
            if talks and rng.random() < 0.5:
                talk = rng.choice(talks)
            else:
                talk = list(rng.choice(systems))
                talks.append(talk)
            talk += [next(blocks) for _ in range(rng.randint(1, 4))]
            line = {
                "timestamp": round(now_s * 1000),
                "input_length": len(talk) * BLOCK_TOKENS - rng.randrange(BLOCK_TOKENS),
                "output_length": rng.randint(1, 40),
                "hash_ids": talk,
            }
            file.write(json.dumps(line) + "\n")
            now_s += rng.expovariate(requests_per_s)


def _request(line: str, where: str) -> TraceRequest:
    try:
        values = json.loads(line)
        request = TraceRequest(
            values["timestamp"] / 1000, values["input_length"], values["output_length"], tuple(values["hash_ids"])
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{where}: not a request of a trace: {error!r}") from error
    if not 0 < request.num_tokens <= len(request.blocks) * BLOCK_TOKENS:
        raise ValueError(f"{where}: {request.num_tokens} tokens in {len(request.blocks)} blocks of {BLOCK_TOKENS}")
    return request
