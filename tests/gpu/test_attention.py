"""Every backend over a real slab against the reference in float64. Errors are relative L2.

What a backend cannot run, here or with this build of its package, it refuses in words when it is made: the tests state
which combinations those are, and fail both when one of them runs and when another one is refused.
"""

import pytest
import torch

from engine.attention.base import AttentionBackend, AttentionShape
from engine.attention.select import make_backend
from engine.attention.torch_ref import TorchReference
from engine.core.errors import InvalidRequest
from tests.unit.attention.paged import Paged, make_paged, shape_of

FP8 = torch.float8_e4m3fn
BOUNDS = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
FA3_FP8_BOUND = 8e-2
"""FlashAttention-3 multiplies 8-bit keys with queries rounded to 8 bits, and 8-bit values with 8-bit weights."""
ROWS = {
    "new": [(0, 5), (0, 129), (0, 64)],
    "ragged": [(37, 5), (300, 1), (0, 200), (128, 128)],
    "decode": [(0, 1), (63, 1), (127, 1), (1000, 1)],
}
OPTIONS = [{"windows": (None, 50)}, {"soft_cap": 3.0}, {"windows": (9, 70), "soft_cap": 2.0}]


def refusal(name: str, dtype: torch.dtype, shape: AttentionShape, page_size: int) -> str | None:
    """What the message must say where a backend of the pinned builds cannot run; None where it must run."""
    special = shape.soft_cap is not None or any(shape.windows)
    if name == "fa2":
        if page_size % 256:
            return "multiple of 256"
        if shape.head_dim not in (64, 128) or shape.soft_cap is not None:
            return "this build of flash_attn"
    if name == "flashinfer":
        if shape.head_dim not in (64, 128, 256):
            return "head dims"
        if dtype != torch.bfloat16 or shape.head_dim == 256 or special:
            return "not compiled"
    return None


def make(paged: Paged, shape: AttentionShape, name: str, dtype: torch.dtype) -> AttentionBackend:
    # Vendor kernels multiply what lies behind a row's end by zero, so stale memory must be finite, as the pool's is.
    pool = paged.pool_NL2SKE
    pool = pool.double().nan_to_num(nan=7.0).to(pool.dtype).cuda()
    batch = paged.batch
    for field in ("cu_seqlens_q_B1", "cache_seqlens_B", "page_table_BP", "slots_T"):
        setattr(batch, field, getattr(batch, field).cuda())
    backend = make_backend(name, pool, shape, dtype)
    backend.plan(batch)
    return backend


def check(
    rows: str,
    name: str,
    dtype: torch.dtype,
    shape: AttentionShape,
    page_size: int = 128,
    *,
    kv_dtype: torch.dtype | None = None,
    bound: float | None = None,
) -> None:
    paged = make_paged(ROWS[rows], shape, page_size, dtype, kv_dtype=kv_dtype)
    reason = refusal(name, dtype, shape, page_size)
    if reason is not None:
        with pytest.raises(InvalidRequest, match=reason):
            make(paged, shape, name, dtype)
        return
    reference = TorchReference(paged.pool_NL2SKE if kv_dtype else paged.pool_NL2SKE.double(), shape)
    reference.plan(paged.batch)
    reference.write(paged.layer, paged.k_TKE.double(), paged.v_TKE.double())
    out_ref, lse_ref = reference.attend(paged.layer, paged.q_THE.double())
    backend = make(paged, shape, name, dtype)
    q, k, v = paged.q_THE.cuda(), paged.k_TKE.cuda(), paged.v_TKE.cuda()
    backend.write(paged.layer, k, v)
    for new in ((k, v), None):
        out, lse = backend.attend(paged.layer, q, new)
        error = (out.double().cpu() - out_ref).norm() / out_ref.norm()
        assert error < (bound or BOUNDS[dtype]), f"{error:.1e}"
        wide = {"rtol": 3e-2, "atol": 1e-1} if bound else {"rtol": 1e-2, "atol": 2e-2}
        torch.testing.assert_close(lse.double().cpu(), lse_ref, **wide)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("name", ["auto", "fa3", "fa2", "flashinfer", "triton"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
def test_half_precision(rows: str, name: str, dtype: torch.dtype, head_dim: int) -> None:
    check(rows, name, dtype, shape_of(8, 2, head_dim), 256 if name == "fa2" else 128)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("heads", [(4, 4), (7, 1), (12, 2), (32, 8)])
@pytest.mark.parametrize("page_size", [16, 64, 128, 256])
def test_ratios_and_pages(rows: str, heads: tuple[int, int], page_size: int) -> None:
    check(rows, "triton", torch.float32, shape_of(*heads, 128), page_size)
    for name in ("fa3", "fa2", "flashinfer"):
        check(rows, name, torch.bfloat16, shape_of(*heads, 128), page_size)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("name", ["fa3", "fa2", "flashinfer", "triton"])
@pytest.mark.parametrize("options", OPTIONS)
def test_window_and_soft_cap(rows: str, name: str, options: dict[str, object]) -> None:
    check(rows, name, torch.bfloat16, shape_of(8, 2, 128, **options), 256)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("head_dim", [64, 128, 256])
@pytest.mark.parametrize("options", [{}, *OPTIONS[:2]])
def test_pages_of_8_bit_floats(rows: str, head_dim: int, options: dict[str, object]) -> None:
    shape = shape_of(8, 2, head_dim, kv_scales=((1.0, 1.0), (0.25, 2.0)), **options)
    for name in ("auto", "triton"):
        check(rows, name, torch.bfloat16, shape, kv_dtype=FP8)
    check(rows, "fa3", torch.bfloat16, shape, kv_dtype=FP8, bound=FA3_FP8_BOUND)


@pytest.mark.parametrize("name", ["fa2", "flashinfer"])
def test_backends_without_8_bit_pages_refuse_them(name: str) -> None:
    shape = shape_of(8, 2, 128)
    paged = make_paged(ROWS["decode"], shape, 256, torch.bfloat16, kv_dtype=FP8)
    with pytest.raises(InvalidRequest, match="needs KV pages of the model's bfloat16"):
        make(paged, shape, name, torch.bfloat16)


@pytest.mark.parametrize("name", ["fa3", "fa2", "triton"])
def test_a_graph_serves_other_lengths(name: str) -> None:
    """Capture a decode step, `plan` included, and replay it on other lengths of the same rows."""
    shape = shape_of(8, 2, 128)
    paged = make_paged(ROWS["decode"], shape, 256, torch.bfloat16)
    backend, q = make(paged, shape, name, torch.bfloat16), paged.q_THE.cuda()
    backend.write(paged.layer, paged.k_TKE.cuda(), paged.v_TKE.cuda())
    for _ in range(2):
        backend.attend(paged.layer, q)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        backend.plan(paged.batch)
        captured, _ = backend.attend(paged.layer, q)
    paged.batch.cache_seqlens_B.copy_(torch.tensor([1, 33, 100, 700], dtype=torch.int32))
    graph.replay()
    reference = TorchReference(backend.caches(0).k._base.cpu().double(), shape)  # type: ignore[union-attr]
    paged.batch.starts = [0, 32, 99, 699]
    paged.batch.page_table_BP = paged.batch.page_table_BP.cpu()
    reference.plan(paged.batch)
    expected, _ = reference.attend(paged.layer, paged.q_THE.double())
    assert (captured.double().cpu() - expected).norm() / expected.norm() < BOUNDS[torch.bfloat16]
