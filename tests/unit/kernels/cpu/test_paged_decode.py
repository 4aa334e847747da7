"""The compiled attention's promises beyond its numbers, which tests/unit/attention/test_backends.py checks."""

import logging

import pytest
import torch

from engine.attention.cpu_plan import Tasks, plan_tasks
from engine.kernels.cpu import jit, paged_decode, team
from engine.kernels.cpu.paged_decode import PagedDecode

LENGTHS = [1, 700, 16, 1300, 33]


def setup_rows() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    pool = torch.randn(len(LENGTHS) * 90, 2, 2, 16, 2, 32, generator=rng)
    table = torch.randperm(len(pool), generator=rng).view(len(LENGTHS), 90).int()
    return pool, table, torch.randn(len(LENGTHS), 6, 32, generator=rng)


def attend(kernel: PagedDecode, q_RHE: torch.Tensor, tasks: Tasks) -> tuple[torch.Tensor, torch.Tensor]:
    return tasks.merge(*kernel(1, q_RHE, tasks.task_I4, tasks.page_table_BP, tasks.num_tokens))


def all_tasks(table: torch.Tensor) -> Tasks:
    return plan_tasks(range(len(LENGTHS)), [(0, length) for length in LENGTHS], table)


def test_a_row_has_the_same_bits_alone_and_in_company() -> None:
    pool, table, q_RHE = setup_rows()
    kernel = PagedDecode(pool, 0.2)
    out, lse = attend(kernel, q_RHE, all_tasks(table))
    for row, length in enumerate(LENGTHS):
        alone, alone_lse = attend(kernel, q_RHE[row : row + 1], plan_tasks([row], [(0, length)], table))
        assert torch.equal(alone[0], out[row]) and torch.equal(alone_lse[0], lse[row])


@pytest.mark.parametrize("num_threads", [2, 3, 8])
def test_the_number_of_threads_changes_no_bit(num_threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    pool, table, q_RHE = setup_rows()
    tasks = all_tasks(table)
    monkeypatch.setattr(paged_decode, "torch_team", lambda: team.Team(None))
    one = attend(PagedDecode(pool, 0.2), q_RHE, tasks)
    monkeypatch.undo()
    monkeypatch.setattr(torch, "get_num_threads", lambda: num_threads)
    assert team.torch_team().num_threads == num_threads, "torch's wheels for Linux bring libgomp"
    many = attend(PagedDecode(pool, 0.2), q_RHE, tasks)
    assert torch.equal(one[0], many[0]) and torch.equal(one[1], many[1])


def test_kernels_compile_where_nothing_can_be_kept(caplog: pytest.LogCaptureFixture) -> None:
    def no_folder(signature: object, cache: bool = False, **options: object) -> object:
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return lambda function: (signature, function)

    with caplog.at_level(logging.WARNING):
        assert jit._cached(no_folder, "void()", {}, attend) == ("void()", attend)
    assert "at every start" in caplog.text
