"""The Llama family: Llama, Mistral, Qwen2, Qwen3. One decoder whose variants are facts of its configuration.

Shape suffixes: T tokens of the step, D hidden, H query heads, K kv heads, N = H + K, X = N + K, E head dim,
S rows that want logits, V vocabulary, P positions.
"""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from engine.models.base import AttentionStep, Collective
from engine.models.config import ModelConfig
from engine.models.layers import Linear, product, rms_norm, silu_mul
from engine.models.rope import rotate


@dataclass(frozen=True, slots=True)
class Layer:
    """Weights of one decoder layer, on one rank."""

    input_norm_D: Tensor
    qkv: Linear
    qk_norm_NE: Tensor | None
    """The query norm's weight for each query head, then the key norm's for each key head."""
    output: Linear
    mlp_norm_D: Tensor
    gate_up: Linear
    down: Linear


@dataclass(frozen=True, slots=True)
class Weights:
    """All weights of the decoder, on one rank."""

    embedding_VD: Tensor
    layers: tuple[Layer, ...]
    norm_D: Tensor
    head_VD: Tensor
    """Maybe a part of the vocabulary."""
    cos_sin_PE: Tensor


class Llama:
    """Implements engine.models.base.CausalLM: the whole model, or what one rank of several computes of it."""

    def __init__(self, config: ModelConfig, weights: Weights, ranks: Collective | None = None) -> None:
        """`config` is what this rank computes (engine.models.weights.local_config); `ranks` is None if that is all."""
        self.config = config
        self.weights = weights
        self.ranks = ranks

    def forward(
        self, tokens_T: Tensor, positions_T: Tensor, attention: AttentionStep, wanted_S: Tensor | None = None
    ) -> Tensor:
        """See CausalLM. Positions must be below `config.max_position`."""
        weights, eps = self.weights, self.config.rms_norm_eps
        hidden_TD = functional.embedding(tokens_T, weights.embedding_VD)
        cos_sin_TE = functional.embedding(positions_T, weights.cos_sin_PE).to(hidden_TD.dtype)
        for index, layer in enumerate(weights.layers):
            normed_TD = rms_norm(hidden_TD, layer.input_norm_D, eps)
            out_TO = self._attention(index, normed_TD, cos_sin_TE, attention)
            if wanted_S is not None and index == self.config.num_layers - 1:
                hidden_TD, out_TO = hidden_TD[wanted_S], out_TO[wanted_S]
            hidden_TD = hidden_TD + self._over_ranks(layer.output(out_TO))
            normed_TD = rms_norm(hidden_TD, layer.mlp_norm_D, eps)
            hidden_TD = hidden_TD + self._over_ranks(layer.down(silu_mul(layer.gate_up(normed_TD))))
        return rms_norm(hidden_TD, weights.norm_D, eps)

    def logits(self, hidden_SD: Tensor) -> Tensor:
        """Logits of the chosen rows, logits_SV in float32."""
        logits_SV = product(hidden_SD, self.weights.head_VD)
        return whole_vocabulary(logits_SV, self.config, self.ranks).float()

    def _over_ranks(self, part_TD: Tensor) -> Tensor:
        return part_TD if self.ranks is None else self.ranks.all_reduce(part_TD)

    def _attention(self, index: int, normed_TD: Tensor, cos_sin_TE: Tensor, attention: AttentionStep) -> Tensor:
        layer, facts = self.weights.layers[index], self.config.attention
        num_qk = facts.num_heads + facts.num_kv_heads
        qkv_TXE = layer.qkv(normed_TD).view(-1, num_qk + facts.num_kv_heads, facts.head_dim)
        qk_TNE, v_TKE = qkv_TXE[:, :num_qk], qkv_TXE[:, num_qk:]
        if layer.qk_norm_NE is not None:
            qk_TNE = rms_norm(qk_TNE, layer.qk_norm_NE, self.config.rms_norm_eps)
        qk_TNE = rotate(qk_TNE, cos_sin_TE)
        q_THE, k_TKE = qk_TNE[:, : facts.num_heads], qk_TNE[:, facts.num_heads :]
        out_THE = attention.run(index, q_THE, k_TKE, v_TKE)
        return out_THE.flatten(1)


def whole_vocabulary(logits_SV: Tensor, config: ModelConfig, ranks: Collective | None) -> Tensor:
    """Logits of all tokens, from every rank's part of them."""
    if ranks is None or logits_SV.shape[1] == config.vocab_size:
        return logits_SV
    return ranks.all_gather(logits_SV)
