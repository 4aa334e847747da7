"""The Llama family on a CPU in float32: the decoder of engine.models.llama with few rows taken another way.

A step of few tokens is bound by reading weights and pages once, so a layer is four products and four or five kernels of
engine.kernels.cpu, each over whole rows. A row's result depends neither on how many others there are nor on what they
are. Longer steps have enough work in each operation, and go through the plain decoder.

Shape suffixes: see engine.models.llama.
"""

import torch
from torch import Tensor
from torch.nn import functional

from engine.kernels.cpu import layer as kernels
from engine.kernels.cpu.product import MAX_ROWS, few_rows_product, has_wide_registers
from engine.models.base import PagedAttentionStep
from engine.models.config import ModelConfig
from engine.models.layers import Linear, product
from engine.models.llama import Layer, Llama, Weights


class LlamaCPU:
    """Implements engine.models.base.CausalLM on a CPU, for weights in float32."""

    def __init__(self, config: ModelConfig, weights: Weights) -> None:
        self.config = config
        self.weights = weights
        self._plain = Llama(config, weights)

    def forward(
        self, tokens_T: Tensor, positions_T: Tensor, attention: PagedAttentionStep, wanted_S: Tensor | None = None
    ) -> Tensor:
        """See CausalLM. Positions must be below `config.max_position`."""
        if len(tokens_T) > MAX_ROWS:
            return self._plain.forward(tokens_T, positions_T, attention, wanted_S)
        stream_TD = functional.embedding(tokens_T, self.weights.embedding_VD)
        cos_sin_TE = functional.embedding(positions_T, self.weights.cos_sin_PE)
        added_TD = stream_TD[:0]
        for index, layer in enumerate(self.weights.layers):
            normed_TD = self._norm(stream_TD, added_TD, layer.input_norm_D)
            out_TO = self._attention(index, normed_TD, cos_sin_TE, attention)
            if wanted_S is not None and index == self.config.num_layers - 1:
                stream_TD, out_TO = stream_TD[wanted_S], out_TO[wanted_S]
            normed_TD = self._norm(stream_TD, _product(layer.output, out_TO), layer.mlp_norm_D)
            added_TD = _product(layer.down, _gate_up(layer, normed_TD))
        return self._norm(stream_TD, added_TD, self.weights.norm_D)

    def logits(self, hidden_SD: Tensor) -> Tensor:
        """Logits of the chosen rows, logits_SV."""
        return _product(Linear(self.weights.head_VD), hidden_SD)

    def _norm(self, stream_TD: Tensor, added_TD: Tensor, weight_D: Tensor) -> Tensor:
        """The norm of the residual stream, after adding (in place) what the last product left to be added."""
        out_TD, eps = torch.empty_like(stream_TD), self.config.rms_norm_eps
        kernels.add_rms_norm(stream_TD.numpy(), added_TD.numpy(), weight_D.numpy(), eps, out_TD.numpy())
        return out_TD

    def _attention(self, index: int, normed_TD: Tensor, cos_sin_TE: Tensor, attention: PagedAttentionStep) -> Tensor:
        layer, facts, num_tokens = self.weights.layers[index], self.config.attention, len(normed_TD)
        qkv_TXE = _product(layer.qkv, normed_TD).view(num_tokens, -1, facts.head_dim).numpy()
        if layer.qk_norm_NE is not None:
            kernels.norm_heads(qkv_TXE, layer.qk_norm_NE.numpy(), self.config.rms_norm_eps)
        q_THE = normed_TD.new_empty(num_tokens, facts.num_heads, facts.head_dim)
        k_NSKE, v_NSKE = attention.caches(index)[:2]
        kernels.rope_and_write(
            qkv_TXE, cos_sin_TE.numpy(), attention.slots.numpy(), k_NSKE.numpy(), v_NSKE.numpy(), q_THE.numpy()
        )
        out_THE, _ = attention.attend(index, q_THE)
        return out_THE.flatten(1)


def _product(linear: Linear, x_TI: Tensor) -> Tensor:
    """x W^T + b, out_TO."""
    if len(x_TI) not in range(1, MAX_ROWS + 1) or not has_wide_registers():
        return product(x_TI, linear.weight_OI, linear.bias_O)
    out_TO = few_rows_product(x_TI, linear.weight_OI)
    return out_TO if linear.bias_O is None else out_TO.add_(linear.bias_O)


def _gate_up(layer: Layer, normed_TD: Tensor) -> Tensor:
    both_T2M = _product(layer.gate_up, normed_TD)
    out_TM = both_T2M.new_empty(len(both_T2M), both_T2M.shape[1] // 2)
    kernels.silu_mul(both_T2M.numpy(), out_TM.numpy())
    return out_TM
