"""The kernels between a CPU's products against the plain torch operations, in float64."""

import numpy as np
import pytest
import torch

from engine.kernels.cpu import layer
from engine.models.layers import rms_norm, silu_mul
from engine.models.rope import rotate

NUM_TOKENS = pytest.mark.parametrize("num_tokens", [1, 3, 16, 33])
EPS = 1e-5


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def assert_near(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual.double(), expected.double(), atol=1e-6, rtol=2e-6)


@NUM_TOKENS
@pytest.mark.parametrize("width", [8, 100, 768])
def test_norm_after_adding_to_the_stream(num_tokens: int, width: int) -> None:
    stream_TD, added_TD, weight_D = 50 * normal(num_tokens, width), normal(num_tokens, width), normal(width)
    before_TD, out_TD = stream_TD.clone(), torch.empty(num_tokens, width)
    layer.add_rms_norm(stream_TD.numpy(), added_TD.numpy(), weight_D.numpy(), EPS, out_TD.numpy())
    assert torch.equal(stream_TD, before_TD + added_TD)
    sum_TD = stream_TD.double()
    assert_near(out_TD, sum_TD / (sum_TD.square().mean(-1, keepdim=True) + EPS).sqrt() * weight_D)
    layer.add_rms_norm(stream_TD.numpy(), stream_TD[:0].numpy(), weight_D.numpy(), EPS, out_TD.numpy())
    assert torch.equal(stream_TD, before_TD + added_TD)
    assert_near(out_TD, rms_norm(stream_TD, weight_D, EPS))


@NUM_TOKENS
def test_activation_over_the_whole_range_of_exp(num_tokens: int) -> None:
    gate_up_T2M = 40 * normal(num_tokens, 2 * 70)
    gate_up_T2M[0, :4] = torch.tensor([-1000.0, 1000.0, -0.0, 88.5])
    out_TM = torch.empty(num_tokens, 70)
    layer.silu_mul(gate_up_T2M.numpy(), out_TM.numpy())
    assert_near(out_TM, silu_mul(gate_up_T2M.double()))


@NUM_TOKENS
def test_norm_of_heads_leaves_the_values_alone(num_tokens: int) -> None:
    qkv_TXE, weight_NE = normal(num_tokens, 8, 12), normal(6, 12)
    before_TXE = qkv_TXE.clone()
    layer.norm_heads(qkv_TXE.numpy(), weight_NE.numpy(), EPS)
    assert_near(qkv_TXE[:, :6], rms_norm(before_TXE[:, :6], weight_NE, EPS))
    assert torch.equal(qkv_TXE[:, 6:], before_TXE[:, 6:])


@NUM_TOKENS
@pytest.mark.parametrize("head_dim", [4, 10, 64])
def test_rotation_and_write(num_tokens: int, head_dim: int) -> None:
    num_heads, num_kv_heads, page_size = 6, 2, 3
    qkv_TXE = normal(num_tokens, num_heads + 2 * num_kv_heads, head_dim)
    angles_TF = normal(num_tokens, head_dim // 2)
    cos_sin_TE = torch.cat((angles_TF.cos(), angles_TF.sin()), dim=1)
    pool_NL2SKE = torch.full((num_tokens + 1, 2, 2, page_size, num_kv_heads, head_dim), torch.nan)
    slots_T = torch.randperm((num_tokens + 1) * page_size, generator=torch.Generator().manual_seed(0))[:num_tokens]
    q_THE = torch.empty(num_tokens, num_heads, head_dim)
    caches = [pool_NL2SKE[:, 1, which].numpy() for which in (0, 1)]
    layer.rope_and_write(qkv_TXE.numpy(), cos_sin_TE.numpy(), slots_T.numpy(), *caches, q_THE.numpy())
    q, k, v = qkv_TXE.split((num_heads, num_kv_heads, num_kv_heads), dim=1)
    assert_near(q_THE, rotate(q, cos_sin_TE))
    assert_near(pool_NL2SKE[slots_T // page_size, 1, 0, slots_T % page_size], rotate(k, cos_sin_TE))
    assert_near(pool_NL2SKE[slots_T // page_size, 1, 1, slots_T % page_size], v)
    written = 2 * num_tokens * num_kv_heads * head_dim
    assert np.count_nonzero(~np.isnan(pool_NL2SKE.numpy())) == written
