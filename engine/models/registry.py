"""Architectures that Baton serves, and how each one's config.json becomes a ModelConfig. Standard library only.

To add a brand of the family: one function that states its facts, one row in ARCHITECTURES.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from engine.core.errors import CheckpointError
from engine.models.config import DTYPES, ModelConfig, load_generation_config
from engine.models.facts import Facts
from engine.models.rope_config import parse_rope


def load_config(folder: Path, max_model_len: int | None = None) -> ModelConfig:
    """Read config.json and generation_config.json of a checkpoint folder.

    Args:
        folder: as returned by engine.models.hub.resolve_model.
        max_model_len: the longest sequence to serve, if not the checkpoint's own maximum. With dynamic rope scaling
            it may go up to `factor` times that maximum, and then fixes the frequencies of all sequences.

    Raises:
        CheckpointError: a file is missing or broken, the architecture or a setting is not supported.
    """
    facts = Facts.read(folder / "config.json")
    names = facts.strings("architectures")
    name = next((name for name in names if name in ARCHITECTURES), None)
    if name is None:
        found, known = ", ".join(names) or "missing", ", ".join(ARCHITECTURES)
        raise CheckpointError(f"{facts.path}: architecture {found} is not supported, expected one of {known}")
    if facts.nested("quantization_config"):
        raise facts.wrong("quantization_config", "none (float32, bfloat16 or float16 weights)")
    if facts.text("hidden_act", "silu") != "silu":
        raise facts.wrong("hidden_act", '"silu"')
    config = ARCHITECTURES[name](facts, _common(facts, name))
    rope, max_position = parse_rope(facts, config.head_dim, max_model_len)
    eos = load_generation_config(folder).eos_token_ids
    return replace(config, rope=rope, max_position=max_position, eos_token_ids=eos)


def _llama(facts: Facts, common: ModelConfig) -> ModelConfig:
    bias = facts.boolean("attention_bias", False)
    return replace(common, qkv_bias=bias, output_bias=bias, mlp_bias=facts.boolean("mlp_bias", False))


def _mistral(facts: Facts, common: ModelConfig) -> ModelConfig:
    window = facts.integer("sliding_window") if facts.present("sliding_window") else None
    return replace(common, sliding_windows=(window,) * common.num_layers)


def _qwen2(facts: Facts, common: ModelConfig) -> ModelConfig:
    return replace(common, qkv_bias=True, sliding_windows=_qwen_windows(facts, common.num_layers))


def _qwen3(facts: Facts, common: ModelConfig) -> ModelConfig:
    bias = facts.boolean("attention_bias", False)
    return replace(
        common,
        qkv_bias=bias,
        output_bias=bias,
        qk_norm=True,
        head_dim=facts.integer("head_dim", 128),
        sliding_windows=_qwen_windows(facts, common.num_layers),
    )


ARCHITECTURES: dict[str, Callable[[Facts, ModelConfig], ModelConfig]] = {
    "LlamaForCausalLM": _llama,
    "MistralForCausalLM": _mistral,
    "Qwen2ForCausalLM": _qwen2,
    "Qwen3ForCausalLM": _qwen3,
}


def _common(facts: Facts, architecture: str) -> ModelConfig:
    """What every architecture of the family states in the same words."""
    num_heads = facts.integer("num_attention_heads")
    num_kv_heads = facts.integer("num_key_value_heads", num_heads)
    num_layers = facts.integer("num_hidden_layers")
    hidden_size = facts.integer("hidden_size")
    if num_heads % num_kv_heads:
        raise facts.wrong("num_key_value_heads", f"a divisor of num_attention_heads ({num_heads})")
    if not facts.present("head_dim") and hidden_size % num_heads:
        raise facts.wrong("hidden_size", f"a multiple of num_attention_heads ({num_heads})")
    head_dim = facts.integer("head_dim", hidden_size // num_heads)
    if head_dim % 2:
        raise CheckpointError(f"{facts.path}: head_dim is {head_dim}, expected an even number")
    dtype_field = "dtype" if facts.present("dtype") else "torch_dtype"
    dtype = facts.text(dtype_field, "float32").removeprefix("torch.")
    if dtype not in DTYPES:
        raise facts.wrong(dtype_field, f"one of {', '.join(DTYPES)}")
    return ModelConfig(
        architecture=architecture,
        num_layers=num_layers,
        hidden_size=hidden_size,
        intermediate_size=facts.integer("intermediate_size"),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        vocab_size=facts.integer("vocab_size"),
        rms_norm_eps=facts.number("rms_norm_eps", 1e-6),
        dtype=dtype,
        sliding_windows=(None,) * num_layers,
        tied_embeddings=facts.boolean("tie_word_embeddings", False),
    )


def _qwen_windows(facts: Facts, num_layers: int) -> tuple[int | None, ...]:
    """Qwen slides only when told to, and then in the layers from max_window_layers on (or as layer_types says)."""
    if not facts.boolean("use_sliding_window", False) or not facts.present("sliding_window"):
        return (None,) * num_layers
    window = facts.integer("sliding_window")
    first = facts.integer("max_window_layers", 28, minimum=0)
    by_depth = ["sliding_attention" if layer >= first else "full_attention" for layer in range(num_layers)]
    kinds = facts.strings("layer_types") or by_depth
    if len(kinds) != num_layers or not set(kinds) <= {"sliding_attention", "full_attention"}:
        raise facts.wrong("layer_types", f"{num_layers} of full_attention or sliding_attention")
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)
