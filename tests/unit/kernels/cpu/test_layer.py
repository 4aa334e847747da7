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
    stream_DT, added_DT, weight_D = 50 * normal(width, num_tokens), normal(width, num_tokens), normal(width)
    before_DT, out_DT = stream_DT.clone(), torch.empty(width, num_tokens)
    layer.add_rms_norm(stream_DT.numpy(), added_DT.numpy(), weight_D.numpy(), EPS, out_DT.numpy())
    assert torch.equal(stream_DT, before_DT + added_DT)
    sum_TD = stream_DT.T.double()
    assert_near(out_DT.T, sum_TD / (sum_TD.square().mean(-1, keepdim=True) + EPS).sqrt() * weight_D)
    layer.add_rms_norm(stream_DT.numpy(), stream_DT[:0].numpy(), weight_D.numpy(), EPS, out_DT.numpy())
    assert torch.equal(stream_DT, before_DT + added_DT)
    assert_near(out_DT.T, rms_norm(stream_DT.T, weight_D, EPS))


@NUM_TOKENS
def test_activation_over_the_whole_range_of_exp(num_tokens: int) -> None:
    gate_up_2MT = 40 * normal(2 * 70, num_tokens)
    gate_up_2MT[:4, 0] = torch.tensor([-1000.0, 1000.0, -0.0, 88.5])
    out_MT = torch.empty(70, num_tokens)
    layer.silu_mul(gate_up_2MT.numpy(), out_MT.numpy())
    assert_near(out_MT, silu_mul(gate_up_2MT.T.double()).T)


@NUM_TOKENS
def test_norm_of_heads_leaves_the_values_alone(num_tokens: int) -> None:
    qkv_XET, weight_NE = normal(8, 12, num_tokens), normal(6, 12)
    before_TXE = qkv_XET.permute(2, 0, 1).clone()
    layer.norm_heads(qkv_XET.numpy(), weight_NE.numpy(), EPS)
    assert_near(qkv_XET[:6].permute(2, 0, 1), rms_norm(before_TXE[:, :6], weight_NE, EPS))
    assert torch.equal(qkv_XET[6:].permute(2, 0, 1), before_TXE[:, 6:])


@NUM_TOKENS
@pytest.mark.parametrize("head_dim", [4, 10, 64])
def test_rotation_and_write(num_tokens: int, head_dim: int) -> None:
    num_heads, num_kv_heads, page_size = 6, 2, 3
    qkv_XET = normal(num_heads + 2 * num_kv_heads, head_dim, num_tokens)
    angles_TF = normal(num_tokens, head_dim // 2)
    cos_sin_TE = torch.cat((angles_TF.cos(), angles_TF.sin()), dim=1)
    pool_NL2SKE = torch.full((num_tokens + 1, 2, 2, page_size, num_kv_heads, head_dim), torch.nan)
    slots_T = torch.randperm((num_tokens + 1) * page_size, generator=torch.Generator().manual_seed(0))[:num_tokens]
    q_THE = torch.empty(num_tokens, num_heads, head_dim)
    caches = [pool_NL2SKE[:, 1, which].numpy() for which in (0, 1)]
    layer.rope_and_write(qkv_XET.numpy(), cos_sin_TE.numpy(), slots_T.numpy(), *caches, q_THE.numpy())
    heads_TXE = qkv_XET.permute(2, 0, 1)
    q, k, v = heads_TXE.split((num_heads, num_kv_heads, num_kv_heads), dim=1)
    assert_near(q_THE, rotate(q, cos_sin_TE))
    assert_near(pool_NL2SKE[slots_T // page_size, 1, 0, slots_T % page_size], rotate(k, cos_sin_TE))
    assert_near(pool_NL2SKE[slots_T // page_size, 1, 1, slots_T % page_size], v)
    written = 2 * num_tokens * num_kv_heads * head_dim
    assert np.count_nonzero(~np.isnan(pool_NL2SKE.numpy())) == written
