"""The CPU path: torch's flash kernel over gathered pages. No kv head is repeated, no mask made where none is due.

Decode rows are gathered in cache-sized groups (cpu_plan); the G query heads of a kv head become the query positions of
one kernel row, so keys are read once for all of them. Extended rows attend to their own new tokens straight from the
projection, causally, and to their cached prefix block by block. Parts over disjoint keys merge by their log-sum-exp
(section 3.1 of FlashAttention, arXiv:2205.14135):

    out = (exp(lse1) out1 + exp(lse2) out2) / (exp(lse1) + exp(lse2)) = out1 + sigmoid(lse2 - lse1) (out2 - out1)

Shape suffixes: see engine.attention.base; R decode rows, b rows of a group, M new tokens of one row, C gathered tokens.
"""

import math

import torch
from torch import Tensor

from engine.attention.base import AttentionBatch, AttentionShape, layer_views
from engine.attention.cpu_plan import CPUStep, ExtendRow, Group
from engine.attention.torch_ref import visible

SCRATCH_BYTES = 4 << 20
"""Of gathered keys and values together: what stays in the second-level caches of two cores."""
WINDOW_QUERIES = 512
"""Queries that share one mask where a sliding window cuts into an extended row."""

# The public function runs the same kernel but does not return the log-sum-exp.
_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


