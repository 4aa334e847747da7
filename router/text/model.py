"""The served model as the doors know it: its name, its limits, and how its text becomes tokens."""

import time
from array import array
from dataclasses import dataclass, field
from pathlib import Path

from engine.grammar.check import GrammarChecker
from engine.models.config import GenerationConfig, load_generation_config
from engine.models.registry import load_config
from router.dialect.dialect import Dialect, dialect_of
from router.text.template import ChatTemplate
from router.text.tokenizer import Tokenizer

_TAIL = 16
"""Tokens that surely hold a mark and the white space behind it."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """Everything about the model that is decided before a request comes."""

    name: str
    tokenizer: Tokenizer
    template: ChatTemplate | None
    vocab_size: int
    """Rows of the logits: every token id is below it."""
    max_model_len: int
    """Tokens of prompt and answer together."""
    grammars: GrammarChecker
    """Checks what clients want answers to look like."""
    dialect: Dialect = field(default_factory=Dialect)
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    created_s: int = 0
    """Unix time, for the OpenAI model list."""

    def special_id(self, mark: str) -> int | None:
        """The id of a special token by its name; None where `mark` is ordinary text."""
        return next((id for id, name in self.tokenizer.pieces.names.items() if name == mark), None)

    def ends_with(self, tokens: "array[int]", mark: str) -> bool:
        """Whether the last words of a prompt are `mark`, white space aside."""
        tail = b"".join(map(self.tokenizer.pieces.spelled, tokens[-_TAIL:]))
        return tail.rstrip().endswith(mark.encode())


def load_served_model(
    folder: Path,
    name: str,
    max_model_len: int | None = None,
    *,
    tool_parser: str = "auto",
    reasoning_parser: str = "auto",
) -> ServedModel:
    """Read what the router needs of a checkpoint folder; no weights, no torch.

    `max_model_len` narrows the model's own limit; the parsers are of TOOL_PARSERS and REASONING_PARSERS. Raises
    CheckpointError that names the file at fault.
    """
    config = load_config(folder, max_model_len)
    tokenizer = Tokenizer.load(folder)
    template = ChatTemplate.load(folder, tokenizer.special_tokens)
    return ServedModel(
        name=name,
        tokenizer=tokenizer,
        template=template,
        dialect=dialect_of(template.source if template else "", tool_parser, reasoning_parser),
        vocab_size=config.vocab_size,
        max_model_len=min(max_model_len or config.max_position, config.max_position),
        grammars=GrammarChecker(folder, config.vocab_size),
        generation=load_generation_config(folder),
        created_s=int(time.time()),
    )
