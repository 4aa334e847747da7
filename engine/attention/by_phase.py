"""Several backends over one pool, each for the steps it is better at."""

from torch import Tensor

from engine.attention.base import AttentionBackend, AttentionBatch
from engine.kernels.caches import Caches


class ByPhase:
    """AttentionBackend that sends decode steps to one backend, new prompts to another, all others to a third.

    `new` is asked only with the step's keys and values at hand, so it need not be able to read the pages.
    """

    def __init__(self, new: AttentionBackend, extend: AttentionBackend, decode: AttentionBackend) -> None:
        self._new, self._extend, self._decode = new, extend, decode
        self._current = extend
        self._is_new = False
        self.name = "+".join(dict.fromkeys(backend.name for backend in (new, extend, decode)))
        self.capturable = decode.capturable
        self.captures_prompts = new.captures_prompts and extend.captures_prompts

    def plan(self, batch: AttentionBatch) -> None:
        """See AttentionBackend."""
        self._is_new = batch.is_all_new and not batch.is_decode and self._new is not self._extend
        self._current = self._decode if batch.is_decode else self._extend
        self._current.plan(batch)
        if self._is_new:
            self._new.plan(batch)

    @property
    def slots(self) -> Tensor:
        """See AttentionBackend."""
        return self._current.slots

    def caches(self, layer: int) -> Caches:
        """See AttentionBackend."""
        return self._current.caches(layer)

    def write(self, layer: int, k_TKE: Tensor, v_TKE: Tensor) -> None:
        """See AttentionBackend."""
        self._current.write(layer, k_TKE, v_TKE)

    def attend(self, layer: int, q_THE: Tensor, new: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """See AttentionBackend."""
        backend = self._new if self._is_new and new is not None else self._current
        return backend.attend(layer, q_THE, new)

    def run(self, layer: int, q_THE: Tensor, k_TKE: Tensor, v_TKE: Tensor) -> Tensor:
        """See AttentionBackend."""
        self.write(layer, k_TKE, v_TKE)
        return self.attend(layer, q_THE, (k_TKE, v_TKE))[0]
