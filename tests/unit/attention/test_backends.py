"""Every backend that runs on CPU against attention written query by query in float64."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import engine.attention.cpu_plan as cpu_plan
import engine.attention.torch_cpu as torch_cpu
from engine.attention.base import AttentionBackend, AttentionShape
from engine.attention.pages import from_fp8, to_fp8
from engine.attention.select import make_backend
from engine.attention.torch_cpu import TorchCPU, merge
from engine.attention.torch_ref import TorchReference
from engine.attention.triton import TritonAttention
from tests.unit.attention.paged import by_definition, make_paged, shape_of

RAGGED = [(0, 1), (0, 5), (15, 1), (16, 1), (17, 1), (0, 33), (31, 17), (40, 2), (63, 1)]
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
Make = Callable[[Tensor, AttentionShape], AttentionBackend]


def compiled(pool_NL2SKE: Tensor, shape: AttentionShape) -> AttentionBackend:
    return make_backend("numba", pool_NL2SKE, shape)


every = pytest.mark.parametrize("make", [TorchReference, TorchCPU, compiled])
on_cpu = pytest.mark.parametrize("make", [TorchCPU, compiled])


def check(
    make: Make,
    rows: list[tuple[int, int]],
    shape: AttentionShape,
    page_size: int = 16,
    dtype: torch.dtype | None = None,
) -> None:
    """In float64, or the widest that the backend computes."""
    dtype = dtype or (torch.float32 if make is compiled else torch.float64)
    paged = make_paged(rows, shape, page_size, dtype)
    want, want_lse = by_definition(paged, shape)
    backend = make(paged.pool_NL2SKE, shape)
    backend.plan(paged.batch)
    out = backend.run(paged.layer, paged.q_THE, paged.k_TKE, paged.v_TKE)
    again, lse = backend.attend(paged.layer, paged.q_THE)
    error = TOLERANCE[dtype]
    assert out.dtype == dtype and out.shape == paged.q_THE.shape
    torch.testing.assert_close(out.double(), want, atol=error, rtol=error)
    torch.testing.assert_close(again.double(), want, atol=error, rtol=error)
    torch.testing.assert_close(lse.double(), want_lse, atol=error, rtol=error)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("make", [TorchReference, TorchCPU])
def test_ragged_batch_of_extends_and_decodes(make: Make, dtype: torch.dtype) -> None:
    check(make, RAGGED, shape_of(), dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [RAGGED, [(start, 1) for start, _ in RAGGED]])
def test_compiled_kernel_in_each_of_its_dtypes(dtype: torch.dtype, rows: list[tuple[int, int]]) -> None:
    check(compiled, rows, shape_of(12, 4, 64), dtype=dtype)


@every
@pytest.mark.parametrize(("num_heads", "num_kv_heads"), [(1, 1), (4, 4), (6, 2), (8, 1), (7, 1)])
@pytest.mark.parametrize("head_dim", [8, 64, 80, 128, 256])
def test_group_ratios_and_head_dims(make: Make, num_heads: int, num_kv_heads: int, head_dim: int) -> None:
    check(make, [(9, 1), (20, 3), (0, 18)], shape_of(num_heads, num_kv_heads, head_dim))


@every
@pytest.mark.parametrize("page_size", [1, 3, 16, 128])
def test_page_sizes(make: Make, page_size: int) -> None:
    check(make, RAGGED, shape_of(), page_size)


@every
@pytest.mark.parametrize("window", [1, 7, 16, 40, 1000])
def test_sliding_window(make: Make, window: int) -> None:
    check(make, RAGGED, shape_of(windows=(None, window)))


def test_soft_cap() -> None:
    check(TorchReference, RAGGED, shape_of(softmax_scale=3.0, soft_cap=5.0))


@every
def test_softmax_scale(make: Make) -> None:
    check(make, RAGGED, shape_of(softmax_scale=0.7))


@on_cpu
@pytest.mark.parametrize("window", [None, 30, 50])
def test_rows_longer_than_a_task_merge_their_parts(
    make: Make, monkeypatch: pytest.MonkeyPatch, window: int | None
) -> None:
    monkeypatch.setattr(cpu_plan, "TASK_TOKENS", 12)
    monkeypatch.setattr(torch_cpu, "CACHED_BLOCK", 10)
    rows = [(47, 1), (0, 1), (11, 1), (12, 1), (13, 1), (30, 1), (50, 9), (12, 12)]
    check(make, rows, shape_of(windows=(None, window)), page_size=4)


@pytest.mark.parametrize("window", [None, 9, 12])
def test_new_rows_of_equal_length_share_a_call(window: int | None) -> None:
    rows = [(0, 9), (0, 9), (0, 9), (3, 9), (0, 9), (7, 1), (0, 9), (0, 9), (0, 12), (0, 12), (0, 2)]
    check(TorchCPU, rows, shape_of(windows=(None, window)), page_size=4)


@pytest.mark.parametrize("window", [20, 100])
def test_extend_over_several_blocks_of_windowed_queries(monkeypatch: pytest.MonkeyPatch, window: int) -> None:
    monkeypatch.setattr(torch_cpu, "WINDOW_QUERIES", 8)
    check(TorchCPU, [(33, 30), (0, 41), (90, 1)], shape_of(windows=(None, window)))


def test_large_scores_do_not_overflow() -> None:
    check(TorchCPU, RAGGED, shape_of(softmax_scale=300.0))


def test_large_scores_do_not_overflow_in_float32() -> None:
    paged, shape = make_paged(RAGGED, shape_of(softmax_scale=300.0), dtype=torch.float32), shape_of(softmax_scale=300.0)
    backend = compiled(paged.pool_NL2SKE, shape)
    backend.plan(paged.batch)
    backend.write(paged.layer, paged.k_TKE, paged.v_TKE)
    out, lse = backend.attend(paged.layer, paged.q_THE)
    want, want_lse = by_definition(paged, shape)
    torch.testing.assert_close(out.double(), want, atol=2e-3, rtol=2e-3)  # scores of 1,000 have three digits less
    torch.testing.assert_close(lse.double(), want_lse, atol=2e-3, rtol=2e-6)


def test_other_layers_and_other_pages_are_untouched() -> None:
    shape = shape_of()
    paged = make_paged([(5, 1), (0, 20)], shape)
    before = paged.pool_NL2SKE.clone()
    backend = TorchCPU(paged.pool_NL2SKE, shape)
    backend.plan(paged.batch)
    backend.write(paged.layer, paged.k_TKE, paged.v_TKE)
    changed = (paged.pool_NL2SKE.nan_to_num(7.5) != before.nan_to_num(7.5)).any(-1).any(-1)
    expected = torch.zeros_like(changed)
    slots = paged.batch.slots_T
    expected[slots // 16, paged.layer, :, slots % 16] = True
    assert torch.equal(changed, expected)


def test_reference_drops_padding_slots() -> None:
    shape = shape_of()
    paged = make_paged([(5, 1), (0, 3)], shape)
    before = paged.pool_NL2SKE.clone()
    paged.batch.slots_T = torch.full_like(paged.batch.slots_T, -1)
    backend = TorchReference(paged.pool_NL2SKE, shape)
    backend.plan(paged.batch)
    backend.write(paged.layer, paged.k_TKE, paged.v_TKE)
    assert torch.equal(paged.pool_NL2SKE.nan_to_num(7.5), before.nan_to_num(7.5))


def test_merge_is_attention_over_the_union() -> None:
    q, k, v = torch.randn(1, 2, 3, 8).double(), torch.randn(1, 2, 10, 8).double(), torch.randn(1, 2, 10, 8).double()
    flash = torch_cpu._flash
    whole, whole_lse = flash(q, k, v)
    out, lse = merge(flash(q, k[:, :, :4], v[:, :, :4]), flash(q, k[:, :, 4:], v[:, :, 4:]))
    torch.testing.assert_close(out, whole)
    torch.testing.assert_close(lse, whole_lse)


def fp8_shape(**options: object) -> AttentionShape:
    """Unequal scales, powers of two: what pages hold is then exactly what was written."""
    return shape_of(head_dim=64, kv_scales=((1.0, 1.0), (0.25, 2.0)), **options)


@pytest.mark.parametrize(
    "make",
    [
        TorchReference,
        lambda pool, shape: TorchCPU(pool, shape, torch.float32),
        pytest.param(TritonAttention, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("rows", [RAGGED, [(17, 1), (40, 1), (0, 1)], [(0, 7), (0, 7), (0, 20)]])
@pytest.mark.parametrize("window", [None, pytest.param(20, marks=pytest.mark.slow)])
def test_pages_of_8_bit_floats(make: Make, rows: list[tuple[int, int]], window: int | None) -> None:
    shape = fp8_shape(windows=(None, window))
    paged = make_paged(rows, shape, 16, torch.float32, kv_dtype=torch.float8_e4m3fn)
    want, want_lse = by_definition(paged, shape)
    backend = make(paged.pool_NL2SKE, shape)
    backend.plan(paged.batch)
    out = backend.run(paged.layer, paged.q_THE, paged.k_TKE, paged.v_TKE)
    again, lse = backend.attend(paged.layer, paged.q_THE)
    for got in (out, again):
        torch.testing.assert_close(got.double(), want, atol=2e-5, rtol=2e-5)
    torch.testing.assert_close(lse.double(), want_lse, atol=2e-5, rtol=2e-5)
    assert not backend.caches(0).k_scale != 1.0 and backend.caches(1)[2:] == (0.25, 2.0)


def test_8_bit_values_round_and_saturate() -> None:
    values = torch.cat([torch.randn(1000) * 10, torch.tensor([0.0, 1e4, -1e4])])
    kept = from_fp8(to_fp8(values, 0.5), 0.5, torch.float32)
    assert kept[-2:].tolist() == [224.0, -224.0], "448 times the scale, never NaN"
    error = (kept - values)[:-2].abs()
    assert bool((error <= values[:-2].abs() / 16 + 0.5 * 2**-10).all()), "half a unit of the last of 3 bits"


@pytest.mark.parametrize(("heads", "kv_heads", "head_dim"), [(4, 4, 64), (7, 1, 96), (12, 2, 128), (7, 1, 256)])
def test_triton_equals_the_definition(heads: int, kv_heads: int, head_dim: int) -> None:
    rows = [(9, 1), (20, 3), (0, 18)]
    shape = shape_of(heads, kv_heads, head_dim)
    paged = make_paged(rows, shape, 16, torch.float32)
    want, want_lse = by_definition(paged, shape)
    backend = TritonAttention(paged.pool_NL2SKE, shape)
    backend.plan(paged.batch)
    backend.write(paged.layer, paged.k_TKE, paged.v_TKE)
    out, lse = backend.attend(paged.layer, paged.q_THE)
    torch.testing.assert_close(out.double(), want, atol=2e-5, rtol=2e-5)
    torch.testing.assert_close(lse.double(), want_lse, atol=2e-5, rtol=2e-5)
