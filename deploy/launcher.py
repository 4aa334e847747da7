"""Processes of a service as Ray actors, behind the supervisor's Process protocol."""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from deploy.supervisor import End
from deploy.tags import Tag
from engine.core.errors import BatonError, Unavailable

STOP_TIMEOUT_S = 1.5
"""For a process to end by itself; it is killed after that."""
_ASK_AGAIN_S = 5.0
"""A process that is asked for its end answers after this long at the latest: who asked may be dead by then, and of the
process's few threads one would wait for nobody."""


class _Unreachable(Unavailable):
    """It may live or not."""


class RayProcess:
    """One actor in a process of its own. What `start_args` gives goes to its `start`, which returns what it says of
    itself.

    Ray would restart a dead actor by itself, but under the same handle and without a word to the router; so actors are
    never restarted by Ray, and the supervisor makes a new object.
    """

    def __init__(
        self,
        actor_class: type[Any],
        start_args: Callable[[], tuple[object, ...]],
        *,
        num_gpus: int = 0,
        resources: Mapping[str, float] | None = None,
        options: Mapping[str, object] | None = None,
        tag: Tag | None = None,
    ) -> None:
        """`resources` are custom ones that its node must offer; `options` more of Ray's, such as its name; `tag` is
        what it says of itself to a controller that did not start it.
        """
        self._actor_class = actor_class
        self._start_args = start_args
        self._num_gpus = num_gpus
        self._resources = dict(resources or {})
        self._options = dict(options or {})
        self._tag = tag
        self._actor: Any = None
        self._has_begun = False

    def adopt(self, actor: Any) -> None:
        """Go on with an actor that is there already. `start` then waits for what it says, if it has yet to say that."""
        self._actor, self._has_begun = actor, True

    def prepare(self) -> None:
        """Begin to make the process, which imports what it needs; `start` waits for it. Idempotent."""
        import ray

        if self._actor is None:
            options: dict[str, object] = {"num_cpus": 0, "num_gpus": self._num_gpus, "scheduling_strategy": "SPREAD"}
            options["resources"] = self._resources
            options |= self._options
            try:
                actor_class = ray.remote(self._actor_class).options(max_restarts=0, max_concurrency=8, **options)
                self._actor = actor_class.remote(self._tag)
            except ValueError as error:  # its predecessor of the same name is not quite gone
                raise Unavailable(_first_line(error)) from error

    async def start(self) -> Any:
        """See Process. An error of the actor's own is raised as it was, a dead actor as Unavailable."""
        self.prepare()
        self._has_begun = True
        return await self.call("start", *self._start_args())

    async def ended(self) -> End:
        """See Process. Also while `stop` waits for it."""
        actor = self._actor
        end: End | None = None
        while end is None:
            try:
                end = await _call(actor, "ended", _ASK_AGAIN_S)
            except BatonError as error:
                end = End(error.message, unreachable=isinstance(error, _Unreachable))
        return end

    async def stop(self, drain_s: float = 0.0) -> None:
        """See Process. A router's answers under way have `drain_s`."""
        import ray

        if self._actor is None:
            return
        actor, self._actor = self._actor, None
        try:
            if self._has_begun:
                async with asyncio.timeout(drain_s + STOP_TIMEOUT_S):
                    await actor.stop.remote(drain_s)
        except (TimeoutError, ray.exceptions.RayError):
            pass  # It hangs or is dead already; both end below.
        finally:  # also when nobody waits for the drain any more
            ray.kill(actor)

    async def call(self, method: str, *args: object) -> Any:
        """One method of the actor. Raises BatonError."""
        return await _call(self._actor, method, *args)


async def _call(actor: Any, method: str, *args: object) -> Any:
    import ray

    if actor is None:
        raise Unavailable("the process is not running")
    try:
        return await getattr(actor, method).remote(*args)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, BatonError):
            raise error.cause from None
        raise
    except ray.exceptions.ActorUnavailableError as error:
        raise _Unreachable(f"its node does not answer: {_first_line(error)}") from None
    except ray.exceptions.RayError as error:
        raise Unavailable(f"its process died: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
