"""FlashInfer (Ye et al. 2025, arXiv:2501.01005): package flashinfer, paged kernels for Ampere GPUs and later.

A step is planned on the host, which knows its lengths, so decode cannot be captured by a graph that is replayed on
other lengths: auto uses this backend for prompts, with Triton's for decode. Kernels that are not compiled yet take
minutes of a compiler: they are refused, not compiled while a worker starts.
"""

import importlib
import math
from collections.abc import Callable
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from engine.attention.base import AttentionBatch, AttentionShape
from engine.attention.pages import Pages
from engine.core.errors import InvalidRequest
from engine.kernels.caches import Caches

WORKSPACE_BYTES = 256 << 20
HOPPER = (9, 0)


class FlashInfer:
    """AttentionBackend over flashinfer's paged wrappers; pages in the queries' type."""

    name = "flashinfer"
    capturable = False
    captures_prompts = False

    def __init__(self, pool_NL2SKE: Tensor, shape: AttentionShape) -> None:
        """Raises InvalidRequest: the package does not import, or its kernels for the shape are not compiled."""
        self._pages = Pages(pool_NL2SKE, shape)
        self._shape = shape
        self._batch: AttentionBatch | None = None
        try:
            flashinfer = importlib.import_module("flashinfer")
            modules = importlib.import_module("flashinfer.jit.attention.modules")
        except (ImportError, OSError) as error:
            raise InvalidRequest(f"attention backend flashinfer: flashinfer does not import: {error}") from error
        device = pool_NL2SKE.device
        prefill = "fa3" if torch.cuda.get_device_capability(device) == HOPPER else "fa2"
        for kernels in dict.fromkeys((prefill, "fa2")):
            for window in set(shape.windows):
                self._check_compiled(modules.gen_batch_prefill_module, kernels, window)
        self._prefill: dict[int | None, Any] = {}
        self._decode: dict[int | None, Any] = {}
        workspace = torch.zeros(WORKSPACE_BYTES, dtype=torch.uint8, device=device)
        for window in set(shape.windows):
            self._prefill[window] = flashinfer.BatchPrefillWithPagedKVCacheWrapper(workspace, "NHD", backend=prefill)
            self._decode[window] = flashinfer.BatchDecodeWithPagedKVCacheWrapper(
                workspace, "NHD", use_tensor_cores=True
            )

    def plan(self, batch: AttentionBatch) -> None:
        """See AttentionBackend."""
        self._batch = batch
        page_size, shape, device = self._pages.page_size, self._shape, batch.page_table_BP.device
        lengths = [start + new for start, new in zip(batch.starts, batch.num_new, strict=True)]
        counts = [math.ceil(length / page_size) for length in lengths]
        row_of, column = torch.tensor([[r, c] for r, count in enumerate(counts) for c in range(count)]).T.to(device)
        pages = batch.page_table_BP[row_of, column]
        indptr = torch.tensor([0, *accumulate(counts)], dtype=torch.int32)
        last_page_len = torch.tensor([(length - 1) % page_size + 1 for length in lengths], dtype=torch.int32)
        heads = (shape.num_heads, shape.num_kv_heads, shape.head_dim, page_size)
        for window in self._prefill:
            options = self._options(window)
            if batch.is_decode:
                self._decode[window].plan(indptr, pages, last_page_len, *heads, **options)
            else:
                cu = torch.tensor([0, *accumulate(batch.num_new)], dtype=torch.int32)
                self._prefill[window].plan(cu, indptr, pages, last_page_len, *heads, causal=True, **options)

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
        wrappers = self._decode if self._planned().is_decode else self._prefill
        caches = self.caches(layer)
        wrapper = wrappers[self._shape.windows[layer]]
        out_THE, lse2_TH = wrapper.run(q_THE.contiguous(), (caches.k, caches.v), return_lse=True)
        return out_THE, lse2_TH * math.log(2.0)

    def run(self, layer: int, q_THE: Tensor, k_TKE: Tensor, v_TKE: Tensor) -> Tensor:
        """See AttentionBackend."""
        self.write(layer, k_TKE, v_TKE)
        return self.attend(layer, q_THE)[0]

    def _options(self, window: int | None) -> dict[str, Any]:
        dtype = self._pages.pool_NL2SKE.dtype
        return {
            "sm_scale": self._shape.softmax_scale,
            "window_left": -1 if window is None else window - 1,
            "logits_soft_cap": self._shape.soft_cap or 0.0,
            "q_data_type": dtype,
            "kv_data_type": dtype,
        }

    def _check_compiled(self, specification: Callable[..., Any], kernels: str, window: int | None) -> None:
        dtype, head_dim, soft_cap = self._pages.pool_NL2SKE.dtype, self._shape.head_dim, self._shape.soft_cap
        spec = specification(
            kernels, dtype, dtype, dtype, torch.int32, head_dim, head_dim, 0, window is not None, bool(soft_cap), False
        )
        if not spec.is_compiled:
            raise InvalidRequest(
                f"attention backend flashinfer: its kernels for {dtype}, head dim {head_dim}, "
                f"{'a' if window else 'no'} sliding window and {'a' if soft_cap else 'no'} soft cap are not compiled "
                f"(module {spec.name})"
            )

    def _planned(self) -> AttentionBatch:
        assert self._batch is not None, "plan() comes first"
        return self._batch
