"""Baton's face: the command line and the Python clients."""

from baton.client import AsyncClient, Client
from baton.results import Answer, Chunk, Logprob, Model, Result, Usage
from engine.core.errors import BatonError

__all__ = ["Answer", "AsyncClient", "BatonError", "Chunk", "Client", "Logprob", "Model", "Result", "Usage"]
