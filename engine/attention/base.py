"""Paged attention behind one protocol: what a step looks like to it, and what every backend must do.

    row       [ 0 ....... cached ....... | ....... new ....... ]
                                         start                 start + num_new = cache_seqlen
    The new token i of a row stands at position start + i and sees the keys 0 .. start + i (the last `window` of them).

Shape suffixes: T tokens of the step, B rows of the step, P pages of a row, N pages of the pool, L layers, S positions
in a page, H query heads, K kv heads, E head dim. Heads h * G .. h * G + G - 1 share kv head h, with G = H / K.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from engine.kernels.caches import Caches


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """Facts about the attention of every layer on this rank."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    softmax_scale: float
    """Multiplies q . k."""
    windows: tuple[int | None, ...]
    """Per layer: keys that a token sees, itself included; None sees all."""
    soft_cap: float | None = None
    """Scores become soft_cap * tanh(score / soft_cap), before the mask."""
    kv_scales: tuple[tuple[float, float], ...] = ()
    """Of k and v in each layer: pages of 8-bit values hold k / scale and v / scale. Empty: 1 everywhere."""

    def scales(self, layer: int) -> tuple[float, float]:
        """Scales of k and v of one layer."""
        return self.kv_scales[layer] if self.kv_scales else (1.0, 1.0)


@dataclass(slots=True)
class AttentionBatch:
    """Where the rows of one step lie. The lists and the tensors say the same thing, to the host and to the device.

    For a graph the tensors are views of buffers that keep their address from step to step.
    """

    starts: Sequence[int]
    """Cached tokens of each row, on the host."""
    num_new: Sequence[int]
    """New tokens of each row (at least 1), on the host."""
    cu_seqlens_q_B1: Tensor
    """int32: row b owns the new tokens [cu[b], cu[b + 1]) of T."""
    cache_seqlens_B: Tensor
    """int32: tokens of each row, the new ones included."""
    page_table_BP: Tensor
    """int32: the row's pages in order; entries past its last page name some page of the pool, never none."""
    slots_T: Tensor
    """int64: page * page_size + position in page, where each new token's k and v go; -1 writes nothing."""

    @property
    def is_decode(self) -> bool:
        """One new token a row."""
        return self.max_num_new == 1

    @property
    def is_all_new(self) -> bool:
        """No row has cached tokens."""
        return not any(self.starts)

    @property
    def max_num_new(self) -> int:
        """Most new tokens of a row: 1 in a pure decode step."""
        return max(self.num_new)

    @property
    def max_seqlen(self) -> int:
        """Tokens of the longest row, new ones included."""
        return max(start + new for start, new in zip(self.starts, self.num_new, strict=True))


class AttentionBackend(Protocol):
    """Attention over one KV pool, pool_NL2SKE (engine.runtime.kv_pool), read in place through per-layer views.

    `plan` and the rest are kept apart for the sake of layers, which share a plan, and of CUDA graphs: a graph captures
    both, so where `capturable` is true `plan` must not need the device's answer on the host.
    """

    name: str
    capturable: bool
    """A decode step, `plan` included, can be captured by a CUDA graph and replayed on other contents of its tensors."""
    captures_prompts: bool
    """So can a step of one row with several new tokens, whose lists on the host are upper bounds; of `starts` it only
    counts whether they are 0."""

    @property
    def slots(self) -> Tensor:
        """slots_T of the batch planned last."""

    def caches(self, layer: int) -> Caches:
        """k_NSKE and v_NSKE of one layer, and what their values are scaled by."""

    def plan(self, batch: AttentionBatch) -> None:
        """Prepare one step; the methods below refer to the batch planned last."""

    def write(self, layer: int, k_TKE: Tensor, v_TKE: Tensor) -> None:
        """Put the new tokens' keys and values into their slots."""

    def attend(self, layer: int, q_THE: Tensor, new: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Attention of the new tokens over the pool: out_THE in q's dtype and lse_TH, the log of each softmax's sum.

        `new` is k_TKE and v_TKE of the step where the caller still has them; the pool holds the same (8-bit pages hold
        them rounded: then a backend that reads `new` is the more exact one).

        lse is float32 (float64 for float64 input). Results over disjoint key sets can be merged with it.
        """

    def run(self, layer: int, q_THE: Tensor, k_TKE: Tensor, v_TKE: Tensor) -> Tensor:
        """`write`, then `attend` without the lse: out_THE."""


def layer_views(pool_NL2SKE: Tensor, layer: int) -> tuple[Tensor, Tensor]:
    """k_NSKE and v_NSKE of one layer: strided views of the pool, last dimension dense."""
    return pool_NL2SKE[:, layer, 0], pool_NL2SKE[:, layer, 1]
