"""Which formats one model speaks, and the parser of one of its answers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from router.dialect import hermes, llama3, mistral, reasoning
from router.dialect.base import Content, Parser, Piece

_FORMATS: Mapping[str, tuple[Callable[[], Parser], tuple[str, ...]]] = {
    "hermes": (hermes.HermesParser, hermes.MARKS),
    "llama3": (llama3.Llama3Parser, llama3.MARKS),
    "mistral": (mistral.MistralParser, mistral.MARKS),
}
TOOL_PARSERS = ("auto", *_FORMATS, "none")
REASONING_PARSERS = ("auto", "think", "none")


@dataclass(frozen=True, slots=True)
class Dialect:
    """How one model writes."""

    tools: str = "none"
    """Of TOOL_PARSERS, not auto."""
    thinks: bool = False
    names_first: bool = False
    """Of mistral: name[ARGS]{...} instead of a list of objects."""

    def marks(self, *, with_tools: bool) -> tuple[str, ...]:
        """What must be seen in the text, though the tokenizer may call it special."""
        thoughts = reasoning.MARKS if self.thinks else ()
        return thoughts + (_FORMATS[self.tools][1] if with_tools and self.tools in _FORMATS else ())

    def parser(self, *, with_tools: bool, thoughts: bool, inside_thoughts: bool) -> "AnswerParser":
        """Of one answer that may have `thoughts`. `inside_thoughts`: the prompt ends with the mark that opens them."""
        tools = _FORMATS[self.tools][0]() if with_tools and self.tools in _FORMATS else None
        thinks = reasoning.ThinkParser(inside=inside_thoughts) if self.thinks and thoughts else None
        return AnswerParser(thinks, tools)


def dialect_of(template: str, tools: str = "auto", thoughts: str = "auto") -> Dialect:
    """From a chat template, where "auto" asks for it: a template that shows the model its own calls has their marks."""
    if tools == "auto":
        tools = _tools_of(template)
    thinks = reasoning.CLOSE in template if thoughts == "auto" else thoughts == "think"
    return Dialect(tools, thinks, mistral.ARGS in template)


def _tools_of(template: str) -> str:
    if "<function=" in template:  # Qwen3-Coder's XML has Hermes' marks around it
        return "none"
    if hermes.OPEN in template:
        return "hermes"
    if mistral.CALLS in template:
        return "mistral"
    if llama3.TAG in template or ('"parameters"' in template and "ipython" in template):
        return "llama3"
    return "none"


class AnswerParser:
    """Thoughts first, then words and calls. Without either parser all text is content, each part at once."""

    def __init__(self, thoughts: Parser | None, tools: Parser | None) -> None:
        self._thoughts = thoughts
        self._tools = tools

    def push(self, text: str) -> list[Piece]:
        """See Parser."""
        pieces: list[Piece] = self._thoughts.push(text) if self._thoughts else [Content(text)]
        return self._with_calls(pieces)

    def finish(self) -> list[Piece]:
        """See Parser."""
        pieces = self._with_calls(self._thoughts.finish()) if self._thoughts else []
        return pieces + (self._tools.finish() if self._tools else [])

    def _with_calls(self, pieces: list[Piece]) -> list[Piece]:
        if self._tools is None:
            return pieces
        out: list[Piece] = []
        for piece in pieces:
            out += self._tools.push(piece.text) if isinstance(piece, Content) else [piece]
        return out
