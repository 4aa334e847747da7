from pathlib import Path

import pytest
import torch

from engine.core.errors import InvalidRequest
from engine.core.types import NUM_SPARE_PAGES
from engine.runtime import memory

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
MIB = 1 << 20


def test_bytes_and_fractions() -> None:
    assert memory.num_pages(100 * MIB, MIB, CPU, 1000 * MIB) == 100 - NUM_SPARE_PAGES
    assert memory.num_pages(0.5, MIB, CPU, 1000 * MIB) == 500 - NUM_SPARE_PAGES


def test_default_is_modest_on_a_host_and_most_of_a_device() -> None:
    assert memory.num_pages(None, MIB, CPU, 8000 * MIB) == 1024 - NUM_SPARE_PAGES
    assert memory.num_pages(None, MIB, CPU, 100 * MIB) == 100 - NUM_SPARE_PAGES
    assert memory.num_pages(None, MIB, CUDA, 1000 * MIB) == 900 - NUM_SPARE_PAGES


@pytest.mark.parametrize(
    ("kv_memory", "words"),
    [(2000 * MIB, "1000 MiB free"), (3 * MIB, "hold no page"), (NUM_SPARE_PAGES * MIB, "need 5 MiB")],
)
def test_pools_that_cannot_be_are_refused_in_words(kv_memory: int, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words):
        memory.num_pages(kv_memory, MIB, CPU, 1000 * MIB)


def test_longest_sequence() -> None:
    assert memory.max_model_len(None, 8192, pages=100, page_size=16) == 1600
    assert memory.max_model_len(None, 1000, pages=100, page_size=16) == 1000
    assert memory.max_model_len(512, 1000, pages=100, page_size=16) == 512
    with pytest.raises(InvalidRequest, match=r"one sequence of max_model_len 800 .* holds 160 tokens"):
        memory.max_model_len(800, 1000, pages=10, page_size=16)
    with pytest.raises(InvalidRequest, match="beyond the model's 1000"):
        memory.max_model_len(1001, 1000, pages=100, page_size=16)


def test_a_container_limit_counts_and_file_pages_do_not(tmp_path: Path) -> None:
    (tmp_path / "memory.current").write_text("900")
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 300\n")
    (tmp_path / "memory.max").write_text("1000\n")
    assert memory.free_bytes(CPU, tmp_path) == 400
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.free_bytes(CPU, tmp_path) > 1 << 20
    assert memory.free_bytes(CPU, tmp_path / "none") > 1 << 20


def test_readable() -> None:
    assert [memory.readable(n) for n in (5, 2048, 3 << 19, 5 << 30)] == ["5 bytes", "2 KiB", "1.5 MiB", "5 GiB"]
