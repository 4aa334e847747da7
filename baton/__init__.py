"""Baton's face: the command line, the Python clients, and LLM for scripts without a service."""

from typing import TYPE_CHECKING, Any

from baton.client import AsyncClient, Client
from baton.results import Answer, Chunk, Logprob, Model, Result, Usage
from engine.core.errors import BatonError

if TYPE_CHECKING:
    from baton.llm import LLM

__all__ = ["LLM", "Answer", "AsyncClient", "BatonError", "Chunk", "Client", "Logprob", "Model", "Result", "Usage"]


def __getattr__(name: str) -> Any:
    """LLM brings torch along: clients need not wait for it."""
    if name == "LLM":
        from baton.llm import LLM

        return LLM
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
