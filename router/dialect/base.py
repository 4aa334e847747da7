"""What parsers of a model's answer give, and what they are."""

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Content:
    """Words for the user."""

    text: str


@dataclass(frozen=True, slots=True)
class Reasoning:
    """Words that the model thinks with."""

    text: str


@dataclass(frozen=True, slots=True)
class CallStart:
    """Call `index` (from 0) of this answer is of the tool `name`; its arguments follow."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """More of the arguments of call `index`: a part of a JSON text."""

    index: int
    text: str


Piece = Content | Reasoning | CallStart | CallArguments


class Parser(Protocol):
    """One answer's way from text to pieces."""

    def push(self, text: str) -> list[Piece]:
        """What the next part of the text adds. What may still turn out to be a mark waits."""

    def finish(self) -> list[Piece]:
        """What waited, now that nothing more comes."""
