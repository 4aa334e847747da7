"""The contract between a model and the step that runs it."""

from typing import Protocol

from torch import Tensor

from engine.kernels.caches import Caches

# Shape suffixes: T tokens of the step, D hidden, H query heads, K kv heads, E head dim, S sampled rows, V vocabulary.


class AttentionStep(Protocol):
    """Attention of one step, planned once and used by every layer: all that a plain model needs."""

    def run(self, layer: int, q_THE: Tensor, k_TKE: Tensor, v_TKE: Tensor) -> Tensor:
        """Keep k and v of the new tokens, attend causally over everything before, return out_THE."""


class PagedAttentionStep(AttentionStep, Protocol):
    """One step's view of the KV pool, for a model whose fused kernel rotates and writes k and v by itself."""

    @property
    def slots(self) -> Tensor:
        """slots_T, int64: page * page_size + position in page of each new token; -1 writes nothing."""

    def caches(self, layer: int) -> Caches:
        """k and v of the layer over all pages, and what the values in them are scaled by."""

    def attend(self, layer: int, q_THE: Tensor, new: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Causal attention over what the pool holds, new tokens included: out_THE and lse_TH.

        `new`: k_TKE and v_TKE of the step, the same numbers as in the pool, for a backend that would rather read those.
        """


class Collective(Protocol):
    """What the ranks of one model do together: each calls the same methods in the same order with the same shapes.

    Results have the same bits on every rank, so that what ranks compute from them (the next layer, the drawn token)
    stays the same without being compared.
    """

    def all_reduce(self, x_TD: Tensor) -> Tensor:
        """The sum over all ranks, added in their order, in x's dtype. x must be contiguous and may be used as the
        result; it must not be changed by anybody else meanwhile."""

    def add_norm(self, x_TD: Tensor, stream_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor | None:
        """Add the sum of x over all ranks into `stream_TD` in place and return the RMSNorm of that, by one kernel.

        None, and nothing done, where there is none for this size.
        """

    def all_gather(self, x_SV: Tensor) -> Tensor:
        """The ranks' columns side by side, in their order. x must be contiguous."""


class CausalLM(Protocol):
    """A decoder. Rows of a step are packed along T; positions say where in its sequence each token stands."""

    def forward(
        self, tokens_T: Tensor, positions_T: Tensor, attention: PagedAttentionStep, wanted_S: Tensor | None = None
    ) -> Tensor:
        """Hidden states after the last norm: hidden_SD of the tokens `wanted_S` (int64 into T), or all, hidden_TD.

        The last layer's products are computed for what is wanted only: of a prompt that is one token, or none.
        """

    def logits(self, hidden_SD: Tensor) -> Tensor:
        """Logits of the chosen rows, logits_SV in float32 or the model's own precision."""
