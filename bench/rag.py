"""Questions about documents, with and without the prefix cache: `python -m bench.rag --json`.

The experiment: two documents, six questions about each; then the twelve prompts in mixed order on an empty cache. A
prompt is a document and a question about it. Without a cache every question computes its document anew; with one only
the first question of each document does. The same engine serves both runs: a request of its own cache salt shares
nothing with others.
"""

import argparse
import dataclasses
import json
import random
import sys
import time
from array import array
from dataclasses import dataclass

from bench.workload import WORDS
from engine.core.engine import EngineCore
from engine.core.types import Request, Sampling, token_buffer
from engine.runtime.build import Engine, build_engine
from engine.runtime.config import EngineConfig

NUM_DOCUMENTS, NUM_QUESTIONS = 2, 6


@dataclass(frozen=True, slots=True)
class Prompt:
    """A document and one question about it, as byte tokens."""

    document: int
    document_tokens: int
    tokens: "array[int]"


@dataclass(frozen=True, slots=True)
class Answer:
    """What one prompt cost."""

    prompt: Prompt
    cached_tokens: int
    seconds: float
    tokens: tuple[int, ...]

    @property
    def is_hit(self) -> bool:
        """At least half of the document came from the cache."""
        return 2 * self.cached_tokens >= self.prompt.document_tokens


def make_prompts(document_tokens: int, seed: int) -> list[Prompt]:
    """Six questions to each of two documents, document by document. One byte of text is one token."""
    rng = random.Random(seed)
    prompts = []
    for document in range(NUM_DOCUMENTS):
        text = " ".join(rng.choices(WORDS.split(), k=document_tokens))[:document_tokens]
        for question in range(NUM_QUESTIONS):
            asked = f"\n\nQuestion {question + 1}: what does it say of the {rng.choice(WORDS.split())}?\nAnswer:"
            tokens = token_buffer(list((text + asked).encode("ascii")))
            prompts.append(Prompt(document, document_tokens, tokens))
    return prompts


class Reader:
    """Asks one engine one prompt after the other."""

    def __init__(self, core: EngineCore, answer_tokens: int) -> None:
        self._core = core
        self._answer_tokens = answer_tokens
        self._next_id = 1

    def ask(self, prompts: list[Prompt], salt: bytes, *, share: bool) -> list[Answer]:
        """Answer `prompts` in order. They share prefixes among themselves (and with equal salts) when `share`."""
        return [
            self._ask(prompt, salt if share else salt + index.to_bytes(4, "little"))
            for index, prompt in enumerate(prompts)
        ]

    def _ask(self, prompt: Prompt, salt: bytes) -> Answer:
        start_s = time.perf_counter()
        request = Request(
            id=self._next_id,
            tokens=prompt.tokens,
            num_prompt=len(prompt.tokens),
            sampling=Sampling(max_tokens=self._answer_tokens, temperature=0.0),
            arrival_s=start_s,
            deadline_s=start_s + 600,
            cache_salt=salt,
        )
        self._next_id += 1
        self._core.submit(request)
        tokens: list[int] = []
        cached_tokens, finished = 0, False
        while not finished:
            result = self._core.step(time.perf_counter())
            tokens += result.tokens
            cached_tokens += sum(started.cached_tokens for started in result.started)
            finished = bool(result.finished)
        return Answer(prompt, cached_tokens, time.perf_counter() - start_s, tuple(tokens))


def measure(engine: Engine, document_tokens: int, answer_tokens: int, seed: int) -> dict[str, object]:
    """Both experiments on a running engine. Its max_model_len must hold a prompt and its answer."""
    reader = Reader(engine.core, answer_tokens)
    prompts = make_prompts(document_tokens, seed)
    reader.ask(prompts[:1], b"warm-up", share=True)

    without = reader.ask(prompts, b"without", share=False)
    with_cache = reader.ask(prompts, b"with", share=True)
    mixed = prompts[:]
    random.Random(seed).shuffle(mixed)
    in_mixed_order = reader.ask(mixed, b"mixed", share=True)

    later = [answer for index, answer in enumerate(with_cache) if index % NUM_QUESTIONS]
    seconds_without = sum(answer.seconds for answer in without)
    seconds_with = sum(answer.seconds for answer in with_cache)
    return {
        "documents": NUM_DOCUMENTS,
        "questions": NUM_QUESTIONS,
        "document_tokens": document_tokens,
        "answer_tokens": answer_tokens,
        "document_tokens_skipped": round(
            sum(min(answer.cached_tokens, document_tokens) for answer in later) / (len(later) * document_tokens), 4
        ),
        "mixed_prompts": len(in_mixed_order),
        "mixed_hits": sum(answer.is_hit for answer in in_mixed_order),
        "seconds_without_cache": round(seconds_without, 3),
        "seconds_with_cache": round(seconds_with, 3),
        "speedup": round(seconds_without / seconds_with, 2),
        "same_answers": [answer.tokens for answer in without] == [answer.tokens for answer in with_cache],
    }


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.rag", description=__doc__)
    parser.add_argument("--model", default="builtin", help="checkpoint folder, hub id, or the built-in model")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", help="in 16 bits answers may differ by rounding alone")
    parser.add_argument("--document-tokens", type=int, default=3000)
    parser.add_argument("--answer-tokens", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print only one JSON object")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Prints the result. Returns 0."""
    args = arguments(argv)
    engine = build_engine(EngineConfig(model=args.model, device=args.device, dtype=args.dtype))
    try:
        report = measure(engine, args.document_tokens, args.answer_tokens, args.seed)
    finally:
        engine.close()
    report |= {"model": args.model, "dtype": args.dtype, "engine": dataclasses.asdict(engine.scheduler)}
    if args.json:
        print(json.dumps(report))
    else:
        for name, value in report.items():
            print(f"{name:26} {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
