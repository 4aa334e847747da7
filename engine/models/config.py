"""What the engine and the router must know of a checkpoint. Standard library only: the router reads it without torch.

A checkpoint is a folder in the Hugging Face layout. Field names on disk are Hugging Face's; here they are Baton's.
"""

from dataclasses import dataclass
from pathlib import Path

from engine.models.facts import Facts

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, slots=True)
class RopeConfig:
    """Rotary position embedding, every default filled in. Formulas: engine/models/rope.py.

    Dynamic scaling is not a kind of its own: its theta depends on the longest sequence only, and is resolved
    when the configuration is loaded, so that the keys of a prefix never depend on what follows it.
    """

    theta: float = 10000.0
    kind: str = "default"
    """default, linear, llama3 or yarn."""
    factor: float = 1.0
    attention_factor: float = 1.0
    """Multiplies cos and sin (yarn)."""
    original_max_position: int = 0
    """Positions of the first training (llama3, yarn)."""
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True


@dataclass(frozen=True, slots=True)
class AttentionConfig:
    """Facts about the attention of every layer, all ranks together."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope: RopeConfig = RopeConfig()
    sliding_windows: tuple[int | None, ...] = ()
    """Per layer: a token sees itself and the `window - 1` tokens before it; None sees everything."""
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: bool = False
    """RMSNorm over each head's query and key before rotation (Qwen3)."""
    kv_scales: tuple[tuple[float, float], ...] = ()
    """Of k and v in each layer, for KV pages of 8-bit floats; empty where the checkpoint has none."""


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Facts about one decoder of the Llama family; behaviour follows from them, never from a brand name."""

    architecture: str
    """Hugging Face's class name, such as LlamaForCausalLM."""
    num_layers: int
    hidden_size: int
    intermediate_size: int
    vocab_size: int
    max_position: int
    """Tokens of the longest sequence, prompt and output together."""
    attention: AttentionConfig
    rms_norm_eps: float
    dtype: str
    """Of the weights as published: float32, bfloat16 or float16."""
    eos_token_ids: tuple[int, ...] = ()
    """From generation_config.json, else config.json."""
    mlp_bias: bool = False
    tied_embeddings: bool = False
    """The output projection is the embedding table."""
    quantization: str = ""
    """How the published weights of the layers' products are stored: "fp8", or empty for `dtype`."""


@dataclass(frozen=True, slots=True)
class GenerationConfig:
    """What generation_config.json asks for, Baton's own defaults where it is silent or absent."""

    eos_token_ids: tuple[int, ...] = ()
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """0 is off."""
    min_p: float = 0.0
    repetition_penalty: float = 1.0


def load_generation_config(folder: Path) -> GenerationConfig:
    """Read `folder`/generation_config.json; a checkpoint without one takes its end tokens from config.json.

    Raises:
        CheckpointError: a file is broken or a value has the wrong type.
    """
    path = folder / "generation_config.json"
    facts = Facts.read(path) if path.is_file() else Facts(path, {})
    eos = facts.token_ids("eos_token_id") or Facts.read(folder / "config.json").token_ids("eos_token_id")
    return GenerationConfig(
        eos_token_ids=eos,
        temperature=facts.number("temperature", 1.0),
        top_p=facts.number("top_p", 1.0),
        top_k=facts.integer("top_k", 0, minimum=0),
        min_p=facts.number("min_p", 0.0),
        repetition_penalty=facts.number("repetition_penalty", 1.0),
    )
