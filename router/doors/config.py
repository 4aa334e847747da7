"""Limits that both doors keep, and how they read answers."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DoorConfig:
    """What one client request may ask for, and what its answers look like."""

    max_body_bytes: int = 16 << 20
    """A larger HTTP body or gRPC message is refused while it is read."""
    body_timeout_s: float = 120.0
    """For a whole HTTP body to come."""
    max_sequences: int = 128
    """Prompts x n of one request."""
    default_timeout_s: float = 600.0
    """For a request that names no deadline."""
    max_timeout_s: float = 3600.0
    """A client's deadline is cut down to this."""
    tool_parser: str = "auto"
    """How the model writes calls of tools: one of router.dialect.dialect.TOOL_PARSERS."""
    reasoning_parser: str = "auto"
    """How it writes what it thinks: one of REASONING_PARSERS there."""
