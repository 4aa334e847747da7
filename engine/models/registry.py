"""Architectures that Baton serves, and how each one's config.json becomes a ModelConfig. Standard library only.

To add a brand of the family: one function that states its attention's facts, one row in ARCHITECTURES.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from engine.core.errors import CheckpointError
from engine.models.config import DTYPES, AttentionConfig, ModelConfig, load_generation_config
from engine.models.facts import Facts
from engine.models.quantization_config import parse_quantization
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
    if facts.text("hidden_act", "silu") != "silu":
        raise facts.wrong("hidden_act", '"silu"')
    attention = ARCHITECTURES[name](facts, _heads(facts))
    rope, max_position = parse_rope(facts, attention.head_dim, max_model_len)
    return ModelConfig(
        architecture=name,
        num_layers=facts.integer("num_hidden_layers"),
        hidden_size=facts.integer("hidden_size"),
        intermediate_size=facts.integer("intermediate_size"),
        vocab_size=facts.integer("vocab_size"),
        max_position=max_position,
        attention=replace(attention, rope=rope),
        rms_norm_eps=facts.number("rms_norm_eps", 1e-6),
        dtype=_dtype(facts),
        eos_token_ids=load_generation_config(folder).eos_token_ids,
        mlp_bias=facts.boolean("mlp_bias", False),
        tied_embeddings=facts.boolean("tie_word_embeddings", False),
        quantization=parse_quantization(facts),
    )


def _llama(facts: Facts, heads: AttentionConfig) -> AttentionConfig:
    bias = facts.boolean("attention_bias", False)
    return replace(heads, qkv_bias=bias, output_bias=bias)


def _mistral(facts: Facts, heads: AttentionConfig) -> AttentionConfig:
    window = facts.integer("sliding_window") if facts.present("sliding_window") else None
    return replace(heads, sliding_windows=(window,) * len(heads.sliding_windows))


def _qwen2(facts: Facts, heads: AttentionConfig) -> AttentionConfig:
    return replace(heads, qkv_bias=True, sliding_windows=_qwen_windows(facts))


def _qwen3(facts: Facts, heads: AttentionConfig) -> AttentionConfig:
    bias = facts.boolean("attention_bias", False)
    return replace(heads, qkv_bias=bias, output_bias=bias, qk_norm=True, sliding_windows=_qwen_windows(facts))


ARCHITECTURES: dict[str, Callable[[Facts, AttentionConfig], AttentionConfig]] = {
    "LlamaForCausalLM": _llama,
    "MistralForCausalLM": _mistral,
    "Qwen2ForCausalLM": _qwen2,
    "Qwen3ForCausalLM": _qwen3,
}


def _heads(facts: Facts) -> AttentionConfig:
    """What every architecture of the family states in the same words; no biases, no windows."""
    num_heads = facts.integer("num_attention_heads")
    num_kv_heads = facts.integer("num_key_value_heads", num_heads)
    hidden_size = facts.integer("hidden_size")
    if num_heads % num_kv_heads:
        raise facts.wrong("num_key_value_heads", f"a divisor of num_attention_heads ({num_heads})")
    if not facts.present("head_dim") and hidden_size % num_heads:
        raise facts.wrong("hidden_size", f"a multiple of num_attention_heads ({num_heads})")
    head_dim = facts.integer("head_dim", hidden_size // num_heads)
    if head_dim < 4 or head_dim % 2:
        raise CheckpointError(f"{facts.path}: head_dim is {head_dim}, expected an even number of at least 4")
    no_windows = (None,) * facts.integer("num_hidden_layers")
    return AttentionConfig(num_heads, num_kv_heads, head_dim, sliding_windows=no_windows)


def _dtype(facts: Facts) -> str:
    field = "dtype" if facts.present("dtype") else "torch_dtype"
    dtype = facts.text(field, "float32").removeprefix("torch.")
    if dtype not in DTYPES:
        raise facts.wrong(field, f"one of {', '.join(DTYPES)}")
    return dtype


def _qwen_windows(facts: Facts) -> tuple[int | None, ...]:
    """Qwen slides only when told to, and then in the layers from max_window_layers on (or as layer_types says)."""
    num_layers = facts.integer("num_hidden_layers")
    if not facts.boolean("use_sliding_window", False) or not facts.present("sliding_window"):
        return (None,) * num_layers
    window = facts.integer("sliding_window")
    first = facts.integer("max_window_layers", 28, minimum=0)
    by_depth = ["sliding_attention" if layer >= first else "full_attention" for layer in range(num_layers)]
    kinds = facts.strings("layer_types") or by_depth
    if len(kinds) != num_layers or not set(kinds) <= {"sliding_attention", "full_attention"}:
        raise facts.wrong("layer_types", f"{num_layers} of full_attention or sliding_attention")
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)
