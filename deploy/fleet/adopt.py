"""What a new controller makes of the processes that an earlier one left. Pure: what is seen -> places and strays.

A fleet outlives its controller, so the next one begins with an observation instead of nothing: each process that is
there fills the place that it was started for, and `decide` goes on from there. What does not match the plan is then
replaced or drained as after any change of plan.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from deploy.fleet.plan import Phase, Place


class Stage(StrEnum):
    """Of a process, by its own word."""

    EMPTY = "empty"
    """Nothing was started in it."""
    STARTING = "starting"
    RUNNING = "running"
    DRAINING = "draining"
    ENDED = "ended"
    """What it ran is over, or it does not answer."""


@dataclass(frozen=True, slots=True)
class Seen:
    """One process that is there."""

    name: str
    """PLACE for the first start there, PLACE.N for the N-th."""
    pool: str
    version: str
    stage: Stage

    @property
    def place(self) -> str:
        """The place that it was started for."""
        return self.name.partition(".")[0]

    @property
    def start(self) -> int:
        """Which start there it is, from 1."""
        return int(self.name.partition(".")[2] or 1)


@dataclass(frozen=True, slots=True)
class Adopted:
    """What goes on, and what does not."""

    places: Mapping[str, Place]
    """By the name of the process that fills it."""
    strays: tuple[str, ...]
    """Names of processes that serve nobody, or at a place that another one fills: they have to be ended."""
    starts: Mapping[str, int]
    """By place: so many starts there have been, as far as names tell."""


_PHASES = {Stage.STARTING: Phase.STARTING, Stage.DRAINING: Phase.DRAINING, Stage.RUNNING: Phase.UP}
_WORTH = tuple(_PHASES)
"""Of two at one place the one that is further right goes on."""


def adopt(seen: Iterable[Seen]) -> Adopted:
    """Names must be different."""
    chosen: dict[str, Seen] = {}
    strays: list[str] = []
    starts: dict[str, int] = {}
    for each in sorted(seen, key=lambda each: (each.stage in _PHASES and _WORTH.index(each.stage), each.start)):
        starts[each.place] = max(each.start, starts.get(each.place, 0))
        if each.stage not in _PHASES:
            strays.append(each.name)
            continue
        if (other := chosen.get(each.place)) is not None:
            strays.append(other.name)
        chosen[each.place] = each
    places = {each.name: Place(id, each.pool, each.version, _PHASES[each.stage]) for id, each in chosen.items()}
    return Adopted(places, tuple(strays), starts)
