"""What a GPU machine will be asked to run is at least spelled right."""

import sys
from pathlib import Path

import pytest
import torch

from bench.attention import CASES, make_batch
from bench.engine import GPU_WORK, choose, engine_fields
from bench.gpu_check import Stage, run_stage, short, stages
from engine.attention.base import AttentionShape
from engine.attention.torch_ref import TorchReference
from engine.runtime.config import Formats, Launching, Parallel


def option(stage: Stage, name: str) -> str:
    return stage.command[stage.command.index(name) + 1]


@pytest.mark.parametrize("num_gpus", [1, 2])
def test_stages_name_work_and_settings_that_exist(num_gpus: int) -> None:
    found = stages(num_gpus)
    assert len({stage.name for stage in found}) == len(found)
    for stage in found:
        if "bench.engine" in stage.command:
            assert choose(option(stage, "--work"), GPU_WORK)
        if "--engine" in stage.command:
            assert engine_fields(option(stage, "--engine"))
        for path in [part for part in stage.command if part.endswith(".py")]:
            assert Path(path).is_file()
    transfer = found[-1]
    assert option(transfer, "--device") == f"cuda:{num_gpus - 1}"


def test_engine_settings_reach_their_part() -> None:
    found = engine_fields("page_size=64,kv_dtype=fp8_e4m3,decode_graphs=false,attention_backend=fa2,tp_size=2")
    assert found == {
        "page_size": 64,
        "attention_backend": "fa2",
        "formats": Formats(kv_dtype="fp8_e4m3"),
        "launching": Launching(decode_graphs=False),
        "parallel": Parallel(2),
    }


def test_a_stage_is_run_and_its_table_read(tmp_path: Path) -> None:
    say = "import json; print('noise'); print(json.dumps({'rows': [{'us': 1.25, 'name': 'x', 'top': 1}]}))"
    state, _, rows = run_stage(Stage("good", ("-c", say), 60, lambda said: said["rows"]), tmp_path)
    assert state == "ok" and [short(row) for row in rows] == ["us 1.25  name x"]
    assert "noise" in (tmp_path / "good.log").read_text() and sys.executable
    state, _, rows = run_stage(Stage("bad", ("-c", "raise SystemExit('went wrong')"), 60), tmp_path)
    assert state == "exit code 1" and rows == [{"last line": "went wrong"}]


@pytest.mark.parametrize("case", [case for case in CASES if case.batch <= 8], ids=lambda case: case.name)
def test_batches_of_the_attention_benchmark_are_what_they_say(case: object) -> None:
    batch, num_pages = make_batch(case, 64, "cpu")  # type: ignore[arg-type]
    assert batch.is_decode == (case.num_new == 1) and batch.max_seqlen == case.length  # type: ignore[attr-defined]
    assert sorted(batch.page_table_BP.flatten().tolist()) == list(range(num_pages))
    assert len(batch.slots_T.unique()) == len(batch.slots_T)
    if batch.is_decode and len(batch.starts) == 1:
        shape = AttentionShape(2, 1, 8, 1.0, (None, None))
        backend = TorchReference(torch.randn(num_pages, 2, 2, 64, 1, 8), shape)
        backend.plan(batch)
        assert backend.attend(1, torch.randn(1, 2, 8))[0].shape == (1, 2, 8)
