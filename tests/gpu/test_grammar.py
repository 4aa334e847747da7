"""Rows with a grammar on a GPU: valid answers while steps overlap, beside rows whose steps are CUDA graphs."""

import json
from array import array
from pathlib import Path

import pytest

from engine.core.types import FinishReason, Grammar, GrammarKind, Request, Sampling
from engine.runtime.build import Engine, build_engine
from engine.runtime.config import EngineConfig, Launching
from router.text.tokenizer import Tokenizer
from tests.fakes.checkpoints import tiny_checkpoint

SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "n": {"type": "integer", "minimum": 0, "maximum": 999}},
    "required": ["name", "n"],
    "additionalProperties": False,
}
GRAMMAR = Grammar(GrammarKind.JSON_SCHEMA, json.dumps(SCHEMA))
NUM_FREE = 40


def run(engine: Engine, prompts: list[list[int]], settings: list[Sampling]) -> list[tuple[list[int], FinishReason]]:
    """Tokens and ends of requests that run side by side, with two steps in flight."""
    for id, (prompt, sampling) in enumerate(zip(prompts, settings, strict=True)):
        engine.core.submit(Request(id, array("i", prompt), len(prompt), sampling, 0.0, 1e9))
    tokens: list[list[int]] = [[] for _ in prompts]
    ends: dict[int, FinishReason] = {}
    while len(ends) < len(prompts):
        result = engine.core.step(0.0)
        for id, token in zip(result.ids, result.tokens, strict=True):
            tokens[id].append(token)
        ends |= {finished.id: finished.reason for finished in result.finished}
    engine.core.check_integrity()
    return [(tokens[id], ends[id]) for id in range(len(prompts))]


@pytest.fixture(scope="module")
def folder() -> Path:
    return tiny_checkpoint("llama", head_dim=64)


@pytest.mark.parametrize("graphs", [False, True])
def test_valid_answers_beside_rows_that_are_as_if_alone(folder: Path, graphs: bool) -> None:
    config = EngineConfig(
        str(folder),
        device="cuda",
        dtype="float32",
        kv_memory=256 << 20,
        max_model_len=512,
        launching=Launching(decode_graphs=graphs),
    )
    engine = build_engine(config)
    tokenizer = Tokenizer.load(folder)
    end = json.loads((folder / "config.json").read_text())["eos_token_id"]
    prompts = [list(tokenizer.encode(f"item {n}: ")) for n in range(16)]
    greedy = [Sampling(max_tokens=NUM_FREE, temperature=0.0)] * 8
    formed = [
        Sampling(max_tokens=300, temperature=n * 0.4, seed=n, grammar=GRAMMAR, stop_token_ids=(end,)) for n in range(8)
    ]
    together = run(engine, prompts, greedy + formed)
    assert [tokens for tokens, _ in together[:8]] == [tokens for tokens, _ in run(engine, prompts[:8], greedy)]
    for tokens, reason in together[8:]:
        assert reason is FinishReason.STOP and set(json.loads(tokenizer.decode(tokens))) == {"name", "n"}
    resumed = [prompt + tokens[:7] for prompt, (tokens, _) in zip(prompts[8:], together[8:], strict=True)]
    for id, (tokens, sampling) in enumerate(zip(resumed, formed, strict=True)):
        request = Request(100 + id, array("i", tokens), len(prompts[8 + id]), sampling, 0.0, 1e9)
        engine.core.submit(request)
        rest: list[int] = []
        while not (result := engine.core.step(0.0)).finished:
            rest += result.tokens
        rest += result.tokens
        assert rest == together[8 + id][0][7:], "a row that comes back goes on where it stood"
    engine.close()
