"""The seeds' experiment at a size for every test run: counts, not wall time."""

from bench.rag import make_prompts, measure
from engine.runtime.build import build_engine
from engine.runtime.config import EngineConfig
from tests.fakes.checkpoints import tiny_checkpoint


def test_documents_are_computed_once() -> None:
    engine = build_engine(EngineConfig(model=str(tiny_checkpoint("llama")), device="cpu", kv_memory=1 << 25))
    try:
        report = measure(engine, document_tokens=800, answer_tokens=4, seed=0)
        engine.core.check_integrity()
    finally:
        engine.close()
    skipped = report["document_tokens_skipped"]
    assert isinstance(skipped, float)
    assert skipped >= 0.97
    assert report["mixed_hits"] == 10
    assert report["mixed_prompts"] == 12
    assert report["same_answers"] is True


def test_prompts_of_a_document_share_it_and_nothing_more() -> None:
    prompts = make_prompts(500, seed=1)
    documents = {tuple(prompt.tokens[:500]) for prompt in prompts}
    assert len(documents) == 2
    assert len({tuple(prompt.tokens) for prompt in prompts}) == 12
