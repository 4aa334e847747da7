"""The CPU path: decode rows read their pages where they lie, extended rows go through torch's flash kernel.

The kernel for decode rows is engine.kernels.cpu.paged_decode. Where it cannot run, pages are gathered task by task and
torch's kernel attends to them, slowly. Extended rows attend to their own new tokens straight from the projection,
causally, and to their cached prefix block by block. No kv head is repeated, no mask made where none is due. Parts over
disjoint keys merge by their log-sum-exp (section 3.1 of FlashAttention, arXiv:2205.14135):

    out = (exp(lse1) out1 + exp(lse2) out2) / (exp(lse1) + exp(lse2)) = out1 + sigmoid(lse2 - lse1) (out2 - out1)

Shape suffixes: see engine.attention.base; R decode rows, I tasks, M new tokens of one row, C gathered tokens.
"""

import math
import sys
from typing import Protocol

import torch
from torch import Tensor

from engine.attention.base import AttentionBatch, AttentionShape
from engine.attention.cpu_plan import CPUStep, ExtendRun, Tasks
from engine.attention.pages import Pages
from engine.attention.torch_ref import visible
from engine.kernels.caches import Caches

CACHED_BLOCK = 4096
"""Tokens of a cached prefix that an extended row gathers at a time."""
WINDOW_QUERIES = 512
"""Queries that share one mask where a sliding window cuts into an extended row."""

# The public function runs the same kernel (grouped query heads included) but does not return the log-sum-exp.
_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


class DecodeKernel(Protocol):
    """Attention of decode rows over a pool that it was made for: engine.kernels.cpu.paged_decode."""

    def __call__(
        self, layer: int, q_RHE: Tensor, task_I4: Tensor, page_table_BP: Tensor, num_tokens: int
    ) -> tuple[Tensor, Tensor]:
        """out_IHE and lse_IH of each task (engine.attention.cpu_plan.Tasks), all in float32."""


class TorchCPU:
    """AttentionBackend for CPU tensors in float32, bfloat16, float16 or float64. No soft cap: TorchReference has it.

    Pages of another type than the queries' are converted as they are gathered.
    """

    capturable = False
    captures_prompts = False

    def __init__(
        self,
        pool_NL2SKE: Tensor,
        shape: AttentionShape,
        dtype: torch.dtype | None = None,
        decode: DecodeKernel | None = None,
    ) -> None:
        """`dtype` of the queries; None: that of the pool. `decode` reads a pool of that type only."""
        assert shape.soft_cap is None
        self.name = "torch_cpu" if decode is None else "numba"
        self._shape = shape
        self._dtype = dtype or pool_NL2SKE.dtype
        self._pages = Pages(pool_NL2SKE, shape)
        self._converts = self._dtype != pool_NL2SKE.dtype
        self._layers = [self._pages.caches(layer) for layer in range(pool_NL2SKE.shape[1])]
        self._page_size = pool_NL2SKE.shape[3]
        self._decode = decode
        self._narrowest_window = min((window for window in shape.windows if window), default=sys.maxsize)
        self._step: CPUStep | None = None

    def plan(self, batch: AttentionBatch) -> None:
        """See AttentionBackend."""
        self._step = CPUStep(batch, self._page_size, self._narrowest_window)

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
            k_TSKE, v_TSKE = self._pages.read(layer, step.page_T, self._dtype)
            token_T = torch.arange(len(step.page_T))
            return k_TSKE[token_T, step.position_T], v_TSKE[token_T, step.position_T]
        where = (step.page_T, step.position_T)
        return self._layers[layer].k[where], self._layers[layer].v[where]

    def _planned(self) -> CPUStep:
        assert self._step is not None, "plan() comes first"
        return self._step

    def _attend(self, layer: int, q_THE: Tensor, k_TKE: Tensor, v_TKE: Tensor) -> tuple[Tensor, Tensor]:
        step = self._planned()
        if step.decode_T is not None and not step.extends:
            return self._decode_rows(layer, q_THE)
        out_THE = torch.empty_like(q_THE, memory_format=torch.contiguous_format)
        lse_TH = q_THE.new_empty(q_THE.shape[:2], dtype=torch.promote_types(q_THE.dtype, torch.float32))
        if step.decode_T is not None:
            out_THE[step.decode_T], lse_TH[step.decode_T] = self._decode_rows(layer, q_THE[step.decode_T])
        for run in step.extends:
            by_row = (run.num_rows, run.num_new)
            heads = (
                x_THE[run.tokens].view(*by_row, *x_THE.shape[1:]).transpose(1, 2) for x_THE in (q_THE, k_TKE, v_TKE)
            )
            out_RHME, lse_RHM = self._extend(layer, run, *heads)
            out_THE[run.tokens] = out_RHME.transpose(1, 2).flatten(0, 1)
            lse_TH[run.tokens] = lse_RHM.transpose(1, 2).flatten(0, 1)
        return out_THE, lse_TH

    def _decode_rows(self, layer: int, q_RHE: Tensor) -> tuple[Tensor, Tensor]:
        """One new token a row, over all that the row sees: out_RHE and lse_RH."""
        tasks = self._planned().tasks(self._shape.windows[layer])
        if self._decode is None:
            parts = self._gathered(layer, q_RHE, tasks)
        else:
            q_RHE32 = q_RHE.float().contiguous()
            parts = self._decode(layer, q_RHE32, tasks.task_I4, tasks.page_table_BP, tasks.num_tokens)
        out_RHE, lse_RH = tasks.merge(*parts)
        return out_RHE.to(q_RHE.dtype), lse_RH

    def _gathered(self, layer: int, q_RHE: Tensor, tasks: Tasks) -> tuple[Tensor, Tensor]:
        """out_IHE and lse_IH, task by task, the G query heads of a kv head as the query positions of one kernel row."""
        num_kv_heads, outs, lses = self._shape.num_kv_heads, [], []
        for row, table_row, begin, end in tasks.task_I4.tolist():
            k_1KCE, v_1KCE = self._tokens(layer, tasks.page_table_BP[table_row], begin, end)
            out_1KGE, lse_1KG = self._kernel(q_RHE[row].view(1, num_kv_heads, -1, q_RHE.shape[2]), k_1KCE, v_1KCE)
            outs.append(out_1KGE.flatten(1, 2))
            lses.append(lse_1KG.flatten(1, 2))
        return torch.cat(outs), torch.cat(lses)

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
        k_NSKE, v_NSKE = self._pages.read(layer, pages, self._dtype)
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