class TorchCPU:
    """AttentionBackend for CPU tensors in float32, bfloat16, float16 or float64. No soft cap: TorchReference has it."""

    name = "torch_cpu"
    capturable = False

    def __init__(self, pool_NL2SKE: Tensor, shape: AttentionShape) -> None:
        assert shape.soft_cap is None
        page_size, num_kv_heads, head_dim = pool_NL2SKE.shape[3:]
        self._shape = shape
        self._layers = [layer_views(pool_NL2SKE, layer) for layer in range(pool_NL2SKE.shape[1])]
        self._page_size = page_size
        page_bytes = page_size * num_kv_heads * head_dim * pool_NL2SKE.element_size()
        max_pages = max(1, SCRATCH_BYTES // (2 * page_bytes))
        self._scratch_2NSKE = pool_NL2SKE.new_empty(2, max_pages, page_size, num_kv_heads, head_dim)
        self._step: CPUStep | None = None

    def plan(self, batch: AttentionBatch) -> None:
        """See AttentionBackend."""
        self._step = CPUStep(batch, self._page_size, self._scratch_2NSKE.shape[1], self._scratch_2NSKE.dtype)

    @property
    def slots(self) -> Tensor:
        """See AttentionBackend."""
        return self._planned().slots_T

    def caches(self, layer: int) -> tuple[Tensor, Tensor]:
        """See AttentionBackend."""
        return self._layers[layer]

    def write(self, layer: int, k_TKE: Tensor, v_TKE: Tensor) -> None:
        """See AttentionBackend."""
        step = self._planned()
        for pool_NSKE, new_TKE in zip(self._layers[layer], (k_TKE, v_TKE), strict=True):
            pool_NSKE.index_put_((step.page_T, step.position_T), new_TKE.to(pool_NSKE.dtype))

    def attend(self, layer: int, q_THE: Tensor, new: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """See AttentionBackend. Without `new`, reads the new tokens back from the pool."""
        step = self._planned()
        k_NSKE, v_NSKE = self._layers[layer]
        where = (step.page_T, step.position_T)
        return self._attend(layer, q_THE, *(new or (k_NSKE[where], v_NSKE[where])))

    def run(self, layer: int, q_THE: Tensor, k_TKE: Tensor, v_TKE: Tensor) -> Tensor:
        """See AttentionBackend."""
        self.write(layer, k_TKE, v_TKE)
        return self._attend(layer, q_THE, k_TKE, v_TKE)[0]

    def _planned(self) -> CPUStep:
        assert self._step is not None, "plan() comes first"
        return self._step

    def _attend(self, layer: int, q_THE: Tensor, k_TKE: Tensor, v_TKE: Tensor) -> tuple[Tensor, Tensor]:
        step, shape = self._planned(), self._shape
        out_THE = torch.empty_like(q_THE, memory_format=torch.contiguous_format)
        lse_TH = q_THE.new_empty(q_THE.shape[:2], dtype=torch.promote_types(q_THE.dtype, torch.float32))
        # Query head h = k * G + g, so [T, H, E] is [T, K, G, E].
        q_TKGE = q_THE.view(len(q_THE), shape.num_kv_heads, -1, shape.head_dim)
        out_TKGE, lse_TKG = out_THE.view(q_TKGE.shape), lse_TH.view(q_TKGE.shape[:3])
        if step.decode_T is not None:
            out_RKGE, lse_RKG = self._decode(layer, q_TKGE[step.decode_T])
            out_TKGE[step.decode_T] = out_RKGE.to(out_THE.dtype)
            lse_TKG[step.decode_T] = lse_RKG
        for row in step.extends:
            new = slice(row.first, row.first + row.num_new)
            out_GKME, lse_GKM = self._extend(layer, row, q_TKGE[new].permute(2, 1, 0, 3), k_TKE[new], v_TKE[new])
            out_TKGE[new] = out_GKME.permute(2, 1, 0, 3)
            lse_TKG[new] = lse_GKM.permute(2, 1, 0)
        return out_THE, lse_TH

    def _decode(self, layer: int, q_RKGE: Tensor) -> tuple[Tensor, Tensor]:
        """One new token a row, over all that the row sees: float32 results for every decode row."""
        first_wave, *later_waves = self._planned().waves(self._shape.windows[layer])
        acc_dtype = torch.promote_types(q_RKGE.dtype, torch.float32)
        out_RKGE = q_RKGE.new_empty(q_RKGE.shape, dtype=acc_dtype)
        lse_RKG = q_RKGE.new_empty(q_RKGE.shape[:3], dtype=acc_dtype)
        for group in first_wave:
            part, part_lse = self._decode_group(layer, group, q_RKGE)
            out_RKGE[group.rows_b] = part.to(acc_dtype)
            lse_RKG[group.rows_b] = part_lse
        for group in (group for wave in later_waves for group in wave):
            rows = group.rows_b
            part, part_lse = self._decode_group(layer, group, q_RKGE)
            out_RKGE[rows], lse_RKG[rows] = merge(out_RKGE[rows], lse_RKG[rows], part, part_lse)
        return out_RKGE, lse_RKG

    def _decode_group(self, layer: int, group: Group, q_RKGE: Tensor) -> tuple[Tensor, Tensor]:
        k_NKE, v_NKE = self._gather(layer, group.pages)
        if group.unseen is not None:
            k_NKE.index_fill_(0, group.unseen, 0)
            v_NKE.index_fill_(0, group.unseen, 0)
        by_row = (len(group.rows_b), -1, *k_NKE.shape[1:])
        k_bKCE = k_NKE.view(by_row)[:, group.begin : group.end].transpose(1, 2)
        v_bKCE = v_NKE.view(by_row)[:, group.begin : group.end].transpose(1, 2)
        return self._kernel(q_RKGE[group.rows_b], k_bKCE, v_bKCE, mask=group.mask_b11C)

    def _extend(
        self, layer: int, row: ExtendRow, q_GKME: Tensor, k_MKE: Tensor, v_MKE: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Several new tokens of one row. The G query heads of a kv head are the kernel's batch, keys are not copied."""
        window = self._shape.windows[layer]
        if window is not None and row.start + row.num_new > window:
            return self._extend_windowed(layer, row, q_GKME, window)
        out, lse = self._kernel(q_GKME, *self._per_group(k_MKE, v_MKE), causal=True)
        block = self._scratch_2NSKE.shape[1] * self._page_size
        for begin in range(0, row.start, block):
            pages, seen = self._page_range(row.pages_P, begin, min(begin + block, row.start))
            k_CKE, v_CKE = (gathered_NKE[seen] for gathered_NKE in self._gather(layer, pages))
            part, part_lse = self._kernel(q_GKME, *self._per_group(k_CKE, v_CKE))
            out, lse = merge(out, lse, part, part_lse)
        return out, lse

    def _extend_windowed(self, layer: int, row: ExtendRow, q_GKME: Tensor, window: int) -> tuple[Tensor, Tensor]:
        """The general case, masked: blocks of queries against all keys that any of them sees, read from the pool."""
        outs, lses = [], []
        for first in range(0, row.num_new, WINDOW_QUERIES):
            q_GKQE = q_GKME[:, :, first : first + WINDOW_QUERIES]
            end = row.start + first + q_GKQE.shape[2]
            begin = max(0, row.start + first + 1 - window)
            pages, seen = self._page_range(row.pages_P, begin, end)
            k_CKE, v_CKE = (pool_NSKE[pages].flatten(0, 1)[seen] for pool_NSKE in self._layers[layer])
            hidden_QC = ~visible(q_GKQE.shape[2], end - begin, window, q_GKQE.device)
            mask_QC = q_GKQE.new_zeros(hidden_QC.shape).masked_fill_(hidden_QC, -math.inf)
            out, lse = self._kernel(q_GKQE, *self._per_group(k_CKE, v_CKE), mask=mask_QC)
            outs.append(out)
            lses.append(lse)
        return torch.cat(outs, dim=2), torch.cat(lses, dim=2)

    def _kernel(
        self, q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """[batch, heads, queries, E] against [batch, heads, keys, E], any strides; out like q, lse without E."""
        scale = self._shape.softmax_scale
        out, lse = _flash(q, k.to(q.dtype), v.to(q.dtype), 0.0, causal, attn_mask=mask, scale=scale)
        return out, lse

    def _per_group(self, k_CKE: Tensor, v_CKE: Tensor) -> tuple[Tensor, Tensor]:
        """k_GKCE and v_GKCE: the same memory for every query head of a kv head."""
        group = self._shape.num_heads // self._shape.num_kv_heads
        return k_CKE.transpose(0, 1).expand(group, -1, -1, -1), v_CKE.transpose(0, 1).expand(group, -1, -1, -1)

    def _page_range(self, pages_P: Tensor, begin: int, end: int) -> tuple[Tensor, slice]:
        """The pages that hold tokens [begin, end) of a row, and where in them those tokens are."""
        first_page = begin // self._page_size
        origin = first_page * self._page_size
        return pages_P[first_page : math.ceil(end / self._page_size)], slice(begin - origin, end - origin)

    def _gather(self, layer: int, pages: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of whole pages, one after the other; valid until the next call."""
        gathered = self._scratch_2NSKE[:, : len(pages)]
        for pool_NSKE, scratch_NSKE in zip(self._layers[layer], gathered, strict=True):
            torch.index_select(pool_NSKE, 0, pages, out=scratch_NSKE)
        return gathered[0].flatten(0, 1), gathered[1].flatten(0, 1)


def merge(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    """Attention over the union of two disjoint key sets, from the attention over each. Computes in lse's dtype."""
    weight = torch.sigmoid(lse_b - lse_a)[..., None]
    return torch.lerp(out_a.to(weight.dtype), out_b.to(weight.dtype), weight), torch.logaddexp(lse_a, lse_b)
