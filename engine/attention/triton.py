"""Attention by the project's own Triton kernel: any CUDA device, any page size, and the fastest decode on Hopper.

Measured on an H200 (32/8 heads of 128, 1,100 cached tokens, page 128), us a layer, this against FlashAttention-3:
batch 1: 7 / 10, 8: 14 / 16, 64: 70 / 76, 256: 265 / 285. Extending is slower than FlashAttention's.
"""

from torch import Tensor

from engine.attention.base import AttentionBatch, AttentionShape
from engine.attention.pages import Pages
from engine.kernels.caches import Caches
from engine.kernels.paged_attention import AttentionOptions, PagedBatch, paged_attention

PROGRAMS_ENOUGH = 256
"""That many rows times kv heads occupy every multiprocessor of a large GPU by themselves."""
PROGRAMS_WANTED = 512
"""When there are fewer, keys are cut into parts until there are as many as this: small programs even out (H200)."""
MAX_SPLITS = 16


class TritonAttention:
    """AttentionBackend over engine.kernels.paged_attention."""

    name = "triton"
    capturable = True
    captures_prompts = True

    def __init__(self, pool_NL2SKE: Tensor, shape: AttentionShape) -> None:
        self._pages = Pages(pool_NL2SKE, shape)
        self._options = [
            AttentionOptions(shape.softmax_scale, window or 0, shape.soft_cap or 0.0) for window in shape.windows
        ]
        self._num_kv_heads = shape.num_kv_heads
        self._batch: AttentionBatch | None = None
        self._num_splits = 1

    def plan(self, batch: AttentionBatch) -> None:
        """See AttentionBackend."""
        self._batch = batch
        self._num_splits = num_splits(len(batch.num_new) * self._num_kv_heads) if batch.is_decode else 1

    @property
    def slots(self) -> Tensor:
        """See AttentionBackend."""
        return self._planned().slots_T

    def caches(self, layer: int) -> Caches:
        """See AttentionBackend."""
        return self._pages.caches(layer)

    def write(self, layer: int, k_TKE: Tensor, v_TKE: Tensor) -> None:
        """See AttentionBackend."""
        self._pages.write(layer, self.slots, k_TKE, v_TKE)

    def attend(self, layer: int, q_THE: Tensor, new: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """See AttentionBackend."""
        batch = self._planned()
        paged = PagedBatch(batch.cu_seqlens_q_B1, batch.cache_seqlens_B, batch.page_table_BP, batch.max_num_new)
        return paged_attention(q_THE, self.caches(layer), paged, self._options[layer], self._num_splits)

    def run(self, layer: int, q_THE: Tensor, k_TKE: Tensor, v_TKE: Tensor) -> Tensor:
        """See AttentionBackend."""
        self.write(layer, k_TKE, v_TKE)
        return self.attend(layer, q_THE)[0]

    def _planned(self) -> AttentionBatch:
        assert self._batch is not None, "plan() comes first"
        return self._batch


def num_splits(programs: int) -> int:
    """Parts that the keys of each (row, kv head) are cut into, a power of two: enough programs, no more."""
    if programs >= PROGRAMS_ENOUGH:
        return 1
    splits = 1
    while splits < MAX_SPLITS and programs * splits < PROGRAMS_WANTED:
        splits *= 2
    return splits
