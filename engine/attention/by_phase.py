"""Two backends over one pool, each for the steps it is faster at."""

from torch import Tensor

from engine.attention.base import AttentionBackend, AttentionBatch


class ByPhase:
    """AttentionBackend that sends decode steps to one backend and all others to another."""

    def __init__(self, extend: AttentionBackend, decode: AttentionBackend) -> None:
        self._extend = extend
        self._decode = decode
        self._current = extend
        self.name = f"{extend.name}+{decode.name}"
        self.capturable = decode.capturable

    def plan(self, batch: AttentionBatch) -> None:
        """See AttentionBackend."""
        self._current = self._decode if batch.is_decode else self._extend
        self._current.plan(batch)

    @property
    def slots(self) -> Tensor:
        """See AttentionBackend."""
        return self._current.slots

    def caches(self, layer: int) -> tuple[Tensor, Tensor]:
        """See AttentionBackend."""
        return self._current.caches(layer)

    def write(self, layer: int, k_TKE: Tensor, v_TKE: Tensor) -> None:
        """See AttentionBackend."""
        self._current.write(layer, k_TKE, v_TKE)

    def attend(self, layer: int, q_THE: Tensor, new: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """See AttentionBackend."""
        return self._current.attend(layer, q_THE, new)

    def run(self, layer: int, q_THE: Tensor, k_TKE: Tensor, v_TKE: Tensor) -> Tensor:
        """See AttentionBackend."""
        return self._current.run(layer, q_THE, k_TKE, v_TKE)
