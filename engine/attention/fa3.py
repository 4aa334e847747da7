"""FlashAttention-3 (Shah et al. 2024, arXiv:2407.08608) for Hopper GPUs, over the page slab in place.

New prompts read their keys from the projection; a cached prefix and decode read pages. Decode steps compute the tile
schedule once for all layers. The kernels multiply pages of 8-bit values only with 8-bit queries, which costs accuracy
(measured as relative error of the output: tests/gpu/test_attention.py): auto reads such pages with Triton's instead.
"""

import torch
from torch import Tensor

from engine.attention.base import AttentionBatch, AttentionShape
from engine.attention.fa3_kernels import Kernels, Options
from engine.attention.pages import FP8, Pages, to_fp8
from engine.kernels.caches import Caches


class FlashAttention3:
    """AttentionBackend over FlashAttention-3; bfloat16 or float16, head dims up to 256."""

    name = "fa3"
    capturable = True
    captures_prompts = True

    def __init__(self, pool_NL2SKE: Tensor, shape: AttentionShape, kernels: Kernels) -> None:
        self._pages = Pages(pool_NL2SKE, shape)
        self._shape = shape
        self._kernels = kernels
        self._batch: AttentionBatch | None = None
        self._schedules: dict[int | None, Tensor] = {}
        self._descales: list[tuple[Tensor, Tensor]] = []
        """Of k and v in each layer, scalars on the device; only for pages of 8-bit values."""
        if pool_NL2SKE.dtype == FP8:
            scales_L2 = torch.tensor([shape.scales(layer) for layer in range(len(shape.windows))])
            self._descales = [(k, v) for k, v in scales_L2.to(pool_NL2SKE.device)]

    def plan(self, batch: AttentionBatch) -> None:
        """See AttentionBackend."""
        self._batch = batch
        windows = set(self._shape.windows) if batch.is_decode and self._kernels.schedule is not None else set()
        self._schedules = {window: self._schedule(batch, window) for window in windows}

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
        window = self._shape.windows[layer]
        options = {
            "softmax_scale": self._shape.softmax_scale,
            "causal": True,
            "window_size": _window_size(window),
            "softcap": self._shape.soft_cap or 0.0,
        }
        if new is not None and batch.is_all_new:
            out_THE, lse_HT = self._kernels.new(q_THE, *new, batch, options)
            return out_THE, lse_HT.T
        query_THE = q_THE
        if self._descales:
            query_THE = to_fp8(q_THE, 1.0)
            options |= self._descale(layer, len(batch.num_new))
        schedule = self._schedules.get(window)
        out_THE, lse_HT = self._kernels.paged(query_THE, self.caches(layer), batch, schedule, options)
        return out_THE.to(q_THE.dtype), lse_HT.T

    def run(self, layer: int, q_THE: Tensor, k_TKE: Tensor, v_TKE: Tensor) -> Tensor:
        """See AttentionBackend."""
        self.write(layer, k_TKE, v_TKE)
        return self.attend(layer, q_THE, (k_TKE, v_TKE))[0]

    def _descale(self, layer: int, num_rows: int) -> Options:
        k, v = (scale.expand(num_rows, self._shape.num_kv_heads) for scale in self._descales[layer])
        return {"k_descale": k, "v_descale": v}

    def _schedule(self, batch: AttentionBatch, window: int | None) -> Tensor:
        shape, page_size = self._shape, self._pages.page_size
        assert self._kernels.schedule is not None
        return self._kernels.schedule(
            len(batch.num_new),
            1,
            batch.page_table_BP.shape[1] * page_size,
            shape.num_heads,
            shape.num_kv_heads,
            shape.head_dim,
            batch.cache_seqlens_B,
            qkv_dtype=self._pages.pool_NL2SKE.dtype,
            cu_seqlens_q=batch.cu_seqlens_q_B1,
            page_size=page_size,
            causal=True,
            window_size=_window_size(window),
            has_softcap=bool(shape.soft_cap),
        )

    def _planned(self) -> AttentionBatch:
        assert self._batch is not None, "plan() comes first"
        return self._batch


def _window_size(window: int | None) -> tuple[int, int]:
    """Keys to the left and to the right of a token's own, as FlashAttention counts them; -1 is all."""
    return (-1, -1) if window is None else (window - 1, 0)
