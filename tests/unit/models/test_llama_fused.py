"""The fused decoder computes what the plain one does, its kernels under Triton's interpreter."""

from typing import Any

import pytest
import torch

from engine.attention.base import AttentionBatch
from engine.attention.torch_ref import TorchReference
from engine.models.llama import Llama
from engine.models.llama_fused import FusedLlama
from engine.models.loader import load_model
from engine.models.registry import load_config
from engine.runtime.build import attention_shape
from tests.fakes.checkpoints import tiny_checkpoint

PAGE_SIZE, NUM_PAGES = 16, 16
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "key and query norms": ("qwen3", {}),
}
STEPS = (
    ((0, 33),),  # products of many rows, but for the gate-up one
    ((33, 1), (0, 3)),  # of few rows
)
"""(cached, new) of the rows of each step; a second row begins in a page of its own."""


def batch_of(rows: tuple[tuple[int, int], ...]) -> tuple[AttentionBatch, torch.Tensor]:
    """Row r has pages r * 8 to r * 8 + 7; also the position of each token."""
    starts, num_new = [start for start, _ in rows], [new for _, new in rows]
    ends = [start + new for start, new in rows]
    table = torch.arange(len(rows) * 8, dtype=torch.int32).view(len(rows), 8)
    positions = torch.cat([torch.arange(start, end) for start, end in zip(starts, ends, strict=True)])
    first = torch.repeat_interleave(torch.arange(len(rows)) * 8 * PAGE_SIZE, torch.tensor(num_new))
    cu = torch.tensor([0, *num_new]).cumsum(0, dtype=torch.int32)
    batch = AttentionBatch(starts, num_new, cu, torch.tensor(ends, dtype=torch.int32), table, first + positions)
    return batch, positions


def logits(model: Llama | FusedLlama) -> torch.Tensor:
    """Of the wanted rows of all steps: each row's last token."""
    facts = model.config.attention
    pool = torch.zeros(NUM_PAGES, model.config.num_layers, 2, PAGE_SIZE, facts.num_kv_heads, facts.head_dim)
    attention, found = TorchReference(pool, attention_shape(facts)), []
    for index, rows in enumerate(STEPS):
        batch, positions = batch_of(rows)
        tokens = torch.randint(0, 256, (len(positions),), generator=torch.Generator().manual_seed(index))
        attention.plan(batch)
        wanted = batch.cu_seqlens_q_B1[1:].long() - 1
        found.append(model.logits(model.forward(tokens, positions, attention, wanted)))
    return torch.cat(found)


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_those_of_the_plain_decoder(variant: str) -> None:
    architecture, overrides = VARIANTS[variant]
    folder = tiny_checkpoint(architecture, **overrides)
    plain = load_model(folder, load_config(folder), dtype=torch.float32, device=torch.device("cpu"))
    with torch.inference_mode():
        expected, actual = logits(plain), logits(FusedLlama(plain.config, plain.weights))
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)
