"""The CPU path: torch's flash kernel over gathered pages. No kv head is repeated, no mask made where none is due.

Decode rows are gathered in cache-sized groups (cpu_plan); the G query heads of a kv head become the query positions of
one kernel row, so keys are read once for all of them. Extended rows attend to their own new tokens straight from the
projection, causally, and to their cached prefix block by block. Parts over disjoint keys merge by their log-sum-exp
(section 3.1 of FlashAttention, arXiv:2205.14135):

    out = (exp(lse1) out1 + exp(lse2) out2) / (exp(lse1) + exp(lse2)) = out1 + sigmoid(lse2 - lse1) (out2 - out1)

Shape suffixes: see engine.attention.base; R decode rows, b rows of a group, M new tokens of one row, C gathered tokens.
"""

import math
import sys

import torch
from torch import Tensor

from engine.attention.base import AttentionBatch, AttentionShape
from engine.attention.cpu_plan import CPUStep, ExtendRun, Group
from engine.attention.pages import Pages
from engine.attention.torch_ref import visible
from engine.kernels.caches import Caches

SCRATCH_BYTES = 3 << 19
"""Of gathered keys and values together: what stays in one core's second-level cache of 2 MiB."""
CACHED_BLOCK = 4096
"""Tokens of a cached prefix that an extended row gathers at a time."""
WINDOW_QUERIES = 512
"""Queries that share one mask where a sliding window cuts into an extended row."""

# The public function runs the same kernel (grouped query heads included) but does not return the log-sum-exp.
_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


