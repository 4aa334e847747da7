"""Frequencies of each kind of rope scaling equal transformers'."""

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from engine.core.errors import CheckpointError
from engine.models.facts import Facts
from engine.models.rope import rotation_table
from engine.models.rope_config import parse_rope

CONFIG = Path("config.json")


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "default", "rope_theta": 1e6},
        {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e4},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
            "rope_theta": 5e5,
        },
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768, "rope_theta": 1e6},
    ],
    ids=lambda rope: rope["rope_type"],
)
def test_table_equals_transformers_far_out(rope: dict, head_dim: int) -> None:
    """At position 100,000 a wrong last bit of a frequency shows: the published shapes of Llama 3.1 and Qwen2.5."""
    config = {"max_position_embeddings": 131072, "rope_parameters": dict(rope)}
    parsed, max_position = parse_rope(Facts(CONFIG, config), head_dim, 100_001)
    table = rotation_table(parsed, head_dim, max_position)
    reference = LlamaRotaryEmbedding(LlamaConfig(head_dim=head_dim, **config))
    positions = torch.tensor([[0, 1, 4097, 100_000]])
    cos, sin = reference(torch.zeros(1), positions)
    half = head_dim // 2
    torch.testing.assert_close(table[positions[0]], torch.cat((cos[0, :, :half], sin[0, :, :half]), -1))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, 1000),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, 4000),
        ({"rope_scaling": {"type": "dynamic", "factor": 4.0}}, 1000),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1000}}, 4000),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 250}}, 1000),
        ({"rope_scaling": {"type": "yarn", "original_max_position_embeddings": 250}}, 1000),
    ],
)
def test_longest_sequence(fields: dict, expected: int) -> None:
    assert parse_rope(Facts(CONFIG, {"max_position_embeddings": 1000} | fields), 64, None)[1] == expected


def test_the_operator_may_ask_for_less_and_with_dynamic_scaling_for_more() -> None:
    plain = Facts(CONFIG, {"max_position_embeddings": 1000})
    dynamic = Facts(CONFIG, {"max_position_embeddings": 1000, "rope_scaling": {"type": "dynamic", "factor": 2.0}})
    assert parse_rope(plain, 64, 10)[1] == 10
    with pytest.raises(CheckpointError, match=r"^config.json: max_model_len is 1001, expected 1 to 1000$"):
        parse_rope(plain, 64, 1001)
    within, stretched = parse_rope(dynamic, 64, 1000)[0], parse_rope(dynamic, 64, 2000)[0]
    assert within == parse_rope(plain, 64, None)[0]
    assert stretched.theta == pytest.approx(10000 * 3.0 ** (64 / 62))
    with pytest.raises(CheckpointError, match="expected 1 to 2000"):
        parse_rope(dynamic, 64, 2001)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rope_scaling": {"rope_type": "longrope"}}, 'rope_type is "longrope", expected one of default, linear'),
        ({"rope_scaling": {"type": "mrope"}}, 'type is "mrope", expected one of'),
        ({"rope_scaling": {"type": "linear"}}, "factor is missing, expected a number"),
        ({"rope_scaling": {"type": "linear", "factor": "x"}}, 'factor is "x", expected a number'),
        ({"rope_scaling": {"type": "linear", "factor": 0.5}}, "factor is 0.5, expected a number of at least 1"),
        ({"rope_scaling": {"type": "llama3", "factor": 8.0}}, "low_freq_factor is missing"),
        (
            {"rope_scaling": {"type": "llama3", "factor": 8.0, "low_freq_factor": 4, "high_freq_factor": 4}},
            "high_freq_factor is 4, expected a number above low_freq_factor",
        ),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1.0}}}, "full_attention is"),
        ({"rope_scaling": [1]}, r"rope_scaling is \[1\], expected a JSON object"),
        ({"rope_theta": 0}, "rope_theta is 0, expected a number above 1"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5, expected 1.0"),
    ],
)
def test_what_cannot_be_rotated_is_refused_in_words(fields: dict, message: str) -> None:
    with pytest.raises(CheckpointError, match=f"^config.json: {message}"):
        parse_rope(Facts(CONFIG, {"max_position_embeddings": 1000} | fields), 64, None)
