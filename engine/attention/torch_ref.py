"""The oracle: attention written as its definition, one row at a time, on any device and in any dtype.

Every other backend is tested against this one in float64. Slow, and meant to be obviously right.
Shape suffixes: see engine.attention.base; M new tokens of one row, C its tokens in all.
"""

import math

import torch
from torch import Tensor

from engine.attention.base import AttentionBatch, AttentionShape
from engine.attention.pages import Pages
from engine.kernels.caches import Caches


class TorchReference:
    """AttentionBackend in plain torch; computes in float32, or in float64 over a float64 pool."""

    name = "torch"
    capturable = False
    captures_prompts = False

    def __init__(self, pool_NL2SKE: Tensor, shape: AttentionShape) -> None:
        self._pages = Pages(pool_NL2SKE, shape)
        self._shape = shape
        self._batch: AttentionBatch | None = None

    def plan(self, batch: AttentionBatch) -> None:
        """See AttentionBackend."""
        self._batch = batch

    @property
    def slots(self) -> Tensor:
        """See AttentionBackend."""
        assert self._batch is not None
        return self._batch.slots_T

    def caches(self, layer: int) -> Caches:
        """See AttentionBackend."""
        return self._pages.caches(layer)

    def write(self, layer: int, k_TKE: Tensor, v_TKE: Tensor) -> None:
        """See AttentionBackend."""
        assert self._batch is not None
        self._pages.write(layer, self._batch.slots_T, k_TKE, v_TKE)

    def attend(self, layer: int, q_THE: Tensor, new: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """See AttentionBackend."""
        batch = self._batch
        assert batch is not None
        outs, lses, first = [], [], 0
        for row, (start, num_new) in enumerate(zip(batch.starts, batch.num_new, strict=True)):
            q_MHE = q_THE[first : first + num_new]
            k_CKE, v_CKE = self._keys_values(layer, batch.page_table_BP[row], start + num_new, q_MHE.dtype)
            out_MHE, lse_MH = dense_attention(q_MHE, k_CKE, v_CKE, self._shape, self._shape.windows[layer])
            outs.append(out_MHE.to(q_THE.dtype))
            lses.append(lse_MH)
            first += num_new
        return torch.cat(outs), torch.cat(lses)

    def run(self, layer: int, q_THE: Tensor, k_TKE: Tensor, v_TKE: Tensor) -> Tensor:
        """See AttentionBackend."""
        self.write(layer, k_TKE, v_TKE)
        return self.attend(layer, q_THE)[0]

    def _keys_values(
        self, layer: int, page_table_P: Tensor, num_tokens: int, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        pages = page_table_P[: math.ceil(num_tokens / self._pages.page_size)].long()
        k_PSKE, v_PSKE = self._pages.read(layer, pages, torch.promote_types(dtype, torch.float32))
        return k_PSKE.flatten(0, 1)[:num_tokens], v_PSKE.flatten(0, 1)[:num_tokens]


def dense_attention(
    q_MHE: Tensor, k_CKE: Tensor, v_CKE: Tensor, shape: AttentionShape, window: int | None
) -> tuple[Tensor, Tensor]:
    """Causal softmax attention of the last M of C tokens: out_MHE and lse_MH, float32 or wider."""
    dtype = torch.promote_types(q_MHE.dtype, torch.float32)
    group = shape.num_heads // shape.num_kv_heads
    k_CHE = k_CKE.to(dtype).repeat_interleave(group, dim=1)
    v_CHE = v_CKE.to(dtype).repeat_interleave(group, dim=1)
    score_HMC = torch.einsum("mhe,che->hmc", q_MHE.to(dtype), k_CHE) * shape.softmax_scale
    if shape.soft_cap is not None:
        score_HMC = shape.soft_cap * torch.tanh(score_HMC / shape.soft_cap)
    score_HMC = score_HMC.masked_fill(~visible(q_MHE.shape[0], k_CKE.shape[0], window, q_MHE.device), -math.inf)
    lse_HM = torch.logsumexp(score_HMC, dim=-1)
    out_MHE = torch.einsum("hmc,che->mhe", torch.exp(score_HMC - lse_HM[..., None]), v_CHE)
    return out_MHE, lse_HM.T


def visible(num_queries: int, num_keys: int, window: int | None, device: torch.device) -> Tensor:
    """Mask_MC, True where query m (the last M of the C positions) sees key c."""
    key_C = torch.arange(num_keys, device=device)
    query_M1 = torch.arange(num_keys - num_queries, num_keys, device=device)[:, None]
    mask_MC = key_C <= query_M1
    return mask_MC if window is None else mask_MC & (key_C > query_M1 - window)
