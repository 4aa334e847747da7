"""config.json and generation_config.json become facts, or one line that says what is wrong."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from engine.core.errors import CheckpointError
from engine.models.config import GenerationConfig, RopeConfig, load_generation_config
from engine.models.registry import ARCHITECTURES, load_config

LLAMA_3_1_8B = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 128256,
}


QWEN3_WINDOW = {"architectures": ["Qwen3ForCausalLM"], "use_sliding_window": True, "sliding_window": 9}


def write(folder: Path, fields: dict[str, Any], generation: Any = None) -> Path:
    (folder / "config.json").write_text(json.dumps(LLAMA_3_1_8B | fields))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


def test_a_published_configuration(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, {}))
    assert (config.num_layers, config.hidden_size, config.intermediate_size) == (32, 4096, 14336)
    assert (config.vocab_size, config.max_position, config.dtype) == (128256, 131072, "bfloat16")
    assert config.eos_token_ids == (128001, 128008, 128009)
    facts = config.attention
    assert (facts.num_heads, facts.num_kv_heads, facts.head_dim) == (32, 8, 128)
    assert facts.sliding_windows == (None,) * 32
    assert facts.rope == RopeConfig(500000.0, "llama3", 8.0, original_max_position=8192)
    assert not (facts.qkv_bias or facts.output_bias or facts.qk_norm or config.mlp_bias or config.tied_embeddings)


@pytest.mark.parametrize(
    ("fields", "windows"),
    [
        ({"architectures": ["MistralForCausalLM"], "sliding_window": 4096}, [4096] * 4),
        ({"architectures": ["MistralForCausalLM"], "sliding_window": None}, [None] * 4),
        ({"architectures": ["LlamaForCausalLM"], "sliding_window": 7}, [None] * 4),
        ({"sliding_window": 7, "max_window_layers": 0}, [None] * 4),
        ({"sliding_window": 7, "max_window_layers": 3, "use_sliding_window": True}, [None, None, None, 7]),
        ({"sliding_window": 7, "max_window_layers": 28, "use_sliding_window": True}, [None] * 4),
        ({"sliding_window": None, "max_window_layers": 0, "use_sliding_window": True}, [None] * 4),
        (
            {
                "sliding_window": 7,
                "use_sliding_window": True,
                "layer_types": ["sliding_attention", "full_attention", "full_attention", "sliding_attention"],
            },
            [7, None, None, 7],
        ),
    ],
)
def test_windows_of_each_layer(tmp_path: Path, fields: dict, windows: list) -> None:
    defaults = {"num_hidden_layers": 4, "architectures": ["Qwen2ForCausalLM"]}
    assert load_config(write(tmp_path, defaults | fields)).attention.sliding_windows == tuple(windows)


def test_heads_default_as_in_transformers(tmp_path: Path) -> None:
    facts = load_config(write(tmp_path, {"num_key_value_heads": None, "head_dim": None})).attention
    assert (facts.num_kv_heads, facts.head_dim) == (32, 128)
    assert load_config(write(tmp_path, {"head_dim": 64})).attention.head_dim == 64


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"architectures": ["GemmaForCausalLM"]}, f"architecture GemmaForCausalLM .* {', '.join(ARCHITECTURES)}$"),
        ({"architectures": []}, "architecture missing is not supported"),
        ({"architectures": None}, "architecture missing is not supported"),
        ({"architectures": "LlamaForCausalLM"}, 'architectures is "LlamaForCausalLM", expected a list of strings'),
        ({"quantization_config": {"quant_method": "gptq"}}, 'quant_method is "gptq", expected one of fp8'),
        ({"hidden_act": "gelu"}, 'hidden_act is "gelu", expected "silu"'),
        ({"hidden_size": "4096"}, 'hidden_size is "4096", expected an integer of at least 1'),
        ({"hidden_size": 4095}, r"hidden_size is 4095, expected a multiple of num_attention_heads \(32\)"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0, expected an integer of at least 1"),
        ({"num_hidden_layers": True}, "num_hidden_layers is true, expected an integer"),
        ({"vocab_size": None}, "vocab_size is null, expected an integer"),
        ({"num_key_value_heads": 5}, r"num_key_value_heads is 5, expected a divisor of num_attention_heads \(32\)"),
        ({"head_dim": 127}, "head_dim is 127, expected an even number"),
        ({"rms_norm_eps": -1}, "rms_norm_eps is -1, expected a number of at least 0"),
        ({"torch_dtype": "int8"}, 'torch_dtype is "int8", expected one of float32, bfloat16, float16'),
        ({"dtype": "float64"}, 'dtype is "float64", expected one of'),
        ({"tie_word_embeddings": "yes"}, 'tie_word_embeddings is "yes", expected true or false'),
        ({"eos_token_id": "</s>"}, 'eos_token_id is "</s>", expected a token id or a list of token ids'),
        (
            QWEN3_WINDOW | {"layer_types": ["x"]},
            r'layer_types is \["x"\], expected 32 of full_attention or sliding_attention',
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line(tmp_path: Path, fields: dict, message: str) -> None:
    with pytest.raises(CheckpointError, match=f"^{tmp_path / 'config.json'}: {message}") as caught:
        load_config(write(tmp_path, fields))
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "missing; a checkpoint folder needs this file"),
        (b'{"architectures": ["Lla', "broken JSON: Unterminated string"),
        (b"\xff\xfe\x00", "broken JSON: "),
        (b"[]", "expected a JSON object, found list"),
    ],
)
def test_a_broken_file_is_one_line(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=f"^{tmp_path / 'config.json'}: {message}") as caught:
        load_config(tmp_path)
    assert "\n" not in caught.value.message


def test_generation_config_wins_over_config_json(tmp_path: Path) -> None:
    asked = {"eos_token_id": 7, "do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 20}
    folder = write(tmp_path, {}, asked | {"repetition_penalty": 1.05, "min_p": 0.1, "transformers_version": "5"})
    assert load_config(folder).eos_token_ids == (7,)
    assert load_generation_config(folder) == GenerationConfig((7,), 0.6, 0.9, 20, 0.1, 1.05)


def test_without_generation_config_there_are_defaults(tmp_path: Path) -> None:
    folder = write(tmp_path, {"eos_token_id": 5})
    assert load_generation_config(folder) == GenerationConfig(eos_token_ids=(5,))
    write(tmp_path, {"eos_token_id": None}, {"temperature": None})
    assert load_generation_config(folder) == GenerationConfig()


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"temperature": "hot"}, 'temperature is "hot", expected a number'),
        ({"top_k": -1}, "top_k is -1, expected an integer of at least 0"),
        ({"eos_token_id": [1, None]}, r"eos_token_id is \[1, null\], expected a token id"),
        ({"temperature": float("nan")}, "temperature is NaN, expected a number"),
    ],
)
def test_a_wrong_generation_config_is_one_line(tmp_path: Path, asked: dict, message: str) -> None:
    folder = write(tmp_path, {}, asked)
    with pytest.raises(CheckpointError, match=f"^{tmp_path / 'generation_config.json'}: {message}"):
        load_generation_config(folder)


def test_a_router_can_read_it_all_without_torch() -> None:
    """Loading torch costs a router about 300 MB."""
    modules = "registry, config, checkpoint, weights"
    code = f"import sys; from engine.models import {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
