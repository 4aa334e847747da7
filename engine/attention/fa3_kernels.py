"""FlashAttention-3's functions as four packages ship them: the same kernels behind unequal signatures.

flash_attn_interface, flash_attn_3   upstream (Dao-AILab's hopper folder)
sgl_kernel                           SGLang's copy: no schedule to compute beforehand
vllm                                 one function for both: pages are named by block_table and seqused_k
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from engine.attention.base import AttentionBatch
from engine.kernels.caches import Caches

Options = dict[str, Any]
"""softmax_scale, causal, window_size, softcap and, for pages of 8-bit values, q_descale, k_descale, v_descale."""


class Kernels(Protocol):
    """What the backend needs; results are out_THE and lse_HT."""

    @property
    def package(self) -> str:
        """Where they come from."""

    @property
    def schedule(self) -> Callable[..., Tensor] | None:
        """get_scheduler_metadata, where the package has it."""

    def new(self, q: Tensor, k: Tensor, v: Tensor, batch: AttentionBatch, options: Options) -> tuple[Tensor, Tensor]:
        """Causal attention among the new tokens."""

    def paged(
        self, q: Tensor, caches: Caches, batch: AttentionBatch, schedule: Tensor | None, options: Options
    ) -> tuple[Tensor, Tensor]:
        """Causal attention over the pages."""


@dataclass(frozen=True, slots=True)
class Upstream:
    """flash_attn_varlen_func and flash_attn_with_kvcache."""

    package: str
    varlen: Callable[..., Any]
    with_kvcache: Callable[..., Any]
    schedule: Callable[..., Tensor] | None
    lse_flag: str = "return_attn_probs"
    """Of the varlen function: the argument that makes it return the log-sum-exp."""

    def new(self, q: Tensor, k: Tensor, v: Tensor, batch: AttentionBatch, options: Options) -> tuple[Tensor, Tensor]:
        """See Kernels."""
        cu, longest = batch.cu_seqlens_q_B1, batch.max_num_new
        out, lse, *_ = self.varlen(q, k, v, cu, cu, longest, longest, **{self.lse_flag: True}, **options)
        return out, lse

    def paged(
        self, q: Tensor, caches: Caches, batch: AttentionBatch, schedule: Tensor | None, options: Options
    ) -> tuple[Tensor, Tensor]:
        """See Kernels."""
        out, lse, *_ = self.with_kvcache(
            q,
            caches.k,
            caches.v,
            cache_seqlens=batch.cache_seqlens_B,
            page_table=batch.page_table_BP,
            cu_seqlens_q=batch.cu_seqlens_q_B1,
            max_seqlen_q=batch.max_num_new,
            scheduler_metadata=schedule,
            return_softmax_lse=True,
            **options,
        )
        return out, lse


@dataclass(frozen=True, slots=True)
class VLLM:
    """vLLM's flash_attn_varlen_func with fa_version=3."""

    package: str
    varlen: Callable[..., Any]
    schedule: Callable[..., Tensor] | None

    def new(self, q: Tensor, k: Tensor, v: Tensor, batch: AttentionBatch, options: Options) -> tuple[Tensor, Tensor]:
        """See Kernels."""
        cu, longest = batch.cu_seqlens_q_B1, batch.max_num_new
        return self._call(q, k, v, longest, cu, longest, cu_seqlens_k=cu, **options)

    def paged(
        self, q: Tensor, caches: Caches, batch: AttentionBatch, schedule: Tensor | None, options: Options
    ) -> tuple[Tensor, Tensor]:
        """See Kernels."""
        return self._call(
            q,
            caches.k,
            caches.v,
            batch.max_num_new,
            batch.cu_seqlens_q_B1,
            batch.page_table_BP.shape[1] * caches.k.shape[1],
            seqused_k=batch.cache_seqlens_B,
            block_table=batch.page_table_BP,
            scheduler_metadata=schedule,
            **options,
        )

    def _call(self, *arguments: Any, **options: Any) -> tuple[Tensor, Tensor]:
        out, lse, *_ = self.varlen(*arguments, return_softmax_lse=True, fa_version=3, **options)
        return out, lse


def _upstream(package: str) -> Kernels:
    module = importlib.import_module(package)
    return Upstream(
        package, module.flash_attn_varlen_func, module.flash_attn_with_kvcache, module.get_scheduler_metadata
    )


def _sglang(package: str) -> Kernels:
    module = importlib.import_module(package)
    return Upstream(
        package, module.flash_attn_varlen_func, module.flash_attn_with_kvcache, None, lse_flag="return_softmax_lse"
    )


def _vllm(package: str) -> Kernels:
    module = importlib.import_module(package)
    if not module.is_fa_version_supported(3):
        raise ImportError(module.fa_version_unsupported_reason(3))
    return VLLM(package, module.flash_attn_varlen_func, module.get_scheduler_metadata)


PACKAGES: dict[str, Callable[[str], Kernels]] = {
    "flash_attn_interface": _upstream,
    "flash_attn_3.flash_attn_interface": _upstream,
    "sgl_kernel.flash_attn": _sglang,
    "vllm.vllm_flash_attn.flash_attn_interface": _vllm,
}
"""Where the kernels are looked for, in this order."""


def find_kernels() -> Kernels | None:
    """The first package that has them; None when there is none."""
    for package, adapter in PACKAGES.items():
        try:
            return adapter(package)
        except (ImportError, AttributeError, OSError, RuntimeError):
            continue  # not installed, another interface, or built for another torch or device
    return None
