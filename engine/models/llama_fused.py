"""The Llama family on a CUDA device: the decoder of engine.models.llama with fused kernels around its products.

Two ways through a layer, by the number of tokens in the step. Few: products that are limited by memory, with what
follows them fused behind them. Many: the vendor's products, with the residual addition fused into the norm after them.
With several ranks a product is first summed over them, so that the norm adds it however few tokens there are.

Shape suffixes: see engine.models.llama.
"""

from torch import Tensor
from torch.nn import functional

from engine.kernels.activation import silu_mul
from engine.kernels.linear_small import MAX_ROWS, MAX_ROWS_SILU, linear_small
from engine.kernels.norm import add_rms_norm, rms_norm
from engine.kernels.rope_write import rope_and_write
from engine.models.base import Collective, PagedAttentionStep
from engine.models.config import ModelConfig
from engine.models.layers import Linear
from engine.models.llama import Layer, Weights, whole_vocabulary


class FusedLlama:
    """Implements engine.models.base.CausalLM on CUDA."""

    def __init__(self, config: ModelConfig, weights: Weights, ranks: Collective | None = None) -> None:
        """As engine.models.llama.Llama."""
        self.config = config
        self.weights = weights
        self.ranks = ranks

    def forward(
        self, tokens_T: Tensor, positions_T: Tensor, attention: PagedAttentionStep, wanted_S: Tensor | None = None
    ) -> Tensor:
        """See CausalLM. Positions must be below `config.max_position`."""
        stream_TD = functional.embedding(tokens_T, self.weights.embedding_VD)
        added_TD: Tensor | None = None
        for index, layer in enumerate(self.weights.layers):
            normed_TD = self._norm(stream_TD, added_TD, layer.input_norm_D)
            out_TO = self._attention(index, normed_TD, positions_T, attention)
            if wanted_S is not None and index == self.config.num_layers - 1:
                stream_TD, out_TO = stream_TD[wanted_S], out_TO[wanted_S]
            stream_TD, added_TD = self._add_product(stream_TD, out_TO, layer.output)
            normed_TD = self._norm(stream_TD, added_TD, layer.mlp_norm_D)
            stream_TD, added_TD = self._add_product(stream_TD, _gate_up(normed_TD, layer), layer.down)
        return self._norm(stream_TD, added_TD, self.weights.norm_D)

    def logits(self, hidden_SD: Tensor) -> Tensor:
        """Logits of the chosen rows, logits_SV in the model's precision."""
        return whole_vocabulary(_product(hidden_SD, Linear(self.weights.head_VD)), self.config, self.ranks)

    def _add_product(self, stream_TD: Tensor, x_TI: Tensor, linear: Linear) -> tuple[Tensor, Tensor | None]:
        """The stream with the product added, or the stream and what is still to be added."""
        if self.ranks is not None:
            return stream_TD, _product(x_TI, linear)
        if len(x_TI) <= MAX_ROWS:
            return linear_small(x_TI, linear.weight_OI, bias_N=linear.bias_O, residual_MN=stream_TD), None
        return stream_TD, linear(x_TI)

    def _norm(self, stream_TD: Tensor, added_TD: Tensor | None, weight_D: Tensor) -> Tensor:
        """The norm of the residual stream, after adding (in place) what the last product left to be added.

        With several ranks that is this rank's part of it.
        """
        if added_TD is None:
            return rms_norm(stream_TD, weight_D, self.config.rms_norm_eps)
        if self.ranks is not None:
            normed_TD = self.ranks.add_norm(added_TD, stream_TD, weight_D, self.config.rms_norm_eps)
            if normed_TD is not None:
                return normed_TD
            added_TD = self.ranks.all_reduce(added_TD)
        return add_rms_norm(added_TD, stream_TD, weight_D, self.config.rms_norm_eps)

    def _attention(self, index: int, normed_TD: Tensor, positions_T: Tensor, attention: PagedAttentionStep) -> Tensor:
        layer = self.weights.layers[index]
        q_THE, k_TKE, v_TKE = rope_and_write(
            _product(normed_TD, layer.qkv),
            self.weights.cos_sin_PE,
            positions_T,
            attention.slots,
            attention.caches(index),
            self.config.attention.num_heads,
            None if layer.qk_norm_NE is None else (layer.qk_norm_NE, self.config.rms_norm_eps),
        )
        out_THE, _ = attention.attend(index, q_THE, (k_TKE, v_TKE))
        return out_THE.flatten(1)


def _product(x_TI: Tensor, linear: Linear) -> Tensor:
    if len(x_TI) <= MAX_ROWS:
        return linear_small(x_TI, linear.weight_OI, bias_N=linear.bias_O)
    return linear(x_TI)


def _gate_up(normed_TD: Tensor, layer: Layer) -> Tensor:
    if len(normed_TD) <= MAX_ROWS_SILU and layer.gate_up.bias_O is None:
        return linear_small(normed_TD, layer.gate_up.weight_OI, silu_mul=True)
    return silu_mul(layer.gate_up(normed_TD))
