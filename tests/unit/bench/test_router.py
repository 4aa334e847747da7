"""The router's benchmark on a small made-up trace: its parts run, agree with what can be known, and print JSON."""

import json
from array import array
from pathlib import Path

import pytest

from bench import router, router_index, router_memory, router_peer, router_process
from bench.router_cluster import Cluster
from bench.router_machine import LAYOUT, PAGE_SIZE, POOL_PAGES, step_ms
from bench.router_policies import Level, Play, behind, play
from bench.router_trace import (
    BLOCK_TOKENS,
    TraceRequest,
    at_rate,
    ceiling_hit_rate,
    load_trace,
    whole_conversations,
    write_trace,
)
from bench.router_workers import FastSession
from engine.core.messages import Adopt, DeliverTicket, Generate, KVEvent, PagesRemoved, PagesStored, Prefill
from engine.core.types import Request, Sampling, token_buffer
from router.policies.registry import POLICY_NAMES


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    write_trace(tmp_path / "trace.jsonl", 40, seed=1)
    return tmp_path / "trace.jsonl"


# ------------------------------------------------------------------------------------------------------ trace


def test_a_trace_is_read_as_slices_and_equal_blocks_are_equal_tokens(trace: Path) -> None:
    requests = load_trace(trace)
    assert len(requests) == 40 and requests[0].arrival_s == 0.0
    part = load_trace(trace, 10, 5)
    assert [each.blocks for each in part] == [each.blocks for each in requests[10:15]]
    assert part[0].arrival_s == 0.0
    first = requests[0]
    other = TraceRequest(0.0, 700, 1, (first.blocks[0], 999))
    assert first.tokens()[:BLOCK_TOKENS] == other.tokens()[:BLOCK_TOKENS]
    assert len(other.tokens()) == 700
    assert all(len(each.tokens()) == each.num_tokens for each in requests)


def test_time_is_stretched_to_a_rate(trace: Path) -> None:
    stretched = at_rate(load_trace(trace), 8.0)
    assert len(stretched) / stretched[-1].arrival_s == pytest.approx(8.0)


def test_a_slice_of_conversations_keeps_all_their_turns(trace: Path) -> None:
    requests = load_trace(trace)
    kept = whole_conversations(requests, 2)
    assert 0 < len(kept) < len(requests)
    roots = {each.blocks[1] for each in kept}
    assert [each for each in requests if each.blocks[1] in roots] == kept


@pytest.mark.parametrize(
    "line", ["{}", "no json", '{"timestamp": 0, "input_length": 600, "output_length": 1, "hash_ids": [1]}']
)
def test_a_line_that_is_no_request_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "bad").write_text(line + "\n")
    with pytest.raises(ValueError, match="bad:1"):
        load_trace(tmp_path / "bad")


def test_the_ceiling_counts_whole_blocks_before_the_last_token() -> None:
    size = BLOCK_TOKENS
    requests = [
        TraceRequest(0, 2 * size, 1, (1, 2)),
        TraceRequest(1, 2 * size, 1, (1, 2)),
        TraceRequest(2, size, 1, (3,)),
    ]
    assert ceiling_hit_rate(requests) == size / (5 * size)


# ------------------------------------------------------------------------------------------------------ index


