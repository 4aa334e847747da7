"""From a client's grammar to a matcher, within bounds of size, memory and time.

A grammar is somebody else's program. Its text is bounded, and so is what the engine builds of it (see check for what
that does not bound). It is built in one thread of its own, and kept, so that the same schema again costs nothing.
`is_compiled` is for those who cannot wait for that.
"""

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from engine.core.errors import BatonError, InvalidRequest
from engine.core.types import Grammar, GrammarKind

MAX_SOURCE_CHARS = 128 << 10
MAX_KEPT = 16
"""Compiled grammars that stay for the next request with the same one."""

_FUEL, _GRAMMAR_SIZE, _STATES = 200_000, 100_000, 30_000
"""llguidance's units; together at most about a quarter of a second of work and 60 MB a grammar."""
_JSON: Any = {"whitespace_pattern": r"[\x20\x0A\x09]{0,20}"}
"""Room for indentation, but not for white space without end, in which small models lose themselves."""
_LENIENT_JSON: Any = _JSON | {"lenient": True}


class Compiler:
    """Grammars over one vocabulary. Methods may be called from any thread."""

    def __init__(self, load: Callable[[], LLTokenizer]) -> None:
        """`load` is called at the first grammar, in the compiler's own thread."""
        self._load = load
        self._tokenizer: LLTokenizer | None = None
        self._lock = threading.Lock()
        self._kept: OrderedDict[Grammar, LLMatcher | BatonError] = OrderedDict()
        self._under_way: set[Grammar] = set()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="grammar")
        self._opener = ThreadPoolExecutor(1, thread_name_prefix="grammar-open")
        """Of what is kept: behind nobody's compilation."""
        self.wake: Callable[[], None] = lambda: None
        """Called in the compiler's thread whenever a grammar that was asked for is compiled, or found to be bad."""

    def is_compiled(self, grammar: Grammar) -> bool:
        """Whether `open` has no compilation to wait for. False begins it; `wake` is called at its end."""
        with self._lock:
            if grammar in self._kept:
                return True
            if grammar not in self._under_way:
                self._under_way.add(grammar)
                self._thread.submit(self._compile_ahead, grammar)
            return False

    def open(self, grammar: Grammar, emitted: Sequence[int] = ()) -> "Future[LLMatcher]":
        """A matcher that stands after `emitted`, tokens of the answer so far.

        The future raises InvalidRequest for a grammar that is broken, too large or too slow, or that `emitted` does
        not follow, and CheckpointError where the checkpoint's tokenizer knows no grammars.
        """
        with self._lock:
            thread = self._opener if grammar in self._kept else self._thread
        return thread.submit(self._open, grammar, list(emitted))

    def load(self) -> None:
        """Read the vocabulary now. Raises as `load` of the constructor."""
        self._thread.submit(self._vocabulary).result()

    def close(self) -> None:
        """End the threads, after what they are at."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._opener.shutdown(wait=False, cancel_futures=True)

    def _compile_ahead(self, grammar: Grammar) -> None:
        try:
            self._compiled(grammar)
        finally:
            with self._lock:
                self._under_way.discard(grammar)
            self.wake()

    def _compiled(self, grammar: Grammar) -> LLMatcher | BatonError:
        with self._lock:
            found = self._kept.pop(grammar, None)
            if found is not None:
                self._kept[grammar] = found  # the last to go
                return found
        try:
            found = self._compile(grammar)
        except BatonError as error:
            found = error
        with self._lock:
            if len(self._kept) >= MAX_KEPT:
                self._kept.popitem(last=False)
            self._kept[grammar] = found
        return found

    def _open(self, grammar: Grammar, emitted: list[int]) -> LLMatcher:
        found = self._compiled(grammar)
        if isinstance(found, BatonError):
            raise found
        with self._lock:
            matcher = found.deep_copy()
        if emitted and not matcher.consume_tokens(emitted):
            raise InvalidRequest(f"the tokens so far do not follow the grammar: {_reason(matcher.get_error())}")
        return matcher

    def _vocabulary(self) -> LLTokenizer:
        if self._tokenizer is None:
            self._tokenizer = self._load()
        return self._tokenizer

    def _compile(self, grammar: Grammar) -> LLMatcher:
        if len(grammar.source) > MAX_SOURCE_CHARS:
            raise InvalidRequest(f"the grammar has more than {MAX_SOURCE_CHARS} characters")
        limits = LLParserLimits(
            initial_lexer_fuel=_FUEL, max_grammar_size=_GRAMMAR_SIZE, max_lexer_states=_STATES, verbose_errors=False
        )
        try:
            matcher = LLMatcher(self._vocabulary(), _serialized(grammar), log_level=0, limits=limits)
        except ValueError as error:
            raise InvalidRequest(_reason(str(error))) from error
        matcher.compute_bitmask()  # most of the lexer is built here; better now than in somebody's step
        if matcher.is_error():
            raise InvalidRequest(_reason(matcher.get_error()))
        return matcher


def _serialized(grammar: Grammar) -> str:
    match grammar.kind:
        case GrammarKind.JSON_SCHEMA:
            return LLMatcher.grammar_from_json_schema(grammar.source, overrides=_JSON)
        case GrammarKind.LENIENT_JSON_SCHEMA:
            return LLMatcher.grammar_from_json_schema(grammar.source, overrides=_LENIENT_JSON)
        case GrammarKind.REGEX:
            return LLMatcher.grammar_from_regex(grammar.source)
        case GrammarKind.LARK:
            return LLMatcher.grammar_from_lark(grammar.source)


def choice_grammar(choices: Sequence[str]) -> Grammar:
    """One of `choices`, character by character."""
    alternatives = " | ".join(json.dumps(choice, ensure_ascii=False) for choice in choices)
    return Grammar(GrammarKind.LARK, f"start: {alternatives}")


def _reason(message: str) -> str:
    """What a client can act on; the lines between quote its own grammar back."""
    lines = [line.strip() for line in message.splitlines() if line.strip() and line.strip() != "<non-verbose/>"]
    told = lines[:1] + [line.removeprefix("error: ") for line in lines[1:] if line.startswith("error: ")]
    return " ".join(told)[:500] or "the grammar cannot be compiled"
