"""The usage object of one request, counted as answers come."""

from array import array
from collections.abc import Sequence
from typing import Any


class UsageCount:
    """Tokens of all prompts and answers of one request; a prompt counts once however many answers it gets."""

    def __init__(self, prompts: Sequence["array[int]"], copies: int) -> None:
        self._num_prompt = sum(map(len, prompts))
        self._copies = copies
        self._num_answer = 0
        self._num_cached = 0

    def add(self, index: int, num_tokens: int, cached_tokens: int | None) -> None:
        """Count what came for answer `index`; of copies of one prompt, the first one's cache hit is the true one."""
        self._num_answer += num_tokens
        if cached_tokens and index % self._copies == 0:
            self._num_cached += cached_tokens

    def body(self) -> dict[str, Any]:
        """As OpenAI spells it."""
        return {
            "prompt_tokens": self._num_prompt,
            "completion_tokens": self._num_answer,
            "total_tokens": self._num_prompt + self._num_answer,
            "prompt_tokens_details": {"cached_tokens": self._num_cached},
        }
