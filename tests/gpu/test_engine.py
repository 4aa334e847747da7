"""The whole engine on a GPU: tokens against transformers, graphs against launches, prefix hits, mixed batches."""

from array import array
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from engine.core.types import FinishReason, Request, Sampling
from engine.runtime.build import Engine, build_engine
from engine.runtime.config import EngineConfig, Launching

NUM_NEW = 24
LENGTHS = (1, 15, 16, 17, 127, 128, 129, 300, 700)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of some 0.3B parameters whose logits are far enough apart for float32."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=1024,
        intermediate_size=2816,
        num_hidden_layers=12,
        num_attention_heads=16,
        num_key_value_heads=4,
        max_position_embeddings=4096,
        initializer_range=0.05,
    )
    path = tmp_path_factory.mktemp("llama")
    LlamaForCausalLM(config).save_pretrained(path)
    return path


def prompts() -> list[list[int]]:
    rng = torch.Generator().manual_seed(1)
    return [torch.randint(0, 32000, (length,), generator=rng).tolist() for length in LENGTHS]


def generate(engine: Engine, requests: list[list[int]], sampling: Sampling) -> list[list[int]]:
    """Run all requests at once; their new tokens."""
    outputs: dict[int, list[int]] = {}
    for id, tokens in enumerate(requests):
        outputs[id] = []
        engine.core.submit(Request(id, array("i", tokens), len(tokens), sampling, 0.0, 1e9))
    open_requests = len(requests)
    while open_requests:
        result = engine.core.step(0.0)
        for id, token in zip(result.ids, result.tokens, strict=True):
            outputs[id].append(token)
        assert all(each.reason is FinishReason.LENGTH for each in result.finished)
        open_requests -= len(result.finished)
    engine.core.check_integrity()
    return [outputs[id] for id in range(len(requests))]


def engine_of(folder: Path, **options: object) -> Engine:
    settings = {"device": "cuda", "kv_memory": 2 << 30, "max_step_tokens": 256, "max_model_len": 1024} | options
    return build_engine(EngineConfig(model=str(folder), **settings))  # type: ignore[arg-type]


def test_greedy_tokens_are_those_of_transformers(folder: Path) -> None:
    reference = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).cuda()
    expected = []
    for tokens in prompts():
        ids = torch.tensor([tokens], device="cuda")
        out = reference.generate(ids, max_new_tokens=NUM_NEW, min_new_tokens=NUM_NEW, do_sample=False)
        expected.append(out[0, len(tokens) :].tolist())
    engine = engine_of(folder, dtype="float32")
    greedy = Sampling(max_tokens=NUM_NEW, temperature=0.0)
    assert generate(engine, prompts(), greedy) == expected, "cold"
    assert generate(engine, prompts(), greedy) == expected, "from the prefix cache"
    engine.close()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_graphs_draw_what_launches_draw(folder: Path, temperature: float) -> None:
    sampling = Sampling(max_tokens=NUM_NEW, temperature=temperature, top_p=0.9, seed=5)
    answers = []
    for decode_graphs in (True, False):
        launching = Launching(decode_graphs=decode_graphs, prompt_graphs=False, warm_up=False)
        engine = engine_of(folder, dtype="bfloat16", launching=launching)
        answers.append([generate(engine, prompts()[:count], sampling) for count in (1, 3, 9)])
        engine.close()
    assert answers[0] == answers[1]


def test_steady_decode_allocates_nothing(folder: Path) -> None:
    engine = engine_of(folder, dtype="bfloat16")
    greedy = Sampling(max_tokens=200, temperature=0.0)
    generate(engine, prompts()[:4], greedy)
    before = torch.cuda.memory_stats()["num_device_alloc"]
    generate(engine, prompts()[:4], greedy)
    assert torch.cuda.memory_stats()["num_device_alloc"] == before
    engine.close()


@pytest.mark.parametrize("attention", ["auto", "fa3", "fa2", "triton"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_prompts_as_graphs_draw_what_launches_draw(folder: Path, temperature: float, attention: str) -> None:
    """Of the graphs' own lengths bit for bit: others are computed with padding, where products may round otherwise."""
    sampling = Sampling(max_tokens=3, temperature=temperature, top_p=0.9, seed=5)
    rng = torch.Generator().manual_seed(2)
    first, *others = (torch.randint(0, 32000, (length,), generator=rng).tolist() for length in (256, 32, 96, 512))
    requests = [first, *others]
    answers = []
    for prompt_graphs in (True, False):
        launching = Launching(prompt_graphs=prompt_graphs, warm_up=False)
        engine = engine_of(
            folder, dtype="bfloat16", launching=launching, max_step_tokens=512, attention_backend=attention
        )
        answers.append([generate(engine, [request], sampling) for request in requests])
        engine.close()
    assert answers[0] == answers[1]


@pytest.mark.parametrize(
    ("dtype", "attention", "tolerance"), [("float32", "auto", 1e-3), ("bfloat16", "fa3", 0.1), ("bfloat16", "fa2", 0.1)]
)
def test_padding_and_cached_prefixes_change_nothing_but_rounding(
    folder: Path, dtype: str, attention: str, tolerance: float
) -> None:
    prompt = (prompts()[-1] * 2)[:1000]
    asked = Sampling(max_tokens=1, temperature=0.0, num_logprobs=5)
    answers: list[list[float]] = []
    for prompt_graphs in (True, False):
        launching = Launching(prompt_graphs=prompt_graphs, warm_up=False)
        engine = engine_of(folder, dtype=dtype, attention_backend=attention, launching=launching, max_step_tokens=1024)
        for length in (33, 300, 999):  # the last one behind pages of the one before
            engine.core.submit(Request(length, array("i", prompt[:length]), length, asked, 0.0, 1e9))
            result = engine.core.step(0.0)
            while not result.ids:
                result = engine.core.step(0.0)
            assert result.logprobs is not None and result.logprobs[0] is not None
            answers.append([each for _, each in result.logprobs[0].top])
        engine.close()
    torch.testing.assert_close(torch.tensor(answers[:3]), torch.tensor(answers[3:]), atol=tolerance, rtol=0)
