from dataclasses import replace

import pytest
import torch

from engine.core.types import NUM_SPARE_PAGES, KVLayout
from engine.runtime.kv_pool import KVPool

LAYOUT = KVLayout("m", num_layers=3, num_kv_heads=2, head_dim=8, page_size=4, dtype="bfloat16")
CPU = torch.device("cpu")


@pytest.fixture
def pool() -> KVPool:
    return KVPool(LAYOUT, 5, [CPU])


def test_a_page_is_one_contiguous_range_at_its_address(pool: KVPool) -> None:
    (tensor,), (memory,) = pool.tensors_NL2SKE, pool.memories
    assert tensor.is_contiguous()
    assert tensor[2].data_ptr() == memory.address + 2 * LAYOUT.page_bytes
    assert tensor.nbytes == (5 + NUM_SPARE_PAGES) * LAYOUT.page_bytes
    assert memory.device == -1


def test_ranks_have_the_same_pages_with_their_own_heads() -> None:
    layout = replace(LAYOUT, tp_size=2)
    pool = KVPool(layout, 5, [CPU, CPU])
    assert [tensor.shape for tensor in pool.tensors_NL2SKE] == [(5 + NUM_SPARE_PAGES, 3, 2, 4, 1, 8)] * 2
    assert len({memory.address for memory in pool.memories}) == 2
    pool.write(4, 1, 2, b"\x40" * (layout.page_bytes // 3), rank=1)
    assert not pool.tensors_NL2SKE[0].any() and pool.tensors_NL2SKE[1][4, 1].all()
    assert bytes(pool.read(4, 1, 2, rank=1)) == b"\x40" * (layout.page_bytes // 3)
    assert not any(pool.read(4, 1, 2))


def test_read_is_the_memory_itself(pool: KVPool) -> None:
    pool.tensors_NL2SKE[0][3, 1].fill_(2.5)
    data = pool.read(3, 1, 3)
    assert len(data) == 2 * LAYOUT.page_bytes // 3
    values = torch.frombuffer(bytearray(data), dtype=torch.bfloat16)
    assert values[: len(values) // 2].eq(2.5).all() and values[len(values) // 2 :].eq(0).all()
    data[0:2] = b"\x00\x00"
    assert pool.tensors_NL2SKE[0][3, 1].flatten()[0] == 0


def test_write_changes_those_layers_of_that_page_only(pool: KVPool) -> None:
    pool.write(4, 0, 2, b"\x40" * (2 * LAYOUT.page_bytes // 3))
    written = pool.tensors_NL2SKE[0] != 0
    assert written[4, :2].all() and written.sum() == written[4, :2].numel()


@pytest.mark.parametrize("where", [(9, 0, 1), (-1, 0, 1), (0, 2, 4), (0, 1, 1), (0, 2, 1), (0, -1, 1)])
def test_ranges_outside_the_pool_are_refused(pool: KVPool, where: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="no layers"):
        pool.read(*where)


def test_write_of_another_size_is_refused(pool: KVPool) -> None:
    with pytest.raises(ValueError, match="bytes expected"):
        pool.write(0, 0, 3, b"\x00" * (LAYOUT.page_bytes + 1))


def test_generations_are_unsigned_and_shared(pool: KVPool) -> None:
    pool.generations[2] = (1 << 64) - 1
    assert pool.generations.tolist() == [0, 0, (1 << 64) - 1, 0, 0] + [0] * NUM_SPARE_PAGES
    assert pool.generations.format == "Q"
