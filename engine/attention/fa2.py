"""FlashAttention-2 (Dao 2023, arXiv:2307.08691): package flash-attn, for Ampere GPUs and later.

New prompts read their keys from the projection, a cached prefix its pages through the same function, decode pages
through flash_attn_with_kvcache. Pages must hold a multiple of 256 tokens. Which head dims, types, soft cap and windows
a build of the package has is found out by calling it once.
"""

import importlib
from typing import Any

import torch
from torch import Tensor

from engine.attention.base import AttentionBatch, AttentionShape
from engine.attention.pages import Pages
from engine.core.errors import InvalidRequest
from engine.kernels.caches import Caches


class FlashAttention2:
    """AttentionBackend over flash-attn; bfloat16 or float16, head dims up to 256."""

    name = "fa2"
    capturable = True
    captures_prompts = True

    def __init__(self, pool_NL2SKE: Tensor, shape: AttentionShape) -> None:
        """Raises InvalidRequest: the package does not import, or its build cannot serve the shape."""
        self._pages = Pages(pool_NL2SKE, shape)
        self._shape = shape
        self._batch: AttentionBatch | None = None
        self._cu_seqlens_k_B1: Tensor | None = None
        try:
            module = importlib.import_module("flash_attn")
        except (ImportError, OSError) as error:
            raise InvalidRequest(f"attention backend fa2: flash_attn does not import: {error}") from error
        self._varlen: Any = module.flash_attn_varlen_func
        self._with_kvcache: Any = module.flash_attn_with_kvcache
        self._try_once()

    def plan(self, batch: AttentionBatch) -> None:
        """See AttentionBackend."""
        self._batch = batch
        self._cu_seqlens_k_B1 = None
        if not batch.is_decode and not batch.is_all_new:
            lengths_B = batch.cache_seqlens_B.cumsum(0, dtype=torch.int32)
            self._cu_seqlens_k_B1 = torch.nn.functional.pad(lengths_B, (1, 0))

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
        batch, caches, options = self._planned(), self.caches(layer), self._options(layer)
        cu_B1, longest = batch.cu_seqlens_q_B1, batch.max_num_new
        if batch.is_decode:
            lengths = {"cache_seqlens": batch.cache_seqlens_B, "block_table": batch.page_table_BP}
            out_T1HE, lse_TH1 = self._with_kvcache(
                q_THE[:, None], caches.k, caches.v, return_softmax_lse=True, **lengths, **options
            )
            return out_T1HE[:, 0], lse_TH1[:, :, 0]
        if new is not None and batch.is_all_new:
            out_THE, lse_HT, _ = self._varlen(
                q_THE, *new, cu_B1, cu_B1, longest, longest, return_attn_probs=True, **options
            )
            return out_THE, lse_HT.T
        cu_k_B1 = cu_B1 if self._cu_seqlens_k_B1 is None else self._cu_seqlens_k_B1
        out_THE, lse_HT, _ = self._varlen(
            q_THE,
            caches.k,
            caches.v,
            cu_B1,
            cu_k_B1,
            longest,
            batch.max_seqlen,
            return_attn_probs=True,
            block_table=batch.page_table_BP,
            **options,
        )
        return out_THE, lse_HT.T

    def run(self, layer: int, q_THE: Tensor, k_TKE: Tensor, v_TKE: Tensor) -> Tensor:
        """See AttentionBackend."""
        self.write(layer, k_TKE, v_TKE)
        return self.attend(layer, q_THE, (k_TKE, v_TKE))[0]

    def _options(self, layer: int) -> dict[str, Any]:
        window = self._shape.windows[layer]
        return {
            "softmax_scale": self._shape.softmax_scale,
            "causal": True,
            "window_size": (-1, -1) if window is None else (window - 1, 0),
            "softcap": self._shape.soft_cap or 0.0,
        }

    def _try_once(self) -> None:
        """One decode step and one prompt of the shape, in every layer that differs from the others."""
        shape, pool = self._shape, self._pages.pool_NL2SKE
        one = torch.ones(1, dtype=torch.int32, device=pool.device)
        cu = torch.tensor([0, 2], dtype=torch.int32, device=pool.device)
        q = torch.zeros(2, shape.num_heads, shape.head_dim, dtype=pool.dtype, device=pool.device)
        k = torch.zeros(2, shape.num_kv_heads, shape.head_dim, dtype=pool.dtype, device=pool.device)
        table = torch.zeros(1, 1, dtype=torch.int32, device=pool.device)
        for layer in {window: layer for layer, window in enumerate(shape.windows)}.values():
            options, caches = self._options(layer), self.caches(layer)
            try:
                self._varlen(q, k, k, cu, cu, 2, 2, **options)
                self._with_kvcache(q[None, :1], caches.k, caches.v, cache_seqlens=one, block_table=table, **options)
            except RuntimeError as error:
                reason = str(error).strip().partition("\n")[0]
                raise InvalidRequest(f"attention backend fa2: this build of flash_attn says: {reason}") from error

    def _planned(self) -> AttentionBatch:
        assert self._batch is not None, "plan() comes first"
        return self._batch
