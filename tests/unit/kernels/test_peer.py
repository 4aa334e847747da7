"""The kernels of ranks that read each other's memory: real meetings between processes that share memory, under
Triton's interpreter; and the compiled code for a GPU that need not be here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from engine.kernels.peer import SLOT_BYTES
from engine.models.layers import rms_norm
from tests.fakes.peer_process import EPS, SIZES, inputs, stream_and_weight

ROOT = Path(__file__).resolve().parents[3]


def run_ranks(folder: Path, num_ranks: int, two_shot: bool) -> list[dict[str, list[str]]]:
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.fakes.peer_process", str(folder), str(num_ranks), str(int(two_shot))]
    ranks = [
        subprocess.Popen([*command, str(rank)], stdout=subprocess.PIPE, env=environment, cwd=ROOT)
        for rank in range(num_ranks)
    ]
    said = [rank.communicate(timeout=240)[0] for rank in ranks]
    assert all(rank.returncode == 0 for rank in ranks)
    return [json.loads(each) for each in said]


@pytest.mark.parametrize(
    ("num_ranks", "two_shot"),
    [pytest.param(2, False, marks=pytest.mark.slow), pytest.param(4, True, marks=pytest.mark.slow)],
)
def test_every_rank_gets_the_sum_bit_for_bit_and_the_join(tmp_path: Path, num_ranks: int, two_shot: bool) -> None:
    """Each process calls all sizes twice over, so slots are used again by kernels of other widths."""
    said = run_ranks(tmp_path, num_ranks, two_shot)
    assert all(each == said[0] for each in said[1:])
    for size, sums, join in zip(SIZES * 2, said[0]["sums"], said[0]["joins"], strict=True):
        parts = [inputs(rank, size) for rank in range(num_ranks)]
        total = torch.zeros(size)
        for part in parts:
            total = total + part.float()
        got = torch.frombuffer(bytearray.fromhex(sums), dtype=torch.float16).view(size)
        assert torch.equal(got, total.half()), size
        joined = torch.frombuffer(bytearray.fromhex(join), dtype=torch.float16).view(size[0], -1)
        assert torch.equal(joined, torch.cat(parts, 1)), size
    narrow = [size for size in SIZES if size[1] <= SLOT_BYTES // 2]
    for size, (stream, normed) in zip(narrow * 2, said[0]["norms"], strict=True):
        total = sum((inputs(rank, size).float() for rank in range(num_ranks)), torch.zeros(size)).half()
        before, weight = stream_and_weight(size)
        after = (before.float() + total.float()).half()
        assert torch.equal(torch.frombuffer(bytearray.fromhex(stream), dtype=torch.float16).view(size), after), size
        got = torch.frombuffer(bytearray.fromhex(normed), dtype=torch.float16).view(size)
        torch.testing.assert_close(got, rms_norm(after, weight, EPS))


COMPILE = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile
from engine.kernels import peer

def ptx(kernel, dtype, element_bytes, **more):
    block = peer.SLOT_BYTES // element_bytes
    num_warps = peer._num_warps(block // (4 if more.get("TWO_SHOT") else 1), element_bytes)
    fixed = dict(WORLD=4, SLOTS=peer.NUM_SLOTS, SLOT=block, BLOCK=block, PATIENCE_NS=peer.PATIENCE_NS) | more
    tensors = dict(x=dtype, out=dtype, stream=dtype, weight=dtype, slabs="i64", flags="i64", meetings="i64")
    names = kernel.arg_names
    types = {name: "*" + tensors[name] if name in tensors else "i32" for name in names}
    types |= {name: "constexpr" for name in fixed if name in names} | ({"eps": "fp32"} if "eps" in names else {})
    aligned = {(names.index(n),): [["tt.divisibility", 16]] for n in (*tensors, "N", "D") if n in names}
    fixed = {(names.index(n),): value for n, value in fixed.items() if n in names}
    source = ASTSource(kernel, types, fixed, aligned)
    return compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": num_warps}).asm["ptx"]

for two_shot in (False, True):
    code = ptx(peer._sum_kernel, "bf16", 2, TWO_SHOT=two_shot)
    assert code.count("atom.global.sys.release.max.s64") == 4 * (1 + two_shot), "it is said to every rank"
    assert "sys.acquire" in code and "trap;" in code
    assert "ld.global.cg.v4.b32" in code, "16 bytes at a time from the other ranks"
ptx(peer._join_kernel, "i64", 8)
code = ptx(peer._add_norm_kernel, "bf16", 2, BLOCK_D=8192)
assert code.count("atom.global.sys.release.max.s64") == 4 and "ld.global.cg.v4.b32" in code
"""


@pytest.mark.slow
def test_the_kernels_compile_for_hopper_with_the_orders_of_memory_that_they_need(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": str(ROOT), "TRITON_CACHE_DIR": str(tmp_path)}
    script = tmp_path / "compile_kernels.py"
    script.write_text(COMPILE)
    subprocess.run([sys.executable, str(script)], env=environment, cwd=ROOT, check=True, timeout=240)