class TorchCPU:
    """AttentionBackend for CPU tensors in float32, bfloat16, float16 or float64. No soft cap: TorchReference has it.

    Pages of another type than the queries' are converted as they are gathered.
    """

    name = "torch_cpu"
    capturable = False

    def __init__(self, pool_NL2SKE: Tensor, shape: AttentionShape, dtype: torch.dtype | None = None) -> None:
        """`dtype` of the queries; None: that of the pool."""
        assert shape.soft_cap is None
        dtype = dtype or pool_NL2SKE.dtype
        page_size, num_kv_heads, head_dim = pool_NL2SKE.shape[3:]
        self._shape = shape
        self._pages = Pages(pool_NL2SKE, shape)
        self._converts = dtype != pool_NL2SKE.dtype
        self._layers = [self._pages.caches(layer) for layer in range(pool_NL2SKE.shape[1])]
        self._page_size = page_size
        page_bytes = page_size * num_kv_heads * head_dim * dtype.itemsize
        max_pages = max(1, SCRATCH_BYTES // (2 * page_bytes))
        self._scratch_2NSKE = torch.empty(2, max_pages, page_size, num_kv_heads, head_dim, dtype=dtype)
        self._narrowest_window = min((window for window in shape.windows if window), default=sys.maxsize)
        self._step: CPUStep | None = None

    def plan(self, batch: AttentionBatch) -> None:
        """See AttentionBackend."""
        self._step = CPUStep(batch, self._scratch_2NSKE, self._narrowest_window)

    @property
    def slots(self) -> Tensor:
        """See AttentionBackend."""
        return self._planned().slots_T

    def caches(self, layer: int) -> Caches:
        """See AttentionBackend."""
        return self._layers[layer]

    def write(self, layer: int, k_TKE: Tensor, v_TKE: Tensor) -> None:
        """See AttentionBackend."""
        step = self._planned()
        if self._converts:
            self._pages.write(layer, step.slots_T, k_TKE, v_TKE)
            return
        for pool_NSKE, new_TKE in zip(self._layers[layer][:2], (k_TKE, v_TKE), strict=True):
            pool_NSKE.index_put_((step.page_T, step.position_T), new_TKE.to(pool_NSKE.dtype))

    def attend(self, layer: int, q_THE: Tensor, new: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """See AttentionBackend. Without `new`, reads the new tokens back from the pool."""
        return self._attend(layer, q_THE, *(new or self._new_tokens(layer)))

    def run(self, layer: int, q_THE: Tensor, k_TKE: Tensor, v_TKE: Tensor) -> Tensor:
        """See AttentionBackend."""
        self.write(layer, k_TKE, v_TKE)
        return self._attend(layer, q_THE, k_TKE, v_TKE)[0]

    def _new_tokens(self, layer: int) -> tuple[Tensor, Tensor]:
        """k_TKE and v_TKE of the step, out of the pool."""
        step = self._planned()
        if self._converts:
            k_TSKE, v_TSKE = self._pages.read(layer, step.page_T, self._scratch_2NSKE.dtype)
            token_T = torch.arange(len(step.page_T))
            return k_TSKE[token_T, step.position_T], v_TSKE[token_T, step.position_T]
        where = (step.page_T, step.position_T)
        return self._layers[layer].k[where], self._layers[layer].v[where]

    def _planned(self) -> CPUStep:
        assert self._step is not None, "plan() comes first"
        return self._step

    def _attend(self, layer: int, q_THE: Tensor, k_TKE: Tensor, v_TKE: Tensor) -> tuple[Tensor, Tensor]:
        step, shape = self._planned(), self._shape
        out_THE = torch.empty_like(q_THE, memory_format=torch.contiguous_format)
        lse_TH = q_THE.new_empty(q_THE.shape[:2], dtype=torch.promote_types(q_THE.dtype, torch.float32))
        if step.decode_T is not None:
            # Query head h = k * G + g, so [R, H, E] is [R, K, G, E].
            q_RKGE = q_THE[step.decode_T].view(
                -1, shape.num_kv_heads, shape.num_heads // shape.num_kv_heads, q_THE.shape[2]
            )
            out_RKGE, lse_RKG = self._decode(layer, q_RKGE)
            out_THE[step.decode_T] = out_RKGE.flatten(1, 2).to(out_THE.dtype)
            lse_TH[step.decode_T] = lse_RKG.flatten(1, 2)
        for run in step.extends:
            by_row = (run.num_rows, run.num_new)
            heads = (
                x_THE[run.tokens].view(*by_row, *x_THE.shape[1:]).transpose(1, 2) for x_THE in (q_THE, k_TKE, v_TKE)
            )
            out_RHME, lse_RHM = self._extend(layer, run, *heads)
            out_THE[run.tokens] = out_RHME.transpose(1, 2).flatten(0, 1)
            lse_TH[run.tokens] = lse_RHM.transpose(1, 2).flatten(0, 1)
        return out_THE, lse_TH

    def _decode(self, layer: int, q_RKGE: Tensor) -> tuple[Tensor, Tensor]:
        """One new token a row, over all that the row sees: float32 results for every decode row."""
        first_wave, *later_waves = self._planned().waves(self._shape.windows[layer])
        acc_dtype = torch.promote_types(q_RKGE.dtype, torch.float32)
        out_RKGE = q_RKGE.new_empty(q_RKGE.shape, dtype=acc_dtype)
        lse_RKG = q_RKGE.new_empty(q_RKGE.shape[:3], dtype=acc_dtype)
        for group in first_wave:
            part, lse_RKG[group.rows_b] = self._decode_group(layer, group, q_RKGE)
            out_RKGE[group.rows_b] = part.to(acc_dtype)
        for group in (group for wave in later_waves for group in wave):
            rows = group.rows_b
            more = self._decode_group(layer, group, q_RKGE)
            out_RKGE[rows], lse_RKG[rows] = merge((out_RKGE[rows], lse_RKG[rows]), more)
        return out_RKGE, lse_RKG

    def _decode_group(self, layer: int, group: Group, q_RKGE: Tensor) -> tuple[Tensor, Tensor]:
        if self._converts:
            for read_NSKE, gathered_NSKE in zip(
                self._pages.read(layer, group.pages, self._scratch_2NSKE.dtype), group.gathered_2NSKE, strict=True
            ):
                gathered_NSKE.copy_(read_NSKE)
        else:
            for pool_NSKE, gathered_NSKE in zip(self._layers[layer][:2], group.gathered_2NSKE, strict=True):
                torch.index_select(pool_NSKE, 0, group.pages, out=gathered_NSKE)
        group.blank_unseen()
        return self._kernel(q_RKGE[group.rows_b], *group.seen_2bKCE, mask=group.mask_b11C)

    def _extend(
        self, layer: int, run: ExtendRun, q_RHME: Tensor, k_RKME: Tensor, v_RKME: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Several new tokens of each row of a run: out_RHME and lse_RHM."""
        window = self._shape.windows[layer]
        if window is not None and run.start + run.num_new > window:
            return self._extend_windowed(layer, run, q_RHME, window)
        result = self._kernel(q_RHME, k_RKME, v_RKME, causal=True)
        for begin in range(0, run.start, CACHED_BLOCK):
            k_1KCE, v_1KCE = self._tokens(layer, run.pages_P, begin, min(begin + CACHED_BLOCK, run.start))
            result = merge(result, self._kernel(q_RHME, k_1KCE, v_1KCE))
        return result

    def _extend_windowed(self, layer: int, run: ExtendRun, q_1HME: Tensor, window: int) -> tuple[Tensor, Tensor]:
        """The general case, masked: blocks of queries against all keys that any of them sees, read from the pool."""
        outs, lses = [], []
        for first in range(0, run.num_new, WINDOW_QUERIES):
            q_1HQE = q_1HME[:, :, first : first + WINDOW_QUERIES]
            end = run.start + first + q_1HQE.shape[2]
            begin = max(0, run.start + first + 1 - window)
            k_1KCE, v_1KCE = self._tokens(layer, run.pages_P, begin, end)
            hidden_QC = ~visible(q_1HQE.shape[2], end - begin, window, q_1HQE.device)
            mask_QC = q_1HQE.new_zeros(hidden_QC.shape).masked_fill_(hidden_QC, -math.inf)
            out_1HQE, lse_1HQ = self._kernel(q_1HQE, k_1KCE, v_1KCE, mask=mask_QC)
            outs.append(out_1HQE)
            lses.append(lse_1HQ)
        return torch.cat(outs, dim=2), torch.cat(lses, dim=2)

    def _tokens(self, layer: int, pages_P: Tensor, begin: int, end: int) -> tuple[Tensor, Tensor]:
        """k_1KCE and v_1KCE: tokens [begin, end) of one row, gathered from its pages."""
        first_page = begin // self._page_size
        pages = pages_P[first_page : math.ceil(end / self._page_size)]
        origin = first_page * self._page_size
        k_NSKE, v_NSKE = self._pages.read(layer, pages, self._scratch_2NSKE.dtype)
        seen = slice(begin - origin, end - origin)
        return k_NSKE.flatten(0, 1)[seen].transpose(0, 1)[None], v_NSKE.flatten(0, 1)[seen].transpose(0, 1)[None]

    def _kernel(
        self, q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """[batch, query heads, queries, E] against [batch, kv heads, keys, E], any strides. out is like q."""
        out, lse = _flash(q, k, v, 0.0, causal, attn_mask=mask, scale=self._shape.softmax_scale)
        return out, lse


def merge(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Attention over the union of two disjoint key sets, from (out, lse) of each. Computes in lse's dtype."""
    weight = torch.sigmoid(b[1] - a[1])[..., None]
    return torch.lerp(a[0].to(weight.dtype), b[0].to(weight.dtype), weight), torch.logaddexp(a[1], b[1])
