"""The engine with KV pages and weights of 8 bits, on the CPU: memory, identity, answers."""

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from engine.core.types import Sampling
from engine.models.checkpoint import SINGLE
from engine.runtime.build import build_engine
from engine.runtime.config import Formats
from kv_transfer.layout import layout_hash
from tests.fakes.checkpoints import tiny_checkpoint
from tests.unit.runtime.test_engine import LENGTHS, config_of, generate, prompts_of

FP8_PAGES = Formats(kv_dtype="fp8_e4m3")
GREEDY = Sampling(max_tokens=20, temperature=0.0)


def test_8_bit_pages_hold_four_times_as_much_and_mostly_the_same_answers() -> None:
    folder = tiny_checkpoint("llama")
    prompts = prompts_of(folder, LENGTHS)
    plain = build_engine(config_of(folder))
    want = generate(plain, prompts, GREEDY)
    for backend in ("torch", "torch_cpu"):
        engine = build_engine(config_of(folder, formats=FP8_PAGES, attention_backend=backend))
        assert engine.pool.layout.dtype == "float8_e4m3fn"
        assert engine.pool.layout.page_bytes * 4 == plain.pool.layout.page_bytes
        assert engine.pool.num_pages > 3.9 * plain.pool.num_pages
        assert layout_hash(engine.pool.layout) != layout_hash(plain.pool.layout)
        first = [tokens[0] for tokens in generate(engine, prompts, GREEDY)]
        agree = sum(token == tokens[0] for token, tokens in zip(first, want, strict=True))
        assert agree >= 0.8 * len(want), f"{agree} of {len(want)} first tokens"
        engine.close()
    plain.close()


def test_pages_of_the_other_half_precision() -> None:
    folder = tiny_checkpoint("llama")
    prompts = prompts_of(folder, LENGTHS)
    engine = build_engine(config_of(folder, formats=Formats(kv_dtype="bfloat16")))
    assert engine.pool.layout.dtype == "bfloat16"
    assert all(len(tokens) == 20 for tokens in generate(engine, prompts, GREEDY))
    engine.close()


def test_quantized_weights_are_another_model() -> None:
    folder = tiny_checkpoint("llama")
    plain, again, rounded = (
        build_engine(config_of(folder, formats=Formats(quantization=each))) for each in ("auto", "none", "fp8")
    )
    assert plain.pool.layout.model_hash == again.pool.layout.model_hash != rounded.pool.layout.model_hash
    prompts = prompts_of(folder, LENGTHS[:4])
    assert [len(tokens) for tokens in generate(rounded, prompts, GREEDY)] == [20] * 4
    for engine in (plain, again, rounded):
        engine.close()


def test_scales_of_the_checkpoint_reach_the_pages(tmp_path: Path) -> None:
    """Scales so small that every value saturates: answers change in 8-bit pages, and in no others."""
    folder = shutil.copytree(tiny_checkpoint("llama"), tmp_path / "model")
    tensors = load_file(folder / SINGLE)
    for layer in range(3):
        for name in ("k_scale", "v_scale"):
            tensors[f"model.layers.{layer}.self_attn.{name}"] = torch.tensor(1e-6)
    save_file(tensors, folder / SINGLE)
    prompts, answers = prompts_of(tiny_checkpoint("llama"), LENGTHS), []
    for path in (tiny_checkpoint("llama"), folder):
        for kv_dtype in ("auto", "fp8_e4m3"):
            engine = build_engine(config_of(path, formats=Formats(kv_dtype)))
            answers.append(generate(engine, prompts, GREEDY))
            engine.close()
    plain, rounded, plain_again, saturated = answers
    assert plain == plain_again and rounded != saturated
