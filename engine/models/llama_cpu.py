"""The Llama family on a CPU in float32: the decoder of engine.models.llama with few rows taken another way.

A step of few tokens keeps its activations transposed, [width, tokens], from the first norm to the last: the matrix
library then reads every weight as its first operand and writes what the next kernel reads, and a layer is four products
and four or five kernels. Longer steps have enough work in each operation, and go through the plain decoder.

Shape suffixes: see engine.models.llama.
"""

import torch
from torch import Tensor
from torch.nn import functional

from engine.kernels.cpu import layer as kernels
from engine.models.base import PagedAttentionStep
from engine.models.config import ModelConfig
from engine.models.layers import FEW_ROWS_ON_CPU, Linear, product
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
        if len(tokens_T) >= FEW_ROWS_ON_CPU.stop:
            return self._plain.forward(tokens_T, positions_T, attention, wanted_S)
        stream_DT = functional.embedding(tokens_T, self.weights.embedding_VD).T.contiguous()
        cos_sin_TE = functional.embedding(positions_T, self.weights.cos_sin_PE)
        added_DT = stream_DT.new_empty(0, len(tokens_T))
        for index, layer in enumerate(self.weights.layers):
            normed_DT = self._norm(stream_DT, added_DT, layer.input_norm_D)
            out_OT = self._attention(index, normed_DT, cos_sin_TE, attention)
            if wanted_S is not None and index == self.config.num_layers - 1:
                stream_DT, out_OT = stream_DT.index_select(1, wanted_S), out_OT.index_select(1, wanted_S)
            normed_DT = self._norm(stream_DT, _product(layer.output, out_OT), layer.mlp_norm_D)
            added_DT = _product(layer.down, _gate_up(layer, normed_DT))
        return self._norm(stream_DT, added_DT, self.weights.norm_D).T

    def logits(self, hidden_SD: Tensor) -> Tensor:
        """Logits of the chosen rows, logits_SV."""
        return product(hidden_SD, self.weights.head_VD)

    def _norm(self, stream_DT: Tensor, added_DT: Tensor, weight_D: Tensor) -> Tensor:
        """The norm of the residual stream, after adding (in place) what the last product left to be added."""
        out_DT, eps = torch.empty_like(stream_DT), self.config.rms_norm_eps
        kernels.add_rms_norm(stream_DT.numpy(), added_DT.numpy(), weight_D.numpy(), eps, out_DT.numpy())
        return out_DT

    def _attention(self, index: int, normed_DT: Tensor, cos_sin_TE: Tensor, attention: PagedAttentionStep) -> Tensor:
        layer, facts, num_tokens = self.weights.layers[index], self.config.attention, normed_DT.shape[1]
        qkv_XET = _product(layer.qkv, normed_DT).view(-1, facts.head_dim, num_tokens).numpy()
        if layer.qk_norm_NE is not None:
            kernels.norm_heads(qkv_XET, layer.qk_norm_NE.numpy(), self.config.rms_norm_eps)
        q_THE = normed_DT.new_empty(num_tokens, facts.num_heads, facts.head_dim)
        k_NSKE, v_NSKE = attention.caches(index)[:2]
        kernels.rope_and_write(
            qkv_XET, cos_sin_TE.numpy(), attention.slots.numpy(), k_NSKE.numpy(), v_NSKE.numpy(), q_THE.numpy()
        )
        out_THE, _ = attention.attend(index, q_THE)
        return out_THE.flatten(1).T


def _product(linear: Linear, x_IT: Tensor) -> Tensor:
    """W x + b, out_OT."""
    if 1 < x_IT.shape[1] < FEW_ROWS_ON_CPU.start:  # for so few its own order is faster, and so little is transposed
        return linear(x_IT.T).T.contiguous()
    if linear.bias_O is None:
        return torch.mm(linear.weight_OI, x_IT)
    return torch.addmm(linear.bias_O[:, None], linear.weight_OI, x_IT)


def _gate_up(layer: Layer, normed_DT: Tensor) -> Tensor:
    both_2MT = _product(layer.gate_up, normed_DT)
    out_MT = both_2MT.new_empty(len(both_2MT) // 2, both_2MT.shape[1])
    kernels.silu_mul(both_2MT.numpy(), out_MT.numpy())
    return out_MT
