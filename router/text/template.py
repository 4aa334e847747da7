"""Chat messages to one prompt, by the checkpoint's own Jinja template.

Rendering is transformers' own function: a template is code from the checkpoint and runs in its sandbox.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from transformers.utils.chat_template_utils import render_jinja_template

from engine.core.errors import CheckpointError, InvalidRequest
from router.text.tokenizer import read_json

RESERVED = frozenset(
    "messages conversations chat_template tools documents add_generation_prompt continue_final_message "
    "return_assistant_tokens_mask".split()
)
"""Names that a client's template arguments must not take."""


class ChatTemplate:
    """The template of one checkpoint."""

    def __init__(self, source: str, special_tokens: Mapping[str, str], with_tools: str | None = None) -> None:
        """`with_tools`: of conversations with tools, where the checkpoint has a template of its own for them."""
        self._source = source
        self._with_tools = with_tools or source
        self._special_tokens = dict(special_tokens)

    @property
    def source(self) -> str:
        """All that the checkpoint says of how its conversations are written."""
        return self._source if self._with_tools == self._source else self._source + self._with_tools

    @classmethod
    def load(cls, folder: Path, special_tokens: Mapping[str, str]) -> "ChatTemplate | None":
        """From chat_template.jinja or tokenizer_config.json; None when the checkpoint has none."""
        path = folder / "chat_template.jinja"
        if path.is_file():
            return cls(path.read_text(encoding="utf-8"), special_tokens)
        config_path = folder / "tokenizer_config.json"
        source = read_json(config_path).get("chat_template")
        with_tools = None
        if isinstance(source, list):  # several named templates
            named = {entry["name"]: entry["template"] for entry in source}
            source, with_tools = named.get("default"), named.get("tool_use")
        if source is None:
            return None
        if not isinstance(source, str):
            raise CheckpointError(f"{config_path}: chat_template should be a string, found {type(source).__name__}")
        return cls(source, special_tokens, with_tools)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        arguments: Mapping[str, Any] | None = None,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> str:
        """The prompt that asks for the assistant's next message.

        `arguments` are the template's own switches (such as enable_thinking); `tools` are of OpenAI's form. Raises
        InvalidRequest when the template refuses the messages.
        """
        values = {**self._special_tokens, **(arguments or {})}
        if taken := RESERVED & values.keys():
            raise InvalidRequest(f"not a template argument: {', '.join(sorted(taken))}", param="chat_template_kwargs")
        try:
            rendered: Any = render_jinja_template(
                [[dict(message) for message in messages]],
                tools=[dict(tool) for tool in tools] or None,
                chat_template=self._with_tools if tools else self._source,
                add_generation_prompt=True,
                **values,
            )
        except RecursionError:
            raise InvalidRequest(
                "the chat template refused the messages: nested too deeply", param="messages"
            ) from None
        except (jinja2.TemplateError, TypeError, ValueError, LookupError) as error:
            raise InvalidRequest(f"the chat template refused the messages: {error}", param="messages") from error
        return str(rendered[0][0])  # (one prompt a conversation, places of the assistant's words)
