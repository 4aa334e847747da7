"""The CPU's decoder of few rows against the plain one, over the same paged attention."""

import pytest
import torch

from engine.attention.base import AttentionBackend, AttentionBatch
from engine.attention.select import make_backend
from engine.models.base import CausalLM
from engine.models.llama import Llama
from engine.models.llama_cpu import LlamaCPU
from engine.runtime.build import attention_shape
from tests.fakes.checkpoints import tiny_checkpoint
from tests.unit.models.test_llama import VARIANTS, load

PAGE, WIDTH = 4, 40
STEPS: list[list[tuple[int, int]]] = [
    [(0, 7), (0, 90), (0, 3), (0, 1), (0, 60), (0, 5)],  # of too many tokens: the plain way
    [(7, 1), (90, 1), (3, 1), (1, 1), (60, 1), (5, 1)],
    [(8, 1)],
    [(91, 1), (4, 1), (2, 1)],
    [(9, 3), (92, 12), (5, 1), (3, 9)],
    [(12, 1), (104, 1), (6, 1), (12, 1), (61, 1), (6, 1)],
]
ROWS = [[0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5], [0], [1, 2, 3], [0, 1, 2, 3], [0, 1, 2, 3, 4, 5]]


def backend_of(model: Llama) -> AttentionBackend:
    facts = model.config.attention
    pool = torch.full(
        (len(ROWS[0]) * WIDTH, model.config.num_layers, 2, PAGE, facts.num_kv_heads, facts.head_dim), torch.nan
    )
    return make_backend("numba", pool, attention_shape(facts))


def batch_of(step: list[tuple[int, int]], rows: list[int]) -> AttentionBatch:
    table = torch.randperm(6 * WIDTH, generator=torch.Generator().manual_seed(0)).view(6, WIDTH)[rows].int()
    slots = [
        table[i, p // PAGE] * PAGE + p % PAGE for i, (start, new) in enumerate(step) for p in range(start, start + new)
    ]
    num_new = torch.tensor([0, *(new for _, new in step)])
    return AttentionBatch(
        starts=[start for start, _ in step],
        num_new=[new for _, new in step],
        cu_seqlens_q_B1=num_new.cumsum(0).int(),
        cache_seqlens_B=torch.tensor([start + new for start, new in step]).int(),
        page_table_BP=table,
        slots_T=torch.stack(slots).long(),
    )


@torch.inference_mode()
def all_logits(model: CausalLM, attention: AttentionBackend, last_only: bool) -> list[torch.Tensor]:
    rng, outputs = torch.Generator().manual_seed(1), []
    for step, rows in zip(STEPS, ROWS, strict=True):
        batch = batch_of(step, rows)
        positions_T = torch.cat([torch.arange(start, start + new) for start, new in step])
        tokens_T = torch.randint(0, 256, (len(positions_T),), generator=rng)
        attention.plan(batch)
        wanted_S = batch.cu_seqlens_q_B1[1:].long() - 1 if last_only else None
        outputs.append(model.logits(model.forward(tokens_T, positions_T, attention, wanted_S)))
    return outputs


@pytest.mark.parametrize("last_only", [False, True])
@pytest.mark.parametrize("variant", [name for name in VARIANTS if not name.startswith("rope-")])
def test_logits_equal_the_plain_decoders(variant: str, last_only: bool) -> None:
    architecture, overrides = VARIANTS[variant]
    plain = load(tiny_checkpoint(architecture, **overrides))
    fused = LlamaCPU(plain.config, plain.weights)
    want = all_logits(plain, backend_of(plain), last_only)
    for actual, expected in zip(all_logits(fused, backend_of(plain), last_only), want, strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-4, rtol=0)
        assert torch.equal(actual.argmax(-1), expected.argmax(-1))
