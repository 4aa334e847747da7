"""Ranks on several GPUs: sums against float64, thousands of replays of a graph, and whole engines against one GPU."""

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from engine.core.types import Sampling
from engine.runtime.build import Engine, build_engine
from engine.runtime.config import EngineConfig, Launching, Parallel
from engine.runtime.kv_pool import KVPool
from tests.contract.test_unequal import NUM_PAGES, check_handoff, tp
from tests.gpu.test_engine import NUM_NEW, folder, generate, prompts

assert folder, "a fixture"
NUM_DEVICES = torch.cuda.device_count()
pytestmark = pytest.mark.skipif(NUM_DEVICES < 2, reason=f"needs 2 CUDA devices, there are {NUM_DEVICES}")
SIZES = [2] + ([4] if NUM_DEVICES >= 4 else [])
SHAPES = [(1, 1), (1, 8192), (7, 4096), (64, 8192), (65, 8192), (255, 5120), (2048, 8192), (8192, 8192)]


def on_ranks(size: int, work: Callable[[int], None]) -> None:
    """Run `work` in a thread for each device; raise what one of them raises."""
    errors: list[Exception] = []

    def run(rank: int) -> None:
        torch.cuda.set_device(rank)
        try:
            work(rank)
            torch.cuda.synchronize()
        except Exception as error:  # noqa: BLE001 - raised below, in the test's own thread
            errors.append(error)

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(200)
    assert not any(thread.is_alive() for thread in threads), "a rank hangs"
    if errors:
        raise errors[0]


def ranks_of(collective: str, size: int):  # type: ignore[no-untyped-def]  # noqa: ANN201
    from engine.runtime.collective.choose import open_ranks

    return open_ranks(collective, [torch.device("cuda", rank) for rank in range(size)])


