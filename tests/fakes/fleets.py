"""A fleet without processes: what is decided happens at once, places get on when the test says so."""

from collections.abc import Sequence
from dataclasses import replace

from deploy.fleet.plan import Action, Drain, Phase, Place, Pool, Remove, Restart, Start, after_death, decide

_NEXT = {
    Phase.PLACING: Phase.STARTING,
    Phase.STARTING: Phase.UP,
    Phase.UP: Phase.READY,
    Phase.CHANGING: Phase.UP,
}
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
                    self.places[place.id] = place
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

    def kill(self, number: int) -> None:
        living = [place for place in self.places.values() if place.phase not in (Phase.WAITING, Phase.GIVEN_UP)]
        if not living:
            return
        place = living[number % len(living)]
        if place.phase is Phase.DRAINING:
            del self.places[place.id]
        else:
            self.places[place.id] = after_death(place, self._restart, self.now)

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
