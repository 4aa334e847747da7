"""The assistant's message while its text comes: words, thoughts and calls of tools, as OpenAI clients read them."""

import secrets
import string
from typing import Any

from router.dialect.base import CallArguments, CallStart, Content, Piece, Reasoning
from router.dialect.dialect import AnswerParser

Json = dict[str, Any]


class MessageBuilder:
    """One answer.

    Attributes:
        calls: it has called a tool.
    """

    def __init__(self, parser: AnswerParser, *, parallel: bool, short_ids: bool) -> None:
        """`parallel`: several calls may be shown. `short_ids`: nine letters and digits, as Mistral's templates want."""
        self._parser = parser
        self._parallel = parallel
        self._short_ids = short_ids
        self.calls = False

    def push(self, text: str, *, last: bool) -> Json:
        """What `text` adds to the message; empty when all of it is held back. `last`: nothing more comes."""
        pieces = self._parser.push(text)
        if last:
            pieces += self._parser.finish()
        delta: Json = {}
        for piece in pieces:
            self._add(delta, piece)
        return delta

    def _add(self, delta: Json, piece: Piece) -> None:
        match piece:
            case Content(text):
                delta["content"] = delta.get("content", "") + text
            case Reasoning(text):
                delta["reasoning_content"] = delta.get("reasoning_content", "") + text
            case CallStart(index, name) if self._parallel or index == 0:
                self.calls = True
                function = {"name": name, "arguments": ""}
                call = {"index": index, "id": call_id(short=self._short_ids), "type": "function", "function": function}
                delta.setdefault("tool_calls", []).append(call)
            case CallArguments(index, text) if self._parallel or index == 0:
                self._more(delta, index, text)

    def _more(self, delta: Json, index: int, text: str) -> None:
        calls = delta.setdefault("tool_calls", [])
        if not calls or calls[-1]["index"] != index:
            calls.append({"index": index, "function": {"arguments": ""}})
        calls[-1]["function"]["arguments"] += text


def call_id(*, short: bool) -> str:
    """A fresh one. `short`: nine letters and digits."""
    if short:
        return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(9))
    return f"call_{secrets.token_hex(12)}"
