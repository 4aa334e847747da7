"""The Llama family on a CUDA device: the decoder of engine.models.llama with fused kernels around its products.

Two ways through a layer, by the number of tokens in the step. Few: products that are limited by memory, with what
follows them fused behind them. Many: the vendor's products, with the residual addition fused into the norm after them.
With several ranks a product that each has a part of is summed over them first: what follows it is fused into that sum,
or into the norm, however few tokens there are.

Shape suffixes: see engine.models.llama.
"""

from typing import TypeGuard

import torch
from torch import Tensor
from torch.nn import functional

from engine.kernels import gate_up
from engine.kernels.activation import silu_mul
from engine.kernels.fp8 import Quantized, scaled_product, silu_mul_quantize
from engine.kernels.linear_small import MAX_ROWS, MAX_ROWS_SILU, Unscaled, linear_small, linear_small_norm
from engine.kernels.norm import add_rms_norm, rms_norm
from engine.kernels.rope_write import rope_and_write
from engine.models.base import Collective, PagedAttentionStep
from engine.models.config import ModelConfig
from engine.models.layers import Linear
from engine.models.llama import Layer, Weights, whole_vocabulary

Normed = Tensor | Unscaled
"""What a product reads: the normed residual stream; in few-row steps each row is still to be divided."""


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
        layers, last = self.weights.layers, len(self.weights.layers) - 1
        stream_TD = functional.embedding(tokens_T, self.weights.embedding_VD)
        normed: Normed = rms_norm(stream_TD, layers[0].input_norm_D, self.config.rms_norm_eps)
        for index, layer in enumerate(layers):
            out_TO = self._attention(index, normed, positions_T, attention)
            if wanted_S is not None and index == last:
                stream_TD, out_TO = stream_TD[wanted_S], out_TO[wanted_S]
            stream_TD, normed = self._add(stream_TD, out_TO, layer.output, layer.mlp_norm_D)
            if index < last:
                stream_TD, normed = self._add(
                    stream_TD, _gate_up(normed, layer), layer.down, layers[index + 1].input_norm_D
                )
        down, norm_D = layers[last].down, self.weights.norm_D
        return self._add_normed(stream_TD, _gate_up(normed, layers[last]), down, norm_D)[1]

    def logits(self, hidden_SD: Tensor) -> Tensor:
        """Logits of the chosen rows, logits_SV in the model's precision."""
        return whole_vocabulary(_product(hidden_SD, Linear(self.weights.head_VD)), self.config, self.ranks)

    def _add(
        self, stream_TD: Tensor, x_TI: Tensor | Quantized, linear: Linear, norm_D: Tensor
    ) -> "tuple[Tensor, Normed]":
        """The residual stream with the product added, perhaps in place, and its norm."""
        if self.ranks is not None or not _is_small(x_TI) or stream_TD.dtype is torch.float16:
            return self._add_normed(stream_TD, x_TI, linear, norm_D)
        norm, scale_O, bias_O = (norm_D, self.config.rms_norm_eps), linear.scale_O, linear.bias_O
        return linear_small_norm(x_TI, linear.weight_OI, stream_TD, norm, scale_N=scale_O, bias_N=bias_O)

    def _add_normed(
        self, stream_TD: Tensor, x_TI: Tensor | Quantized, linear: Linear, norm_D: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The same with the norm whole. With several ranks the product is this rank's part of a sum."""
        eps = self.config.rms_norm_eps
        if self.ranks is None and _is_small(x_TI):
            scale_O, bias_O = linear.scale_O, linear.bias_O
            stream_TD = linear_small(x_TI, linear.weight_OI, scale_N=scale_O, bias_N=bias_O, residual_MN=stream_TD)
            return stream_TD, rms_norm(stream_TD, norm_D, eps)
        added_TD = _product(x_TI, linear)
        if self.ranks is not None:
            normed_TD = self.ranks.add_norm(added_TD, stream_TD, norm_D, eps)
            if normed_TD is not None:
                return stream_TD, normed_TD
            added_TD = self.ranks.all_reduce(added_TD)
        return stream_TD, add_rms_norm(added_TD, stream_TD, norm_D, eps)

    def _attention(self, index: int, normed: Normed, positions_T: Tensor, attention: PagedAttentionStep) -> Tensor:
        layer = self.weights.layers[index]
        q_THE, k_TKE, v_TKE = rope_and_write(
            _product(normed, layer.qkv),
            self.weights.cos_sin_PE,
            positions_T,
            attention.slots,
            attention.caches(index),
            self.config.attention.num_heads,
            None if layer.qk_norm_NE is None else (layer.qk_norm_NE, self.config.rms_norm_eps),
        )
        out_THE, _ = attention.attend(index, q_THE, (k_TKE, v_TKE))
        return out_THE.flatten(1)


def _is_small(x: Normed | Quantized) -> TypeGuard[Normed]:
    """Few enough rows for the product that is limited by memory."""
    return isinstance(x, Unscaled) or (isinstance(x, Tensor) and len(x) <= MAX_ROWS)


def _product(x: Normed | Quantized, linear: Linear) -> Tensor:
    if _is_small(x):
        return linear_small(x, linear.weight_OI, scale_N=linear.scale_O, bias_N=linear.bias_O)
    return _large_product(x, linear)


def _large_product(x: Normed | Quantized, linear: Linear) -> Tensor:
    """The vendor's product, of 8-bit floats where the weight has them."""
    assert not isinstance(x, Unscaled), "rows are left to be divided by few-row products only"
    if linear.scale_O is not None:
        return scaled_product(x, linear.weight_OI, linear.scale_O, linear.bias_O)
    assert isinstance(x, Tensor), "only 8-bit products take 8-bit input"
    return linear(x)


def _gate_up(normed: Normed, layer: Layer) -> Tensor | Quantized:
    """SiLU(gate) * up; for many tokens already rounded to what the down product takes."""
    linear = layer.gate_up
    max_rows = MAX_ROWS if linear.scale_O is not None else MAX_ROWS_SILU
    if linear.bias_O is None and (isinstance(normed, Unscaled) or len(normed) <= max_rows):
        return linear_small(normed, linear.weight_OI, scale_N=linear.scale_O, silu_mul=True)
    if linear.bias_O is None and isinstance(normed, Tensor) and gate_up.takes(normed, linear.weight_OI):
        return gate_up.gate_up(normed, linear.weight_OI)
    packed_T2F = _product(normed, linear)
    return silu_mul(packed_T2F) if layer.down.scale_O is None else silu_mul_quantize(packed_T2F)
