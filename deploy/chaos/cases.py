"""What the campaign asks, and the right answers: known before the first fault."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

PAGE, CHUNK = 16, 64
"""Of the service under test: tokens in a page, tokens in a step."""
MAX_MODEL_LEN = 512
LENGTHS = (1, PAGE - 1, PAGE, PAGE + 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 3 * CHUNK + 1, 4 * CHUNK + 1)
LOGPROB_TOLERANCE = 2e-3
"""Neighbours in a batch change the last bits of a float32 logit, and no token."""

STOP_AT = "explicitly as static"
"""Comes after some 90 tokens of the answer that `make_kinds` asks the built-in model for."""

_DRAWN: dict[str, Any] = {
    "temperature": 0.9,
    "top_p": 0.95,
    "top_k": 40,
    "repetition_penalty": 1.2,
    "presence_penalty": 0.3,
    "frequency_penalty": 0.2,
}

_PENALTIES = {"repetition_penalty", "presence_penalty", "frequency_penalty"}


@dataclass(frozen=True, slots=True)
class Case:
    """One request. `options` are the names that the Python client and the HTTP door share."""

    name: str
    prompt: tuple[int, ...]
    options: dict[str, Any]
    n: int = 1

    @property
    def is_plain_greedy(self) -> bool:
        """Whether transformers' own greedy search must give the same tokens."""
        return (
            self.options["temperature"] == 0.0
            and bool(self.options.get("ignore_eos"))
            and not _PENALTIES & {*self.options}
        )


@dataclass(slots=True)
class Seen:
    """One answer as a client saw it so far."""

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    """Over gRPC only: the HTTP door gives text."""
    logprobs: list[float] = field(default_factory=list)
    finish: str | None = None


def make_cases(vocab_size: int, seed: int) -> list[Case]:
    """The same for the same arguments. Token ids below 4 may be special ones: prompts go without them."""
    rng = random.Random(seed)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(rng.randrange(4, vocab_size) for _ in range(count))

    greedy: dict[str, Any] = {"temperature": 0.0, "ignore_eos": True}
    cases = [
        Case(f"greedy-{length}", tokens(length), greedy | {"max_tokens": 16} | ({"logprobs": 2} if odd % 2 else {}))
        for odd, length in enumerate(LENGTHS)
    ]
    shared = tokens(6 * PAGE)
    cases += [Case(f"shared-{i}", shared + tokens(3 + 7 * i), greedy | {"max_tokens": 16}) for i in range(4)]
    cases += [Case(f"long-{i}", tokens(40 + 50 * i), greedy | {"max_tokens": 80}) for i in range(3)]
    for i in range(4):
        drawn = _DRAWN | {"seed": 100 + i, "max_tokens": 32, "min_tokens": 4, "ignore_eos": i % 2 == 0}
        cases.append(Case(f"drawn-{i}", tokens(30 + 45 * i), drawn | ({"logprobs": 1} if i > 1 else {})))
    cases.append(
        Case("two", tokens(70), _DRAWN | {"seed": 7, "max_tokens": 40, "ignore_eos": True, "logprobs": 0}, n=2)
    )
    cases.append(Case("stop", tokens(50), _DRAWN | {"seed": 9, "max_tokens": 60, "stop": ["the", "."]}))
    return cases


def make_kinds(vocab_size: int) -> list[Case]:
    """One request of each kind that is hard to go on with elsewhere, long enough to be struck in the middle: always the
    same ones, whose answers with the built-in model are known to be so long.
    """
    rng = random.Random("kinds")
    plain: dict[str, Any] = {"temperature": 0.0, "ignore_eos": True, "max_tokens": 100}
    seeded = {"temperature": 0.9, "top_p": 0.95, "seed": 9, "ignore_eos": True, "max_tokens": 100}
    options = {
        "seeded": (seeded, 1),
        "penalties": (plain | {name: _DRAWN[name] for name in _PENALTIES}, 1),
        "stop string": (_DRAWN | {"seed": 10, "ignore_eos": True, "max_tokens": 200, "stop": [STOP_AT]}, 1),
        "logprobs": (seeded | {"logprobs": 2}, 1),
        "two answers": (seeded, 2),
    }
    return [
        Case(name, tuple(rng.randrange(4, vocab_size) for _ in range(50)), values, n)
        for name, (values, n) in options.items()
    ]


def difference(seen: Sequence[Seen], right: Sequence[Seen], *, whole: bool) -> str:
    """What is wrong with answers, in words; empty when nothing is. Not `whole`: the client left before the end."""
    for index, (one, other) in enumerate(zip(seen, right, strict=True)):
        where = f"answer {index}"
        if not whole:
            one_tokens, one_text = other.tokens[: len(one.tokens)], other.text[: len(one.text)]
            if one.tokens != one_tokens or one.text != one_text:
                return f"{where}: {one.tokens or one.text!r} is not how {other.tokens or other.text!r} begins"
            continue
        if (one.tokens, one.text, one.finish) != (other.tokens, other.text, other.finish):
            return f"{where}: {one} instead of {other}"
        if len(one.logprobs) != len(other.logprobs):
            return f"{where}: {len(one.logprobs)} log probabilities instead of {len(other.logprobs)}"
        gaps = [abs(a - b) for a, b in zip(one.logprobs, other.logprobs, strict=True)]
        if max(gaps, default=0.0) > LOGPROB_TOLERANCE:
            return f"{where}: log probabilities differ by up to {max(gaps):.4f}"
    return ""
