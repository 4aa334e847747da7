"""FlashAttention-3 (Shah et al. 2024, arXiv:2407.08608) for Hopper GPUs, over the page slab in place.

New prompts read their keys from the projection (flash_attn_varlen_func); a cached prefix and decode read pages
(flash_attn_with_kvcache). Decode steps compute the tile schedule once for all layers.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from engine.attention.base import AttentionBatch, AttentionShape, layer_views
from engine.attention.torch_ref import write_slots

HOPPER = (9, 0)
PACKAGES = ("flash_attn_interface", "flash_attn_3.flash_attn_interface", "sgl_kernel.flash_attn")
"""Where the kernels are found; the same function names in each."""


@dataclass(frozen=True, slots=True)
class Kernels:
    """The three functions of FlashAttention-3's Python interface that are used."""

    varlen: Callable[..., Any]
    with_kvcache: Callable[..., Any]
    schedule: Callable[..., Any]


def find_kernels() -> Kernels | None:
    """The first package that has them; None when there is none."""
    for package in PACKAGES:
        try:
            module = importlib.import_module(package)
            return Kernels(module.flash_attn_varlen_func, module.flash_attn_with_kvcache, module.get_scheduler_metadata)
        except (ImportError, AttributeError, OSError):
            continue  # not installed, another interface, or built for another torch
    return None


class FlashAttention3:
    """AttentionBackend over FlashAttention-3; bfloat16 or float16, head dims up to 256."""

    name = "fa3"
    capturable = True

    def __init__(self, pool_NL2SKE: Tensor, shape: AttentionShape, kernels: Kernels) -> None:
        self._pool_NL2SKE = pool_NL2SKE
        self._shape = shape
        self._kernels = kernels
        self._batch: AttentionBatch | None = None
        self._schedules: dict[int | None, Tensor] = {}

    def plan(self, batch: AttentionBatch) -> None:
        """See AttentionBackend."""
        self._batch = batch
        windows = set(self._shape.windows) if batch.is_decode else set()
        self._schedules = {window: self._schedule(batch, window) for window in windows}

    @property
    def slots(self) -> Tensor:
        """See AttentionBackend."""
        return self._planned().slots_T

    def caches(self, layer: int) -> tuple[Tensor, Tensor]:
        """See AttentionBackend."""
        return layer_views(self._pool_NL2SKE, layer)

    def write(self, layer: int, k_TKE: Tensor, v_TKE: Tensor) -> None:
        """See AttentionBackend."""
        write_slots(self._pool_NL2SKE, layer, self.slots, k_TKE, v_TKE)

    def attend(self, layer: int, q_THE: Tensor, new: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """See AttentionBackend."""
        batch = self._planned()
        window = self._shape.windows[layer]
        options = {
            "softmax_scale": self._shape.softmax_scale,
            "causal": True,
            "window_size": (-1, -1) if window is None else (window - 1, 0),
            "softcap": self._shape.soft_cap or 0.0,
        }
        if new is not None and batch.is_all_new:
            cu, longest = batch.cu_seqlens_q_B1, batch.max_num_new
            out_THE, lse_HT = self._kernels.varlen(
                q_THE, *new, cu, cu, longest, longest, return_attn_probs=True, **options
            )
            return out_THE, lse_HT.T
        out_THE, lse_HT, *_ = self._kernels.with_kvcache(
            q_THE,
            *self.caches(layer),
            cache_seqlens=batch.cache_seqlens_B,
            page_table=batch.page_table_BP,
            cu_seqlens_q=batch.cu_seqlens_q_B1,
            max_seqlen_q=batch.max_num_new,
            scheduler_metadata=self._schedules.get(window),
            return_softmax_lse=True,
            **options,
        )
        return out_THE, lse_HT.T

    def run(self, layer: int, q_THE: Tensor, k_TKE: Tensor, v_TKE: Tensor) -> Tensor:
        """See AttentionBackend."""
        self.write(layer, k_TKE, v_TKE)
        return self.attend(layer, q_THE, (k_TKE, v_TKE))[0]

    def _schedule(self, batch: AttentionBatch, window: int | None) -> Tensor:
        shape, page_size = self._shape, self._pool_NL2SKE.shape[3]
        schedule = self._kernels.schedule(
            len(batch.num_new),
            1,
            batch.page_table_BP.shape[1] * page_size,
            shape.num_heads,
            shape.num_kv_heads,
            shape.head_dim,
            batch.cache_seqlens_B,
            qkv_dtype=self._pool_NL2SKE.dtype,
            cu_seqlens_q=batch.cu_seqlens_q_B1,
            page_size=page_size,
            causal=True,
            window_size=(-1, -1) if window is None else (window - 1, 0),
            has_softcap=bool(shape.soft_cap),
        )
        assert isinstance(schedule, torch.Tensor)
        return schedule

    def _planned(self) -> AttentionBatch:
        assert self._batch is not None, "plan() comes first"
        return self._batch