def part(rank: int, shape: tuple[int, int], dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(rank)).to(dtype)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("collective", ["peer", "nccl"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_sums_and_joins_of_every_size(collective: str, size: int, dtype: torch.dtype) -> None:
    ranks = ranks_of(collective, size)
    sums: dict[tuple[int, int], list[torch.Tensor]] = {shape: [torch.empty(0)] * size for shape in SHAPES}
    joins = {shape: [torch.empty(0)] * size for shape in SHAPES}

    def run(rank: int) -> None:
        for shape in SHAPES:
            mine = part(rank, shape, dtype).cuda()
            joins[shape][rank] = ranks.members[rank].all_gather(mine).cpu()
            sums[shape][rank] = ranks.members[rank].all_reduce(mine).cpu()

    on_ranks(size, run)
    for shape in SHAPES:
        parts = [part(rank, shape, dtype) for rank in range(size)]
        exact = sum(each.double() for each in parts)
        assert all(torch.equal(each, sums[shape][0]) for each in sums[shape]), "bit for bit on all ranks"
        error = (sums[shape][0].double() - exact).abs() / sum(each.double().abs() for each in parts)
        # Peer: one rounding of a sum in float32. NCCL adds in the tensor's own type.
        assert error.max() <= torch.finfo(dtype).eps * (1 if collective == "peer" else size), shape
        assert all(torch.equal(each, torch.cat(parts, 1)) for each in joins[shape])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("two_shot", [False, True])
def test_both_ways_to_sum_give_the_same_bits(size: int, two_shot: bool) -> None:
    from engine.kernels.peer import peer_sum

    ranks = ranks_of("peer", size)

    def run(rank: int) -> None:
        for shape in SHAPES:
            mine = part(rank, shape, torch.bfloat16).cuda()
            got = peer_sum(mine, ranks.members[rank].memory, two_shot=two_shot)
            total = torch.zeros(shape)
            for each in range(size):
                total += part(each, shape, torch.bfloat16).float()
            assert torch.equal(got.cpu(), total.bfloat16()), shape

    on_ranks(size, run)


@pytest.mark.parametrize("size", SIZES)
def test_the_norm_after_a_sum_is_the_norm_of_the_sum(size: int) -> None:
    from engine.kernels.norm import add_rms_norm

    ranks = ranks_of("peer", size)

    def run(rank: int) -> None:
        member = ranks.members[rank]
        for shape in ((1, 8192), (64, 8192), (128, 4096), (33, 5120), (5, 96)):
            mine, weight = part(rank, shape, torch.bfloat16).cuda(), part(8, (1, shape[1]), torch.bfloat16)[0].cuda()
            streams = [part(9, shape, torch.bfloat16).cuda() for _ in range(2)]
            expected = add_rms_norm(member.all_reduce(mine), streams[0], weight, 1e-5)
            normed = member.add_norm(mine, streams[1], weight, 1e-5)
            assert normed is not None
            assert torch.equal(streams[0], streams[1])
            torch.testing.assert_close(normed, expected)
        assert member.add_norm(part(0, (129, 64), torch.bfloat16).cuda(), mine, weight, 1e-5) is None

    on_ranks(size, run)


@pytest.mark.parametrize("size", SIZES)
def test_thousands_of_replays_between_launches_of_other_widths(size: int) -> None:
    """Each replay sums what the one before it left, so one sum that is wrong or early changes the end."""
    ranks, num_replays, num_sums = ranks_of("peer", size), 3000, 7

    def run(rank: int) -> None:
        member = ranks.members[rank]
        stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        x = torch.zeros(48, 8192, dtype=torch.float32, device="cuda")
        one = torch.full((48, 8192), float(rank + 1), device="cuda")

        def step() -> None:
            for _ in range(num_sums):
                x.copy_(member.all_reduce(torch.remainder(x, 64.0) + one))

        with torch.cuda.stream(stream):
            step()
        stream.synchronize()
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            step()
        x.zero_()
        wide = torch.full((3000, 4096), float(rank), device="cuda")
        for replay in range(num_replays):
            graph.replay()
            if replay % 500 == 0:
                assert member.all_reduce(wide).eq(sum(range(size))).all()
        expected = 0.0
        for _ in range(num_replays * num_sums):
            expected = size * (expected % 64.0) + sum(range(1, size + 1))
        assert x.eq(expected).all(), (x.unique()[:5], expected)

    on_ranks(size, run)


def test_a_rank_that_fails_ends_the_waits_of_the_others_at_once() -> None:
    ranks = ranks_of("peer", 2)
    began = time.monotonic()

    def run(rank: int) -> None:
        if rank == 0:
            ranks.members[0].all_reduce(torch.ones(64, 8192, device="cuda"))  # nobody else comes
            torch.cuda.synchronize()
        else:
            ranks.abort()

    def compile_kernels(rank: int) -> None:
        ranks.members[rank].all_reduce(torch.ones(64, 8192, device="cuda"))

    on_ranks(2, compile_kernels)
    on_ranks(2, run)
    assert time.monotonic() - began < 60


def engine_of(folder: Path, tp_size: int, **options: object) -> Engine:
    collective = options.pop("collective", "auto")
    settings: dict[str, object] = {
        "device": "cuda",
        "kv_memory": 2 << 30,
        "max_step_tokens": 256,
        "max_model_len": 1024,
    }
    settings["launching"] = Launching(warm_up=False)  # every graph's size would take a while, for few tokens each
    settings |= options
    return build_engine(EngineConfig(str(folder), parallel=Parallel(tp_size, str(collective)), **settings))  # type: ignore[arg-type]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("collective", ["peer", "nccl"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_tokens_are_those_of_one_gpu(folder: Path, collective: str, size: int, temperature: float) -> None:
    """float32, where the logits of the checkpoint are far enough apart; decode steps as graphs, prompts in chunks.

    Draws are among few tokens: over the whole vocabulary, where a token is worth 1e-5, the rounding of sums in another
    order moves a draw to its neighbour now and then.
    """
    sampling = Sampling(max_tokens=NUM_NEW, temperature=temperature, top_k=10, top_p=0.9, seed=5)
    answers = []
    for tp_size in (1, size):
        engine = engine_of(folder, tp_size, dtype="float32", collective=collective)
        answers.append([generate(engine, prompts()[:count], sampling) for count in (1, 3, 9)])
        answers[-1].append(generate(engine, prompts(), sampling))  # over the prefix cache
        engine.close()
    assert answers[0] == answers[1]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_graphs_draw_what_launches_draw_on_two_ranks(folder: Path, temperature: float) -> None:
    sampling = Sampling(max_tokens=NUM_NEW, temperature=temperature, top_p=0.9, seed=5)
    answers = []
    for decode_graphs in (True, False):
        launching = Launching(decode_graphs=decode_graphs, prompt_graphs=False, warm_up=False)
        engine = engine_of(folder, 2, dtype="bfloat16", launching=launching)
        answers.append([generate(engine, prompts()[:count], sampling) for count in (1, 3, 9)])
        engine.close()
    assert answers[0] == answers[1]


def test_long_decode_keeps_all_ranks_in_step(folder: Path) -> None:
    """Thousands of steps of changing width: what the last one draws follows from every one before it."""
    engine = engine_of(folder, 2, dtype="float32")
    alone = engine_of(folder, 1, dtype="float32", kv_memory=1 << 30)
    sampling = Sampling(max_tokens=300, temperature=0.0)
    for _ in range(4):
        assert generate(engine, prompts(), sampling) == generate(alone, prompts(), sampling)
    engine.close()
    alone.close()


@pytest.mark.parametrize("kind", ["nixl", "grpc"])
@pytest.mark.parametrize(("mine", "theirs"), [(1, 2), (2, 1), (2, 2)])
def test_handoffs_between_workers_whose_ranks_are_on_several_gpus(kind: str, mine: int, theirs: int) -> None:
    """One NIXL agent holds the memory of all GPUs of its worker; ranks of the two workers lie crosswise."""
    devices = [torch.device("cuda", 0), torch.device("cuda", 1)]
    here = KVPool(tp(mine), NUM_PAGES, devices[:mine])
    there = KVPool(tp(theirs), NUM_PAGES, devices[::-1][:theirs])
    check_handoff(kind, here, there)
