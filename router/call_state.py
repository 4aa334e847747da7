"""The states of a call at the router, and the one table of how they change."""

from enum import StrEnum

from engine.core.errors import IllegalEvent


class CallState(StrEnum):
    """Where a call stands."""

    QUEUED = "queued"
    """No worker has it: it waits for a place, or for a worker after a failure."""
    PREFILLING = "prefilling"
    HANDOFF = "handoff"
    """The client has the first token; pages are on their way."""
    DECODING = "decoding"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Trigger(StrEnum):
    """What changes the state."""

    SENT = "sent"
    FIRST_TOKEN = "first_token"
    """Of the prefill leg of a pair."""
    WHOLE_TOKEN = "whole_token"
    """The first one of a leg that goes on to decode where it is."""
    ADOPTED = "adopted"
    LEG_FAILED = "leg_failed"
    """The attempt is over, the call is not."""
    MOVED = "moved"
    """The attempt was ended for another one that goes on elsewhere with the same pages."""
    FINISH = "finish"
    FAIL = "fail"
    CANCEL = "cancel"


TABLE: dict[tuple[CallState, Trigger], CallState] = {
    (CallState.QUEUED, Trigger.SENT): CallState.PREFILLING,
    (CallState.PREFILLING, Trigger.FIRST_TOKEN): CallState.HANDOFF,
    (CallState.PREFILLING, Trigger.WHOLE_TOKEN): CallState.DECODING,
    (CallState.HANDOFF, Trigger.ADOPTED): CallState.DECODING,
    (CallState.PREFILLING, Trigger.FINISH): CallState.FINISHED,
    (CallState.HANDOFF, Trigger.FINISH): CallState.FINISHED,
    (CallState.DECODING, Trigger.FINISH): CallState.FINISHED,
    (CallState.DECODING, Trigger.MOVED): CallState.QUEUED,
    **{
        (state, Trigger.LEG_FAILED): CallState.QUEUED
        for state in (CallState.PREFILLING, CallState.HANDOFF, CallState.DECODING)
    },
    **{
        (state, trigger): end
        for state in (CallState.QUEUED, CallState.PREFILLING, CallState.HANDOFF, CallState.DECODING)
        for trigger, end in ((Trigger.FAIL, CallState.FAILED), (Trigger.CANCEL, CallState.CANCELLED))
    },
}

TERMINAL = frozenset((CallState.FINISHED, CallState.FAILED, CallState.CANCELLED))


def next_state(state: CallState, trigger: Trigger) -> CallState:
    """Raises IllegalEvent for what TABLE does not list."""
    try:
        return TABLE[state, trigger]
    except KeyError:
        raise IllegalEvent(f"a call that is {state} cannot take {trigger}") from None
