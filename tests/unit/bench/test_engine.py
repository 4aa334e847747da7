"""The offline benchmark: its arithmetic, and one small run of the whole of it."""

import json

import pytest
import typer
from typer.testing import CliRunner

from bench import engine
from bench.engine import CPU_WORK, GPU_WORK, Work, choose, summarize
from bench.engine_driver import Timeline, median_gap
from bench.engine_limits import Limits
from bench.shapes import SHAPES


def timeline(seconds: float, tokens: list[list[int]]) -> Timeline:
    return Timeline(first_token_s=[seconds], full_step_s=[0.0, seconds, 3 * seconds], end_s=9.0, tokens=tokens)


def test_medians_and_pairwise_ratios() -> None:
    pairs = [(timeline(1.0, [[1]]), timeline(2.0, [[1]])), (timeline(4.0, [[1]]), timeline(4.0, [[2]]))]
    result = summarize(
        Work("prefill", 1, 100, target_ms=2000), [*pairs, (timeline(2.0, [[1]]), timeline(6.0, [[1]]))], None
    )
    assert result["ms"] == 2000 and result["tokens_per_s"] == 50 and result["meets_target"] is True
    assert result["peer_ms"] == 4000 and result["speedup"] == 2.0
    assert result["same_outputs"] == pytest.approx(2 / 3)


def test_each_kind_measures_its_own_time() -> None:
    times = timeline(0.5, [])
    assert [Work(kind, 1, 1).seconds(times) for kind in ("prefill", "extend", "decode", "batch")] == [
        0.5,
        0.5,
        1.0,
        9.0,
    ]
    assert median_gap([0.0, 1.0, 3.0, 9.0]) == 2.0


def test_limits_of_an_8b_model_on_one_h200() -> None:
    """The design's own numbers: 3.7 ms for one row, 14.1 ms for 256, 168 ms for a prompt of 8,192 tokens."""
    limits = Limits.of_shape(SHAPES["llama-8b"])
    assert limits.decode_s(1, 1100) * 1e3 == pytest.approx(3.7, rel=0.05)
    assert limits.extend_s(1, 8192) * 1e3 == pytest.approx(168, rel=0.1)
    assert limits.extend_s(1, 256, 16000) < limits.extend_s(1, 512, 16000) / 1.9


def test_work_is_chosen_by_name() -> None:
    assert choose("", CPU_WORK) == list(CPU_WORK)
    assert [work.batch for work in choose("decode-64x1024,prefill-1x512", GPU_WORK)] == [64, 1]
    with pytest.raises(typer.BadParameter, match="decode-7x7"):
        choose("decode-7x7", CPU_WORK)


def test_the_whole_benchmark_on_a_tiny_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = SHAPES["cpu-20m"] | {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "vocab_size": 64}
    monkeypatch.setitem(SHAPES, "cpu-20m", tiny | {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16})
    monkeypatch.setattr(engine, "CPU_KV_BYTES", 8 << 20)
    monkeypatch.setattr(engine, "CPU_WORK", (Work("prefill", 2, 20), Work("decode", 3, 9, num_new=6)))
    app = typer.Typer()
    app.command()(engine.main)
    result = CliRunner().invoke(app, ["--model-shape", "cpu-20m", "--repeats", "1", "--json"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout.splitlines()[-1])
    assert [row["work"] for row in report["work"]] == ["prefill-2x20", "decode-3x9"]
    assert all(row["speedup"] > 0 and row["ms"] > 0 for row in report["work"])
