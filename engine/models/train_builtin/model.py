"""The model that is trained: the serving code itself, with weights that have gradients.

Shape suffixes: T = B L tokens of a batch, H query heads, K kv heads, E head dim.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from engine.models.builtin import SPECIAL_TOKENS, tokenizer_config
from engine.models.config import ModelConfig
from engine.models.llama import Llama
from engine.models.loader import assemble
from engine.models.registry import load_config
from engine.models.weights import parameters

VOCAB_SIZE = 4096
CONTEXT = 4096
SHAPE = {
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
}


class CausalRows:
    """Attention over rows of equal length, packed one after another."""

    def __init__(self, num_rows: int) -> None:
        self.num_rows = num_rows

    def run(self, layer: int, q_THE: Tensor, k_TKE: Tensor, v_TKE: Tensor) -> Tensor:
        """out_THE."""
        group = q_THE.shape[1] // k_TKE.shape[1]
        heads = (q_THE, k_TKE.repeat_interleave(group, dim=1), v_TKE.repeat_interleave(group, dim=1))
        q, k, v = (x.unflatten(0, (self.num_rows, -1)).transpose(1, 2) for x in heads)
        out = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return out.transpose(1, 2).flatten(0, 1)


def write_description(folder: Path, tokenizer: Tokenizer) -> ModelConfig:
    """Everything of a checkpoint folder but its weights."""
    end = tokenizer.get_vocab()[SPECIAL_TOKENS[0]]
    config: dict[str, Any] = SHAPE | {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": tokenizer.get_vocab_size(),
        "hidden_act": "silu",
        "max_position_embeddings": CONTEXT,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": end,
        "dtype": "bfloat16",
    }
    generation = {"eos_token_id": end, "do_sample": True, "temperature": 0.3, "top_p": 0.9}
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    for name, value in (
        ("config.json", config),
        ("generation_config.json", generation),
        ("tokenizer_config.json", tokenizer_config(CONTEXT)),
    ):
        (folder / name).write_text(json.dumps(value, indent=2) + "\n")
    return load_config(folder)


def initial_weights(config: ModelConfig, device: torch.device, seed: int) -> dict[str, Tensor]:
    """float32 weights with gradients: each product keeps the scale of its input, each layer adds little at first."""
    generator = torch.Generator(device).manual_seed(seed)
    tensors = {}
    for name, parameter in parameters(config).items():
        tensor = torch.ones(parameter.shape, device=device)
        if not name.endswith("norm"):
            std = 0.02 if name == "embedding" else parameter.shape[-1] ** -0.5
            if name.endswith(("output.weight", "down.weight")):
                std /= (2 * config.num_layers) ** 0.5
            tensor.normal_(std=std, generator=generator)
        tensors[name] = tensor.requires_grad_()
    return tensors


def build(config: ModelConfig, tensors: dict[str, Tensor]) -> Llama:
    """The serving model over the weights that are trained."""
    return assemble(config, tensors)


def save_weights(path: Path, config: ModelConfig, tensors: dict[str, Tensor]) -> None:
    """Write bfloat16 weights under Hugging Face's names."""
    stored: dict[str, Tensor] = {}
    for name, parameter in parameters(config).items():
        rows = torch.split(tensors[name].detach().bfloat16().cpu(), [source.part[0] for source in parameter.sources])
        stored |= {source.name: part.clone() for source, part in zip(parameter.sources, rows, strict=True)}
    save_file(stored, path, metadata={"format": "pt"})
