"""What is known of one client request when it is over: for the log, for traces, for metrics. No secrets, no texts."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from router.api import Timing


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """One request; its parts of time are those of its first answer."""

    request_id: str
    tenant: str
    key_id: str
    outcome: str
    """"finished", "cancelled", or the error's code."""
    num_sequences: int
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    began_s: float
    """Seconds since 1970, by the wall clock."""
    total_s: float
    """From arrival to the end."""
    timing: Timing = field(default_factory=Timing)
    trace: Mapping[str, str] = field(default_factory=dict)
    """The client's traceparent and tracestate."""


class RecordSink(Protocol):
    """Where records go."""

    def done(self, record: RequestRecord) -> None:
        """One request is over. Must not wait for anything."""
