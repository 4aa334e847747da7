"""All workers as one router sees them: who is there, who is silent, who may hand over to whom, what they hold."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from engine.core.errors import Incompatible
from engine.core.messages import PeerStatus
from engine.core.protocol import check_protocol
from engine.core.types import WorkerInfo
from kv_transfer.transports.base import peer_key
from router.breaker import Breaker
from router.config import HealthConfig
from router.prefix_feed import FeedCounts, PrefixFeed
from router.prefix_index import PrefixIndex
from router.prefix_watch import PrefixWatch
from router.worker import Health, LegKind, WorkerState


@dataclass(frozen=True, slots=True)
class Candidates:
    """Workers that may get work now. `whole` are the ones for a request that stays on one worker.

    A worker with both roles keeps what it computes: it is no source of a handoff.
    """

    prefill: list[WorkerState]
    decode: list[WorkerState]
    whole: list[WorkerState]


class ClusterView:
    """Owns the worker records, the breakers of pairs, and the prefix index that the workers' events keep."""

    def __init__(self, config: HealthConfig) -> None:
        self._config = config
        self.workers: dict[str, WorkerState] = {}
        """By worker id and incarnation, as `peer_key` gives them."""
        self.index = PrefixIndex()
        self.watch = PrefixWatch()
        self.links: dict[tuple[str, str], PeerStatus] = {}
        """(prefill, decode) -> what the decode worker, which is here, last said of pulling from the other. Of one that
        is not here only that it can: it may come (back), and its pages with it.
        """
        self._breakers: dict[tuple[str, str], Breaker] = {}
        self.feeds: dict[str, PrefixFeed] = {}
        self.feed_counts = FeedCounts()
        self.models: frozenset[str] = frozenset()
        """Hashes of models that may be here side by side while one replaces the other."""
        self._checked_s: float | None = None

    def __iter__(self) -> Iterator[WorkerState]:
        return iter(self.workers.values())

    def check_model(self, info: WorkerInfo) -> None:
        """Raise Incompatible when that worker speaks too old or too new a protocol, or serves another model than the
        ones that are there and is not a part of an update.
        """
        check_protocol(info.protocol, f"worker {info.id}")
        for other in self:
            both = {info.layout.model_hash, other.info.layout.model_hash}
            if other.info.id != info.id and len(both) > 1 and not both <= self.models:
                raise Incompatible(
                    f"worker {info.id} serves {info.model} ({info.layout.model_hash[:8]}), the others serve "
                    f"{other.info.model} ({other.info.layout.model_hash[:8]})"
                )

    def join(self, info: WorkerInfo, now: float, *, public_feed: bool = False) -> WorkerState:
        """Add an incarnation that is not there yet, of the model of the ones that are."""
        feed = PrefixFeed(self.index, info.num_pages, replays=public_feed, counts=self.feed_counts)
        worker = WorkerState(info, feed.slot, now, self._config)
        self.workers[worker.key] = worker
        self.feeds[worker.key] = feed
        return worker

    def leave(self, key: str) -> None:
        """Remove an incarnation; its legs must be closed."""
        worker = self.workers.pop(key)
        assert not worker.legs, "a worker left with open legs"
        self.feeds.pop(key).close()
        for pair in [
            pair for pair, link in self.links.items() if pair[1] == key or (pair[0] == key and not link.ready)
        ]:
            del self.links[pair]
        for pair in [pair for pair in self._breakers if key in pair]:
            del self._breakers[pair]

    def find(self, worker_id: str) -> list[WorkerState]:
        """Incarnations of `worker_id`; more than one only for a moment."""
        return [worker for worker in self if worker.info.id == worker_id]

    # ------------------------------------------------------------------------------------------------- health

    def heard(self, worker: WorkerState, now: float) -> None:
        """A frame arrived: whatever it says, the worker is there."""
        worker.heard_s = now
        worker.health = Health.READY

    def check_silence(self, now: float) -> list[WorkerState]:
        """Workers that have just become hung. Call several times in `hung_after_s`."""
        if self._checked_s is not None and now - self._checked_s > self._config.hung_after_s / 2:
            # It was this process that stood still; frames may wait unread.
            for worker in self:
                worker.heard_s = max(worker.heard_s, now - self._config.hung_after_s / 2)
        self._checked_s = now
        limit = now - self._config.hung_after_s
        hung = [worker for worker in self if worker.heard_s < limit and worker.health is Health.READY]
        for worker in hung:
            worker.health = Health.HUNG
        return hung

    # ------------------------------------------------------------------------------------------------- choice

    def candidates(self, avoid: frozenset[str], now: float, source: str | None = None, model: str = "") -> Candidates:
        """Workers for one call, without those in `avoid` (where it failed before) while there are others.

        With a `source` its pages must come from there, whether or not it may get other work. With a `model` (its hash)
        only workers of that one.
        """
        able = [worker for worker in self if worker.routable(now)]
        if model:
            able = [worker for worker in able if worker.info.layout.model_hash == model]
        able = [worker for worker in able if worker.key not in avoid] or able
        prefill = [worker for worker in able if worker.has_role("prefill") and not worker.has_role("decode")]
        decode = [worker for worker in able if worker.has_role("decode")]
        if source is not None:
            return Candidates([self.workers[source]], [worker for worker in decode if worker.key != source], [])
        return Candidates(prefill, decode, decode or able)

    def computing(self, now: float) -> list[WorkerState]:
        """Workers that prompts are meant for, among those that may get work: all of them where none is set apart."""
        able = [worker for worker in self if worker.routable(now)]
        return [worker for worker in able if not worker.has_role("decode")] or able

    def can_take_over(self, source: WorkerState, now: float) -> bool:
        """Is there a worker that may go on with what decodes on `source`?"""
        decode = self.candidates(frozenset(), now, source.key).decode
        return any(self.can_hand_over(source, target, now) for target in decode)

    def on_peer_status(self, target: WorkerState, status: PeerStatus) -> tuple[str, str] | None:
        """`target` says whether it can pull from a peer (that this router may not have met yet). Returns the pair when
        that has just become possible.
        """
        pair = (peer_key(status.worker_id, status.incarnation), target.key)
        was_ready = pair in self.links and self.links[pair].ready
        if status.ready or pair[0] in self.workers:
            self.links[pair] = status
        else:  # the last word of a source that left
            self.links.pop(pair, None)
        return pair if status.ready and not was_ready else None

    def forget_source(self, key: str) -> None:
        """Peers of incarnation `key` are told to forget it: nothing is pulled from it any more."""
        for pair in [pair for pair in self.links if pair[0] == key]:
            del self.links[pair]

    def can_hand_over(self, source: WorkerState, target: WorkerState, now: float) -> bool:
        """May `target` pull pages from `source`? Only when the pair has proven itself and did not fail lately."""
        pair = (source.key, target.key)
        link = self.links.get(pair)
        if link is None or not link.ready:
            return False
        breaker = self._breakers.get(pair)
        return breaker is None or breaker.allows(now)

    def pair_breaker(self, source: str, target: str) -> Breaker:
        """The breaker of handoffs from worker `source` to worker `target`, both present."""
        breaker = self._breakers.get((source, target))
        if breaker is None:
            breaker = self._breakers[source, target] = Breaker(self._config)
        return breaker

    @property
    def pair_breakers(self) -> Mapping[tuple[str, str], Breaker]:
        """The breakers that handoffs made, by (source, target)."""
        return self._breakers

    def check_integrity(self) -> None:
        """Raise AssertionError unless every count follows from what it counts."""
        self.index.check_integrity()
        for key, worker in self.workers.items():
            assert key == peer_key(worker.info.id, worker.info.incarnation)
            assert worker.num_decodes == sum(kind is not LegKind.PREFILL for kind in worker.legs.values())
        assert self.feeds.keys() == self.workers.keys()
        assert all(target in self.workers for _, target in self.links)
        assert all(link.ready or source in self.workers for (source, _), link in self.links.items())
        assert all(key in self.workers for pair in self._breakers for key in pair)
