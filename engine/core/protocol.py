"""The version of what workers and routers say to each other. Pure.

Fields of messages are only ever added, so a side understands the version before its own and the one after it. Further
apart they refuse each other when they meet, instead of misreading what one of them no longer means.
"""

from engine.core.errors import Incompatible

PROTOCOL = 1
"""Raised by one with a release whose messages mean something that the release before does not handle."""


def check_protocol(theirs: int, whose: str) -> None:
    """Pass for this version, the one before and the one after. Raises Incompatible. 0: from before it was counted."""
    if abs(theirs - PROTOCOL) > 1:
        newer = "it must be updated first" if theirs < PROTOCOL else "this side must be updated first"
        raise Incompatible(
            f"{whose} speaks protocol {theirs}, this side {PROTOCOL}, and one apart is the most: {newer}"
        )
