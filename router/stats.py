"""Counts of what happened at the router since it started. Plain numbers; the shell exports them."""

from collections import Counter
from dataclasses import dataclass, field


@dataclass(slots=True)
class RouterStats:
    """Mutable; each field only grows."""

    calls: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    """"finished", "cancelled", or the error's code."""
    retries: Counter[str] = field(default_factory=Counter)
    """By cause."""
    resumed: int = 0
    """Of the retries, those of calls that had tokens already."""
    routes: Counter[str] = field(default_factory=Counter)
    """"pair", "whole", "move", "hedge", and "hedge_won": hedges that the first token came from."""
    workers_lost: int = 0
    workers_hung: int = 0
    prompt_tokens: int = 0
    """Of calls that got their first token."""
    cached_tokens: int = 0
    """Of those, found in a cache."""
    output_tokens: int = 0
    handoffs: int = 0
    handoff_failures: int = 0
    transfer_bytes: int = 0
    pages_pulled: int = 0
    pages_found: int = 0
    """Pages of handoffs that the decode worker had already."""
