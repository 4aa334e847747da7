"""The shell around the reconciler: keeps the places of one fleet as they are wanted, until it is told to stop."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from deploy.actors import Endpoints
from deploy.fleet.adopt import adopt
from deploy.fleet.config import ROUTER_POOL, FleetConfig
from deploy.fleet.found import Found, process_of
from deploy.fleet.lives import Hooks, Life
from deploy.fleet.memory import Memory
from deploy.fleet.nodes import RayNodes, Room
from deploy.fleet.placing import Taken
from deploy.fleet.plan import Drain, Phase, Place, Remove, Start, after_death, decide, next_wake_s
from deploy.fleet.recipes import Recipe, Site, model_facts, recipes, restart_of, router_config, router_process, wanted
from deploy.fleet.routers import Routers
from deploy.fleet.updating import check_update, counts_after
from deploy.launcher import RayProcess
from deploy.supervisor import End
from engine.core.errors import InvalidRequest, NotFound
from engine.core.types import WorkerInfo

READY_POLL_S = 0.1
LAST_WILL_S = 5.0
"""Beyond the time that answers have: then processes end by themselves, if their controller was killed meanwhile."""
_TELL_S = 1.0
"""For all processes to hear that."""


@dataclass(slots=True)
class _Past:
    """What is remembered of earlier lives at one place."""

    num_starts: int = 0
    detail: str = ""
    """Why the last one died."""
    lost_node: str = ""
    """Where it was, if that could not be reached: Ray may not know yet that it is lost."""


class Controller:
    """Everything happens in one asyncio loop."""

    def __init__(
        self, config: FleetConfig, site: Site, nodes: RayNodes, memory: Memory, say: Callable[[str], None]
    ) -> None:
        """Raises BatonError when the config asks for what cannot be."""
        self.config = config
        self.counts = {name: config.count_of(name) for name in (*config.pools, ROUTER_POOL)}
        self.places: dict[str, Place] = {}
        self.lives: dict[str, Life] = {}
        self._pasts: dict[str, _Past] = {}
        """By id; kept when a place is gone, for its name may come again."""
        self.nodes, self._memory = nodes, memory
        self.routers = Routers(say, config.gateway.tls.scheme)
        self._site, self._say = site, say
        self._recipes = recipes(config, model_facts(config), site)
        self._asides: set[asyncio.Task[None]] = set()
        """Drains and changes of roles under way."""
        self._changed = asyncio.Event()
        self._stopping = False
        self._hooks = Hooks(self._on_placed, self._on_up, self._on_down)

    # ------------------------------------------------------------ the loop

    async def run(self, looked: Callable[[], None] = lambda: None) -> None:
        """Until cancelled; or the first error of a task, which is a fault of the code. `looked` is called after each
        look at what is there.
        """
        watch = asyncio.create_task(self._watch_ready())
        try:
            while True:
                self._changed.clear()
                self._reconcile()
                looked()
                wake_s = next_wake_s(self.places.values())
                timeout = None if wake_s is None else max(wake_s - time.monotonic(), 0.0)
                changed = asyncio.ensure_future(self._changed.wait())
                done, _ = await asyncio.wait({changed, watch}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
                changed.cancel()
                if watch in done:
                    watch.result()
        finally:
            watch.cancel()

    def adopt(self, found: Sequence[Found], counts: Mapping[str, int]) -> None:
        """Go on with what an earlier controller left, and with what was wanted last. Before `run`."""
        by_name = {each.name: each for each in found}
        adopted = adopt(each.seen for each in found)
        self._pasts = {id: _Past(num_starts) for id, num_starts in adopted.starts.items()}
        rooms = {name: self._room_of(by_name[name]) for name in adopted.places}
        kept = [name for name, room in rooms.items() if room is not None]
        for name in kept:
            self._adopt(adopted.places[name], by_name[name], rooms[name])
        self.counts |= {pool: count for pool, count in counts.items() if pool in self.counts}
        strays = sorted(by_name.keys() - set(kept))
        for name in strays:
            if by_name[name].actor is not None:
                self._aside(process_of(by_name[name].actor).stop())
        self.nodes.release_all_but(kept)
        ended = f"; ending {', '.join(strays)}" if strays else ""
        self._say(f"taking over {', '.join(sorted(kept)) or 'nothing'}{ended}")

    def _room_of(self, found: Found) -> Room | None:
        assert found.said is not None, "it is adopted"
        return self.nodes.room_of(found.name, found.said.node, found.said.tag.resources)

    def _adopt(self, place: Place, found: Found, room: Room | None) -> None:
        said = found.said
        assert said is not None and room is not None
        of_any_pool = next(recipe for recipe in self._recipes.values() if recipe.config is not None)
        recipe = self._recipes.get(place.pool, of_any_pool)  # a pool that is wanted no more is about to leave
        life = self._life(place, found.name, recipe.as_tagged(said.tag))
        life.room, life.process, life.info, life.last_node = room, life.launch({}), said.info, room.node.id
        life.process.adopt(found.actor)
        self.places[place.id] = place
        self._begin(life)
        if place.phase is Phase.DRAINING:
            self._aside(life.drain(life.recipe.drain_s))

    def leave(self) -> None:
        """All processes go on without a controller. Nothing else may be done afterwards."""
        self._stopping = True
        for life in self.lives.values():
            life.is_left = True

    async def stop(self, drain_s: float) -> None:
        """Routers first, whose answers under way have `drain_s`; then workers. Nothing is left. Idempotent.

        All hear first when to end by themselves: this process may be killed meanwhile, as `ray job stop` does.
        """
        self._stopping = True
        for task in self._asides:
            task.cancel()
        ids = list(self.lives)
        for id in ids:
            self._set(id, Phase.DRAINING)
        told = [asyncio.create_task(self.lives[id].end_in(drain_s + LAST_WILL_S)) for id in ids]
        if told:
            _, late = await asyncio.wait(told, timeout=_TELL_S)
            for task in late:
                task.cancel()
        routers = [id for id in ids if self.lives[id].recipe.role == ROUTER_POOL]
        drains = [self.lives[id].drain(drain_s) for id in routers if drain_s and self.lives[id].info is not None]
        try:
            await asyncio.gather(*drains)
        finally:
            for each in (routers, [id for id in ids if id not in routers]):
                mine = [self.lives[id].task for id in each if id in self.lives]
                tasks = [task for task in mine if task is not None]
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    def _reconcile(self) -> None:
        if self._stopping:
            return
        self._memory.save(self.config, self.counts)
        pools = [wanted(self.config, self._recipes[name], count) for name, count in self.counts.items()]
        for action in decide(pools, self.places.values(), time.monotonic()):
            match action:
                case Start(place):
                    self._start(place)
                case Drain(id):
                    self._set(id, Phase.DRAINING)
                    life = self.lives[id]
                    self._aside(life.drain(life.recipe.drain_s))
                case Remove(id):
                    self._remove(id)

    def _start(self, place: Place) -> None:
        recipe = self._recipe_of(place)
        self.places[place.id] = replace(place, version=recipe.version)
        past = self._pasts.setdefault(place.id, _Past())
        past.num_starts += 1
        # A name of its own for each start: Ray keeps that of an actor on a lost node until it knows of the loss.
        name = place.id if past.num_starts == 1 else f"{place.id}.{past.num_starts}"
        life = self._life(place, name, recipe)
        life.avoid = past.lost_node
        self._begin(life)

    def _life(self, place: Place, name: str, recipe: Recipe) -> Life:
        is_router = recipe.role == ROUTER_POOL
        launch = self._router_launch(place.id, recipe) if is_router else self._worker_launch(place.id, recipe)
        return Life(place.id, name, recipe, launch, self._hooks)

    def _begin(self, life: Life) -> None:
        self.lives[life.id] = life
        life.task = asyncio.create_task(self._live(life))
        life.task.add_done_callback(lambda task: task.cancelled() or task.result())  # a fault shall be seen

    def _recipe_of(self, place: Place) -> Recipe:
        """A place of an older version is started again as it was."""
        old = self.lives.get(place.id)
        current = self._recipes[place.pool]
        is_old = old is not None and place.version != current.version and not old.recipe.is_lost
        return old.recipe if old is not None and is_old else current

    async def _live(self, life: Life) -> None:
        end = End("a fault of the controller: its trace is above")
        try:
            end = await life.run(self.nodes, self._taken)
        except asyncio.CancelledError:
            end = End("it was stopped", wanted=True)
            raise
        finally:
            if self.lives.get(life.id) is life and not life.is_left:
                self._ended(life, end)

    def _ended(self, life: Life, end: End) -> None:
        place = self.places[life.id]
        if place.phase is Phase.DRAINING or (end.wanted and not end.signalled):
            if place.phase is not Phase.DRAINING:
                self.counts[place.pool] -= 1  # somebody else drained it: its place stays empty
            self._say(f"{life.id} ended ({end.reason})")
            self._forget(life.id)
        else:
            place = after_death(place, restart_of(self.config), time.monotonic())
            past = self._pasts[life.id]
            past.detail, past.lost_node = end.reason, life.last_node if end.unreachable else ""
            self.places[life.id] = place
            what = "given up" if place.phase is Phase.GIVEN_UP else f"again in {place.retry_s - time.monotonic():.1f} s"
            self._say(f"{life.id} ended ({end.reason}); {what}")
        self._changed.set()

    def _remove(self, id: str) -> None:
        """It serves nobody. Its name is free again when its task has cleaned up."""
        task = self.lives[id].task
        if task is None or task.done():
            self._forget(id)
            self._changed.set()
        else:
            self._set(id, Phase.DRAINING)
            task.cancel()

    def _forget(self, id: str) -> None:
        self.places.pop(id, None)
        self.lives.pop(id, None)
        self._pasts[id].detail = ""

    def _aside(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._asides.add(task)
        task.add_done_callback(self._asides.discard)

    def _set(self, id: str, phase: Phase) -> None:
        place = self.places.get(id)
        if place is not None and place.phase is not Phase.DRAINING:
            ready_s = time.monotonic() if phase is Phase.READY else place.ready_s
            self.places[id] = replace(place, phase=phase, ready_s=ready_s)
            self._changed.set()

    def _taken(self) -> list[Taken]:
        return [taken for life in self.lives.values() if (taken := life.taken) is not None]

    # ------------------------------------------------------------ what lives report

    def _worker_launch(self, id: str, recipe: Recipe) -> Callable[[Mapping[str, object]], RayProcess]:
        return lambda options: recipe.worker(id, options)

    def _router_launch(self, id: str, recipe: Recipe) -> Callable[[Mapping[str, object]], RayProcess]:
        def args() -> tuple[object, ...]:
            index = int(id.rpartition("-")[2])
            known = self.routers.endpoints.get(id)
            config = router_config(self.config, index, self._site, known, self.max_model_len)
            return self.config.model, config, self.config.routers.drain_s

        return lambda options: router_process(recipe, args, options)

    @property
    def infos(self) -> list[WorkerInfo]:
        """Of the workers that are up."""
        return [life.info for life in self.lives.values() if isinstance(life.info, WorkerInfo)]

    @property
    def max_model_len(self) -> int | None:
        """What all workers that are up can hold."""
        return min((info.max_model_len for info in self.infos), default=self.config.engine.max_model_len)

    def detail_of(self, id: str) -> str:
        """What its node lacks, while it is looked for; else why it last died."""
        return self.lives[id].lack or self._pasts[id].detail

    def version_of(self, pool: str) -> str:
        """Of what its processes should be started from."""
        return self._recipes[pool].version

    async def _on_placed(self, id: str) -> None:
        self._set(id, Phase.STARTING)

    async def _on_up(self, id: str, info: Any) -> None:
        life = self.lives.get(id)
        if isinstance(info, Endpoints) and life is not None and life.process is not None and life.room is not None:
            await self.routers.joined(id, life.process, info, life.room.node)
            await self.routers.learn(self.infos)
            self._say(f"{id} is up at {self.routers.url(id)}")
            self._set(id, Phase.READY)
        elif life is not None:
            self._say(f"{id} is up at {info.address}, {'/'.join(info.roles)}, incarnation {info.incarnation:016x}")
            await self.routers.learn(self.infos)
            self._set(id, Phase.UP)

    async def _on_down(self, id: str, info: Any) -> None:
        if id in self.places and self.places[id].phase is not Phase.CHANGING:
            self._set(id, Phase.ENDING)
        if isinstance(info, Endpoints):
            self.routers.left(id)
        else:
            await self.routers.forget(info)

    async def _watch_ready(self) -> None:
        """UP becomes READY when every router and every peer has met it."""
        while True:
            up = [id for id, place in self.places.items() if place.phase is Phase.UP]
            if up:
                statuses = await self.routers.statuses()
                for id in up:
                    life = self.lives.get(id)
                    info = None if life is None else life.info
                    if isinstance(info, WorkerInfo) and self.routers.have_met(info, statuses):
                        self._set(id, Phase.READY)
            await asyncio.sleep(READY_POLL_S)

    # ------------------------------------------------------------ commands

    def scale(self, counts: Mapping[str, int]) -> None:
        """So many from now on. What was given up is tried again. Raises NotFound, InvalidRequest."""
        for pool, count in counts.items():
            self._check_count(pool, count)
        if not any(count for pool, count in (self.counts | dict(counts)).items() if pool != ROUTER_POOL):
            raise InvalidRequest("no worker would be left; `baton down` ends the service")
        self.counts |= counts
        for place in [place for place in self.places.values() if place.phase is Phase.GIVEN_UP]:
            if place.pool in counts:
                self._forget(place.id)
        self._reconcile()  # at once: whoever asks next shall see it
        self._changed.set()

    def _check_count(self, pool: str, count: int) -> None:
        if pool not in self.counts:
            raise NotFound(f"no pool {pool!r}; there are {', '.join(self.counts)}")
        bounds = self.config.autoscale.bounds.get(pool) if self.config.autoscale else None
        if bounds is not None and not bounds.min <= count <= bounds.max:
            raise InvalidRequest(f"autoscale keeps {pool} between {bounds.min} and {bounds.max}, not {count}")
        if count < 0 or (pool == ROUTER_POOL and count < 1):
            raise InvalidRequest(f"{pool}={count}: too few")

    def change_role(self, worker: str, role: str) -> None:
        """Let that worker go on in the pool of the other role. Raises NotFound, InvalidRequest."""
        place = self.places.get(worker)
        if place is None or place.pool == ROUTER_POOL:
            raise NotFound(f"no worker {worker!r}")
        if self.config.role_of(place.pool) == role:
            raise InvalidRequest(f"{worker} has that role already")
        target = self._twin(place, role)
        num_ready = sum(each.pool == place.pool and each.phase is Phase.READY for each in self.places.values())
        if place.phase is not Phase.READY or num_ready < 2:
            raise InvalidRequest(f"{worker} is {place.phase}, and {place.pool} has {num_ready} ready: one must stay")
        for pool, count in ((place.pool, self.counts[place.pool] - 1), (target, self.counts[target] + 1)):
            self._check_count(pool, count)
            self.counts[pool] = count
        self.places[worker] = replace(place, pool=target, phase=Phase.CHANGING)
        life = self.lives[worker]
        life.recipe = self._recipes[target]
        self._aside(life.change_role(role))
        self._reconcile()  # at once: whoever asks next shall see it
        self._changed.set()

    def _twin(self, place: Place, role: str) -> str:
        """The pool of that role whose workers are started from the same."""
        pools = [name for name in self.config.pools if self.config.role_of(name) == role]
        for name in pools:
            if self._recipes[name].version == place.version:
                return name
        if not pools:
            raise InvalidRequest(f"there is no pool of role {role!r}")
        raise InvalidRequest(
            f"{place.id} is of another shape or version than {', '.join(pools)}: its model would have to be loaded "
            "again; scale the one pool down and the other up instead"
        )

    def update(self, config: FleetConfig) -> None:
        """Replace workers by such of `config`, one at a time, and scale to its counts, but for pools that are scaled
        automatically. Raises InvalidRequest.
        """
        config = check_update(self.config, config)
        facts = model_facts(config)
        models = {life.recipe.model.weights for life in self.lives.values() if life.recipe.config is not None}
        if len({*models, facts.weights}) > 2:
            raise InvalidRequest("model: the last update is still under way; go on with it or back first")
        if facts.text != self._recipes[ROUTER_POOL].model.text:
            raise InvalidRequest("model: it has another tokenizer or chat template; start another service")
        self.config, self._recipes = config, recipes(config, facts, self._site)
        self.counts = counts_after(config, self.counts)
        for place in [place for place in self.places.values() if place.phase is Phase.GIVEN_UP]:
            self._forget(place.id)
        self._reconcile()  # at once: whoever asks next shall see it
        self._changed.set()
