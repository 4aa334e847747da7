"""A fleet without processes: what is decided happens at once, places get on when the test says so."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from deploy.fleet.adopt import Adopted, Seen, Stage, adopt
from deploy.fleet.plan import Action, Drain, Phase, Place, Pool, Remove, Restart, Start, after_death, decide

_NEXT = {
    Phase.PLACING: Phase.STARTING,
    Phase.STARTING: Phase.UP,
    Phase.UP: Phase.READY,
    Phase.CHANGING: Phase.UP,
}
_STAGES = {
    Phase.STARTING: Stage.STARTING,
    Phase.UP: Stage.RUNNING,
    Phase.READY: Stage.RUNNING,
    Phase.CHANGING: Stage.DRAINING,
    Phase.DRAINING: Stage.DRAINING,
    Phase.ENDING: Stage.ENDED,
}
"""What a process says when its controller died in that phase; in others there is none."""
PATIENT = Restart(max_deaths=10**6, first_s=0.1, max_s=1.0)


class FakeFleet:
    """`reconcile` performs decisions; that the last READY place of a wanted pool is drained is an AssertionError."""

    def __init__(self, pools: Sequence[Pool], restart: Restart = PATIENT) -> None:
        self.pools = list(pools)
        self.places: dict[str, Place] = {}
        self.now = 0.0
        self._restart = restart

    def num_ready(self, pool: str) -> int:
        return sum(place.pool == pool and place.phase is Phase.READY for place in self.places.values())

    def actions_now(self) -> list[Action]:
        return decide(self.pools, self.places.values(), self.now)

    def reconcile(self) -> list[Action]:
        actions = self.actions_now()
        for action in actions:
            match action:
                case Start(place):
                    is_new = place.id not in self.places
                    self.places[place.id] = place
                    pool = next(pool for pool in self.pools if pool.name == place.pool)
                    mine = sum(each.pool == pool.name for each in self.places.values())
                    assert not is_new or mine <= pool.count + pool.max_surge, "too many at once"
                case Remove(id):
                    del self.places[id]
                case Drain(id):
                    self._drain(self.places[id])
        return actions

    def _drain(self, place: Place) -> None:
        wanted = sum(pool.count for pool in self.pools if pool.name == place.pool)
        if place.phase is Phase.READY and wanted:
            assert self.num_ready(place.pool) > 1, "the last ready one was drained"
        self.places[place.id] = replace(place, phase=Phase.DRAINING)

    def advance(self, number: int) -> None:
        """The `number`-th of the places that are on their way gets on."""
        moving = [place for place in self.places.values() if place.phase in _NEXT or place.phase is Phase.DRAINING]
        if moving:
            self._advance(moving[number % len(moving)])

    def _advance(self, place: Place) -> None:
        if place.phase is Phase.DRAINING:
            del self.places[place.id]
        else:
            self.places[place.id] = replace(place, phase=_NEXT[place.phase], ready_s=self.now)

    def change_role(self, number: int) -> None:
        """A READY place goes to the next pool, as the controller lets it: one must stay, and versions be the same."""
        able = [place for place in self.places.values() if place.phase is Phase.READY]
        able = [place for place in able if self.num_ready(place.pool) > 1]
        if not able or len({pool.version for pool in self.pools}) > 1:
            return
        place = able[number % len(able)]
        names = [pool.name for pool in self.pools]
        target = names[(names.index(place.pool) + 1) % len(names)]
        if place.version != self.pools[0].version or target == place.pool:
            return
        moved = {place.pool: -1, target: 1}
        self.pools = [replace(pool, count=max(pool.count + moved.get(pool.name, 0), 0)) for pool in self.pools]
        self.places[place.id] = replace(place, pool=target, phase=Phase.CHANGING)

    def kill(self, number: int) -> None:
        living = [place for place in self.places.values() if place.phase not in (Phase.WAITING, Phase.GIVEN_UP)]
        if not living:
            return
        place = living[number % len(living)]
        if place.phase is Phase.DRAINING:
            del self.places[place.id]
        else:
            self.places[place.id] = after_death(place, self._restart, self.now)

    def lose_controller(self, dies: Callable[[Place], bool] = lambda place: False) -> Adopted:
        """Another controller begins, with what was wanted and with what it sees: processes that `dies` spares."""
        there = [place for place in self.places.values() if place.phase in _STAGES and not dies(place)]
        adopted = adopt(Seen(place.id, place.pool, place.version, _STAGES[place.phase]) for place in there)
        self.places = {place.id: place for place in adopted.places.values()}
        return adopted

    def run_until_quiet(self, max_steps: int = 300) -> None:
        """Let everything get on; AssertionError when that does not come to an end."""
        for _ in range(max_steps):
            acted = self.reconcile()
            moving = [place for place in self.places.values() if place.phase in _NEXT or place.phase is Phase.DRAINING]
            for place in moving:
                self._advance(place)
            self.now += 1.0
            if not acted and not moving and all(place.phase is not Phase.WAITING for place in self.places.values()):
                return
        raise AssertionError(f"not quiet after {max_steps} steps: {self.places}")
