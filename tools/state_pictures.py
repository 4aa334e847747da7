"""Draw the state tables of the code into docs/handoff.md: `python -m tools.state_pictures`.

Each picture stands between `<!-- states: NAME -->` and `<!-- end -->`; whatever is between them is replaced.
"""

import re
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path

from engine.core.lease import TRANSITIONS, LeaseState
from kv_transfer import adopting, holding
from kv_transfer.peer import PEER_TABLE, PeerState
from kv_transfer.session import SESSION_TABLE, SessionState
from router.call_state import TABLE, CallState

PAGE = Path(__file__).resolve().parent.parent / "docs" / "handoff.md"
Step = tuple[StrEnum, StrEnum, StrEnum]
"""State, event, next state."""


def flat(table: dict[tuple[StrEnum, StrEnum], StrEnum]) -> list[Step]:
    """The steps of a table keyed by (state, event)."""
    return [(state, event, target) for (state, event), target in table.items()]


def nested(table: dict[StrEnum, dict[StrEnum, StrEnum]]) -> list[Step]:
    """The steps of a table keyed by state, then by event."""
    return [(state, event, target) for state, row in table.items() for event, target in row.items()]


def picture(begin: Iterable[StrEnum], steps: list[Step]) -> str:
    """Mermaid's text. `begin` are the states to begin in; those that nothing leaves are the ends."""
    lines = ["```mermaid", "stateDiagram-v2", *(f"    [*] --> {_name(state)}" for state in begin)]
    arrows: dict[tuple[StrEnum, StrEnum], list[str]] = {}
    for state, event, target in steps:
        arrows.setdefault((state, target), []).append(event.value.replace("_", " "))
    lines += [f"    {_name(state)} --> {_name(target)}: {' / '.join(e)}" for (state, target), e in arrows.items()]
    left = {state for state, _, _ in steps}
    ends = dict.fromkeys(target for _, _, target in steps if target not in left)
    return "\n".join([*lines, *(f"    {_name(state)} --> [*]" for state in ends), "```"])


def pictures() -> dict[str, str]:
    """By the name in the page."""
    return {
        "session": picture([SessionState.BOUND], nested(SESSION_TABLE)),  # type: ignore[arg-type]
        "lease": picture([LeaseState.RESERVED, LeaseState.PROVEN], flat(TRANSITIONS)),  # type: ignore[arg-type]
        "holding": picture([holding.LegState.COMPUTING], nested(holding.LEG_TABLE)),  # type: ignore[arg-type]
        "adopting": picture([adopting.LegState.EXPECTED], nested(adopting.LEG_TABLE)),  # type: ignore[arg-type]
        "peer": picture([PeerState.CONNECTING], nested(PEER_TABLE)),  # type: ignore[arg-type]
        "call": picture([CallState.QUEUED], flat(TABLE)),  # type: ignore[arg-type]
    }


def render(text: str) -> str:
    """`text` with every picture as the code has it now. ValueError if it lacks one, or has one that nobody draws."""
    drawn = pictures()
    asked = re.findall(r"<!-- states: (\w+) -->", text)
    if sorted(asked) != sorted(drawn):
        raise ValueError(f"the page asks for the pictures {sorted(asked)}; there are {sorted(drawn)}")
    return re.sub(
        r"<!-- states: (\w+) -->\n.*?<!-- end -->",
        lambda found: f"<!-- states: {found[1]} -->\n{drawn[found[1]]}\n<!-- end -->",
        text,
        flags=re.DOTALL,
    )


def _name(state: StrEnum) -> str:
    return state.value.replace(" ", "_")


if __name__ == "__main__":
    PAGE.write_text(render(PAGE.read_text()))
