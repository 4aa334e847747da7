"""The output items of one response while its text comes, and the events that tell of them."""

import secrets
from typing import Any

from router.dialect.base import CallArguments, CallStart, Content, Piece, Reasoning
from router.dialect.dialect import AnswerParser
from router.http.message import call_id

Json = dict[str, Any]
_KINDS = {"message": ("output_text", "msg"), "reasoning": ("reasoning_text", "rs")}
"""What a text item's part is called, and how its id begins."""
_NO_SUMMARY: Json = {"summary": []}


class ItemBuilder:
    """One answer. Items follow each other: a new one ends the one before it.

    Attributes:
        items: all so far; the last one may still grow.
        reasoning_tokens: tokens that came while it thought.
    """

    def __init__(self, parser: AnswerParser, *, parallel: bool, short_ids: bool) -> None:
        """`parallel`: several calls may be shown. `short_ids`: see call_id."""
        self._parser = parser
        self._parallel = parallel
        self._short_ids = short_ids
        self.items: list[Json] = []
        self.reasoning_tokens = 0

    def push(self, text: str, num_tokens: int) -> list[Json]:
        """The events of the next part of the answer."""
        events = self._take(self._parser.push(text))
        if self.items and self.items[-1]["type"] == "reasoning":
            self.reasoning_tokens += num_tokens
        return events

    def finish(self, *, whole: bool) -> list[Json]:
        """Nothing more comes. Not `whole`: the answer broke off, and so did its last item."""
        events = self._take(self._parser.finish())
        if not self.items:
            events += self._begin_text("message")
        return events + self._end("completed" if whole else "incomplete")

    def _take(self, pieces: list[Piece]) -> list[Json]:
        events: list[Json] = []
        for piece in pieces:
            match piece:
                case Content(text) if text:
                    events += self._add_text("message", text)
                case Reasoning(text) if text:
                    events += self._add_text("reasoning", text)
                case CallStart(index, name) if self._parallel or index == 0:
                    events += self._begin_call(name)
                case CallArguments(index, text) if self._parallel or index == 0:
                    self.items[-1]["arguments"] += text
                    events.append(self._event("function_call_arguments.delta", delta=text))
        return events

    # --------------------------------------------------------------------------------------------------- items

    def _add_text(self, kind: str, text: str) -> list[Json]:
        open_one = self.items and (self.items[-1]["type"], self.items[-1]["status"]) == (kind, "in_progress")
        events = [] if open_one else self._begin_text(kind)
        self.items[-1]["content"][0]["text"] += text
        more: Json = {"logprobs": []} if kind == "message" else {}
        return [*events, self._event(f"{_KINDS[kind][0]}.delta", content_index=0, delta=text, **more)]

    def _begin_text(self, kind: str) -> list[Json]:
        part, prefix = _KINDS[kind]
        item: Json = {"type": kind, "id": f"{prefix}_{secrets.token_hex(16)}", "status": "in_progress", "content": []}
        item |= {"role": "assistant"} if kind == "message" else _NO_SUMMARY
        events = self._begin(item)
        content: Json = {"type": part, "text": ""}
        if kind == "message":
            content.update(annotations=[], logprobs=[])
        item["content"].append(content)
        return [*events, self._event("content_part.added", content_index=0, part=dict(content))]

    def _begin_call(self, name: str) -> list[Json]:
        item = {"type": "function_call", "id": f"fc_{secrets.token_hex(16)}", "status": "in_progress"}
        return self._begin(item | {"call_id": call_id(short=self._short_ids), "name": name, "arguments": ""})

    def _begin(self, item: Json) -> list[Json]:
        events = self._end("completed")
        self.items.append(item)
        shown = dict(item)
        if "content" in item:  # which grows
            shown["content"] = []
        return [*events, {"type": "response.output_item.added", "output_index": len(self.items) - 1, "item": shown}]

    def _end(self, status: str) -> list[Json]:
        if not self.items or self.items[-1]["status"] != "in_progress":
            return []
        item = self.items[-1]
        item["status"] = status
        events = []
        if item["type"] == "function_call":
            done = self._event("function_call_arguments.done", name=item["name"], arguments=item["arguments"])
            events.append(done)
        else:
            (part,) = item["content"]
            more: Json = {"logprobs": []} if item["type"] == "message" else {}
            events.append(self._event(f"{part['type']}.done", content_index=0, text=part["text"], **more))
            events.append(self._event("content_part.done", content_index=0, part=part))
        return [*events, {"type": "response.output_item.done", "output_index": len(self.items) - 1, "item": item}]

    def _event(self, kind: str, **fields: Any) -> Json:
        place = {"output_index": len(self.items) - 1, "item_id": self.items[-1]["id"]}
        return {"type": f"response.{kind}"} | place | fields
