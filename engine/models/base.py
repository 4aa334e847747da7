"""The contract between a model and the step that runs it."""

from typing import Protocol

from torch import Tensor

# Shape suffixes: T tokens of the step, D hidden, H query heads, K kv heads, E head dim, S sampled rows, V vocabulary.


class AttentionStep(Protocol):
    """One step's view of the KV pool, planned once and used by every layer."""

    def __call__(self, layer: int, q_THE: Tensor, k_TKE: Tensor, v_TKE: Tensor) -> Tensor:
        """Write k and v of the new tokens into the pool, attend causally over everything before, return out_THE."""


class CausalLM(Protocol):
    """A decoder. Rows of a step are packed along T; positions say where in its sequence each token stands."""

    def forward(self, tokens_T: Tensor, positions_T: Tensor, attend: AttentionStep) -> Tensor:
        """Hidden states after the last norm, hidden_TD."""

    def logits(self, hidden_SD: Tensor) -> Tensor:
        """Logits of the chosen rows, logits_SV in float32."""
