"""An AttentionStep over one sequence that keeps plain tensors: no pages, nothing to get wrong."""

import torch
from torch import Tensor

from engine.models.config import AttentionConfig


class DenseAttention:
    """Causal grouped-query attention of the sequence so far; call the model with consecutive pieces of it."""

    def __init__(self, attention: AttentionConfig) -> None:
        self.attention = attention
        self.cache: dict[int, tuple[Tensor, Tensor]] = {}

    def run(self, layer: int, q_THE: Tensor, k_TKE: Tensor, v_TKE: Tensor) -> Tensor:
        if layer in self.cache:
            k_old, v_old = self.cache[layer]
            k_TKE, v_TKE = torch.cat((k_old, k_TKE)), torch.cat((v_old, v_TKE))
        self.cache[layer] = k_TKE, v_TKE
        num_keys, num_queries = len(k_TKE), len(q_THE)
        behind = torch.arange(num_keys - num_queries, num_keys)[:, None] - torch.arange(num_keys)
        window = self.attention.sliding_windows[layer] or num_keys
        visible = (behind >= 0) & (behind < window)
        group = q_THE.shape[1] // k_TKE.shape[1]
        scores = torch.einsum("qhe,khe->hqk", q_THE, k_TKE.repeat_interleave(group, dim=1))
        scores = scores * q_THE.shape[-1] ** -0.5
        weights = scores.masked_fill(~visible, float("-inf")).softmax(dim=-1)
        return torch.einsum("hqk,khe->qhe", weights, v_TKE.repeat_interleave(group, dim=1))