class FakePeer:
    """As DynamoPeer, by plain sets."""

    def __init__(self, page_size: int) -> None:
        self._page_size = page_size
        self._held: dict[int, set[bytes]] = {}
        self._digests: dict[int, bytes] = {}

    def learn(self, digests: list[bytes], hashes: list[int]) -> None:
        self._digests.update(zip(hashes, digests, strict=True))

    def hashes(self, tokens: "array[int]") -> list[int]:
        size = self._page_size
        return [hash(tokens[: end + size].tobytes()) for end in range(0, len(tokens) // size * size, size)]

    def apply(self, worker: int, event: KVEvent) -> None:
        held = self._held.setdefault(worker, set())
        if isinstance(event, PagesStored):
            held.update(event.digests)
        elif isinstance(event, PagesRemoved):
            held.difference_update(event.digests)

    def match(self, hashes: list[int]) -> dict[int, int]:
        runs = {}
        for worker, held in self._held.items():
            found = [self._digests[each] in held for each in hashes]
            runs[worker] = [*found, False].index(False)
        return runs


def test_index_gives_the_peers_answers(trace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(router_index, "DynamoPeer", FakePeer)
    monkeypatch.setattr(router_index, "POOL_TOKENS", 12_800)  # small, so that pages are evicted
    report = router_index.compare(load_trace(trace), [3], 64, 10, 0)
    (row,) = report["rows"]
    assert report["dynamo"] == "ran" and row["lookups"] >= 10
    assert row["lookup"]["ratio"] > 0 and row["tokens"]["dynamo_p50_us"] > 0


def test_a_missing_peer_is_said_in_words(trace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(page_size: int) -> None:
        raise ImportError("no such package")

    monkeypatch.setattr(router_index, "DynamoPeer", missing)
    report = router_index.compare(load_trace(trace), [2], 64, 5, 0)
    assert "no such package" in str(report["dynamo"])
    assert report["lookup_us"] > 0


# --------------------------------------------------------------------------------------------------- policies


def test_step_times_are_those_that_were_measured() -> None:
    """docs/results/h200.md, within a tenth."""
    for num_rows, measured_ms in ((1, 4.43), (8, 4.96), (64, 6.88), (128, 9.61), (256, 15.65)):
        assert sum(step_ms([1100] * num_rows, [1] * num_rows)) == pytest.approx(measured_ms, rel=0.1)
    for num_tokens, measured_ms in ((512, 12.6), (2048, 49.8), (8192, 211.0)):
        assert sum(step_ms([0], [num_tokens])) == pytest.approx(measured_ms, rel=0.1)
    assert POOL_PAGES * PAGE_SIZE == 491_520 and LAYOUT.page_bytes == 64 << 20


@pytest.mark.parametrize("policy", POLICY_NAMES)
def test_every_policy_answers_the_whole_trace(trace: Path, policy: str) -> None:
    requests = load_trace(trace)
    row = play(Level(4, 2.0), policy, requests, 0)
    assert row["failed"] == 0 and row["retries"] == {}
    assert row["pairs"] + row["whole"] == len(requests)
    assert 0.0 <= row["hit_rate"] <= 1.0 and row["ttft_ms"]["mean"] > 0
    assert row == play(Level(4, 2.0), policy, requests, 0) | {"cpu_s": row["cpu_s"]}


def test_every_client_gets_its_tokens(trace: Path) -> None:
    requests = load_trace(trace)
    seen = Play(Cluster(2, "cost", 0, oracle=True)).run(at_rate(requests, 1.0))
    assert [each.tokens for each in seen] == [request.num_new for request in requests]
    found = sum(each.cached for each in seen) / sum(each.request.num_tokens for each in seen)
    assert 0 < found <= ceiling_hit_rate(requests)


def test_where_another_policy_is_ahead_is_said() -> None:
    ours = {"policy": "cost", "ttft_ms": {"mean": 2.0, "p90": 3.0, "p99": 4.0}, "goodput": 1.0}
    other = {"policy": "random", "ttft_ms": {"mean": 3.0, "p90": 2.0, "p99": 5.0}, "goodput": 0.9}
    assert behind([ours, other]) == ["random: TTFT p90 2 < 3 ms"]


# ----------------------------------------------------------------------------------------------------- process


def request(id: int, num_tokens: int, num_new: int) -> Request:
    return Request(id, token_buffer([5] * num_tokens), num_tokens, Sampling(max_tokens=num_new), 0.0, 60.0)


def test_a_worker_answers_at_once_and_then_by_the_step() -> None:
    session = FastSession(100)
    session.on_command(Generate(request(1, 300, 3)))
    assert session.news.is_set()
    first = session.take(with_load=True)
    assert (first.ids, first.finished, first.kv_seq) == ([1], [], 1)
    assert first.load is not None and first.load.running_rows == 1
    session.step()
    session.step()
    last = session.take(with_load=False)
    assert last.ids == [1, 1] and [each.id for each in last.finished] == [1]
    assert not session.rows and not session.take(with_load=False)


def test_a_prompt_is_handed_over() -> None:
    source, target = FastSession(100), FastSession(100)
    target.on_command(Adopt(request(7, 300, 2)))
    source.on_command(Prefill(request(7, 300, 2)))
    said = source.take(with_load=False)
    assert said.ids == [7] and not said.finished and [each.last for each in said.tickets] == [True]
    target.on_command(DeliverTicket(7, said.tickets[0].ticket))
    target.step()
    heard = target.take(with_load=False)
    assert [each.id for each in heard.adopted] == [each.id for each in heard.finished] == [7] and heard.ids == [7]
    assert source.rows == {} and said.kv_events and not heard.kv_events


def test_a_missing_peer_router_is_said_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(router_peer, "MODULE", "no_such_router")
    assert "no_such_router cannot be imported" in router_process.peer(router_process.sizes_of(0.1), 0)["ran"]


# ------------------------------------------------------------------------------------------------ command line


def test_the_last_line_is_one_object(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--trace", str(trace), "--part", "index,policies", "--workers", "2", "--json", "--one-in", "1"]
    asked += ["--index-requests", "20", "--lookups", "5", "--requests", "20", "--rates", "1"]
    asked += ["--policies", "cost", "random"]
    assert router.main(asked) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["lookup_us"] > 0 and report["hit_rate_vs_oracle"] > 0
    assert report["cpu_ms_per_request"] is None, "that part was not asked for"


def test_an_unknown_part_is_refused(trace: Path) -> None:
    with pytest.raises(SystemExit):
        router.arguments(["--trace", str(trace), "--part", "everything"])


def test_the_index_of_a_large_service_is_measured_and_bounded() -> None:
    report = router_memory.measure(router_memory.MemorySizes(workers=20, pages=2000, shared=100), 500, 0)
    whole, bounded = report["whole"], report["bounded"]
    assert isinstance(whole, dict) and isinstance(bounded, dict)
    assert (whole["entries"], whole["distinct_pages"], whole["left_out"]) == (40_000, 20 * 1900 + 100, 0)
    assert bounded["left_out"] + bounded["entries"] == 40_000 and bounded["entries"] <= 20 * 500
    with pytest.raises(SystemExit):
        router.arguments(["--part", "index"])
    assert router.arguments(["--part", "memory"]).trace is None
