"""What has to happen so that a fleet becomes what is wanted. Pure: (wanted pools, places, now) -> actions.

A place is where one worker (or router) is, was or will be: it keeps its name through restarts.

    PLACING -> STARTING -> UP -> READY -> DRAINING -> (gone)
       ^           |        |      |
       |               v    v      v
       +-- WAITING <-- ENDING <----+      a death: again after a pause, or GIVEN_UP after too many in a row

Rules of `decide`, for each pool:
- never more places than `count + max_surge`, those that drain included;
- a READY place is drained only while another one of its pool is READY, or nothing is wanted;
- while places of an older version are there, one change at a time: a new one is started, gets READY, an old one drains;
  one pool after the other.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum


class Phase(StrEnum):
    """Of a place."""

    PLACING = "placing"
    """A node with enough left is looked for."""
    STARTING = "starting"
    """The process is made and loads its model."""
    UP = "up"
    """It listens; routers and peers have not all met it."""
    READY = "ready"
    CHANGING = "changing"
    """It gets another role: it drains, and will be UP in the pool that it is counted in already."""
    DRAINING = "draining"
    ENDING = "ending"
    """It died, and what it had is being given back: up to two seconds when nobody answers."""
    WAITING = "waiting"
    """It died; its successor starts at `retry_s`."""
    GIVEN_UP = "given up"
    """It died too often in a row. It stays visible until the pool is scaled or updated."""


BEGINNING = frozenset((Phase.PLACING, Phase.STARTING, Phase.UP, Phase.CHANGING, Phase.ENDING))
"""On the way to READY."""
RUNNING = frozenset((Phase.UP, Phase.READY))
"""May have requests: such a place is drained, not removed."""
_LAST_TO_GO = (Phase.GIVEN_UP, Phase.WAITING, Phase.ENDING, Phase.PLACING, Phase.STARTING, Phase.UP, Phase.READY)


@dataclass(frozen=True, slots=True)
class Pool:
    """What is wanted of one pool."""

    name: str
    count: int
    version: str
    """Of what its processes are started from; another one means that they have to be replaced."""
    max_surge: int = 1
    """Places beyond `count` while old ones are replaced."""
    max_unavailable: int = 0
    """READY places that may be missing meanwhile: where no room is for one more, replace an old one first."""


@dataclass(frozen=True, slots=True)
class Place:
    """One place as it is."""

    id: str
    """POOL-INDEX of the pool that it was made for."""
    pool: str
    version: str
    phase: Phase = Phase.PLACING
    deaths: int = 0
    """In a row, none of which lived long."""
    retry_s: float = 0.0
    """When WAITING ends."""
    ready_s: float | None = None
    """Since when the process that is there, or was there last, has been READY; None: it never was."""


@dataclass(frozen=True, slots=True)
class Restart:
    """When what died is started again. A pause doubles with each death in a row."""

    max_deaths: int = 5
    first_s: float = 0.1
    max_s: float = 10.0
    healthy_after_s: float = 10.0
    """One that was READY this long died of something new: counting starts over."""


@dataclass(frozen=True, slots=True)
class Start:
    """A new place, or again in one that waited: look for a node, then start."""

    place: Place


@dataclass(frozen=True, slots=True)
class Drain:
    """Let it finish or hand over what it has, then it is gone."""

    id: str


@dataclass(frozen=True, slots=True)
class Remove:
    """Nothing runs there that anybody would miss."""

    id: str


Action = Start | Drain | Remove


def decide(pools: Sequence[Pool], places: Iterable[Place], now: float) -> list[Action]:
    """What to do now. Nothing, once everything is as it should be. Places of unknown pools go."""
    places = sorted(places, key=_by_number)
    names = {place.id for place in places}
    actions: list[Action] = []
    updating = next((pool.name for pool in pools if any(_is_old(place, pool) for place in places)), "")
    for pool in pools:
        mine = [place for place in places if place.pool == pool.name]
        if pool.name == updating or not any(_is_old(place, pool) for place in mine):
            actions += _decide(pool, mine, names, now)
        else:
            actions += _due(mine, now)
    known = {pool.name for pool in pools}
    actions += [_end(place) for place in places if place.pool not in known and place.phase is not Phase.DRAINING]
    return actions


def next_wake_s(places: Iterable[Place]) -> float | None:
    """When `decide` has something to do although nothing happens."""
    return min((place.retry_s for place in places if place.phase is Phase.WAITING), default=None)


def after_death(place: Place, config: Restart, now: float) -> Place:
    """What becomes of a place whose process ended unasked, or did not start."""
    lived = place.ready_s is not None and now - place.ready_s >= config.healthy_after_s
    deaths = 1 if lived else place.deaths + 1
    if deaths > config.max_deaths:
        return replace(place, phase=Phase.GIVEN_UP, deaths=deaths)
    wait_s = min(config.first_s * 2.0 ** (deaths - 1), config.max_s)
    return replace(place, phase=Phase.WAITING, deaths=deaths, retry_s=now + wait_s)


def _is_old(place: Place, pool: Pool) -> bool:
    return place.pool == pool.name and place.version != pool.version


def _due(places: Iterable[Place], now: float) -> list[Action]:
    return [_again(place) for place in places if place.phase is Phase.WAITING and place.retry_s <= now]


def _decide(pool: Pool, places: list[Place], names: set[str], now: float) -> list[Action]:
    actions = _due(places, now)
    mine = [place for place in places if place.phase is not Phase.DRAINING]
    old = [place for place in mine if place.version != pool.version]
    new = [place for place in mine if place.version == pool.version]
    if old:
        return actions + _replace(pool, old, new, len(places), names)
    for place in _victims(new, len(new) - pool.count, num_ready_needed=min(pool.count, 1)):
        actions = [action for action in actions if not (isinstance(action, Start) and action.place.id == place.id)]
        actions.append(_end(place))
    room = pool.count + pool.max_surge - len(places)
    return actions + _starts(pool, min(pool.count - len(new), room), names)


def _replace(pool: Pool, old: list[Place], new: list[Place], num_places: int, names: set[str]) -> list[Action]:
    """One step of a rolling update. Old places that serve nobody make room at once."""
    useless = [place for place in old if place.phase not in RUNNING and place.phase is not Phase.CHANGING]
    if useless:
        return [_end(place) for place in useless]
    if any(place.phase in BEGINNING or place.phase in (Phase.WAITING, Phase.GIVEN_UP) for place in new):
        return []  # the last step is still under way, or went wrong
    if num_places > len(old) + len(new):
        return []  # one drains
    ready = [place for place in (*old, *new) if place.phase is Phase.READY]
    may_miss = len(ready) - 1 >= max(pool.count - pool.max_unavailable, min(pool.count, 1))
    leaving = next((place for place in reversed(old) if place.phase in RUNNING), None)
    if leaving is not None and (may_miss or leaving.phase is Phase.UP):
        return [Drain(leaving.id)]
    if len(new) < pool.count and num_places < pool.count + pool.max_surge:
        return _starts(pool, 1, names)
    return []


def _victims(places: list[Place], number: int, num_ready_needed: int) -> list[Place]:
    """Who goes: first who serves nobody, of equal ones the highest number. As many READY ones stay as are needed."""
    order = sorted(reversed(places), key=lambda place: _rank(place.phase))
    num_ready = sum(place.phase is Phase.READY for place in places)
    chosen = []
    for place in order[: max(number, 0)]:
        if place.phase is Phase.CHANGING:
            continue
        if place.phase is Phase.READY:
            if num_ready <= num_ready_needed:
                continue
            num_ready -= 1
        chosen.append(place)
    return chosen


def _rank(phase: Phase) -> int:
    return _LAST_TO_GO.index(phase) if phase in _LAST_TO_GO else len(_LAST_TO_GO)


def _starts(pool: Pool, number: int, names: set[str]) -> list[Action]:
    actions: list[Action] = []
    index = 0
    while len(actions) < number:
        name = f"{pool.name}-{index}"
        if name not in names:
            names.add(name)
            actions.append(Start(Place(name, pool.name, pool.version)))
        index += 1
    return actions


def _again(place: Place) -> Start:
    return Start(replace(place, phase=Phase.PLACING, ready_s=None))


def _end(place: Place) -> Drain | Remove:
    return Drain(place.id) if place.phase in RUNNING else Remove(place.id)


def _by_number(place: Place) -> tuple[str, int]:
    name, _, number = place.id.rpartition("-")
    return name, int(number)
