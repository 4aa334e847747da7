"""The CPU's product of few rows against float64, and its promise about bits."""

import pytest
import torch

from engine.kernels.cpu import product
from engine.kernels.cpu.product import MAX_ROWS, few_rows_product
from engine.kernels.cpu.team import Team

SHAPES = pytest.mark.parametrize(("outputs", "depth"), [(1, 1), (3, 16), (7, 5), (64, 100), (1001, 773), (512, 2048)])


def operands(outputs: int, depth: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(outputs + depth)
    return torch.randn(MAX_ROWS, depth, generator=rng), torch.randn(outputs, depth, generator=rng)


@SHAPES
def test_equals_the_product_in_float64(outputs: int, depth: int) -> None:
    x_TI, weight_OI = operands(outputs, depth)
    expected_TO = x_TI.double() @ weight_OI.double().T
    error = (few_rows_product(x_TI, weight_OI) - expected_TO).abs().max()
    assert error <= 2e-7 * depth**0.5 * expected_TO.abs().max()


@SHAPES
def test_a_row_has_the_same_bits_alone_and_in_company(outputs: int, depth: int) -> None:
    x_TI, weight_OI = operands(outputs, depth)
    together_TO = few_rows_product(x_TI, weight_OI)
    for first, last in [(0, 1), (1, 3), (3, 6), (6, 10), (10, 27), (27, MAX_ROWS)]:
        assert torch.equal(few_rows_product(x_TI[first:last], weight_OI), together_TO[first:last])


def test_the_number_of_threads_changes_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    x_TI, weight_OI = operands(1001, 773)
    monkeypatch.setattr(product, "BYTES_A_THREAD", 1000)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    three_TO = few_rows_product(x_TI, weight_OI)
    monkeypatch.setattr(product, "torch_team", lambda: Team(None))
    assert torch.equal(few_rows_product(x_TI, weight_OI), three_TO)
