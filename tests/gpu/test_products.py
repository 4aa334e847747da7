"""The products of a step of an 8B model on a device, against float64: with what is fused behind them."""

import pytest
import torch

from engine.kernels import gate_up
from engine.kernels.bulk import has_bulk_copies
from engine.kernels.linear_small import MAX_ROWS, MAX_ROWS_SILU, Tiles, linear_small, linear_small_norm

pytestmark = pytest.mark.gpu
EPS = 1e-5
CLOSE = 6e-3
"""Of the largest number: a few roundings to bfloat16."""


def random(*shape: int, scale: float = 1.0) -> torch.Tensor:
    return (torch.randn(*shape, device="cuda") * scale).bfloat16()


def check(found: torch.Tensor, exact: torch.Tensor) -> None:
    assert float((found.double() - exact).abs().max() / exact.abs().max()) < CLOSE


@pytest.mark.parametrize(("features", "width"), [(6144, 4096), (4096, 4096), (4096, 14336), (4100, 4096), (1024, 520)])
@pytest.mark.parametrize("rows", [1, 5, 16, 17, MAX_ROWS])
@pytest.mark.parametrize("tiles", [None, Tiles(64, 64, 4, 3), Tiles(64, 128, 4, 4, bulk=True)])
def test_few_rows(features: int, width: int, rows: int, tiles: Tiles | None) -> None:
    if tiles is not None and tiles.bulk and not has_bulk_copies(torch.empty(1, device="cuda")):
        pytest.skip("needs Hopper or later")
    x, weight, residual = random(rows, width), random(features, width, scale=0.02), random(rows, features)
    exact = x.double() @ weight.double().T
    check(linear_small(x, weight, tiles=tiles), exact)
    exact += residual.double()
    gain = random(features)
    stream, unscaled = linear_small_norm(x, weight, residual, (gain, EPS), tiles=tiles)
    check(stream, exact)
    check(unscaled.x_MD, stream.double() * gain.double())
    torch.testing.assert_close(unscaled.squares_PM.sum(0).double(), stream.double().square().sum(1), rtol=1e-4, atol=0)


@pytest.mark.parametrize("rows", [1, 17, MAX_ROWS, MAX_ROWS_SILU, gate_up.MIN_ROWS, gate_up.MAX_ROWS])
def test_silu_of_gate_times_up(rows: int) -> None:
    x, weight = random(rows, 4096), random(28672, 4096, scale=0.02)
    gate, up = (x.double() @ weight.double().T).chunk(2, -1)
    exact = torch.nn.functional.silu(gate) * up
    if rows <= MAX_ROWS_SILU:
        check(linear_small(x, weight, silu_mul=True), exact)
    if gate_up.takes(x, weight):
        check(gate_up.gate_up(x, weight), exact)
