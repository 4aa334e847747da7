"""Every backend over a real slab against the reference in float64. Errors are relative L2."""

import pytest
import torch

from engine.attention.base import AttentionBackend, AttentionShape
from engine.attention.select import make_backend
from engine.attention.torch_ref import TorchReference
from tests.unit.attention.paged import Paged, make_paged, shape_of

BOUNDS = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
ROWS = {
    "new": [(0, 5), (0, 129), (0, 64)],
    "ragged": [(37, 5), (300, 1), (0, 200), (128, 128)],
    "decode": [(0, 1), (63, 1), (127, 1), (1000, 1)],
}


def make(paged: Paged, shape: AttentionShape, name: str) -> AttentionBackend:
    # Vendor kernels multiply what lies behind a row's end by zero, so stale memory must be finite, as the pool's is.
    pool = paged.pool_NL2SKE.nan_to_num(nan=7.0).cuda()
    batch = paged.batch
    for field in ("cu_seqlens_q_B1", "cache_seqlens_B", "page_table_BP", "slots_T"):
        setattr(batch, field, getattr(batch, field).cuda())
    backend = make_backend(name, pool, shape)
    backend.plan(batch)
    return backend


def check(rows: str, name: str, dtype: torch.dtype, shape: AttentionShape, page_size: int = 128) -> None:
    paged = make_paged(ROWS[rows], shape, page_size, dtype)
    reference = TorchReference(paged.pool_NL2SKE.double(), shape)
    reference.plan(paged.batch)
    reference.write(paged.layer, paged.k_TKE.double(), paged.v_TKE.double())
    out_ref, lse_ref = reference.attend(paged.layer, paged.q_THE.double())
    backend = make(paged, shape, name)
    q, k, v = paged.q_THE.cuda(), paged.k_TKE.cuda(), paged.v_TKE.cuda()
    backend.write(paged.layer, k, v)
    for new in ((k, v), None):
        out, lse = backend.attend(paged.layer, q, new)
        error = (out.double().cpu() - out_ref).norm() / out_ref.norm()
        assert error < BOUNDS[dtype], f"{error:.1e}"
        torch.testing.assert_close(lse.double().cpu(), lse_ref, rtol=1e-2, atol=2e-2)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("name", ["auto", "fa3", "triton"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("head_dim", [64, 96, 128, 256])
def test_half_precision(rows: str, name: str, dtype: torch.dtype, head_dim: int) -> None:
    check(rows, name, dtype, shape_of(8, 2, head_dim))


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("heads", [(4, 4), (7, 1), (12, 2), (32, 8)])
@pytest.mark.parametrize("page_size", [16, 64, 128, 256])
def test_ratios_and_pages(rows: str, heads: tuple[int, int], page_size: int) -> None:
    for name, dtype in (("triton", torch.float32), ("fa3", torch.bfloat16)):
        check(rows, name, dtype, shape_of(*heads, 128), page_size)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("name", ["fa3", "triton"])
@pytest.mark.parametrize("options", [{"windows": (None, 50)}, {"soft_cap": 3.0}, {"windows": (9, 70), "soft_cap": 2.0}])
def test_window_and_soft_cap(rows: str, name: str, options: dict[str, object]) -> None:
    check(rows, name, torch.bfloat16, shape_of(8, 2, 128, **options))
